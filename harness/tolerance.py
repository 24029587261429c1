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
