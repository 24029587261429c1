"""Put faults into upstream under which the checks of the chapter FRZ must fail."""

import pytest

from harness.mutants.api import always_trainable
from harness.suites import test_frz as frz
from harness.suites import test_frz_kinds as kinds
from harness.suites import test_frz_requires_grad as flags
from harness.suites import test_frz_targets as targets
from tests.faults import assert_seen, each, mutant, nothing, replace

TRAINER = "transformers.trainer:Trainer"
TUNER = "peft.tuners.tuners_utils:BaseTuner"
LAYER = "peft.tuners.tuners_utils:BaseTunerLayer"
COPY = "peft.utils.other:ModulesToSaveWrapper"
NORM = "model.norm.weight"


# ---- faults ----


def no_biases(original, tuner, model):
    """bias="all" leaves some biases of the base frozen."""
    original(tuner, model)
    for name, parameter in model.named_parameters():
        if name.endswith("ln_1.bias"):
            parameter.requires_grad_(False)


def every_adapter_trainable(original, layer, names, inference_mode=False):
    """Activating an adapter makes the tensors of every adapter trainable."""
    original(layer, names)
    for part in layer.adapter_layer_names:
        getattr(layer, part).requires_grad_(True)


def all_frozen(original, tuner, *args, **options):
    """Injecting an adapter freezes all of its tensors."""
    injected = original(tuner, *args, **options)
    tuner.model.requires_grad_(False)
    return injected


def nowhere_is_somewhere(original, config, key):
    """Names in target_modules that no module has are taken for q_proj."""
    return key.endswith("q_proj")


def second_elsewhere(original, model, name, config):
    """A second adapter sits on other modules than its config names."""
    config.target_modules = {"q_proj"}
    return original(model, name, config)


PLAIN = frz.PLAIN
SHORT = PLAIN.but(max_steps=2)
HEAD = flags.SPECS["modules-to-save"]
LORA = flags.SPECS["lora"]
INPUTS_WITHOUT_GRADIENTS = "Reentrant checkpointing does not make the layers' inputs require gradients."

#: By clause; `tests.faults` describes a row.
FAULTS = {
    "FRZ-01": (
        frz.test_base_is_bit_identical,
        {"trace": SHORT},
        mutant("base-drifts-by-an-ulp"),
        f"{NORM}: digest",
    ),
    "FRZ-02": (
        frz.test_the_optimizer_holds_the_lora_alone,
        {"trace": SHORT},
        mutant("norm-trained-too"),
        f"group 1: {NORM} is in it, unexpected",
    ),
    "FRZ-02/universal": (
        frz.test_the_optimizer_holds_what_requires_gradients,
        {"trace": SHORT},
        mutant("norm-trained-too"),
        f"{NORM} is in a group but does not require gradients",
    ),
    "FRZ-03": (
        frz.test_the_base_gets_no_gradient,
        {"trace": SHORT},
        mutant("gradient-left-on-the-base"),
        f"{NORM} held a gradient at an optimizer step",
    ),
    "FRZ-04": (
        kinds.test_an_nf4_base_is_bit_identical,
        {"trace": SHORT.but(model={"quantization": "nf4"})},
        mutant("packed-scale-drifts"),
        "q_proj.weight.absmax: digest",
    ),
    "FRZ-05/decay": (
        kinds.test_biases_are_trained_without_decay_and_saved,
        {"spec": kinds.BIASED["all"][0], "biases": kinds.BIASED["all"][1]},
        mutant("biases-decayed"),
        "group 0: transformer.h.0.ln_1.bias is in it, unexpected",
    ),
    "FRZ-05/trained": (
        kinds.test_biases_are_trained_without_decay_and_saved,
        {"spec": kinds.BIASED["all"][0], "biases": kinds.BIASED["all"][1]},
        replace(TUNER, "_mark_only_adapters_as_trainable", no_biases),
        "group 1: no transformer.h.0.ln_1.bias",
    ),
    "FRZ-06/saved": (
        kinds.test_a_copy_of_the_module_is_trained_and_saved,
        {"trace": frz.SAVING["modules-to-save"]},
        mutant("modules-to-save-not-saved"),
        "adapter_model.safetensors: no lm_head.weight",
    ),
    "FRZ-06/original": (
        kinds.test_a_copy_of_the_module_is_trained_and_saved,
        {"trace": frz.SAVING["modules-to-save"]},
        mutant("original-trained-beside-its-copy"),
        "lm_head.original_module.weight is in it, unexpected",
    ),
    "FRZ-06/resumed": (
        kinds.test_a_copy_is_restored_by_resuming,
        {"spec": kinds.continued(kinds.SHORT.but(lora={"modules_to_save": ["lm_head"]}), 3, every=3)},
        mutant("adapter-not-restored"),
        "step 4: gradients of",
    ),
    "FRZ-07/trained": (
        kinds.test_a_parameter_unfrozen_by_hand_is_trained,
        {"spec": kinds.saving(kinds.SHORT)},
        replace("torch.optim:AdamW", "step", nothing, "The optimizer updates no parameter."),
        f"{NORM} is what it was before training",
    ),
    "FRZ-08": (
        kinds.test_dora_trains_and_saves_a_magnitude_for_each_output,
        {"trace": frz.SAVING["dora"]},
        mutant("magnitudes-not-saved"),
        "adapter_model.safetensors: no model.layers.0.self_attn.q_proj.lora_magnitude_vector",
    ),
    "FRZ-09": (
        frz.test_weight_decay_does_not_depend_on_the_adapters_name,
        {"spec": PLAIN.but(max_steps=3, weight_decay=0.1, adapter={"name": "other"})},
        mutant("nothing-decayed"),
        "group 0: no model.layers.0.self_attn.q_proj.lora_A.weight",
    ),
    "FRZ-10": (
        frz.test_a_quantized_base_without_adapters_is_refused,
        {"quantization": "nf4"},
        mutant("purely-quantized-model-trained"),
        "raised nothing",
    ),
    "FRZ-11/disabled": (
        flags.test_disabling_leaves_what_is_trained,
        {"spec": HEAD},
        mutant("original-unfrozen-where-adapters-are-off"),
        "disabled: lm_head.original_module.weight requires gradients",
    ),
    "FRZ-11/switched": (
        flags.test_switching_trains_the_chosen_adapter_alone,
        {"spec": LORA},
        replace(LAYER, "set_adapter", every_adapter_trainable),
        "lora_A.second.weight requires gradients",
    ),
    "FRZ-11/added": (
        flags.test_a_second_adapter_leaves_the_first_as_it_was,
        {"spec": LORA},
        mutant("second-adapter-freezes-the-first"),
        "q_proj.lora_A.weight does not require gradients",
    ),
    "FRZ-12/loaded": (
        flags.test_an_adapter_loaded_for_inference_leaves_nothing_trainable,
        {"spec": LORA},
        mutant("inference-mode-trained"),
        "q_proj.lora_A.weight requires gradients",
    ),
    "FRZ-12/copy": (
        flags.test_an_adapter_loaded_for_inference_leaves_nothing_trainable,
        {"spec": HEAD},
        replace(
            COPY,
            "set_adapter",
            always_trainable,
            "An adapter loaded for inference trains its copies of modules_to_save.",
        ),
        "lm_head.weight requires gradients",
    ),
    "FRZ-12/twice": (
        flags.test_two_adapters_loaded_for_inference_leave_nothing_trainable,
        {"spec": LORA},
        replace(LAYER, "set_adapter", every_adapter_trainable),
        "requires gradients",
    ),
    "FRZ-12/beside": (
        flags.test_a_frozen_adapter_stays_frozen_beside_one_that_is_trained,
        {"spec": LORA},
        replace(LAYER, "set_adapter", every_adapter_trainable),
        "lora_A.default.weight requires gradients",
    ),
    "FRZ-12/trainable": (
        flags.test_an_adapter_loaded_as_trainable_trains_what_it_trained,
        {"spec": LORA},
        replace(TUNER, "inject_adapter", all_frozen),
        "q_proj.lora_A.weight does not require gradients",
    ),
    "FRZ-13/reentrant": (
        frz.test_one_step_moves_every_lora_b,
        {"trace": frz.REENTRANT.but(max_steps=1, lora=frz.HEAD)},
        replace("transformers:LlamaForCausalLM", "enable_input_require_grads", nothing, INPUTS_WITHOUT_GRADIENTS),
        "q_proj.lora_B.weight is what it was before training",
    ),
    "FRZ-13/gradients": (
        frz.test_the_update_reaches_every_tensor,
        {"trace": frz.REENTRANT.but(max_steps=2, lora=frz.HEAD)},
        replace("transformers:LlamaForCausalLM", "enable_input_require_grads", nothing, INPUTS_WITHOUT_GRADIENTS),
        "step 1: model.layers.0.self_attn.q_proj.lora_B.weight has no gradient",
    ),
    "FRZ-14/named": (
        targets.test_adapters_sit_on_the_modules_that_are_named,
        {"spec": targets.NAMED["suffixes"][0], "paths": targets.NAMED["suffixes"][1]},
        mutant("adapter-on-a-module-too-many"),
        "k_proj.lora_A.weight requires gradients",
    ),
    "FRZ-14/nowhere": (
        targets.test_names_that_no_module_has_are_refused,
        {"spec": targets.given(target_modules=["nowhere"])},
        replace("peft.tuners.tuners_utils", "check_target_module_exists", nowhere_is_somewhere),
        "raised nothing",
    ),
    "FRZ-14/second": (
        targets.test_a_second_adapter_sits_on_the_same_modules,
        {"spec": targets.given(target_modules="all-linear")},
        replace("peft:PeftModel", "add_adapter", second_elsewhere),
        "missing: ['model.layers.0.mlp.down_proj.lora_A.weight'",
    ),
    "FRZ-14/head": (
        targets.test_all_linear_leaves_a_head_alone_that_no_task_type_names,
        {"spec": targets.given(target_modules="all-linear"), "names": targets.lora_of(targets.LLAMA)},
        mutant("output-layer-adapted-too"),
        "besides: ['lm_head.lora_A.weight', 'lm_head.lora_B.weight']",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    if "nf4" in str(FAULTS[name][1]):
        pytest.importorskip("bitsandbytes", reason="quantized bases need bitsandbytes")
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)
