"""What a gate found: one sentence each, and what it means for the upgrade."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

SAFE, UNSAFE, INCONCLUSIVE = "safe", "unsafe", "inconclusive"

#: What a finding means, the gravest first: a change for the worse; something that could be judged before and cannot now;
#: a change for the better; a change that a user may want to know of.
BROKEN, LOST, MENDED, NOTE = "broken", "lost", "mended", "note"
ORDER = (BROKEN, LOST, MENDED, NOTE)

#: What a finding is about, in the order in which they are told.
ABOUT = ("clause", "cell", "numbers", "resume", "inference", "files", "throughput", "interface")


@dataclass(frozen=True)
class Finding:
    """about: one of ABOUT. where: the clause, the cell or the name. means: one of ORDER. details: for machines."""

    about: str
    where: str
    means: str
    sentence: str
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The gravest first, and of one sort those that most cases tell."""

    def rank(one: Finding) -> tuple[int, int, int]:
        return ORDER.index(one.means), ABOUT.index(one.about), -len(one.details.get("scenarios", ()))

    return sorted(findings, key=rank)


def verdict(findings: Iterable[Finding]) -> str:
    """UNSAFE where anything broke, INCONCLUSIVE where something cannot be judged any more, SAFE otherwise."""
    means = {one.means for one in findings}
    return UNSAFE if BROKEN in means else INCONCLUSIVE if LOST in means else SAFE


def exit_code(verdict: str) -> int:
    return {SAFE: 0, UNSAFE: 1, INCONCLUSIVE: 3}[verdict]
