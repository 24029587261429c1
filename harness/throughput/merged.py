"""The compiled reference with fewer products: projections of the same input are multiplied as one.

q, k and v read one input, and so do gate and up. `merge` puts their frozen weights below each other, so that one product
gives all outputs, and one gives the gradient of the input, where five products and three sums were. Their adapters' A are put
below each other at each step in the same way; each B stays a product of its own. The sum of base and adapter is the
reference's: it is not rounded once more before the next operation.

The subjects are "harness.throughput.merged:merged", and "harness.throughput.merged:tuned", for which torch also tries its own
kernels of each product beside cuBLAS's. Both are timed only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness.reference.lora import is_packed
from harness.spec import RunSpec
from harness.throughput.compiled import Compiled

#: Projections of a decoder layer that read the same input, in the order in which the layer calls them.
GROUPS = (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj")))


class Group:
    """Projections of one input. The first that is called computes what all of them give.

    - layers: LoraLinear, in the order in which they are called.
    """

    def __init__(self, layers: list[Any]):
        self.layers, self.sizes = layers, [layer.base_layer.out_features for layer in layers]
        self.weight = torch.cat([layer.base_layer.weight.data for layer in layers])
        for layer, part in zip(layers, self.weight.split(self.sizes), strict=True):
            layer.base_layer.weight.data = part
        self.waiting: list[torch.Tensor] = []

    def take(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Return the output of a projection: index is its place among the layers."""
        if index == 0:
            self.waiting = self._all(x)
        taken = self.waiting[index]
        if index == len(self.layers) - 1:
            self.waiting = []
        return taken

    def _all(self, x: torch.Tensor) -> list[torch.Tensor]:
        down = nn.functional.linear(x, torch.cat([layer.lora_A.weight for layer in self.layers]))
        downs = down.split([layer.lora_A.out_features for layer in self.layers], dim=-1)
        bases = nn.functional.linear(x, self.weight).split(self.sizes, dim=-1)
        return [
            (base + layer.lora_B(own) * layer.scaling).to(base.dtype)
            for layer, own, base in zip(self.layers, downs, bases, strict=True)
        ]


class Member(nn.Module):
    """A projection of a group. It stands where the LoraLinear stood, which is still its child.

    - index: its place in the group.
    """

    def __init__(self, layer: nn.Module, group: Group, index: int):
        super().__init__()
        self.layer, self.group, self.index = layer, group, index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.group.take(self.index, x)


def merge(model: Any) -> None:
    """Merge the adapted projections of each layer of the reference's model. Groups that are not adapted as a whole stay."""
    for decoder in model.base.model.layers:
        for block, names in GROUPS:
            parent = getattr(decoder, block, None)
            layers: list[Any] = [getattr(parent, name, None) for name in names]
            if not all(type(layer).__name__ == "LoraLinear" and not is_packed(layer.base_layer) for layer in layers):
                continue
            group = Group(layers)
            for index, (name, layer) in enumerate(zip(names, layers, strict=True)):
                setattr(parent, name, Member(layer, group, index))


def unsupported(spec: RunSpec) -> str | None:
    """Return why a run has nothing to merge, None if it has."""
    targets = spec.adapter.config.get("target_modules") or ()
    if spec.model.quantization is not None:
        return "packed weights are unpacked layer by layer"
    if spec.adapter.config.get("lora_dropout"):
        return "each projection drops other numbers of the input"
    if targets != "all-linear" and not any(set(names) <= set(targets) for _, names in GROUPS):
        return "its adapters cover neither q, k and v nor gate and up, so nothing can be merged"
    return None


def merged() -> Compiled:
    """Return the subject that merges projections and compiles the layers."""
    return Compiled(capture=False, name="reference-merged", arrange=merge, lacks=unsupported)


def tuned() -> Compiled:
    """Return the subject that merges projections, and takes the fastest of cuBLAS's and torch's own kernels."""
    return Compiled(
        capture=False, name="reference-tuned", arrange=merge, lacks=unsupported, options={"max_autotune_gemm": True}
    )
