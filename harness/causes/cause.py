"""A cause: what several failing cases have in common, in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cause:
    """Why a group of cases does not hold.

    - sentence: what went wrong.
    - members: the cases, as (clause, scenario). Each failing case of a report belongs to exactly one cause.
    - reaches: which runs have it, and which have not.
    - packages: the packages that can be to blame. Empty if that is not known.
    - next: commands to type next, ready to paste.
    - example: one case with what was seen.
    """

    sentence: str
    members: tuple[tuple[str, str], ...]
    reaches: str = ""
    packages: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    example: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return an entry of `causes` in a report (harness/session/report_schema.json)."""
        return {
            "sentence": self.sentence,
            "cases": len(self.members),
            "clauses": list(dict.fromkeys(clause for clause, _ in self.members)),
            "reaches": self.reaches,
            "packages": list(self.packages),
            "next": list(self.next),
            "example": self.example,
            "members": [{"clause": clause, "scenario": scenario} for clause, scenario in self.members],
        }
