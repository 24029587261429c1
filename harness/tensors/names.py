"""Canonical names of tensors, so that one name means one tensor whatever wrapped it.

"base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight" (get_peft_model),
"model.layers.0.self_attn.q_proj.lora_A.default.weight" (add_adapter) and
"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" (the adapter file) are all
"model.layers.0.self_attn.q_proj.lora_A.weight".

What a prompt encoder embeds ("prompt_encoder.default.embedding.weight") is "prompt_embeddings", as in the file.
"""

from __future__ import annotations

import re

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|base_layer)\.")
_PREFIX = re.compile(r"^(?:module\.)?base_model\.model\.")

#: Name parts that mark a tensor as belonging to an adapter, for the adapter methods that peft offers.
ADAPTER_PARTS = (
    "lora_",
    "modules_to_save",
    "trainable_tokens_",
    "ia3_",
    "hada_",
    "lokr_",
    "oft_",
    "boft_",
    "vera_",
    "randlora_",
    "vblora_",
    "lily_",
    "fourierft_",
    "waveft_",
    "c3a_",
    "miss_",
    "hra_",
    "road_",
    "shira_",
    "hira_",
    "gralora_",
    "glora_",
    "delora_",
    "deft_",
    "peanut_",
    "supertuning_",
    "ln_tuning_layers",
    "prompt_encoder",
    "prompt_embeddings",
)


def is_adapter(name: str) -> bool:
    """Whether a parameter's raw name belongs to an adapter rather than to the base model."""
    return any(part.startswith(ADAPTER_PARTS) for part in name.split("."))


def canonical(name: str, adapter: str = "default") -> str:
    """The canonical form of a raw parameter, state_dict or file key; `adapter` is the name that is left out."""
    name = _PREFIX.sub("", _WRAPPERS.sub("", name))
    # A copy kept by modules_to_save is saved under the name of the module that it stands in for.
    name = name.replace(f"modules_to_save.{adapter}.", "")
    # DoRA's magnitude is a module in memory and a bare tensor in the file.
    name = name.replace(f"lora_magnitude_vector.{adapter}.weight", "lora_magnitude_vector")
    # Of a prompt encoder only what it embeds is saved, under a name of its own.
    name = name.replace(f"prompt_encoder.{adapter}.embedding.weight", "prompt_embeddings")
    parts = name.split(".")
    for index in range(1, len(parts)):
        if parts[index] == adapter and is_adapter(parts[index - 1]):
            return ".".join(parts[:index] + parts[index + 1 :])
    return name
