"""A quantization_config, as a spec has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Fields that concern four bits, which a saved config has beside load_in_8bit.
_COMPUTES = ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")

#: Fields of a quantization_config that say how bitsandbytes packs into four bits, and what "nf4" of a spec stands for.
_NF4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": "uint8"}

#: Fields that upstream writes into every quantization_config of bitsandbytes, and their defaults.
_BITSANDBYTES = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": False,
    "load_in_8bit": False,
    "llm_int8_threshold": 6.0,
    "llm_int8_skip_modules": None,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
}


def quantized(given: Mapping[str, Any], dtype: str) -> str | dict[str, Any]:
    """Return a quantization_config as a spec has it: "nf4" or "int8" if it says no more than that.

    The reference and more laws know those two. dtype: of the model's weights, in which "nf4" computes.
    """
    # A saved config repeats two fields with an underscore.
    kept = {str(name): value for name, value in given.items() if not str(name).startswith("_")}
    own = {name: value for name, value in kept.items() if name not in _BITSANDBYTES or value != _BITSANDBYTES[name]}
    if own == {"load_in_8bit": True} or (own.get("load_in_8bit") is True and set(own) <= {"load_in_8bit", *_COMPUTES}):
        return "int8"
    if own.pop("load_in_4bit", False) is True:
        compute = str(own.pop("bnb_4bit_compute_dtype", "float32")).removeprefix("torch.")
        own.setdefault("bnb_4bit_quant_storage", "uint8")
        if own == _NF4 and compute == dtype:
            return "nf4"
    return kept
