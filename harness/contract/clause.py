"""A clause of the contract: what must hold, and the place in upstream that says so."""

from __future__ import annotations

from dataclasses import dataclass

from harness.environment import unmet


@dataclass(frozen=True)
class Clause:
    """One fact of the PEFT Trainer path.

    - id: such as "FRZ-01".
    - statement: what holds on a stack without faults, in MUST wording.
    - source: where upstream documents or implements it, such as "transformers/trainer.py:1272". Lines are those of
      transformers 5.23.0, peft 0.21.2 and accelerate 1.15.0.
    - tier: what it takes to judge it: "cpu", "mp" (several processes), "gpu" or "mgpu" (several GPUs).
    - needs: requirements without which it does not apply, such as "bitsandbytes" or "transformers>=5.0".
    - device: "cpu" if the clause is about machines without a GPU only.
    - option: the option of a session without which it is not judged, such as "--timed".
    """

    id: str
    statement: str
    source: str
    tier: str = "cpu"
    needs: tuple[str, ...] = ()
    device: str = ""
    option: str = ""

    @property
    def chapter(self) -> str:
        return self.id.partition("-")[0]

    def lacks(self, device: str) -> str | None:
        """Return what this clause declares to need and does not find on a device; None if it finds all.

        An option counts as lacking: a case of a clause that was given its option is not skipped.
        """
        if self.tier in ("gpu", "mgpu") and device != "cuda":
            return "a GPU"
        if self.device and device != self.device:
            return f"--device {self.device}"
        return next((need for need in self.needs if unmet(need)), self.option or None)


@dataclass(frozen=True)
class Chapter:
    """The clauses on one topic. id: such as "FRZ". title: shown in the summary table."""

    id: str
    title: str
    clauses: tuple[Clause, ...]
