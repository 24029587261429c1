"""QLORA: adapters on a quantized base."""

from __future__ import annotations

import torch

from harness.mutants.api import without_scaling
from harness.mutants.catalogue import Mutant
from harness.mutants.patch import nothing, replace

PREPARE = ("peft", "prepare_model_for_kbit_training")


def not_prepared(original, model, *args, **options):
    return model


def output_layer_scaled(original, model, *args, **options):
    prepared = original(model, *args, **options)
    prepared.lm_head.weight.data.mul_(1.001)
    return prepared


def eight_bits(original, config, *args, **options):
    original(config, load_in_8bit=True)


def never_8_bit(original, optimizer, *args):
    return {**original(optimizer, *args), "min_8bit_size": 10**9}


def scale_changed_by_loading(original, model, *args, **options):
    loaded = original(model, *args, **options)
    for parameter in model.parameters():
        if hasattr(parameter, "quant_state"):
            parameter.quant_state.absmax.add_(1)
            break
    return loaded


def scale_changed(original, *args, **options):
    state = original(*args, **options)
    state.absmax.add_(1)
    return state


def in_bfloat16(original, layer, x):
    layer.compute_dtype = torch.bfloat16
    return original(layer, x)


def one_percent_larger(original, weight, *args, **options):
    return original(weight * 1.01, *args, **options)


def compute_dtype_dropped(original, config, *args, **options):
    original(config, *args, **options)
    config.bnb_4bit_compute_dtype = torch.float32


def gradient_doubled(original, context, gradient):
    first, *others = original(context, gradient)
    return (2 * first, *others)


MUTANTS = (
    Mutant(
        "packed-layers-without-scaling",
        "An adapter on a packed layer is not scaled.",
        replace("peft.tuners.lora.bnb:Linear4bit", "forward", without_scaling),
        cells=("GEN-01/nf4", "GEN-01/nf4/bfloat16", "QLORA-01/nf4", "QLORA-06/nf4"),
    ),
    Mutant(
        "packed-layers-compute-in-bfloat16",
        "A packed layer computes in bfloat16, whatever its compute dtype is.",
        replace("bitsandbytes.nn:Linear4bit", "forward", in_bfloat16),
        cells=("QLORA-14/float32/bytes", "GEN-01/nf4", "QLORA-01/nf4"),
    ),
    Mutant(
        "compute-dtype-dropped",
        "bnb_4bit_compute_dtype is ignored, and packed layers compute in float32.",
        replace("transformers:BitsAndBytesConfig", "__init__", compute_dtype_dropped),
        cells=("QLORA-14/bfloat16/bytes", "GEN-01/nf4/bfloat16", "QLORA-01/nf4"),
    ),
    Mutant(
        "packed-of-a-larger-weight",
        "A weight is packed as if it were 1 % larger.",
        replace("bitsandbytes.functional", "quantize_4bit", one_percent_larger),
        cells=("QLORA-14/float32/bytes", "GEN-01/nf4", "QLORA-01/nf4"),
    ),
    Mutant(
        "gradient-through-packed-layers-doubled",
        "The gradient through a packed layer is twice what it must be.",
        replace("bitsandbytes.autograd._functions:MatMul4Bit", "backward", gradient_doubled),
        cells=("QLORA-14/bfloat16/bytes", "GEN-01/nf4", "QLORA-01/nf4"),
    ),
    Mutant(
        "eight-bits-for-four",
        "A base is packed to 8 bits although 4 bits were asked for.",
        replace("transformers:BitsAndBytesConfig", "__init__", eight_bits),
        cells=("QLORA-01/nf4",),
    ),
    Mutant(
        "not-prepared",
        "prepare_model_for_kbit_training does nothing.",
        replace(*PREPARE, not_prepared),
        cells=("QLORA-05", "QLORA-01/nf4"),
    ),
    Mutant(
        "preparing-scales-the-output-layer",
        "prepare_model_for_kbit_training changes the output layer.",
        replace(*PREPARE, output_layer_scaled),
        cells=("QLORA-06/nf4",),
    ),
    Mutant(
        "moments-not-in-8-bits",
        "An 8-bit optimizer keeps its moments in float32.",
        replace("bitsandbytes.optim.optimizer:Optimizer8bit", "get_config", never_8_bit),
        cells=("QLORA-08/adamw_bnb_8bit/wide", "QLORA-08/adamw_bnb_8bit/narrow"),
    ),
    Mutant(
        "packed-base-changed-by-resuming",
        "Loading an adapter changes the scale of a packed weight.",
        replace("peft:PeftModel", "load_adapter", scale_changed_by_loading),
        cells=("QLORA-12/step-2", "QLORA-04/step-2"),
    ),
    Mutant(
        "packed-base-saved-otherwise",
        "A saved packed weight is loaded with another scale.",
        replace("bitsandbytes.functional:QuantState", "from_dict", scale_changed),
        cells=("QLORA-12/the_packed*", "QLORA-12/load_state_dict"),
    ),
    Mutant(
        "purely-quantized-model-trained",
        "A quantized base without adapters is not refused.",
        replace("transformers.trainer", "validate_quantization_for_training", nothing),
        cells=("FRZ-10/nf4", "QLORA-11"),
    ),
)
