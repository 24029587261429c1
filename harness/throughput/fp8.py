"""The compiled reference with its base in FP8 (float8_e4m3fn), and how far its losses may be from float32's.

1. `quantize_rows` gives each row a scale of its own, so that its largest number is the format's.
2. `Fp8Linear` keeps a frozen weight twice, quantised by its rows and by its columns. `Fp8Product` multiplies with the first
   in the forward pass and with the second for the gradient of its input. Activations and gradients are quantised as they
   come.
3. Adapters stay as they were. `loss_bound` says how far the losses may be from those in float32.

The subject is "harness.throughput.fp8:compiled". It is timed only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from harness import lacking
from harness.spec import RunSpec
from harness.throughput.compiled import Compiled

FORMAT = torch.float8_e4m3fn

#: The largest number of the format, and the bits of its fraction.
LARGEST, FRACTION = 448.0, 3

#: The largest relative error of a number that is rounded to the format, half a unit in the last place. Smaller numbers than
#: 2**-6 / 448 of their row's largest one have fewer bits; their error is at most 2**-10 / 448 of the row's largest.
ROUNDING = 2.0 ** -(FRACTION + 1)

#: The root of the mean square of that error. It is uniform in +-ROUNDING for numbers just above a power of two, and smaller
#: for larger ones.
MEAN_ROUNDING = 2 * ROUNDING / math.sqrt(12)


def missing(device: str) -> str | None:
    """Return why products in FP8 cannot be computed on a device, None if they can."""
    if device != "cuda":
        return "FP8 products with a scale for each row need a GPU"
    capability = torch.cuda.get_device_capability()
    if capability < (8, 9):
        return "FP8 products need a GPU of compute capability 8.9 or newer, this one has {}.{}".format(*capability)
    return lacking.scaled_product()


def quantize_rows(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix (rows, columns) in FP8, and in float32 the scale (rows, 1) by which each row was divided."""
    wide = matrix.float()
    scale = wide.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (wide / scale).clamp(-LARGEST, LARGEST).to(FORMAT), scale


def product(left: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return left @ weight.T, left quantised here by its rows.

    - left: (rows, inner), of a floating dtype.
    - weight, scale: (columns, inner) and (columns, 1), from `quantize_rows`.
    - dtype: of the result. The sums are float32.
    """
    quantized, own = quantize_rows(left)
    if left.device.type != "cuda":
        # torch multiplies with a scale for each row on GPUs only. Numbers in FP8 are float32 numbers as well.
        with torch.autocast(left.device.type, enabled=False):
            return ((quantized.float() @ weight.float().t()) * own * scale.t()).to(dtype)
    # The hardware takes the second matrix by columns, which is how the transposed weight lies in memory.
    return torch._scaled_mm(quantized, weight.t(), scale_a=own, scale_b=scale.t(), out_dtype=torch.bfloat16).to(dtype)


class Fp8Product(torch.autograd.Function):
    """x @ W.T and, backward, gradient @ W, both in FP8. W is frozen and has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: Any, row_scale: Any, columns: Any, column_scale: Any) -> torch.Tensor:
        ctx.save_for_backward(columns, column_scale)
        ctx.dtype = x.dtype
        return product(x, rows, row_scale, torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        columns, column_scale = ctx.saved_tensors
        return product(gradient, columns, column_scale, ctx.dtype), None, None, None, None


class Fp8Linear(nn.Module):
    """A frozen linear layer without a bias whose weight is kept in FP8, once by its rows and once by its columns.

    - layer: the layer that it stands for. Its weight is not kept.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        for name, matrix in (("rows", layer.weight.data), ("columns", layer.weight.data.t())):
            quantized, scale = quantize_rows(matrix)
            self.register_buffer(name, quantized.contiguous())
            self.register_buffer(f"{name}_scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x @ W.T in bfloat16. x: (..., in_features)."""
        flat = x.reshape(-1, self.in_features)
        y: torch.Tensor = Fp8Product.apply(  # type: ignore[no-untyped-call]
            flat, self.rows, self.rows_scale, self.columns, self.columns_scale
        )
        return y.reshape(*x.shape[:-1], self.out_features)


def in_fp8(model: Any) -> None:
    """Put FP8 weights in place of the frozen weights of all adapted layers of the reference's model."""
    for layer in model.modules():
        if type(layer).__name__ == "LoraLinear":
            layer.base_layer = Fp8Linear(layer.base_layer)


def unsupported(spec: RunSpec) -> str | None:
    """Return why a run cannot be trained with a base in FP8, None if it can."""
    if spec.model.quantization is not None:
        return "its base is packed already"
    if not spec.arguments.get("bf16"):
        return "FP8 products give bfloat16, and the run does not compute in it (bf16=True)"
    return missing(spec.launch.device)


def compiled() -> Compiled:
    """Return the subject that compiles the layers, with the adapted layers' frozen weights in FP8."""
    return Compiled(capture=False, name="reference-fp8", arrange=in_fp8, lacks=unsupported)


#: Products in FP8 that follow each other in the longer branch of a layer (gate or up, then down), as variances: the error of
#: silu(g) * u is at most 1.7 + 1 times that of one product, and that of the product after it comes on top.
_IN_SERIES = 1.7 + 1 + 1


def loss_bound(exact: float, vocabulary: int, layers: int, tokens: int) -> float | None:
    """Return how far the mean loss over random weights may be from float32's, if frozen products are rounded to FP8.

    1. A product of two rounded matrices has a relative error e of at most sqrt(2) * MEAN_ROUNDING (root of the mean square).
    2. A branch of a layer adds to the stream with an error of sqrt(_IN_SERIES) * e. If all 2 * layers branches are as large
       as the embedding, branch k is one part in k + 1 of the stream, so the squared error of the last hidden state is the sum
       of 1 / (k + 1) times that of a branch. What a branch inherits from the stream is the stream's own relative error.
    3. Logits of random weights are independent of the labels. If their variance is s**2, the loss is log(vocabulary) +
       s**2 / 2, which gives s. An error r of the logits moves the loss by s**2 * r**2 / 2, and at random by s * r for each
       token: three standard errors of the mean over all tokens are allowed.

    - exact: the mean loss in float32.
    - tokens: over which the loss is the mean.

    Returns None if the loss is not that of random weights: it is below log(vocabulary).
    """
    variance = 2 * (exact - math.log(vocabulary))
    if variance <= 0:
        return None
    branches = sum(1 / (1 + branch) for branch in range(1, 2 * layers + 1))
    error = 2 * MEAN_ROUNDING**2 * _IN_SERIES * branches
    return variance * error / 2 + 3 * math.sqrt(variance * error / tokens)
