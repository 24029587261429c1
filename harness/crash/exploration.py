"""An exploration: what became of the crash states of one save, counted and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.crash.outcomes import OUTCOMES, Judged, counted_by_way
from harness.words import counted


@dataclass
class Exploration:
    """What became of the crash states of one save.

    - name: of the save.
    - states: how many there are. judged: how many of them were loaded.
    - found: each state in each way.
    - notes: what a reader must know beside the numbers.
    """

    name: str
    states: int = 0
    judged: int = 0
    found: list[Judged] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def of(self, crash: str | None = None, way: str | None = None) -> list[Judged]:
        """Return what was found of one kind of crash, in one way; None: of all."""
        return [one for one in self.found if crash in (None, one.crash) and way in (None, one.way)]

    def to_json(self) -> dict[str, Any]:
        return {
            "scenario": self.name,
            "states": self.states,
            "judged": self.judged,
            "seconds": round(self.seconds, 1),
            "outcomes": {way: dict(counts) for way, counts in counted_by_way(self.found).items()},
            "notes": self.notes,
            "found": [one.to_json() for one in self.found],
        }

    @property
    def outcomes(self) -> dict[str, Mapping[str, int]]:
        """Way of loading -> outcome -> how many states."""
        return {way: dict(counts) for way, counts in counted_by_way(self.found).items()}

    def __str__(self) -> str:
        lines = [f"{self.name}: {counted(self.judged, 'crash state')} judged of {self.states}"]
        for way, counts in self.outcomes.items():
            lines.append(f"  {way}: {', '.join(f'{counts[what]} {what}' for what in OUTCOMES if what in counts)}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])
