"""API: configs that ask for something they do not get. Refused if nothing is adapted, warned of if a part has no effect."""

from typing import Any

import peft
import pytest
import torch

from harness.fixtures import models
from harness.laws.frozen import trainable_names, trains_exactly
from harness.runs.scenarios import PLAIN, by_route, cases
from harness.subjects.hf_trainer import adapter_config, inject, recorded_warnings
from harness.suites.test_frz_targets import given, lora_of, matching
from harness.verdict import both, raises, same, verdict

# ---- nothing is adapted ----

#: Configs that adapt nothing, and the words that the error must contain.
NOTHING = {
    "all-excluded": (given(target_modules=["q_proj"], exclude_modules=".*"), ["All modules were excluded"]),
    "no-targets": (given(target_modules=[]), ["No `target_modules` passed"]),
    "other-layers": (
        given(target_modules=["nowhere"], layers_to_transform=[1], layers_pattern="layers"),
        ["not found in the base model", "'layers_to_transform': [1]", "'layers_pattern'"],
    ),
    "targets-excluded": (
        given(target_modules=["q_proj"], exclude_modules=["q_proj"]),
        ["No modules were targeted", "`exclude_modules`"],
    ),
    "layers-excluded": (
        given(target_modules=["q_proj"], exclude_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers"),
        ["No modules were targeted", "'layers_to_transform': [1]", "'layers_pattern'"],
    ),
}
REFUSED = by_route({name: spec for name, (spec, _) in NOTHING.items()})


@pytest.mark.clause("API-18")
@pytest.mark.parametrize(
    ("spec", "words"),
    [pytest.param(spec, NOTHING[id.removesuffix("/add_adapter")][1], id=id) for id, spec in REFUSED.items()],
)
def test_a_config_that_adapts_nothing_is_refused(spec, words, upstream, judge):
    model = lambda: inject(models.build(spec.model), spec.adapter)  # noqa: E731
    judge(both(*[raises("injection", ValueError, said, model) for said in words]))


# ---- a part of the config has no effect ----

Q_PROJ: dict[str, Any] = {"target_modules": ["q_proj"]}
#: Configs of which a part has no effect, and words of the warning.
IDLE = {
    "exclude_modules": (given(**Q_PROJ, exclude_modules=["nowhere"]), "no modules were excluded"),
    "target_modules": (
        given(target_modules=["nowhere"], target_parameters=["q_proj.weight"]),
        "were set but no module was matched",
    ),
    "target_parameters": (
        given(**Q_PROJ, target_parameters=["nowhere.weight"]),
        "were set but no parameter was matched",
    ),
    "rank_pattern": (given(**Q_PROJ, rank_pattern={"nowhere": 2}), "rank_pattern keys did not match"),
    "alpha_pattern": (given(**Q_PROJ, alpha_pattern={"nowhere": 2}), "alpha_pattern keys did not match"),
    "lora_bias": (given(**Q_PROJ, lora_bias=True), "has no bias"),
    "one-word": (given(**Q_PROJ).but(adapter={"name": "lora"}), "should not be contained in the prefix"),
}


@pytest.mark.clause("API-18")
@cases({name: spec for name, (spec, _) in IDLE.items()})
def test_a_part_without_effect_is_warned_of(spec, upstream, request, judge):
    words = IDLE[request.node.callspec.id][1]
    judge(warned_of(spec, words))


def warned_of(spec, words):
    return both(says(given(**Q_PROJ), words, False), says(spec, words, True))


def says(spec, words, wanted):
    """Check that injection warns in these words, or that it does not warn."""
    told = []
    with recorded_warnings(told):
        inject(models.build(spec.model), spec.adapter)
    return same(f"{spec.adapter.config} is warned of as {words!r}", any(words in one for one in told), wanted)


@pytest.mark.clause("API-18")
def test_a_second_name_that_is_part_of_the_prefix_is_warned_of(upstream, judge):
    verdicts = []
    for name, wanted in (("second", False), ("lora", True)):
        told = []
        with recorded_warnings(told):
            model_of().add_adapter(name, adapter_config("LORA", dict(PLAIN.adapter.config)))
        said = any("should not be contained in the prefix" in one for one in told)
        verdicts.append(same(f"a warning of the name {name!r}", said, wanted))
    judge(both(*verdicts))


@pytest.mark.clause("API-18")
def test_a_revision_that_replaces_the_configs_is_warned_of(upstream, judge):
    verdicts = []
    for revision, wanted in (("first", False), ("second", True)):
        told, config = [], adapter_config("LORA", {**PLAIN.adapter.config, "revision": "first"})
        with recorded_warnings(told):
            peft.get_peft_model(models.build(PLAIN.model), config, revision=revision)
        said = any("overwriting with revision" in one for one in told)
        verdicts += [same("a warning", said, wanted), same("revision of the config", config.revision, revision)]
    judge(both(*verdicts))


@pytest.mark.clause("API-18")
def test_a_file_without_tensors_of_the_adapter_is_warned_of(upstream, tmp_path, judge):
    model = inject(models.build(PLAIN.model), PLAIN.adapter)
    state = {name: tensor for name, tensor in model.state_dict().items() if ".layers.0." in name}
    model.save_pretrained(tmp_path, state_dict=state)
    verdicts = []
    for name in ("other", "lora"):
        told = []
        with recorded_warnings(told):
            peft.PeftModel.from_pretrained(models.build(PLAIN.model), str(tmp_path), adapter_name=name)
        said = [one for one in told if "missing adapter keys" in one and "layers.1.self_attn.v_proj" in one]
        verdicts.append(same(f"warnings that name what is missing, loaded as {name!r}", len(said), 1))
    judge(both(*verdicts))


# ---- calls that a PeftModel must refuse ----


def model_of(spec=PLAIN):
    return inject(models.build(spec.model), spec.adapter)


IA3 = {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []}
#: The call, and words of the ValueError that it must raise.
CALLS = {
    "another-method": (
        lambda model, path: model.add_adapter("second", peft.get_peft_config(dict(IA3))),
        "Cannot combine adapters",
    ),
    "selected-adapters": (
        lambda model, path: model.save_pretrained(path, selected_adapters=["default", "second"]),
        "invalid `selected_adapters`",
    ),
    "no-config": (
        lambda model, path: peft.PeftModel.from_pretrained(models.build(PLAIN.model), path, config={"r": 8}),  # type: ignore[arg-type]
        "must be a PeftConfig",
    ),
    "no-adapter": (lambda model, path: model.base_model.set_adapter([]), "at least one adapter"),
    "two-copies": (lambda model, path: model.base_model.set_adapter(["default", "third"]), "Only one adapter"),
    "parameters-by-tensors": (
        lambda model, path: peft.inject_adapter_in_model(
            adapter_config("LORA", {"r": 4, "target_parameters": ["q_proj.weight"]}),
            models.build(PLAIN.model),
            state_dict=named_by(["model.layers.0.self_attn.q_proj"]),
        ),
        "not supported",
    ),
}


@pytest.mark.clause("API-18")
@pytest.mark.parametrize(("call", "words"), [pytest.param(*row, id=f"refused/{id}") for id, row in CALLS.items()])
def test_a_call_that_cannot_be_done_is_refused(call, words, upstream, tmp_path, judge):
    model = model_of(PLAIN.but(lora={"modules_to_save": ["lm_head"]}))
    model.add_adapter("third", adapter_config("LORA", {**PLAIN.adapter.config, "modules_to_save": ["lm_head"]}))
    judge(raises("it", ValueError, words, lambda: call(model, str(tmp_path))))


@pytest.mark.clause("API-18")
def test_a_second_adapter_that_fits_nowhere_leaves_the_first_as_it_was(upstream, judge):
    model = model_of()
    before, config = trainable_names(model), adapter_config("LORA", {"r": 4, "target_modules": ["nowhere"]})
    refused = raises("add_adapter", ValueError, "not found", lambda: model.add_adapter("second", config))
    model.add_adapter("second", adapter_config("LORA", dict(PLAIN.adapter.config)))
    adapters = same("adapters once a right one is added", list(model.peft_config), ["default", "second"])
    judge(both(refused, adapters, trains_exactly(trainable_names(model), before)))


# ---- by the names of tensors ----


def named_by(paths):
    """Return a state dict of a LoRA on these modules. Its values do not matter."""
    return {f"{path}.lora_A.weight": torch.empty(0) for path in paths}


V_PROJ = matching("v_proj$")
#: target_modules of the config, the modules that the tensors name, and the modules that a warning must name.
BY_TENSORS = {
    "as-the-config": (["v_proj"], V_PROJ, ()),
    "fewer": (["v_proj", "q_proj"], V_PROJ, matching("q_proj$")),
    "others": (["v_proj"], [*V_PROJ, *matching("1.mlp.up_proj$")], matching("1.mlp.up_proj$")),
}


@pytest.mark.clause("API-19")
@pytest.mark.parametrize(("targets", "paths", "named"), [pytest.param(*row, id=id) for id, row in BY_TENSORS.items()])
def test_tensors_say_which_modules_are_adapted(targets, paths, named, upstream, judge):
    told, config = [], adapter_config("LORA", {"r": 4, "target_modules": targets})
    with recorded_warnings(told):
        model = peft.inject_adapter_in_model(config, models.build(PLAIN.model), state_dict=named_by(paths))
    said = [one for one in told if "inconsistency" in one]
    unnamed = [f"no warning names {path}" for path in named if not any(path in one for one in said)]
    judge(
        both(
            trains_exactly(trainable_names(model), lora_of(paths)),
            same("warnings", len(said), 1 if named else 0),
            verdict("the warning names what differs", unnamed),
        )
    )
