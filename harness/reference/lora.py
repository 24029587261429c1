"""LoRA (Hu et al. 2021, arXiv 2106.09685) on linear layers: y = W x + scaling * B A dropout(x).

x --+--> W (frozen, out x in) -----------------------------------+--> y
    +--> dropout --> A (r x in) --> B (out x r) --> * scaling ---+
"""

import math
from typing import Any

import torch
from torch import nn

from harness.errors import UsageError
from harness.reference.loss import causal_loss
from harness.reference.settings import LoraConfig


def is_linear(layer: nn.Module) -> bool:
    """Whether this is a layer that the reference adapts."""
    return type(layer) is nn.Linear or is_packed(layer)


def is_packed(layer: nn.Module) -> bool:
    """Whether this is bitsandbytes' layer for 4-bit weights, two to a byte, which unpacks them at each use."""
    return type(layer).__module__.startswith("bitsandbytes.") and type(layer).__name__ == "Linear4bit"


class LoraLinear(nn.Module):
    """A frozen linear layer with an adapter beside it. peft/tuners/lora/layer.py:Linear, bnb.py:Linear4bit.

    nn.Linear draws both matrices before they are initialised, as in peft: a torch seed gives the same adapter. It has
    the dtype that the base computes in (add_adapter); if `upcast`, float32 where that is half precision (get_peft_model).
    Beside packed bytes it starts in float32 unless `computing`: peft before 0.19.
    """

    def __init__(self, base_layer: nn.Linear, config: LoraConfig, upcast: bool, computing: bool = True):
        super().__init__()
        self.base_layer = base_layer
        self.lora_dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        self.lora_A = nn.Linear(base_layer.in_features, config.r, bias=False)
        self.lora_B = nn.Linear(config.r, base_layer.out_features, bias=False)
        self.scaling = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        dtype: Any = base_layer.weight.dtype
        if is_packed(base_layer) and computing:
            dtype = base_layer.compute_dtype
        elif not dtype.is_floating_point:
            dtype = torch.float32
        for matrix in (self.lora_A, self.lora_B):
            matrix.to(base_layer.weight.device, dtype).to(torch.float32 if upcast and dtype.itemsize == 2 else dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in). Returns (..., out) in the dtype of the frozen layer's output."""
        result = self.base_layer(x)
        if is_packed(self.base_layer):
            # Here peft rounds what the adapter adds by itself, and leaves that to autocast where there is CUDA's.
            x = x if torch.is_autocast_enabled() else x.to(self.lora_A.weight.dtype)
            added = self.lora_B(self.lora_A(self.lora_dropout(x))) * self.scaling
            return result + (added if torch.is_autocast_enabled() else added.to(result.dtype))
        x = x.to(self.lora_A.weight.dtype)
        return (result + self.lora_B(self.lora_A(self.lora_dropout(x))) * self.scaling).to(result.dtype)


def prepare_packed(base: Any) -> None:
    """Make all that is not packed float32, and compute activations anew in the backward pass.

    peft/utils/other.py:prepare_model_for_kbit_training.
    """
    packed = {id(layer.weight) for layer in base.modules() if is_packed(layer)}
    for parameter in base.parameters():
        if parameter.dtype.itemsize == 2 and id(parameter) not in packed:
            parameter.data = parameter.data.float()
    checkpoint_activations(base, {"use_reentrant": False})


def checkpoint_activations(base: Any, options: dict[str, Any]) -> None:
    """Have a transformers model keep the inputs of its layers only. Older releases have the older name only."""
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable(options)


class AdapterModel(nn.Module):
    """A transformers causal language model with LoRA injected, all else frozen, and its loss in its output.

    base: changed in place. autocast: dtype of torch.autocast around the forward pass, None for none. Names of tensors
    are those of the adapter file, "base_model.model.<path in base>". UsageError where a target is no nn.Linear, and
    where there is none. Modules are visited, and so drawn, as by peft/tuners/tuners_utils.py:BaseTuner.inject_adapter.
    """

    def __init__(self, base: Any, config: LoraConfig, upcast: bool = True, computing: bool = True):
        super().__init__()
        self.base_model, self.config = nn.ModuleDict({"model": base.requires_grad_(False)}), config
        self.autocast: torch.dtype | None = None
        modules = dict(base.named_modules())
        if config.target_modules == "all-linear":
            head = base.get_output_embeddings()
            targets = [name for name, module in modules.items() if is_linear(module) and module is not head]
        else:
            ends = tuple(f".{end}" for end in config.target_modules)
            targets = [name for name in modules if f".{name}".endswith(ends)]
        if not targets:
            raise UsageError(f"the base model has no layer that target_modules {config.target_modules!r} names")
        for name in targets:
            if not is_linear(modules[name]):
                raise UsageError(f"{name} is {type(modules[name]).__name__}; the reference adapts nn.Linear only")
            parent, _, attribute = name.rpartition(".")
            setattr(modules[parent], attribute, LoraLinear(modules[name], config, upcast, computing))

    @property
    def base(self) -> Any:
        return self.base_model["model"]

    def adapter(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors, sharing the model's memory."""
        return {name: tensor for name, tensor in self.state_dict().items() if ".lora_" in name}

    def forward(self, labels: Any = None, num_items_in_batch: Any = None, **inputs: torch.Tensor) -> dict[str, Any]:
        """input_ids, attention_mask, labels: int64 (rows, length). num_items_in_batch: see `loss.causal_loss`.

        Returns "logits" (rows, length, vocabulary) and, given labels, the 0-d "loss". The loss is computed inside
        autocast and the logits are upcast after it: accelerate/accelerator.py:prepare_model wraps the whole forward.
        """
        with torch.autocast(inputs["input_ids"].device.type, self.autocast, enabled=self.autocast is not None):
            logits = self.base(**inputs).logits
            loss = {} if labels is None else {"loss": causal_loss(logits, labels, num_items_in_batch)}
        return loss | {"logits": logits if self.autocast is None else logits.float()}
