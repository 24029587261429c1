"""A clause of the contract: what must hold, and the place in upstream that says so."""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.environment import unmet

#: What a clause asks of whoever trains, the least first. A profile has the clauses of those before it, too, but for "stack".
#:
#: - any-loop: what any training must do: frozen base, loss, accumulation, resume. No file name and no event.
#: - checkpoint: what an adapter's files must hold.
#: - trainer: what transformers.Trainer does on top: events, log, TrainOutput, names of files. These are conventions.
#: - stack: interfaces of transformers, peft and accelerate themselves. Nobody else's class is judged by them.
PROFILES = ("any-loop", "checkpoint", "trainer", "stack")


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
    - refuses: whether it asks for a refusal, so that a case may hold without any run that is completed.
    - profile: one of PROFILES. Empty: that of its chapter, which fills it in.
    """

    id: str
    statement: str
    source: str
    tier: str = "cpu"
    needs: tuple[str, ...] = ()
    device: str = ""
    option: str = ""
    profile: str = ""
    refuses: bool = False

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
    """The clauses on one topic.

    - id: such as "FRZ".
    - title: shown in the summary table.
    - profile: of its clauses that name none.
    """

    id: str
    title: str
    clauses: tuple[Clause, ...]
    profile: str = "trainer"

    def __post_init__(self) -> None:
        filled = tuple(clause if clause.profile else replace(clause, profile=self.profile) for clause in self.clauses)
        wrong = next((one.id for one in filled if one.profile not in PROFILES), None)
        if wrong is not None:
            raise ValueError(f"clause {wrong}: its profile is none of {', '.join(PROFILES)}")
        object.__setattr__(self, "clauses", filled)
