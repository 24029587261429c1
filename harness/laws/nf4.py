"""NF4 layers, recomputed by hand: from a layer's bytes to its weight, and from the weight to the layer's output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from harness.laws.quantized import plain
from harness.reference.lora import is_packed
from harness.verdict import Verdict, verdict

#: The sixteen values of 4-bit NormalFloat (Dettmers et al. 2023, arXiv 2305.14314, appendix E).
TABLE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

#: How many weights share one scale, and how many scales share one scale of their own (double quantization).
BLOCK, SCALES = 64, 256

#: How far from the nearest table value a chosen value may be, as a share of the block's largest magnitude. A weight that
#: lies half way between two values is decided by float32 rounding.
ROUNDING = 2.0**-20

#: The same for a scale, which is looked up in bitsandbytes' 8-bit table. On a CPU bitsandbytes rounds to 16 bits first:
#: the largest error among 768,000 numbers was 2.9e-5 (bitsandbytes 0.50.2).
LOOKUP = 2.0**-15


def stands_for(
    packed: torch.nn.Module, whole: torch.nn.Module, computing: torch.dtype, rows: int = 3, seed: int = 0
) -> Verdict:
    """Check each packed layer's bytes, and what the layer computes with them.

    1. Each weight must be packed as the nearest NF4 value, and each scale as the nearest 8-bit value.
    2. Forward pass and gradient of the input must be those of the unpacked weight in the compute dtype. The bound is what
       the order of a float32 sum may change, plus one rounding of the result.

    - packed: a model with layers of bitsandbytes' Linear4bit, doubly quantized.
    - whole: the same model before it was packed.
    - computing: the compute dtype that was asked for.
    - rows: how many rows the input has. bitsandbytes has different kernels for few and for many.
    - seed: random seed of the inputs.
    """
    findings: list[str] = []
    largest = 0.0
    layers = [(path, layer) for path, layer in packed.named_modules() if is_packed(layer)]
    weights = dict(whole.named_parameters())
    if not layers:
        findings.append("the model has no packed layer")
    draw = torch.Generator().manual_seed(seed)
    for path, layer in layers:
        original = weights[f"{path}.weight"].detach().float().cpu()
        findings += [f"{path}: {sentence}" for sentence in _not_nearest_values(layer, original)]
        if layer.compute_dtype != computing:
            findings.append(f"{path}: computes in {plain(layer.compute_dtype)}, expected {plain(computing)}")
        weight = unpacked(layer, original.shape).to(computing).double()
        for dtype in (torch.float32, computing):
            for what, seen, expected, bound in _computed(layer, weight, dtype, computing, rows, draw):
                off = (seen - expected).abs()
                largest = max(largest, float(off.max()))
                if not bool((off <= bound).all()):
                    worst = int((off - bound).nan_to_num(nan=float("inf")).argmax())
                    findings.append(
                        f"{path}: {what} of a {plain(dtype)} input is off by {float(off.flatten()[worst]):.3g}, "
                        f"expected {float(bound.flatten()[worst]):.3g} at most"
                    )
    return verdict(
        f"{len(layers)} packed layers compute with the NF4 values nearest to their weights", findings, largest=largest
    )


def unpacked(layer: Any, shape: torch.Size) -> torch.Tensor:
    """Return a layer's unpacked weight, (out, in), float32, on the CPU: its NF4 values times their scales."""
    return (_values(layer).view(-1, BLOCK) * _scales(layer)[:, None]).view(shape)


def _values(layer: Any) -> torch.Tensor:
    """Return the NF4 value of each weight. Of the two weights in a byte, the first is in the upper four bits."""
    data = layer.weight.detach().cpu().contiguous().view(torch.uint8).flatten()
    return torch.tensor(TABLE)[torch.stack([data >> 4, data & 15], dim=1).flatten().long()]


def _scales(layer: Any) -> torch.Tensor:
    """Return the scale of each block of weights, float32.

    A scale is stored as an 8-bit code. Its value is the code's table value times the scale of its 256, plus the mean of
    all scales.
    """
    state = layer.weight.quant_state
    codes, table, scale = state.absmax.cpu(), state.state2.code.cpu(), state.state2.absmax.cpu()
    scales: torch.Tensor = table[codes.long()] * scale.repeat_interleave(SCALES)[: codes.numel()] + state.offset.cpu()
    return scales


def _not_nearest_values(layer: Any, original: torch.Tensor) -> Iterator[str]:
    """Yield a sentence if weights, or scales, were not rounded to the nearest value of their table."""
    blocks = original.flatten().view(-1, BLOCK)
    magnitudes = blocks.abs().amax(1)
    scaled = (blocks / magnitudes[:, None]).flatten()
    if count := _not_nearest(_values(layer), scaled, torch.tensor(TABLE), ROUNDING):
        yield f"{count} of {scaled.numel()} weights are not packed as the nearest NF4 value"
    state = layer.weight.quant_state
    offset = state.offset.cpu()
    if not torch.allclose(offset, magnitudes.mean(), rtol=ROUNDING, atol=0.0):
        yield f"the mean of the scales is stored as {float(offset):.9g}, expected {float(magnitudes.mean()):.9g}"
    table = state.state2.code.cpu()
    centred = magnitudes - offset
    padded = functional.pad(centred, (0, -centred.numel() % SCALES)).view(-1, SCALES)
    shares = (padded / padded.abs().amax(1, keepdim=True)).flatten()[: centred.numel()]
    if count := _not_nearest(table[state.absmax.cpu().long()], shares, table, LOOKUP):
        yield f"{count} of {shares.numel()} scales are not stored as the nearest 8-bit value"


def _not_nearest(chosen: torch.Tensor, expected: torch.Tensor, table: torch.Tensor, allowance: float) -> int:
    nearest = (expected[:, None] - table).abs().amin(1)
    return int(((chosen - expected).abs() > nearest + allowance).sum())


def _computed(
    layer: Any, weight: torch.Tensor, dtype: torch.dtype, computing: torch.dtype, rows: int, draw: torch.Generator
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield (what, the layer's result, the unpacked weight's result, the bound of their difference), in float64 on the CPU.

    `what` is "the forward pass" and "the gradient".
    """
    device = layer.weight.device
    x = torch.randn(rows, weight.shape[1], generator=draw).to(dtype).to(device).requires_grad_()
    gradient = torch.randn(rows, weight.shape[0], generator=draw).to(dtype).to(device)
    layer.train()  # in eval mode bitsandbytes may repack the bytes for a CPU
    seen = layer(x)
    seen.backward(gradient)
    assert x.grad is not None
    for what, result, left, right in (
        ("the forward pass", seen, x, weight.T),
        ("the gradient", x.grad, gradient, weight),
    ):
        left = left.detach().cpu().to(computing).double()
        expected = left @ right
        # In any order, a float32 sum of n products is off by at most n rounding errors of the products' magnitudes.
        sums = left.shape[1] * torch.finfo(torch.float32).eps * (left.abs() @ right.abs())
        out = max(torch.finfo(computing).eps, torch.finfo(dtype).eps)
        yield what, result.detach().cpu().double(), expected, sums + out * expected.abs()
