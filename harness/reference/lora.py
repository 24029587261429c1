"""LoRA (Hu et al. 2021, arXiv 2106.09685) on linear layers: y = W x + scaling * B A dropout(x).

x --+--> W (frozen, out x in) -----------------------------------+--> y
    +--> dropout --> A (r x in) --> B (out x r) --> * scaling ---+

"Packed" below means a base in NF4 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314): two 4-bit weights in each byte.
"""

import math
from typing import Any

import torch
from torch import nn

from harness import compat
from harness.errors import UsageError
from harness.reference.loss import causal_loss
from harness.reference.settings import LoraConfig

#: LoraConfig.bias -> ends of the names of biases that are trained and saved, too. peft: _mark_only_adapters_as_trainable.
BIASES: dict[str, tuple[str, ...]] = {"none": (), "all": (".bias",), "lora_only": (".base_layer.bias",)}


def is_linear(layer: nn.Module) -> bool:
    """Return whether the reference can adapt this layer."""
    return type(layer) is nn.Linear or is_packed(layer)


def is_packed(layer: nn.Module) -> bool:
    """Return whether this is bitsandbytes' layer of 4-bit weights, which unpacks them at each use."""
    return type(layer).__module__.startswith("bitsandbytes.") and type(layer).__name__ == "Linear4bit"


class LoraLinear(nn.Module):
    """A frozen linear layer with an adapter beside it. peft/tuners/lora/layer.py:Linear, bnb.py:Linear4bit.

    - base_layer: the frozen layer
    - upcast: train half-precision adapters in float32 (get_peft_model does, add_adapter does not)
    - computing: beside packed weights, start in the dtype that they are unpacked to; False: float32 (peft before 0.19)
    """

    def __init__(self, base_layer: nn.Linear, config: LoraConfig, upcast: bool, computing: bool = True):
        super().__init__()
        self.base_layer = base_layer
        self.lora_dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        # nn.Linear draws numbers for both matrices, which are overwritten below. peft draws them too, and a torch seed
        # gives the same adapter only if they are drawn.
        self.lora_A = nn.Linear(base_layer.in_features, config.r, bias=False)
        self.lora_B = nn.Linear(config.r, base_layer.out_features, bias=False)
        # B A is a sum of r terms. Divided by r its size stays about the same when r changes, and alpha sets that size: the
        # learning rate hardly needs another tuning (the paper's section 4.1). rsLoRA divides by sqrt(r) instead, since
        # dividing by r makes the updates of a large r too small (arXiv 2312.03732).
        self.scaling = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
        # B is 0: before the first step the model computes exactly what the base does. A must not be 0 as well, or neither
        # would get a gradient. kaiming_uniform_ draws between +-sqrt(2 / (1 + a^2)) * sqrt(3 / in_features), which for
        # a = sqrt(5) is +-1 / sqrt(in_features): nn.Linear's default (torch/nn/modules/linear.py:reset_parameters).
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        # The adapter has the base's dtype. That of packed weights only says how they are stored, so the dtype that they
        # are unpacked to is used instead.
        dtype: Any = base_layer.compute_dtype if is_packed(base_layer) and computing else base_layer.weight.dtype
        dtype = dtype if dtype.is_floating_point else torch.float32
        for matrix in (self.lora_A, self.lora_B):
            # Two conversions: in half precision the drawn numbers are rounded before they are widened to float32.
            matrix.to(base_layer.weight.device, dtype).to(torch.float32 if upcast and dtype.itemsize == 2 else dtype)

    def added(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the adapter adds for x: (..., in) -> (..., out)."""
        return self.lora_B(self.lora_A(self.lora_dropout(x))) * self.scaling  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return W x plus what the adapter adds, in the dtype of the frozen layer's output. x: (..., in)."""
        packed = is_packed(self.base_layer)
        result: torch.Tensor = self.base_layer(x)
        # is_autocast_enabled() asks for CUDA's autocast only. Under it peft converts nothing beside packed weights.
        if packed and torch.is_autocast_enabled():
            return result + self.added(x)
        added = self.added(x.to(self.lora_A.weight.dtype))
        # Beside packed weights peft rounds before the sum, beside others after it.
        return result + added.to(result.dtype) if packed else (result + added).to(result.dtype)


def prepare_packed(base: Any) -> None:
    """Make all but packed weights float32 and recompute activations. peft/utils/other.py:prepare_model_for_kbit_training."""
    packed = {id(layer.weight) for layer in base.modules() if is_packed(layer)}
    for parameter in base.parameters():
        if parameter.dtype.itemsize == 2 and id(parameter) not in packed:
            parameter.data = parameter.data.float()
    compat.enable_activation_checkpointing(base, {"use_reentrant": False})


def find_targets(base: Any, target_modules: list[str] | str) -> dict[str, nn.Linear]:
    """Return the layers to adapt by their path, in the order of peft/tuners/tuners_utils.py:BaseTuner.inject_adapter.

    target_modules: see `LoraConfig`. Raises UsageError if there is no target, or if a target is no linear layer.
    """
    modules: dict[str, Any] = dict(base.named_modules())
    if target_modules == "all-linear":
        head = base.get_output_embeddings()
        targets = {name: module for name, module in modules.items() if is_linear(module) and module is not head}
    else:
        ends = tuple(f".{end}" for end in target_modules)
        targets = {name: module for name, module in modules.items() if f".{name}".endswith(ends)}
    if not targets:
        raise UsageError(f"the base model has no layer that target_modules {target_modules!r} names")
    for name, module in targets.items():
        if not is_linear(module):
            raise UsageError(f"{name} is {type(module).__name__}; the reference adapts nn.Linear only")
    return targets


class AdapterModel(nn.Module):
    """A transformers causal language model with LoRA injected, all else frozen, and its loss in its output.

    base: the model, changed in place. upcast, computing: see `LoraLinear`. Names of tensors are those of the adapter
    file: "base_model.model.<path in base>".
    """

    def __init__(self, base: Any, config: LoraConfig, upcast: bool = True, computing: bool = True):
        super().__init__()
        self.config = config
        self.base_model = nn.ModuleDict({"model": base.requires_grad_(False)})
        self.autocast: torch.dtype | None = None  # dtype of torch.autocast around the forward pass
        # Each layer draws random numbers, so the order of the layers decides which ones it gets.
        for name, module in find_targets(base, config.target_modules).items():
            parent, _, attribute = name.rpartition(".")
            setattr(base.get_submodule(parent), attribute, LoraLinear(module, config, upcast, computing))
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or name.endswith(BIASES[config.bias]))

    @property
    def base(self) -> Any:
        return self.base_model["model"]

    def adapter(self) -> dict[str, torch.Tensor]:
        """Return the adapter's tensors by name. They share the model's memory."""
        return {n: t for n, t in self.state_dict().items() if ".lora_" in n or n.endswith(BIASES[self.config.bias])}

    def forward(self, labels: Any = None, num_items_in_batch: Any = None, **inputs: torch.Tensor) -> dict[str, Any]:
        """Return "logits" (rows, length, vocabulary) and, if there are labels, the 0-d "loss" (see `loss.causal_loss`)."""
        # accelerate wraps the whole forward pass: the loss is computed inside autocast, and the logits become float32
        # after it (accelerate/accelerator.py:prepare_model).
        with torch.autocast(inputs["input_ids"].device.type, self.autocast, enabled=self.autocast is not None):
            logits = self.base(**inputs).logits
            loss = {} if labels is None else {"loss": causal_loss(logits, labels, num_items_in_batch)}
        return loss | {"logits": logits if self.autocast is None else logits.float()}
