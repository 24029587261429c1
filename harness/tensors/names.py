"""Canonical names of tensors: one name means one tensor, whatever wrapped it.

These three names of one tensor all become "model.layers.0.self_attn.q_proj.lora_A.weight":

- get_peft_model: "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
- add_adapter: "model.layers.0.self_attn.q_proj.lora_A.default.weight"
- the adapter file: "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

LoRA of two parameters of one module (target_parameters) nests two wrappers. The inner one's tensors keep their base_layer:
"mlp.experts.base_layer.lora_A.weight" beside the outer one's "mlp.experts.lora_A.weight".

What a prompt encoder embeds ("prompt_encoder.default.embedding.weight") becomes "prompt_embeddings", as in the file.
"""

from __future__ import annotations

import re

from harness import compat

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
_PREFIX = re.compile(r"^(?:module\.)?base_model\.model\.")

#: How parts of names begin that peft uses for adapters of every type: copies of whole modules, and prompts.
_SHARED_PARTS = ("modules_to_save", "prompt_encoder", "prompt_embeddings")


def is_adapter(name: str) -> bool:
    """Return whether a parameter's raw name belongs to an adapter rather than to the base model.

    The installed peft is asked how the names of each type's tensors begin, and nothing else.
    """
    begins = (*_SHARED_PARTS, *compat.tensor_prefixes())
    return any(part.startswith(begins) for part in name.split("."))


def own_part(name: str) -> str:
    """Return the end of an adapter tensor's name that does not say which layer it belongs to, such as "lora_A.weight"."""
    parts = name.split(".")
    return ".".join(parts[next((index for index, part in enumerate(parts) if is_adapter(part)), 0) :])


def canonical(name: str, adapter: str = "default") -> str:
    """Return the canonical form of a raw parameter, state_dict or file key.

    - adapter: the adapter's name, which is left out.
    """
    name = _without_base_layers(_PREFIX.sub("", _WRAPPERS.sub("", name)))
    # A copy that modules_to_save has made is saved under the name of the module that it stands in for.
    name = name.replace(f"modules_to_save.{adapter}.", "")
    # DoRA's magnitude is a module in memory and a bare tensor in the file.
    name = name.replace(f"lora_magnitude_vector.{adapter}.weight", "lora_magnitude_vector")
    # Of a prompt encoder only the embeddings that it makes are saved, under a name of their own.
    name = name.replace(f"prompt_encoder.{adapter}.embedding.weight", "prompt_embeddings")
    # CARTRIDGE's frozen tokens are in front of the trained ones, in one tensor of the file.
    name = name.replace(f"prompt_encoder.{adapter}.trainable_embedding", "prompt_embeddings")
    parts = name.split(".")
    for index in range(1, len(parts)):
        if parts[index] == adapter and is_adapter(parts[index - 1]):
            return ".".join(parts[:index] + parts[index + 1 :])
    return name


def _without_base_layers(name: str) -> str:
    """Remove the parts base_layer from a name, except those right before an adapter's own tensors (nested wrappers)."""
    if ".base_layer." not in f".{name}":
        return name
    *parts, last = name.split(".")
    own = next((index for index, part in enumerate(parts) if is_adapter(part)), 0)
    kept = [
        part
        for index, part in enumerate(parts)
        if part != "base_layer" or (index < own and set(parts[index:own]) == {"base_layer"})
    ]
    return ".".join([*kept, last])
