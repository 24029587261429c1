"""API: inject, switch and remove adapters; the columns and arguments that a model gets."""

from __future__ import annotations

import os

import torch

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import COPY, LINEAR, LLAMA, LORA, PEFT, TRAINER, TUNER, nothing, replace


def scaled_by_alpha(original, layer, name, r, lora_alpha, *args, **options):
    original(layer, name, r, lora_alpha, *args, **options)
    layer.scaling[name] = lora_alpha


def without_scaling(original, layer, x, *args, **options):
    name = layer.active_adapters[0]
    return layer.base_layer(x) + layer.lora_B[name](layer.lora_A[name](layer.lora_dropout[name](x)))


def dropout_of_the_input(original, layer, x, *args, **options):
    name = layer.active_adapters[0] if layer.active_adapters else None
    return original(layer, layer.lora_dropout[name](x) if name in layer.lora_dropout else x, *args, **options)


def without_dropout(original, layer, *args, **options):
    layer.lora_dropout.eval()
    return original(layer, *args, **options)


def not_from_zero(original, layer, name, *args, **options):
    original(layer, name, *args, **options)
    for module in layer.lora_B.values():
        torch.nn.init.constant_(module.weight, 1e-6)


def drawn_from_another_range(original, layer, name, *args, **options):
    original(layer, name, *args, **options)
    for module in layer.lora_A.values():
        module.weight.data.mul_(2)


def drawing(original, *args, **options):
    torch.rand(1)
    return original(*args, **options)


def wrapper_not_removed(original, model):
    return model


def columns_of_labels_only(original, trainer):
    trainer._signature_columns = ["labels"]


def every_column_passed_on(original, trainer, collator, description=None):
    return collator


def with_cache(original, trainer, *args, **options):
    output = original(trainer, *args, **options)
    trainer.model.config.use_cache = True
    return output


def always_the_first(original, model, name):
    return original(model, "default")


def always_trainable(original, layer, names, inference_mode=False):
    return original(layer, names)


def slightly_too_much(original, layer, adapter):
    return 1.01 * original(layer, adapter)


def leaving_a_variable(original, *args, **options):
    os.environ["CXX"] = "clang++"
    return original(*args, **options)


def forgetting_that_it_is_merged(original, layer):
    layer.merged_adapters.clear()


def never_disabled(original, layer, *args, **options):
    layer._disable_adapters = False
    return original(layer, *args, **options)


def pissa_without_subtraction(original, layer, *args, **options):
    base = layer.get_base_layer()
    before = base.weight.data.clone()
    original(layer, *args, **options)
    base.weight.data = before


def copies_never_deactivated(original, wrapper, names, inference_mode=False):
    return original(wrapper, names, inference_mode) if names else None


def merged_again(original, layer, names=None):
    return names or layer.active_adapters


def never_safely(original, layer, safe_merge=False, adapter_names=None):
    return original(layer, False, adapter_names)


def merged_when_unloaded(original, model):
    return model.merge_and_unload()


def in_evaluation_mode(original, layer, *args, **options):
    original(layer, *args, **options)
    layer.eval()


def the_first_alone(original, layer, names=None):
    return original(layer, names)[:1]


def twice_as_much(original, *args, **options):
    a, b = original(*args, **options)
    return a, 2 * b


def the_minority(original, *args, **options):
    return ~original(*args, **options)


def a_tenth_too_much(original, *args, **options):
    a, b, rank = original(*args, **options)
    return a, 1.1 * b, rank


def biases_merged_twice(original, layer, *args, **options):
    original(layer, *args, **options)
    if layer.merged_adapters:
        layer.merged_adapters.pop()
        original(layer, *args, **options)


def then_training(original, trainer, *args, **options):
    output = original(trainer, *args, **options)
    trainer.model.train()
    return output


def then_switched_off(original, trainer, *args, **options):
    output = original(trainer, *args, **options)
    for module in trainer.model.modules():
        if hasattr(module, "_disable_adapters"):
            module._disable_adapters = True
    return output


def not_before_the_first_step(original, model, *args, **options):
    import sys

    frame = sys._getframe()
    while frame.f_code.co_name not in ("_run_epoch", "_inner_training_loop", "<module>") and frame.f_back:
        frame = frame.f_back
    if frame.f_code.co_name != "_inner_training_loop":
        original(model, *args, **options)


def saved_in_evaluation_mode(original, model, *args, **options):
    original(model, *args, **options)
    model.eval()


def deleted_by_name_alone(original, layer, name):
    layer.set_adapter([one for one in layer._all_available_adapter_names() if one != name])


def never_without_tokens(original, layer, *args, **options):
    layer._disable_adapters = False
    return original(layer, *args, **options)


def first_copy_alone(original, wrapper, names):
    return names[0]


def without_named_tensors(original, tuner, model, name, **options):
    options.pop("state_dict", None)
    return original(tuner, model, name, **options)


MUTANTS = (
    Mutant(
        "alpha-for-alpha-over-r",
        "An adapter is scaled by lora_alpha, not by lora_alpha / r.",
        replace(LORA, "update_layer", scaled_by_alpha),
        cells=("API-04/alpha-*", "API-02/after-training/plain"),
    ),
    Mutant(
        "scaling-left-out",
        "An adapter is not scaled at all.",
        replace(LINEAR, "forward", without_scaling),
        cells=("API-04/alpha-*",),
    ),
    Mutant(
        "dropout-on-the-base-path",
        "lora_dropout also drops from the input of the base layer.",
        replace(LINEAR, "forward", dropout_of_the_input),
        cells=("API-04/dropout/*", "ACC-07/dropout"),
    ),
    Mutant(
        "dropout-off",
        "lora_dropout drops nothing.",
        replace(LINEAR, "forward", without_dropout),
        cells=("API-04/dropout/*", "ACC-07/dropout", "RNG-03/plain"),
    ),
    Mutant(
        "fresh-adapter-not-zero",
        "lora_B does not start at zero.",
        replace(LORA, "reset_lora_parameters", not_from_zero),
        cells=("API-02/float32", "API-03/plain"),
    ),
    Mutant(
        "adapter-drawn-from-another-range",
        "lora_A starts with numbers twice as large.",
        replace(LORA, "reset_lora_parameters", drawn_from_another_range),
        cells=("API-03/plain", "API-02/float32"),
    ),
    Mutant(
        "routes-draw-differently",
        "add_adapter draws a random number before it initialises the adapter.",
        replace(LLAMA, "add_adapter", drawing),
        cells=("API-05/plain", "API-03/plain/add_adapter", "QLORA-04/both*"),
    ),
    Mutant(
        "base-not-unwrapped",
        "The Trainer looks for label names in PeftModel.forward, which has none.",
        replace("transformers.trainer", "unwrap_peft_model", wrapper_not_removed),
        cells=("API-01/PeftModel", "API-01/PeftMixedModel", "EVAL-09/llama"),
    ),
    Mutant(
        "columns-of-the-wrapper",
        "Columns that the forward method of the base takes are removed.",
        replace(TRAINER, "_set_signature_columns_if_needed", columns_of_labels_only),
        cells=("API-01/PeftModel", "API-06/llama"),
    ),
    Mutant(
        "unknown-columns-kept",
        "Columns that no forward method takes are passed to the model.",
        replace(TRAINER, "_get_collator_with_removed_columns", every_column_passed_on),
        cells=("API-06/llama",),
    ),
    Mutant(
        "cache-left-on",
        "train() leaves the cache of keys and values on.",
        replace(TRAINER, "train", with_cache),
        cells=("API-07/default",),
    ),
    Mutant(
        "adapter-not-switched",
        "set_adapter always activates the first adapter.",
        replace(LLAMA, "set_adapter", always_the_first),
        cells=("API-08/*",),
    ),
    Mutant(
        "unknown-adapter-activated",
        "Activating an adapter that does not exist is ignored, without an error.",
        replace(LLAMA, "set_adapter", nothing),
        cells=("API-09/unknown*", "API-09/activating*"),
    ),
    Mutant(
        "inference-mode-trained",
        "An adapter that was set up for inference is trained.",
        replace("peft.tuners.tuners_utils:BaseTunerLayer", "set_adapter", always_trainable),
        cells=("API-10/inference_mode", "FRZ-12/loaded/lora", "DIST-12/ddp-2"),
    ),
    Mutant(
        "deleted-adapter-left",
        "delete_adapter leaves the adapter's tensors in the model.",
        replace("peft.functional", "delete_adapter", nothing),
        cells=("API-13/name", "API-13/without*"),
    ),
    Mutant(
        "merged-too-much",
        "Merging adds 1.01 times the adapter.",
        replace(LINEAR, "get_delta_weight", slightly_too_much),
        cells=("API-15/plain", "API-15/rslora"),
    ),
    Mutant(
        "unmerged-not-at-all",
        "Unmerging leaves the merged weights.",
        replace(LINEAR, "unmerge", forgetting_that_it_is_merged),
        cells=("API-15/plain",),
    ),
    Mutant(
        "never-disabled",
        "disable_adapter leaves the adapter on.",
        replace(LINEAR, "forward", never_disabled),
        cells=("API-02/disabled/*", "API-02/after-training/plain"),
    ),
    Mutant(
        "pissa-not-taken-out",
        "The part of a weight that PiSSA moves into the adapter also stays in the base.",
        replace(LORA, "pissa_init", pissa_without_subtraction),
        cells=("API-16/pissa", "API-17/pissa"),
    ),
    Mutant(
        "copies-stay-active",
        "An adapter's copies of modules_to_save stay active after another adapter is activated.",
        replace(COPY, "set_adapter", copies_never_deactivated),
        cells=("API-20/first-head", "API-20/both-heads"),
    ),
    Mutant(
        "gradients-of-inputs-left-on",
        "Switching activation checkpointing off leaves its hook on the model.",
        replace(LLAMA, "disable_input_require_grads", nothing),
        cells=("API-21/plain/add_adapter",),
    ),
    Mutant(
        "environment-left-changed",
        "Injecting an adapter leaves an environment variable changed, as BOFT does with CXX.",
        replace(TUNER, "inject_adapter", leaving_a_variable),
        cells=("API-22/llama/lora", "API-22/llama/lora/add_adapter"),
    ),
    Mutant(
        "prompts-not-switched",
        "PeftModel.set_adapter does nothing, so the first prompt stays active.",
        replace(PEFT, "set_adapter", nothing),
        cells=("API-20/prompt-tuning", "API-20/plain"),
    ),
    Mutant(
        "merged-once-more",
        "Merging an adapter that is merged adds it once more.",
        replace("peft.tuners.lora.layer", "check_adapters_to_merge", merged_again),
        cells=("API-15/linear/lora/merge-again*",),
    ),
    Mutant(
        "merged-unsafely",
        "safe_merge does not look for NaN.",
        replace(LINEAR, "merge", never_safely),
        cells=("API-15/linear/lora/merge-again*",),
    ),
    Mutant(
        "merged-when-unloaded",
        "unload() merges the adapter into the base.",
        replace(TUNER, "unload", merged_when_unloaded),
        cells=("API-13/linear/lora/unload*",),
    ),
    Mutant(
        "evaluating-after-a-merge",
        "Merging leaves a layer in evaluation mode.",
        replace(LINEAR, "merge", in_evaluation_mode),
        cells=("API-23/linear/lora/modes*",),
    ),
    Mutant(
        "combined-twice-as-large",
        "An adapter combined by addition is twice as large as the sum.",
        replace("peft.tuners.lora:LoraModel", "_generalized_task_arithmetic_weighted_adapter", twice_as_much),
        cells=("API-24/alone/plain", "API-24/both-added-linear"),
    ),
    Mutant(
        "minority-elected",
        "ties combines the elements whose sign lost the election.",
        replace("peft.utils.merge_utils", "calculate_majority_sign_mask", the_minority),
        cells=("API-24/both-added-ties", "API-24/both-added-ties_svd"),
    ),
    Mutant(
        "one-of-two-merged",
        "Of several active adapters only the first is merged.",
        replace("peft.tuners.lora.layer", "check_adapters_to_merge", the_first_alone),
        cells=("API-25/lora",),
    ),
    Mutant(
        "converted-too-large",
        "A converted adapter is 1.1 times as large as it was.",
        replace("peft.tuners.lora.conversion", "_convert_module_to_lora", a_tenth_too_much),
        cells=("API-26/linear/loha/convert*",),
    ),
    Mutant(
        "biases-merged-twice",
        "Merging a BEFT adds its bias to the layer's twice.",
        replace("peft.tuners.beft.layer:Linear", "merge", biases_merged_twice),
        cells=("API-15/method/beft-with-biases",),
    ),
    Mutant(
        "evaluation-ends-in-training-mode",
        "evaluate() and predict() put the model into training mode when they are done.",
        replace(TRAINER, "evaluation_loop", then_training),
        cells=("API-27/plain",),
    ),
    Mutant(
        "evaluation-switches-the-adapter-off",
        "evaluate() and predict() disable the adapter when they are done.",
        replace(TRAINER, "evaluation_loop", then_switched_off),
        cells=("API-27/plain",),
    ),
    Mutant(
        "interrupted-gradient-kept",
        "train() begins with the gradients that an interrupted one has left.",
        replace("torch.nn:Module", "zero_grad", not_before_the_first_step),
        cells=("API-27/interrupt/substep_end", "API-27/exception/substep_end"),
    ),
    Mutant(
        "saved-in-evaluation-mode",
        "PeftModel.save_pretrained puts the model into evaluation mode.",
        replace(PEFT, "save_pretrained", saved_in_evaluation_mode),
        cells=("API-23/linear/lora/modes*", "CKPT-30/plain"),
    ),
    Mutant(
        "deleted-tensors-stay",
        "Deleting an adapter deactivates it, and leaves its tensors in each layer.",
        replace("peft.tuners.tuners_utils:BaseTunerLayer", "delete_adapter", deleted_by_name_alone),
        cells=("API-13/linear/lora/delete*", "API-13/linear/dora/delete*"),
    ),
    Mutant(
        "trained-tokens-never-disabled",
        "disable_adapter leaves trained tokens in the embedding.",
        replace("peft.tuners.trainable_tokens.layer:TrainableTokensLayer", "forward", never_without_tokens),
        cells=("API-02/method/trainable-tokens", "API-02/option/token-indices"),
    ),
    Mutant(
        "version-of-peft-unchecked",
        "The version of peft is not checked.",
        replace("transformers.integrations.peft", "check_peft_version", nothing),
        cells=("API-11/*",),
    ),
    Mutant(
        "no-adapter-disabled",
        "disable_adapters accepts a model that has no adapter.",
        replace(LLAMA, "disable_adapters", nothing),
        cells=("API-12/*",),
    ),
    Mutant(
        "one-copy-of-two",
        "Of two adapters with a copy of one module the first is activated, and the second is ignored.",
        replace(COPY, "check_set_adapter", first_copy_alone),
        cells=("API-18/refused/two-copies",),
    ),
    Mutant(
        "targets-not-from-tensors",
        "Injecting an adapter ignores the tensors that say which modules are adapted.",
        replace(TUNER, "inject_adapter", without_named_tensors),
        cells=("API-19/*",),
    ),
)
