"""Adapters combined by add_weighted_adapter: what each type of combination must add to a layer.

The expected tensors are computed here from the definitions in the papers that peft cites, not by peft's functions:

- linear, cat, svd: the weighted sum (`cat` and `svd` of what the adapters add to the layer, `linear` of A and of B).
- magnitude_prune: each tensor keeps its largest elements, a share `density` of them; then the weighted sum.
- ties (Yadav et al. 2023, arXiv 2306.01708): pruned like that; then for each element a sign is elected by the sum, and the
  mean of the weighted elements of that sign is taken.
- dare (Yu et al. 2023, arXiv 2311.03099): drops at random, and divides by `density`. With density 1 nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from harness.verdict import Verdict, verdict

#: All types of combination, without the ending "_svd": what is combined is what the adapters add to a layer, or A and B.
PLAIN = ("linear", "ties", "dare_ties", "dare_linear", "magnitude_prune")
TYPES = ("cat", "svd", *PLAIN, *(f"{name}_svd" for name in PLAIN[1:]))


def combined(kind: str, tensors: Sequence[torch.Tensor], weights: Sequence[float], density: float) -> torch.Tensor:
    """Return the combination of tensors of one shape, in float64. kind: a type without "_svd"; svd is linear."""
    kept = [tensor.double() for tensor in tensors]
    if kind in ("ties", "magnitude_prune"):
        kept = [_largest(tensor, density) for tensor in kept]
    stacked = torch.stack(kept)
    weighted = torch.stack([weight * tensor for weight, tensor in zip(weights, kept, strict=True)])
    if not kind.endswith("ties"):
        return weighted.sum(dim=0)
    elected = torch.where(stacked.sum(dim=0) >= 0, 1.0, -1.0)
    agreeing = stacked.sign() == elected
    return (weighted * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)


def _largest(tensor: torch.Tensor, density: float) -> torch.Tensor:
    count = int(density * tensor.numel())
    kept = torch.zeros(tensor.numel(), dtype=tensor.dtype)
    chosen = tensor.flatten().abs().topk(count).indices
    kept[chosen] = tensor.flatten()[chosen]
    return kept.view(tensor.shape)


def added(layer: Any, adapter: str) -> torch.Tensor:
    """Return what a linear layer's LoRA adds to its weight, in float64: B A scaling."""
    a, b = layer.lora_A[adapter].weight.detach().double(), layer.lora_B[adapter].weight.detach().double()
    found: torch.Tensor = b @ a * float(layer.scaling[adapter])
    return found


def combines(
    layers: dict[str, Any], kind: str, sources: Sequence[str], weights: Sequence[float], name: str, density: float
) -> Verdict:
    """Check what a combined adapter adds to each layer.

    - layers: path -> linear layer with a LoRA.
    - sources, weights: of the combination. name: the combined adapter's.

    For linear types A and B are combined each for itself, with the root of weight and scaling on both, and the sign on A. The
    bound is float32's rounding: a combined element is a sum of r products, and a singular value decomposition of 64 rows
    rounds by 64 eps of the largest value at most.
    """
    findings = []
    for path, layer in layers.items():
        if kind in PLAIN:
            scaled = [weight * float(layer.scaling[one]) for one, weight in zip(sources, weights, strict=True)]
            roots = [abs(value) ** 0.5 for value in scaled]
            signed = [root if value >= 0 else -root for root, value in zip(roots, scaled, strict=True)]
            a = combined(kind, [layer.lora_A[one].weight.detach() for one in sources], signed, density)
            b = combined(kind, [layer.lora_B[one].weight.detach() for one in sources], roots, density)
            expected = b @ a
        else:
            plain = "linear" if kind in ("cat", "svd") else kind.removesuffix("_svd")
            expected = combined(plain, [added(layer, one) for one in sources], weights, density)
        gap = float((added(layer, name) - expected).abs().max())
        largest = float(expected.abs().max())
        if not gap <= 64 * torch.finfo(torch.float32).eps * largest:
            findings.append(
                f"{path}: what {kind} adds differs by {gap:.3g} at most; the largest element is {largest:.3g}"
            )
    return verdict(f"{kind} adds what its definition says", findings)
