"""AMP: mixed precision."""

from __future__ import annotations

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import ACCELERATOR, ARGUMENTS, LINEAR, TUNER, nothing, replace


def without_autocast(original, accelerator, *args, **options):
    accelerator.native_amp = False
    return original(accelerator, *args, **options)


def not_cast(original, forward):
    return forward


def unwrapped_the_second_time(original, accelerator, model, *args, **options):
    if not getattr(model, "_is_accelerate_prepared", False):
        return original(accelerator, model, *args, **options)
    accelerator._models.append(model)
    return accelerator.unwrap_model(model, keep_fp32_wrapper=False)


def unchecked(original, arguments):
    asked = {name: getattr(arguments, name) for name in ("fp16", "bf16", "fp16_full_eval", "bf16_full_eval")}
    vars(arguments).update(dict.fromkeys(asked, False))
    original(arguments)
    vars(arguments).update(asked)


def summed_in_bfloat16(original, layer, *args, **options):
    """Add the adapter's output to the base's as if both were bfloat16, in a float32 layer."""
    whole = original(layer, *args, **options)
    base = layer.base_layer(args[0])
    return (base.bfloat16() + (whole - base).bfloat16()).to(whole.dtype)


MUTANTS = (
    Mutant(
        "adapter-added-in-half-precision",
        "What an adapter adds is rounded away: a float32 layer adds it in bfloat16.",
        replace(LINEAR, "forward", summed_in_bfloat16),
        cells=("AMP-13/float32/small", "AMP-01/float32-base"),
    ),
    Mutant(
        "autocast-off",
        "bf16=True computes in float32.",
        replace(ACCELERATOR, "prepare_model", without_autocast),
        cells=("AMP-01/float32-base", "AMP-01/dropout"),
    ),
    Mutant(
        "adapter-in-half-precision",
        "An adapter on a half-precision base is not cast to float32.",
        replace(TUNER, "_cast_adapter_dtype", nothing),
        cells=("AMP-01/bfloat16-base", "AMP-04/bfloat16", "AMP-04/float16"),
    ),
    Mutant(
        "outputs-left-in-half-precision",
        "The outputs of a model under autocast are not cast to float32.",
        replace("accelerate.accelerator", "convert_outputs_to_fp32", not_cast),
        cells=("AMP-01/float32-base",),
    ),
    Mutant(
        "second-trainer-without-autocast",
        "A second Trainer trains the same model in float32, although its bf16 is True.",
        replace(ACCELERATOR, "prepare_model", unwrapped_the_second_time),
        cells=("AMP-12/*kept*",),
        thread="https://github.com/huggingface/accelerate/pull/3977",
    ),
    Mutant(
        "precision-not-checked",
        "fp16 with bf16, and bf16 without a device for it, are not refused.",
        replace(ARGUMENTS, "__post_init__", unchecked),
        cells=("AMP-09/both*", "AMP-09/bf16"),
    ),
)
