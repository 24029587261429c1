"""Put faults into upstream under which the checks of suites/test_amp.py must fail, and mend known defects."""

import pytest
import torch

from harness.suites import test_amp as amp
from tests.faults import assert_holds, assert_seen, each, mutant, replace

TRAINER = "transformers.trainer:Trainer"
ARGUMENTS = ("transformers:TrainingArguments", "__post_init__")


# ---- faults ----


def in_bfloat16(original, *args, **options):
    """The adapter file of add_adapter holds bfloat16."""
    return {name: tensor.bfloat16() for name, tensor in original(*args, **options).items()}


def as_if_alone(original, trainer, *args, **options):
    """An evaluation during training casts the model as an evaluation on its own does."""
    trainer.is_in_train = False
    result = original(trainer, *args, **options)
    trainer.is_in_train = True
    return result


def uncast(original, trainer, *args, **options):
    """bf16_full_eval does not cast the model."""
    trainer.args.fp16_full_eval = trainer.args.bf16_full_eval = False
    return original(trainer, *args, **options)


BASE = amp.BF16.but(model={"dtype": "bfloat16"})
ALONE = amp.EVALUATED.but(bf16_full_eval=True)
#: By clause; `tests.faults` describes a row.
FAULTS = {
    "AMP-01/autocast": (
        amp.test_bf16_computes_what_autocast_does,
        {"trace": amp.BF16},
        mutant("autocast-off"),
        "step 1: the model returned",
    ),
    "AMP-01/adapter": (
        amp.test_bf16_keeps_the_adapter_in_float32,
        {"trace": BASE},
        mutant("adapter-in-half-precision"),
        "step 1: the gradient: 8 tensors are not float32",
    ),
    "AMP-01/files": (
        amp.test_bf16_keeps_the_adapter_in_float32,
        {"trace": amp.BF16},
        mutant("adapter-saved-in-half-precision"),
        "checkpoint-1: 8 tensors are not float32",
    ),
    "AMP-01/outputs": (
        amp.test_bf16_returns_float32,
        {"spec": amp.BF16},
        mutant("outputs-left-in-half-precision"),
        "besides: ['torch.bfloat16']",
    ),
    "AMP-13": (
        amp.test_what_an_adapter_adds_is_not_rounded_away,
        {"spec": amp.SMALL},
        mutant("adapter-added-in-half-precision"),
        "of the adapter's effect on the logits is there",
    ),
    "AMP-12": (
        amp.test_a_second_trainer_goes_on_in_bf16,
        {"spec": amp.BF16.but(save_strategy="no"), "unwrapped": False},
        mutant("second-trainer-without-autocast"),
        "step 1: gradients of",
    ),
    "AMP-04/upcast": (
        amp.test_an_adapter_is_upcast_by_get_peft_model_only,
        {"trace": amp.half("float16")["float16"]},
        mutant("adapter-in-half-precision"),
        "the adapter before training: 8 tensors are not float32",
    ),
    "AMP-04/files": (
        amp.test_an_adapter_is_upcast_by_get_peft_model_only,
        {"trace": amp.half("float16")["float16/add_adapter"]},
        replace("peft", "get_peft_model_state_dict", in_bfloat16),
        "checkpoint-1: 8 tensors are not float16",
    ),
    "AMP-09/two": (
        amp.test_two_half_precisions_are_refused,
        {"changes": {"fp16": True, "bf16": True}, "words": "At most one"},
        mutant("precision-not-checked"),
        "raised nothing",
    ),
    "AMP-09/device": (
        amp.test_bf16_without_a_device_for_it_is_refused,
        {"argument": "bf16"},
        mutant("precision-not-checked"),
        "raised nothing",
    ),
    "AMP-09/training": (
        amp.test_full_evaluation_in_half_precision_leaves_training_alone,
        {"spec": ALONE},
        replace(TRAINER, "evaluation_loop", as_if_alone),
        "expected scalar type BFloat16 but found Float",
    ),
    "AMP-09/cast": (
        amp.test_an_evaluation_of_its_own_casts_the_model_and_gives_it_back,
        {"spec": ALONE},
        replace(TRAINER, "evaluation_loop", uncast),
        "missing: ['torch.bfloat16']",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    if name == "AMP-09/device" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device, so nothing is missing")
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)


# ---- known defects, mended ----


def unwrapped(original, trainer, *args, **options):
    result = original(trainer, *args, **options)
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return result


def refused_on_a_cpu(original, arguments):
    if arguments.fp16 and arguments.use_cpu:
        raise ValueError("fp16 needs a GPU")
    original(arguments)


def cast_back(original, trainer, *args, **options):
    before = {name: parameter.data for name, parameter in trainer.model.named_parameters()}
    result = original(trainer, *args, **options)
    for name, parameter in trainer.model.named_parameters():
        parameter.data = before[name]
    return result


def added_before_the_cast(original, layer, x, *args, **options):
    """Add the adapter's output in float32 to a product that is not rounded yet."""
    if not any(p.dtype.itemsize == 2 for p in layer.parameters()) and not torch.is_autocast_enabled("cpu"):
        return original(layer, x, *args, **options)
    half = x.bfloat16().float()
    with torch.autocast("cpu", enabled=False):
        result = half @ layer.base_layer.weight.bfloat16().float().T
        for name in layer.active_adapters:
            a, b = (part[name].weight.float() for part in (layer.lora_A, layer.lora_B))
            result = result + half @ a.T @ b.T * layer.scaling[name]
    return result.bfloat16()


MENDED = {
    "AMP-13": (
        amp.test_what_an_adapter_adds_is_not_rounded_away,
        {"spec": amp.halves(amp.SMALL)["bfloat16-base"]},
        replace("peft.tuners.lora.layer:Linear", "forward", added_before_the_cast),
    ),
    "AMP-02": (
        amp.test_after_bf16_training_the_model_computes_in_float32_again,
        {"spec": amp.BF16},
        replace(TRAINER, "train", unwrapped),
    ),
    "AMP-03": (
        amp.test_fp16_on_a_cpu_is_not_silently_float32,
        {"spec": amp.SHORT.but(fp16=True)},
        replace(*ARGUMENTS, refused_on_a_cpu),
    ),
    "AMP-09": (
        amp.test_an_evaluation_of_its_own_casts_the_model_and_gives_it_back,
        {"spec": ALONE},
        replace(TRAINER, "evaluate", cast_back),
    ),
}


@pytest.mark.parametrize("name", MENDED)
def test_a_mended_fault_is_no_longer_seen(name, runs, tmp_path, monkeypatch):
    assert_holds(MENDED[name], runs, tmp_path, monkeypatch)
