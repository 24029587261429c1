"""FRZ: which parameters require gradients after adapters were disabled, switched, added or loaded."""

import contextlib
from typing import Any

import peft
import pytest

from harness import lacking
from harness.fixtures import models, tensor_shapes
from harness.laws.frozen import trainable_names, trains_exactly
from harness.runs.scenarios import PLAIN, by_route, cases
from harness.spec import ADD, GET
from harness.subjects.hf_trainer import adapter_config, inject
from harness.suites.test_frz_kinds import gpt2_biases, gpt2_lora
from harness.verdict import both

HEAD = f"{tensor_shapes.HEAD}.weight"
DELTA = f"{tensor_shapes.EMBEDDINGS}.token_adapter.trainable_tokens_delta"
GPT2: dict[str, Any] = {"target_modules": ["c_attn"]}

#: A spec for each kind of adapter, and the parameters that it trains.
KINDS = {
    "lora": (PLAIN, {*tensor_shapes.lora()}),
    "modules-to-save": (PLAIN.but(lora={"modules_to_save": ["lm_head"]}), {*tensor_shapes.lora(), HEAD}),
    "token-rows": (PLAIN.but(lora={"trainable_token_indices": [3, 5]}), {*tensor_shapes.lora(), DELTA}),
    "bias-all": (PLAIN.but(model={"family": "gpt2"}, lora={**GPT2, "bias": "all"}), {*gpt2_lora(), *gpt2_biases()}),
}
SPECS = {name: spec for name, (spec, _) in KINDS.items()}


def wanted(spec):
    """Return the parameters that an adapter of this spec trains, by canonical name."""
    return next(names for kind, names in KINDS.values() if kind.adapter.config == spec.adapter.config)


@pytest.fixture
def supported(upstream):
    """supported(spec): skip the test, with the reason, if this stack cannot make the model or load it as trainable."""

    def check(spec, is_trainable=False):
        reason = upstream.unsupported(spec)
        if is_trainable and spec.adapter.route == ADD:
            reason = reason or lacking.load_option()
        if reason:
            pytest.skip(reason)

    return check


def make(spec):
    return inject(models.build(spec.model), spec.adapter)


def add(model, name, spec):
    config = adapter_config(spec.adapter.peft_type, dict(spec.adapter.config))
    if spec.adapter.route == GET:
        model.add_adapter(name, config)
    else:
        model.add_adapter(config, adapter_name=name)


def loaded(spec, directory, **options):
    """Return a model with the spec's adapter, which was saved before and is loaded by its route."""
    make(spec.but(adapter={"route": GET})).save_pretrained(directory)
    base = models.build(spec.model)
    if spec.adapter.route == GET:
        return peft.PeftModel.from_pretrained(base, directory, **options)
    base.load_adapter(str(directory), **options)
    return base


@contextlib.contextmanager
def disabled(model):
    """Disable the model's adapters within the context, by the means of its route."""
    if isinstance(model, peft.PeftModel):
        with model.disable_adapter():
            yield
    else:
        model.disable_adapters()
        yield
        model.enable_adapters()


# ---- disabling ----


@pytest.mark.clause("FRZ-11")
@cases(by_route({f"disabled/{name}": spec for name, spec in SPECS.items()}))
def test_disabling_leaves_what_is_trained(spec, supported, judge):
    supported(spec)
    model = make(spec)
    with disabled(model):
        # Whether the adapter itself requires gradients meanwhile is not judged.
        unexpected = set(trainable_names(model)) - wanted(spec)
    judge(
        both(
            trains_exactly(unexpected, (), when="disabled"),
            trains_exactly(trainable_names(model), wanted(spec), when="enabled again"),
        )
    )


@pytest.mark.clause("FRZ-11")
@cases(by_route({f"disabled-frozen/{name}": SPECS[name] for name in ("lora", "modules-to-save")}))
def test_disabling_leaves_a_frozen_adapter_frozen(spec, upstream, tmp_path, judge):
    model = loaded(spec, tmp_path)
    with disabled(model):
        pass
    judge(trains_exactly(trainable_names(model), (), when="enabled again"))


# ---- several adapters ----


@pytest.mark.clause("FRZ-11")
@cases(by_route({f"switched/{name}": spec for name, spec in SPECS.items()}))
def test_switching_trains_the_chosen_adapter_alone(spec, supported, judge):
    supported(spec)
    model = make(spec)
    # Biases belong to the base, so at most one adapter can train them, whichever is active.
    add(model, "second", spec.but(lora={"bias": "none"}))
    verdicts = []
    for name in ("default", "second", "default"):
        model.set_adapter(name)
        verdicts.append(trains_exactly(trainable_names(model, name), wanted(spec), when=f"set_adapter({name!r})"))
    judge(both(*verdicts))


@pytest.mark.clause("FRZ-11")
@cases({f"added-to-trained/{name}": SPECS[name] for name in ("lora", "modules-to-save", "token-rows")})
def test_a_second_adapter_leaves_the_first_as_it_was(spec, supported, tmp_path, judge):
    supported(spec)
    verdicts = []
    model = make(spec)
    add(model, "second", spec)
    verdicts.append(trains_exactly(trainable_names(model), wanted(spec), when="a second adapter added"))
    model = make(spec)
    model.save_pretrained(tmp_path)
    model.load_adapter(str(tmp_path), "second")
    verdicts.append(trains_exactly(trainable_names(model), wanted(spec), when="a frozen adapter loaded"))
    judge(both(*verdicts))


# ---- loading ----


@pytest.mark.clause("FRZ-12")
@cases(by_route({f"loaded/{name}": spec for name, spec in SPECS.items()}))
def test_an_adapter_loaded_for_inference_leaves_nothing_trainable(spec, supported, tmp_path, judge):
    supported(spec)
    judge(trains_exactly(trainable_names(loaded(spec, tmp_path)), ()))


@pytest.mark.clause("FRZ-12")
@cases(by_route({f"loaded-twice/{name}": SPECS[name] for name in ("lora", "modules-to-save")}))
def test_two_adapters_loaded_for_inference_leave_nothing_trainable(spec, upstream, tmp_path, judge):
    model = loaded(spec, tmp_path)
    model.load_adapter(str(tmp_path), "second")
    judge(trains_exactly(trainable_names(model), ()))


@pytest.mark.clause("FRZ-12")
@cases(by_route({f"loaded-beside-a-trained-one/{name}": SPECS[name] for name in ("lora", "modules-to-save")}))
def test_a_frozen_adapter_stays_frozen_beside_one_that_is_trained(spec, upstream, tmp_path, judge):
    model = loaded(spec, tmp_path)
    add(model, "second", spec)
    model.set_adapter("second")
    judge(trains_exactly(trainable_names(model, "second"), wanted(spec)))


@pytest.mark.clause("FRZ-12")
@cases(by_route({f"loaded-before-a-trained-one/{name}": SPECS[name] for name in ("lora", "modules-to-save")}))
def test_loading_a_trainable_adapter_leaves_the_frozen_one_frozen(spec, supported, tmp_path, judge):
    supported(spec, is_trainable=True)
    model = loaded(spec, tmp_path)
    model.load_adapter(str(tmp_path), "second", is_trainable=True)
    judge(trains_exactly(trainable_names(model, "second"), wanted(spec)))


@pytest.mark.clause("FRZ-12")
@cases(by_route({f"trainable/{name}": spec for name, spec in SPECS.items()}))
def test_an_adapter_loaded_as_trainable_trains_what_it_trained(spec, supported, tmp_path, judge):
    supported(spec, is_trainable=True)
    judge(trains_exactly(trainable_names(loaded(spec, tmp_path, is_trainable=True)), wanted(spec)))
