"""Findings of a gate: one sentence each, with what it means for the upgrade."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

SAFE, UNSAFE, INCONCLUSIVE = "safe", "unsafe", "inconclusive"

#: What a finding means, gravest first.
#: - BROKEN: a change for the worse.
#: - LOST: it could be judged on the baseline and cannot be judged on the candidate.
#: - FIXED: a change for the better ("mended" in the JSON report).
#: - NOTE: a change that does not decide, but that a user may want to know.
BROKEN, LOST, FIXED, NOTE = "broken", "lost", "mended", "note"
ORDER = (BROKEN, LOST, FIXED, NOTE)

#: What a finding is about, in the order of the report.
ABOUT = ("clause", "cell", "numbers", "resume", "inference", "files", "throughput", "interface")


@dataclass(frozen=True)
class Finding:
    """One difference between the two sides.

    - about: one of ABOUT.
    - where: the clause, the cell or the name that it is about.
    - means: one of ORDER.
    - sentence: the difference in words.
    - details: the same for machines.
    """

    about: str
    where: str
    means: str
    sentence: str
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings: gravest first; among equals, those with the most cases first."""

    def rank(finding: Finding) -> tuple[int, int, int]:
        return ORDER.index(finding.means), ABOUT.index(finding.about), -len(finding.details.get("scenarios", ()))

    return sorted(findings, key=rank)


def verdict(findings: Iterable[Finding]) -> str:
    """Return UNSAFE if anything broke, INCONCLUSIVE if something can no longer be judged, else SAFE."""
    means = {finding.means for finding in findings}
    return UNSAFE if BROKEN in means else INCONCLUSIVE if LOST in means else SAFE


def exit_code(verdict: str) -> int:
    return {SAFE: 0, UNSAFE: 1, INCONCLUSIVE: 3}[verdict]
