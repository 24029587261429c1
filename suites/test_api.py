"""API: how adapters are injected into a model, and how the Trainer treats such a model."""

from typing import Any
from unittest import mock

import peft
import pytest
import torch

from harness import lacking
from harness.fixtures import data, models
from harness.laws import equal, injection
from harness.runs.scenarios import PLAIN, SAVING, SCENARIOS, by_route, cases
from harness.spec import ADD, GET, LORA
from harness.subjects.hf_trainer import adapter_config, inject
from harness.verdict import raises, same, verdict

ROUTES = pytest.mark.parametrize("route", [GET, ADD])
BRIEF = PLAIN.but(max_steps=2)
ADDED = BRIEF.but(adapter={"route": ADD})
MIXED = PLAIN.but(adapter={"options": {"mixed": True}})
COLUMNS = ["input_ids", "attention_mask", "labels"]


def make(spec):
    """Return the spec's model with its adapter."""
    return inject(models.build(spec.model), spec.adapter)


def lora(**fields):
    return adapter_config("LORA", {**LORA, **fields})


def with_column(spec, *columns):
    """Return the spec's rows, each with further columns of the shape of input_ids."""
    rows = [{name: torch.tensor(value) for name, value in row.items()} for row in data.rows(spec.data)[0]]
    return [{**row, **{column: row["attention_mask"].clone() for column in columns}} for row in rows]


# ---- what holds the base model ----


@pytest.mark.clause("API-01")
@pytest.mark.parametrize(
    ("spec", "compiled"),
    [
        pytest.param(PLAIN, False, id="PeftModel"),
        pytest.param(MIXED, False, id="PeftMixedModel"),
        pytest.param(ADDED, False, id=ADD),
        pytest.param(PLAIN, True, id="compiled"),
        pytest.param(ADDED, True, id=f"compiled/{ADD}"),
    ],
)
def test_the_base_is_found_in_whatever_holds_it(spec, compiled, upstream, tmp_path, judge):
    model = make(spec)
    model = torch.compile(model, backend="eager") if compiled else model
    judge(injection.learned(upstream.build(spec, tmp_path, model=model), ["labels"], COLUMNS))


@pytest.mark.clause("API-01")
def test_a_mixed_model_is_the_same_run(train, judge):
    judge(equal.equal_runs(train(MIXED), train(PLAIN)))


@pytest.mark.clause("API-05")
@cases(SCENARIOS | SAVING)
def test_both_routes_are_one_run(spec, train, judge):
    judge(equal.equal_runs(train(spec.but(adapter={"route": ADD})), train(spec)))


# ---- what the Trainer learns from the base model ----

BERT = PLAIN.but(
    model={"family": "bert-classifier"},
    lora={"target_modules": ["query"], "task_type": "SEQ_CLS"},
)


@pytest.mark.clause("API-06")
@pytest.mark.parametrize(
    ("spec", "taken"),
    [
        pytest.param(spec, {"llama": "position_ids", "bert": "token_type_ids"}[id.partition("/")[0]], id=id)
        for id, spec in by_route({"llama": PLAIN, "bert": BERT}).items()
    ],
)
def test_columns_are_those_that_the_bases_forward_takes(spec, taken, upstream, tmp_path, judge):
    trainer = upstream.build(spec, tmp_path, model=make(spec))
    trainer.train_dataset = with_column(spec, taken, "source")
    judge(injection.learned(trainer, ["labels"], [*COLUMNS, taken]))


@pytest.mark.clause("API-06")
@cases(by_route({"loss-keywords": PLAIN}))
def test_a_base_with_loss_keywords_is_given_the_number_of_items(spec, train, judge):
    judge(given(train(spec), True))


@pytest.mark.clause("API-06")
@cases(by_route({"no-loss-keywords": BRIEF.but(model={"family": "harness.fixtures.plain_loss:llama"})}))
def test_a_base_without_loss_keywords_is_not_given_the_number_of_items(spec, train, judge):
    judge(given(train(spec), False))


def given(trace, wanted):
    """Check that the model was given num_items_in_batch with every micro-batch, or with none."""
    seen = [batch.num_items is not None for step in trace.steps for batch in step.batches]
    return same("num_items_in_batch is given", trace.error or seen, [wanted] * trace.spec.arguments["max_steps"])


#: Whether the cache is used, the scenario's name, and the arguments.
USE_CACHE: list[tuple[bool, str, dict[str, Any]]] = [
    (False, "default", {}),
    (True, "use_cache=True", {"use_cache": True}),
]


@pytest.mark.clause("API-07")
@pytest.mark.parametrize(
    ("spec", "use_cache"),
    [
        pytest.param(spec, wanted, id=id)
        for wanted, name, arguments in USE_CACHE
        for id, spec in by_route({name: BRIEF.but(**arguments)}).items()
    ],
)
def test_the_cache_is_switched_as_the_arguments_say(spec, use_cache, upstream, tmp_path, judge):
    base = models.build(spec.model)
    base.config.use_cache = not use_cache
    trainer = upstream.build(spec, tmp_path, model=inject(base, spec.adapter))
    before = base.config.use_cache
    trainer.train()
    seen = {"Trainer()": before, "train()": base.config.use_cache}
    judge(same("config.use_cache of the base after", seen, {"Trainer()": use_cache, "train()": use_cache}))


# ---- several adapters ----


def add(model, name, config):
    """Add a second adapter to a model, by the same route as the first."""
    if isinstance(model, peft.PeftModel):
        model.add_adapter(name, config)
    else:
        model.add_adapter(config, adapter_name=name)


@pytest.mark.clause("API-08")
@pytest.mark.parametrize(
    ("spec", "trained"),
    [
        pytest.param(spec, "second" if spec.adapter.route == ADD else "default", id=id)
        for id, spec in by_route(
            {"same-modules": BRIEF, "other-modules": BRIEF.but(lora={"target_modules": ["k_proj"]})}
        ).items()
    ],
)
def test_which_of_two_adapters_is_trained(spec, trained, upstream, tmp_path, judge):
    model = make(spec)
    add(model, "second", lora())
    before = {name: injection.adapter_tensors(model, name) for name in ("default", "second")}
    upstream.build(spec, tmp_path, model=model).train()
    after = {name: injection.adapter_tensors(model, name) for name in before}
    judge(injection.trained_adapters(before, after, [trained]))


# ---- what is refused ----


@pytest.mark.clause("API-09")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        pytest.param(BRIEF, "already exists", id=f"taken-name/{GET}"),
        pytest.param(ADDED, "already exists", id=f"taken-name/{ADD}"),
    ],
)
def test_a_name_that_is_taken_is_refused(spec, words, upstream, judge):
    model = make(spec)
    judge(raises("adding a second adapter 'default'", ValueError, words, lambda: add(model, "default", lora())))


@pytest.mark.clause("API-09")
@pytest.mark.parametrize(
    ("spec", "names"),
    [
        pytest.param(BRIEF, "second", id=f"unknown-name/{GET}"),
        pytest.param(ADDED, "second", id=f"unknown-name/{ADD}"),
        pytest.param(ADDED, ["default", "second"], id=f"unknown-names/{ADD}"),
    ],
)
def test_activating_an_unknown_adapter_is_refused(spec, names, upstream, judge):
    model = make(spec)
    judge(raises(f"set_adapter({names!r})", ValueError, "second", lambda: model.set_adapter(names)))


@pytest.mark.clause("API-09")
def test_activating_an_adapter_before_one_is_added_is_refused(upstream, judge):
    base = models.build(PLAIN.model)
    judge(raises("set_adapter of a base model", ValueError, "No adapter loaded", lambda: base.set_adapter("default")))


PROMPT: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
#: Configs that add_adapter refuses: the config, the exception, and words of its message.
REFUSED = {
    "dict": (lambda: dict(LORA), TypeError, "should be an instance of PeftConfig"),
    "prompt-tuning": (lambda: peft.PromptTuningConfig(**PROMPT), ValueError, "does not support prompt learning"),
    "prefix-tuning": (lambda: peft.PrefixTuningConfig(**PROMPT), ValueError, "does not support prompt learning"),
    "no-such-module": (lambda: lora(target_modules=["nowhere"]), ValueError, "not found in the base model"),
}
REFUSALS = pytest.mark.parametrize(
    ("config", "kind", "words"), [pytest.param(*refused, id=name) for name, refused in REFUSED.items()]
)


@pytest.mark.clause("API-09")
@REFUSALS
def test_add_adapter_refuses_what_it_cannot_inject(config, kind, words, upstream, judge):
    base = models.build(PLAIN.model)
    judge(raises("add_adapter", kind, words, lambda: base.add_adapter(config())))


@pytest.mark.clause("API-09")
@pytest.mark.parametrize(
    "config", [pytest.param(config, id=f"{name}/afterwards") for name, (config, *_) in REFUSED.items()]
)
def test_a_model_that_refused_takes_a_right_config_afterwards(config, upstream, judge):
    base = models.build(PLAIN.model)
    with pytest.raises((TypeError, ValueError)):
        base.add_adapter(config())
    judge(holds("add_adapter of a LoRA afterwards", lambda: base.add_adapter(lora())))


def holds(what, call):
    """Check that the call raises nothing."""
    try:
        call()
    except Exception as error:
        return verdict(f"{what} succeeds", [f"raised {type(error).__name__}: {error}"])
    return verdict(f"{what} succeeds", [])


# ---- nothing to train ----


@pytest.mark.clause("API-10")
@cases(by_route({"inference_mode": BRIEF.but(lora={"inference_mode": True})}))
def test_an_adapter_for_inference_does_not_train(spec, upstream, tmp_path, judge):
    judge(cannot_train(upstream, spec, tmp_path, make(spec)))


@pytest.mark.clause("API-10")
@pytest.mark.parametrize("route", [pytest.param(GET, id="from_pretrained"), pytest.param(ADD, id="load_adapter")])
def test_an_adapter_loaded_for_inference_does_not_train(route, upstream, tmp_path, judge):
    judge(cannot_train(upstream, BRIEF, tmp_path / "run", loaded(route, tmp_path / "adapter")))


@pytest.mark.clause("API-10")
@pytest.mark.parametrize(
    "route", [pytest.param(GET, id="from_pretrained/trainable"), pytest.param(ADD, id="load_adapter/trainable")]
)
def test_an_adapter_loaded_as_trainable_trains(route, upstream, tmp_path, judge):
    if route == ADD and (reason := lacking.load_option()):
        pytest.skip(reason)
    model = loaded(route, tmp_path / "adapter", is_trainable=True)
    before = {"default": injection.adapter_tensors(model, "default")}
    upstream.build(BRIEF.but(max_steps=3), tmp_path / "run", model=model).train()
    judge(injection.trained_adapters(before, {"default": injection.adapter_tensors(model, "default")}, ["default"]))


def cannot_train(upstream, spec, directory, model):
    trainer = upstream.build(spec, directory, model=model)
    return raises("train()", RuntimeError, "does not require grad", trainer.train)


def loaded(route, directory, **options):
    """Return a model with an adapter that was saved before, loaded by either route."""
    make(PLAIN).save_pretrained(directory)
    base = models.build(PLAIN.model)
    if route == GET:
        return peft.PeftModel.from_pretrained(base, directory, **options)
    base.load_adapter(str(directory), **options)
    return base


# ---- the release of peft ----

OF_ADAPTERS = {
    "add_adapter": lambda model, path: model.add_adapter(lora(), adapter_name="second"),
    "load_adapter": lambda model, path: model.load_adapter(path, "second"),
    "set_adapter": lambda model, path: model.set_adapter("default"),
    "disable_adapters": lambda model, path: model.disable_adapters(),
    "enable_adapters": lambda model, path: model.enable_adapters(),
    "active_adapters": lambda model, path: model.active_adapters(),
}


@pytest.mark.clause("API-11")
@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in OF_ADAPTERS.items()])
def test_an_old_peft_is_refused(call, upstream, tmp_path, judge):
    make(PLAIN).save_pretrained(tmp_path)
    model = make(ADDED)
    with mock.patch("importlib.metadata.version", return_value="0.0.1"):
        judge(raises("with peft 0.0.1, it", ValueError, "please use a version", lambda: call(model, str(tmp_path))))
