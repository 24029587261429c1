"""The base's weights under an adapter: which of them peft saves beside it, and whether injection changes them.

The laws on checkpoints, on embeddings and on rebuilt models ask here, so that no law demands what another forbids.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from harness.fixtures import models
from harness.fixtures.methods import rows_of
from harness.spec import AdapterSpec, RunSpec
from harness.tensors.names import is_adapter, own_part
from harness.trace import Trace

#: Embedding and output layers that peft saves whole if it adapts them: peft/utils/constants.py:EMBEDDING_LAYER_NAMES.
EMBEDDING_LAYERS = ("embed_tokens", "lm_head")

#: Values of LoraConfig.init_lora_weights (or how they begin) that subtract the fresh adapter from the base's weights:
#: peft/tuners/lora/layer.py:pissa_init, olora_init, corda_init, loftq_init, lora_ga_init.
_SUBTRACTED = ("pissa", "olora", "corda", "loftq", "lora_ga")


def saved_beside(trace: Trace) -> set[str]:
    """Return the canonical names of frozen tensors that an adapter file may hold beside the trained ones.

    They are what peft/utils/save_and_load.py:get_peft_model_state_dict adds with save_embedding_layers="auto":

    - The weight of an adapted embedding or output layer (EMB-05). If single rows are trained instead, peft leaves it out.
    - All weights of both layers, if the vocabulary was resized (EMB-03).
    - Tensors of a module in modules_to_save that are no parameters, such as a batch norm's mean.
    """
    adapter = trace.spec.adapter
    whole = {
        name
        for name in trace.base
        if not is_adapter(name) and f"{name.rpartition('.')[0]}.original_module.{name.rpartition('.')[2]}" in trace.base
    }
    if _trains_rows(adapter):
        return whole
    layers = {
        path
        for name in trace.parameters
        if is_adapter(name) and (path := _adapted_path(name)).rpartition(".")[2] in EMBEDDING_LAYERS
    }
    return whole | {n for n in trace.base if not is_adapter(n) and n.rpartition(".")[0] in layers}


def resized(spec: RunSpec) -> set[str]:
    """Return the names of the base's embedding weights if its vocabulary is not that of the directory it came from.

    Only a factory of a spec can resize. A base from the hub, or one without a name, is not looked up: the set is empty.
    """
    if ":" not in spec.model.family:
        return set()
    model = models.build(spec.model)
    origin = Path(str(getattr(model, "name_or_path", "") or ""), "config.json")
    if not hasattr(model, "get_input_embeddings") or not origin.is_file():
        return set()
    if json.loads(origin.read_text()).get("vocab_size") == model.config.vocab_size:
        return set()
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    paths = {path for path, module in model.named_modules() if any(module is layer for layer in layers)}
    return {name for name in model.state_dict() if name.rpartition(".")[0] in paths}


def _adapted_path(name: str) -> str:
    """Return the path of the layer that an adapter's tensor belongs to."""
    return name.removesuffix(own_part(name)).removesuffix(".")


def _trains_rows(adapter: AdapterSpec) -> bool:
    return adapter.peft_type == "TRAINABLE_TOKENS" or adapter.config.get("trainable_token_indices") is not None


def changed_by_injection(adapter: AdapterSpec) -> str | None:
    """Return the field by which injection changes the base's weights or layers, None if it leaves them as they are.

    A model with such an adapter is the base no more when the adapter is disabled, and a second one is made of what the
    first has left.
    """
    start = adapter.config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_SUBTRACTED):
        return f"adapter.config.init_lora_weights = {start!r} changes the base's weights when the adapter is injected"
    if adapter.config.get("kasa_config") is not None:
        # peft/tuners/lora/variants.py:KasaLinearVariant
        return "adapter.config.kasa_config cuts the smallest singular values of the base's weights"
    if adapter.config.get("layer_replication"):
        return "adapter.config.layer_replication changes the base's layers when the adapter is injected"
    return None


def changed_by_others(adapter: AdapterSpec) -> str | None:
    """Return the field by which injecting the other adapters changes the base's weights, None if there is none.

    Their files are not loaded with the adapter, so the base that it was trained on is not made again.
    """
    for other in adapter.others.values():
        injected = dataclasses.replace(adapter, config={**adapter.config, **other}, others={})
        if reason := changed_by_injection(injected):
            return f"of another adapter, {reason}"
    return None


def redrawn_by_loading(adapter: AdapterSpec) -> str | None:
    """Return the field by which each injection changes the base's weights differently, None if there is none.

    pissa_niter_N and lora_ga take a randomized SVD. Who loads the adapter into a new base gets other base weights.
    """
    start = adapter.config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(("pissa_niter", "lora_ga")):
        return f"adapter.config.init_lora_weights = {start!r} draws random numbers to change the base's weights"
    return None


def is_known(adapter: AdapterSpec) -> bool:
    """Return whether the table of methods has a row for the adapter's type, which says which frozen tensors it saves."""
    return bool(rows_of(adapter.peft_type))


#: Field of a LoraConfig -> endings of tensors that its variant counts up in each forward pass, and saves. No optimizer has
#: them. (peft/tuners/lora/velora.py, monteclora.py)
_COUNTED = {
    "velora_config": ("lora_velora_embed",),
    "monteclora_config": ("sampler.expert_weights", "sampler.gaussian_var_prior"),
}


def counted(adapter: AdapterSpec) -> tuple[str, ...]:
    """Return the endings of the adapter's own tensors that its forward pass changes."""
    config = adapter.config
    return tuple(end for field, ends in _COUNTED.items() if config.get(field) is not None for end in ends)


def own_tensors(adapter: AdapterSpec) -> set[str]:
    """Return the endings of the adapter's own tensors that are not trained, and are saved because of its config."""
    # peft/tuners/lora/variants.py:MiCALinearVariant: B is fixed, and only A is trained.
    fixed = {"lora_B.weight"} if adapter.config.get("init_lora_weights") == "mica" else set()
    return fixed | set(counted(adapter))
