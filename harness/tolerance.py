"""Named tolerances. Exact first; a bound stands here only where exactness cannot hold, with the noise it was sized on.

Each bound has a negative control in tests/test_tolerances.py: a fault that must exceed it by a factor of ten.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """How far two runs may part. All bounds are absolute.

    loss: logged losses. gradient: elements of gradients, and gradient norms. adapter: elements of adapter tensors
    (which are up to 0.15 large in the micro-runs). reason: why exactness cannot hold, and the measured noise.
    """

    name: str
    loss: float
    gradient: float
    adapter: float
    reason: str

    @property
    def exact(self) -> bool:
        return self.loss == self.gradient == self.adapter == 0.0


EXACT = Tolerance("bit for bit", 0.0, 0.0, 0.0, "the same operations in the same order")

ACCUMULATION = Tolerance(
    "another split of the same rows",
    loss=1e-6,
    gradient=2e-7,
    adapter=2e-5,
    reason="sums of float32 in another order; measured over ten AdamW steps at lr 1e-2: loss 1e-6, gradient norm 6e-8, "
    "adapter 8e-6 (AdamW divides by the root of tiny second moments, which magnifies the last bits)",
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
    reason="the same updates in float64; measured over twenty steps at lr 1e-2: 5e-8, a third of the last bit of a "
    "weight a step",
)

SUMMATION = Tolerance(
    "another grouping of the same losses",
    loss=3e-6,
    gradient=0.0,
    adapter=0.0,
    reason="the Trainer adds losses up in float32 until it logs; measured on sums of ten losses of 5.5: 4e-7",
)

RANKS = Tolerance(
    "several processes",
    loss=2e-6,
    gradient=2e-7,
    adapter=6e-6,
    reason="sums over ranks of float32 in another order; measured with DDP, FSDP1 and FSDP2 on two ranks and DDP on "
    "four: loss 5e-7 (one last bit), gradient 5.3e-8, adapter 2.1e-6 after ten AdamW steps at lr 1e-2 and 2e-7 after six",
)
