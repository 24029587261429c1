"""CKPT: which adapters a checkpoint holds, that they are complete and not mixed up, and that they load again."""

import pytest
import torch

from harness.fixtures import hub
from harness.laws import checkpoint, equal, rebuilt
from harness.runs.scenarios import PLAIN, SAVING, by_route, cases, over, saving, spec_for
from harness.spec import ADD, GET
from harness.verdict import both, raises, same

TWO_STEPS = saving(PLAIN.but(max_steps=2))

WRAPPED = TWO_STEPS.but(model={"family": "harness.fixtures.wrapped_layers:checkpointed_layers"})
COMPILED = TWO_STEPS.but(model={"family": "harness.fixtures.wrapped_layers:compiled_layers"})


def with_others(name, *others, **adapter):
    """Return a run that trains the adapter `name` beside others that are not trained."""
    return TWO_STEPS.but(adapter={"name": name, "others": {other: {} for other in others}, **adapter})


# ---- which adapters, and where ----


@pytest.mark.clause("CKPT-15")
@over(
    {
        "default": with_others("default"),
        "foo": with_others("foo"),
        "default-and-foo": with_others("default", "foo"),
        "foo-and-default": with_others("foo", "default", "bar"),
    }
)
def test_each_adapter_has_its_place(trace, judge):
    names = (trace.spec.adapter.name, *trace.spec.adapter.others)
    expected = {checkpoint.adapter_path(trace.spec.adapter, name) for name in names}
    judge(
        both(
            checkpoint.every_adapter_saved(trace),
            *[same(f"checkpoint-{c.step}", set(checkpoint.adapter_files(c)), expected) for c in trace.checkpoints],
        )
    )


@pytest.mark.clause("CKPT-16")
@over(
    {
        "one": with_others("foo", route=ADD),
        "two": with_others("foo", "bar", route=ADD),
        "default-and-two": with_others("default", "foo", "bar", route=ADD),
    }
)
def test_add_adapter_saves_every_adapter(trace, judge):
    judge(checkpoint.every_adapter_saved(trace))


@pytest.mark.clause("CKPT-16")
def test_several_active_adapters_are_refused(upstream, judge, tmp_path):
    trainer = upstream.build(with_others("foo", "bar", route=ADD), tmp_path / "run")
    trainer.model.set_adapter(["foo", "bar"])
    judge(
        raises(
            "save_model with two active adapters",
            ValueError,
            "Multiple active adapters",
            lambda: trainer.save_model(str(tmp_path / "saved")),
        )
    )


@pytest.mark.clause("CKPT-17")
@over({"mixed": TWO_STEPS.but(adapter={"options": {"mixed": True}})})
def test_mixed_model_saves_its_adapter_only(trace, judge):
    judge(checkpoint.adapter_only(trace))


@pytest.mark.clause("CKPT-23")
@over(
    {
        "foo-and-foobar": with_others("foo", "foobar", "fo"),
        "foobar-and-foo": with_others("foobar", "foo"),
        "o-and-foo": with_others("o", "foo"),
        "a-and-b": with_others("A", "B"),
        "named-like-a-layer": with_others("default", "1"),
        "named-like-a-module": with_others("default", "model"),
        "both-named-like-layers": with_others("0", "1"),
    }
)
def test_adapter_files_do_not_mix(trace, judge):
    judge(checkpoint.every_adapter_saved(trace))


@pytest.mark.clause("CKPT-23")
@over(
    {
        f"foo-and-foobar/{ADD}": with_others("foo", "foobar", "fo", route=ADD),
        f"named-like-a-layer/{ADD}": with_others("default", "1", route=ADD),
    }
)
def test_file_of_the_active_adapter_is_its_own(trace, judge):
    judge(checkpoint.adapter_only(trace))


# ---- what is in the file ----


@pytest.mark.clause("CKPT-25")
@over(by_route(SAVING | {"wrapped-layers": WRAPPED}))
def test_adapter_file_is_exactly_the_trained_tensors(trace, judge):
    judge(both(checkpoint.adapter_only(trace), checkpoint.trained_values_saved(trace)))


@pytest.mark.clause("CKPT-25")
@over(by_route({name: SAVING[name] for name in ("plain", "dora", "modules-to-save")}))
def test_last_adapter_file_is_the_adapter_as_trained(trace, judge):
    judge(checkpoint.last_is_current(trace))


HALF = {
    f"{dtype}{note}": TWO_STEPS.but(model={"dtype": dtype}, adapter={"options": options})
    for dtype in ("bfloat16", "float16")
    for note, options in (("", {}), ("-kept", {"autocast_adapter_dtype": False}))
}
# The tensors of IA3 are no modules, so another branch casts them.
HALF["bfloat16-ia3"] = saving(spec_for("llama", "ia3").but(max_steps=2, model={"dtype": "bfloat16"}))
#: The dtype of each adapter, by the name of its scenario.
DTYPES = {
    "bfloat16": "float32",
    "float16": "float32",
    "bfloat16-kept": "bfloat16",
    "float16-kept": "float16",
    "bfloat16-ia3": "float32",
    f"bfloat16/{ADD}": "bfloat16",
    f"float16/{ADD}": "float16",
}


@pytest.mark.clause("CKPT-18")
@pytest.mark.parametrize("name", DTYPES)
def test_adapter_is_saved_in_its_own_dtype(name, train, judge):
    trace = train(HALF[name] if name in HALF else HALF[name.partition("/")[0]].but(adapter={"route": ADD}))
    dtypes = {str(t.dtype).removeprefix("torch.") for c in trace.checkpoints for t in c.adapter.values()}
    judge(both(checkpoint.dtype_on_disk(trace), same("dtypes in the file", dtypes, {DTYPES[name]})))


# ---- loading it ----


RELOADED = by_route({name: SAVING[name] for name in ("plain", "dora", "modules-to-save", "named-foo")})


@pytest.mark.clause("CKPT-21")
@pytest.mark.parametrize("how", ["from_pretrained", "load_adapter"])
@pytest.mark.parametrize("name", RELOADED)
def test_loaded_adapter_is_the_trained_one(name, how, train, judge):
    judge(rebuilt.reloads(train(RELOADED[name]), how))


@pytest.mark.clause("CKPT-26")
@over(by_route({"compiled-layers": COMPILED}))
def test_keys_do_not_tell_of_compiled_layers(trace, judge):
    judge(checkpoint.clean_keys(trace))


@pytest.mark.clause("CKPT-26")
@pytest.mark.parametrize("route", [GET, ADD])
def test_adapter_of_compiled_layers_loads_into_a_plain_base(route, train, judge):
    from harness.fixtures import models

    trace = train(COMPILED.but(adapter={"route": route}))
    judge(rebuilt.reloads(trace, base=models.build(PLAIN.model)))


@pytest.mark.clause("CKPT-26")
@pytest.mark.parametrize("how", ["from_pretrained", "load_adapter"])
def test_plain_adapter_loads_into_compiled_layers(upstream, how, train, judge):
    from harness.fixtures import models

    trace = train(SAVING["plain"])
    judge(rebuilt.reloads(trace, how, models.build(COMPILED.model)))


# ---- modules_to_save ----


def heads(names):
    """Return a base with one linear layer for the adapter, and a head of each name."""
    torch.manual_seed(0)
    return torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in ("body", *names)})


@pytest.mark.clause("CKPT-24")
@pytest.mark.parametrize(
    "stem", ["h", "head", "classifier", "score", "lm_head", "out_proj", "lora_head"], ids=lambda stem: f"stem-{stem}"
)
def test_modules_to_save_reload_into_themselves(upstream, stem, judge, tmp_path):
    """Five names, each part of the next. Tried in the order of a set, 119 of 120 orders would be wrong.

    Seven stems stand for seven values of PYTHONHASHSEED: other names have other hashes, so another order.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    names = [stem + "2" * count for count in range(5)]
    config = LoraConfig(target_modules=["body"], modules_to_save=names)
    model = get_peft_model(heads(names), config)
    with torch.no_grad():
        for index, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.fill_(1 + index)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(heads(names), str(tmp_path))
    wanted = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    seen = {name: parameter.detach() for name, parameter in again.named_parameters() if name in wanted}
    judge(equal.same_adapter(seen, wanted))


# ---- the hub ----

PUSHED = TWO_STEPS.but(save_steps=1, push_to_hub=True, hub_model_id="someone/their-adapter")


@pytest.mark.clause("CKPT-22")
@cases(by_route({"pushed": PUSHED}) | {"pushed-foo": PUSHED.but(adapter={"name": "foo"})})
def test_each_save_pushes_its_adapter(spec, upstream, tmp_path, judge):
    with hub.taking_pushes() as pushes:
        trace = upstream.train(spec, tmp_path)
    judge(checkpoint.pushed(trace, pushes))
