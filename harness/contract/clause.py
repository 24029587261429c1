"""A clause of the contract: what must hold, and where upstream says so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clause:
    """One fact of the PEFT Trainer path.

    id: "FRZ-01". statement: in MUST wording, what holds on a stack without faults. source: where upstream documents or
    implements it ("transformers/trainer.py:1272"; lines as of transformers 5.23.0, peft 0.21.2, accelerate 1.15.0).
    tier: what it takes to judge it: "cpu", "mp" (several processes), "gpu", "mgpu". needs: requirements without which
    it does not apply, such as "bitsandbytes" or "transformers>=5.0".
    """

    id: str
    statement: str
    source: str
    tier: str = "cpu"
    needs: tuple[str, ...] = ()

    @property
    def chapter(self) -> str:
        return self.id.partition("-")[0]


@dataclass(frozen=True)
class Chapter:
    """Clauses on one subject. id: "FRZ". title: for the summary table."""

    id: str
    title: str
    clauses: tuple[Clause, ...]
