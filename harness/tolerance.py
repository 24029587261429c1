"""Named tolerances. Comparisons are exact unless exactness cannot hold. Each bound states the noise that was measured.

Each bound has a negative control in tests/test_tolerances.py: a fault that must exceed it by a factor of ten.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """How far two runs may differ. Bounds are absolute, for values of the size that the noise was measured on (`scaled`).

    - name: what differs between the runs, for reports.
    - loss: bound for logged losses.
    - gradient: bound for elements of gradients, and for gradient norms.
    - adapter: bound for elements of adapter tensors.
    - reason: why exactness cannot hold, and the measured noise.
    """

    name: str
    loss: float
    gradient: float
    adapter: float
    reason: str

    @property
    def exact(self) -> bool:
        return self.loss == self.gradient == self.adapter == 0.0


#: The size of losses, and of the largest elements of gradients and adapters, in the runs that the bounds are based on.
LOSSES, ELEMENTS = 6.0, 0.1


def scaled(bound: float, largest: float, usual: float = ELEMENTS) -> float:
    """Return the bound for larger values, because rounding grows with them. It is never less than `bound`.

    - largest: the largest of the values.
    - usual: the size of the values that `bound` is for.

    Measured over 800 drawn runs with gradients up to 0.7 and norms up to 17: at most 1e-6 of the largest element.
    """
    return bound * max(1.0, largest / usual)


EXACT = Tolerance("bit for bit", 0.0, 0.0, 0.0, "the same operations in the same order")

ACCUMULATION = Tolerance(
    "another split of the same rows",
    loss=5e-6,
    gradient=3e-7,
    adapter=1e-7,
    reason="float32 sums in another order; measured over 72 runs of ten SGD steps at lr 1e-2, on a processor with AVX2 "
    "but no AVX512: loss (5.5) 1.4e-6, gradient (up to 0.07) 3.4e-8, gradient norm 4.5e-8, adapter 7.5e-9",
)

ACCUMULATION_ADAPTIVE = Tolerance(
    "another split of the same rows, under AdamW",
    loss=1e-5,
    gradient=1e-5,
    adapter=3e-4,
    reason="AdamW divides by the root of tiny second moments, which magnifies the last bits of a gradient, so later steps "
    "start from other weights; measured over 72 runs of ten steps at lr 1e-2: loss 1.4e-6, gradient 1.6e-6, "
    "gradient norm 6.6e-7, adapter 4.4e-5",
)

ORACLE = Tolerance(
    "float32 against float64",
    loss=3e-6,
    gradient=5e-7,
    adapter=0.0,
    reason="the expectation is computed in float64; measured on losses of 5.6 and gradients up to 0.03: loss 8e-7, "
    "gradient 3e-8, gradient norm (0.2 to 1.3) 4e-8",
)

ADAMW = Tolerance(
    "AdamW in float64",
    loss=0.0,
    gradient=0.0,
    adapter=5e-7,
    reason="the same updates in float64; measured over twenty steps at lr 1e-2: 5e-8, which is a third of a weight's last "
    "bit per step",
)

SUMMATION = Tolerance(
    "another grouping of the same losses",
    loss=3e-6,
    gradient=0.0,
    adapter=0.0,
    reason="the Trainer sums losses in float32 until it logs; measured on sums of ten losses of 5.5: 4e-7",
)

MERGED = Tolerance(
    "merged into the base",
    loss=2e-6,
    gradient=0.0,
    adapter=1e-7,
    reason="the adapter is added to the weight, not to the output, in float32; measured on weights up to 0.09: unmerged "
    "weights 7e-9, logits (up to 0.6) 2e-7; if the adapter starts with a part of the weight, or is converted back: "
    "logits 5e-7",
)

RANKS = Tolerance(
    "several processes",
    loss=2e-6,
    gradient=2e-7,
    adapter=6e-6,
    reason="float32 sums over ranks in another order; measured with DDP, FSDP1 and FSDP2 on two ranks and DDP on four: "
    "loss 5e-7 (one last bit), gradient 5.3e-8, adapter 2.1e-6 after ten AdamW steps at lr 1e-2 and 2e-7 after six",
)

HALF = Tolerance(
    "float16 or TF32 against float32",
    loss=5e-4,
    gradient=5e-3,
    adapter=0.0,
    reason="products have eleven significant bits; measured under float16 autocast on a CPU, with hidden sizes 64 and 256 "
    "and an untrained adapter: loss 4.2e-5, gradient norm (1.8) 6.5e-4",
)

COMPILED = Tolerance(
    "compiled against eager",
    loss=5e-6,
    gradient=1e-6,
    adapter=3e-4,
    reason="fused kernels sum in another order, and AdamW magnifies that; measured with inductor on a CPU over four steps "
    "at lr 1e-2: loss 4.8e-7, gradient 1.9e-8, adapter 1.8e-5",
)

REBUILT = Tolerance(
    "rebuilt on the CPU beside a GPU",
    loss=2e-6,
    gradient=0.0,
    adapter=0.0,
    reason="a CPU with many cores sums in another order for each model, even if the tensors are the same; measured on the "
    "CPU of a machine with an H100: logits (up to 0.6) 1.43e-6; on two cores they are bit-equal",
)

STACKS = Tolerance(
    "another release of upstream",
    loss=6e-5,
    gradient=4e-8,
    adapter=1.5e-6,
    reason="transformers before 5.0 logs four digits; measured over 51 runs with transformers 4.57.6, 5.1.0, 5.3.0, 5.10.4 "
    "and peft 0.18.1 to 0.21.2: without a fault all but BOFT are bit-equal; BOFT's gradient 3.7e-9, adapter 1.2e-7",
)
