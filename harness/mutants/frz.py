"""FRZ: which parameters are trained and which stay frozen."""

from __future__ import annotations

import torch

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import COPY, TRAINER, TUNER, replace


def norm_drifts(original, trainer, *args, **options):
    with torch.no_grad():
        weight = trainer.model.get_base_model().model.norm.weight
        weight.copy_(torch.nextafter(weight, torch.tensor(torch.inf)))
    return original(trainer, *args, **options)


def norm_trained_too(original, trainer, *args, **options):
    """Train a parameter that must be frozen."""
    model = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    model.model.norm.weight.requires_grad_(True)
    return original(trainer, *args, **options)


def gradient_left(original, trainer, *args, **options):
    loss = original(trainer, *args, **options)
    norm = trainer.model.get_base_model().model.norm.weight
    norm.grad = torch.ones_like(norm)
    return loss


def absmax_drifts(original, trainer, *args, **options):
    for packed in [p for p in trainer.model.parameters() if hasattr(p, "quant_state")][:1]:
        packed.quant_state.absmax.add_(1)
    return original(trainer, *args, **options)


def one_matrix_frozen(original, tuner, model):
    original(tuner, model)
    next(p for name, p in model.named_parameters() if "lora_A" in name).requires_grad_(False)


def left_out_of_the_optimizer(original, trainer, *args, **options):
    optimizer = original(trainer, *args, **options)
    del optimizer.param_groups[0]["params"][0]
    return optimizer


def on_k_proj(original, config, key):
    return key.endswith("k_proj") if key.endswith(("k_proj", "v_proj")) else original(config, key)


def k_proj_too(original, config, key):
    return original(config, key) or key.endswith("k_proj")


def every_linear_layer(original, config, model):
    """Adapt the head of a task like any other linear layer, as peft did before 0.13."""
    changed = original(config, model)
    if changed.target_modules and not isinstance(changed.target_modules, str):
        changed.target_modules |= {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return changed


def biases_decayed(original, *args, **options):
    return [name for name, _ in args[1].named_parameters()]


def nothing_decayed(original, trainer, model):
    return []


def without_the_copy(original, *args, **options):
    return {name: tensor for name, tensor in original(*args, **options).items() if "lm_head" not in name}


def without_magnitudes(original, *args, **options):
    return {name: tensor for name, tensor in original(*args, **options).items() if "magnitude" not in name}


def original_trained(original, wrapper, *args, **options):
    original(wrapper, *args, **options)
    wrapper.original_module.requires_grad_(True)


def original_unfrozen_when_disabled(original, wrapper, enabled):
    """Make the original require gradients while its copy is not used, as peft did before 0.19."""
    original(wrapper, enabled)
    wrapper.original_module.requires_grad_(not enabled)


def earlier_adapters_frozen(original, tuner, *args, **options):
    """Freeze the first adapter when a second is loaded for inference, as peft 0.18 and 0.19 did."""
    earlier = [p for name, p in tuner.model.named_parameters() if "lora_" in name or "modules_to_save" in name]
    injected = original(tuner, *args, **options)
    for parameter in earlier:
        parameter.requires_grad_(False)
    return injected


CHECKS_TARGETS = ("peft.tuners.tuners_utils", "check_target_module_exists")

MUTANTS = (
    Mutant(
        "base-drifts-by-an-ulp",
        "Each step moves one norm of the base to the next floating-point number.",
        replace(TRAINER, "training_step", norm_drifts),
        cells=("FRZ-01/modules-to-save", "FRZ-01/n37"),
    ),
    Mutant(
        "norm-trained-too",
        "A norm of the base is trained together with the adapter.",
        replace(TRAINER, "create_optimizer", norm_trained_too),
        cells=("FRZ-02/plain", "FRZ-02/universal/plain*", "CKPT-07/plain"),
    ),
    Mutant(
        "gradient-left-on-the-base",
        "A frozen norm holds a gradient when the optimizer steps.",
        replace(TRAINER, "training_step", gradient_left),
        cells=("FRZ-03/plain", "FRZ-03/n37"),
    ),
    Mutant(
        "packed-scale-drifts",
        "The scale of a packed 4-bit weight changes at each step.",
        replace(TRAINER, "training_step", absmax_drifts),
        cells=("FRZ-04/nf4", "QLORA-01/nf4"),
    ),
    Mutant(
        "one-lora-matrix-frozen",
        "The first lora_A does not require gradients.",
        replace(TUNER, "_mark_only_adapters_as_trainable", one_matrix_frozen),
        cells=("FRZ-02/plain*", "FRZ-13/plain*", "RES-21/two-projections"),
    ),
    Mutant(
        "parameter-left-out-of-the-optimizer",
        "The optimizer lacks the first of the trained tensors.",
        replace(TRAINER, "create_optimizer", left_out_of_the_optimizer),
        cells=("FRZ-13/plain", "FRZ-02/plain", "FRZ-02/universal/plain"),
    ),
    Mutant(
        "adapter-on-the-wrong-module",
        "The adapter of v_proj is put on k_proj, which has the same shape.",
        replace(*CHECKS_TARGETS, on_k_proj),
        cells=("FRZ-14/suffixes", "FRZ-14/path", "FRZ-02/plain"),
    ),
    Mutant(
        "adapter-on-a-module-too-many",
        "k_proj is adapted although target_modules does not name it.",
        replace(*CHECKS_TARGETS, k_proj_too),
        cells=("FRZ-14/suffixes", "FRZ-14/path"),
    ),
    Mutant(
        "output-layer-adapted-too",
        'target_modules="all-linear" without a task type adapts the output layer, too.',
        replace("peft.tuners.tuners_utils", "_maybe_include_all_linear_layers", every_linear_layer),
        cells=("FRZ-14/all-linear", "QLORA-03/float32", "QLORA-03/nf4"),
    ),
    Mutant(
        "biases-decayed",
        "Weight decay applies to biases, too.",
        replace(TRAINER, "get_decay_parameter_names", biases_decayed),
        cells=("FRZ-05/all", "FRZ-05/lora_only"),
    ),
    Mutant(
        "nothing-decayed",
        "Every parameter is in the group without weight decay.",
        replace(TRAINER, "get_decay_parameter_names", nothing_decayed),
        cells=("FRZ-09/other", "LOOP-01/warmup-decay-clip", "FRZ-02/warmup-decay-clip"),
    ),
    Mutant(
        "modules-to-save-not-saved",
        "The adapter file lacks the trained copy of a module in modules_to_save.",
        replace("peft.peft_model", "get_peft_model_state_dict", without_the_copy),
        cells=("FRZ-06", "CKPT-25/modules-to-save", "CKPT-21/modules-to-save*"),
    ),
    Mutant(
        "magnitudes-not-saved",
        "The adapter file of a DoRA adapter lacks its magnitudes.",
        replace("peft.peft_model", "get_peft_model_state_dict", without_magnitudes),
        cells=("FRZ-08/dora", "CKPT-25/dora"),
    ),
    Mutant(
        "original-trained-beside-its-copy",
        "The original of a module in modules_to_save is trained together with its copy.",
        replace(COPY, "update", original_trained),
        cells=("FRZ-06/lm_head", "FRZ-02/universal/modules-to-save"),
    ),
    Mutant(
        "original-unfrozen-where-adapters-are-off",
        "Disabling adapters makes the originals of modules_to_save trainable.",
        replace(COPY, "enable_adapters", original_unfrozen_when_disabled),
        cells=("FRZ-11/disabled/*",),
    ),
    Mutant(
        "second-adapter-freezes-the-first",
        "Injecting an adapter freezes the adapters that the model has already.",
        replace(TUNER, "inject_adapter", earlier_adapters_frozen),
        cells=("FRZ-11/*lora", "FRZ-12/*lora"),
    ),
)
