"""Known defects of the user's own (--known-defects, or `known-defects` of a --scope), as the gate sees them.

A failure on the candidate that the user's file expects blocks nothing. If the case holds instead, the gate
is inconclusive until the entry is narrowed: an excuse that nobody needs would hide the next fault.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from harness.gate.findings import LOST, NOTE, Finding
from harness.verdict import UNEXPECTED_PASS, Case
from harness.words import counted


def findings(after: Iterable[Case]) -> list[Finding]:
    """Return what the user's own expectations say of the candidate's cases, by clause."""
    by_kind: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for case in after:
        if case.own:
            by_kind[(case.clause, case.verdict, case.reason)].append(case.scenario)
    return [_finding(*kind, scenarios) for kind, scenarios in by_kind.items()]


def others(before: Iterable[Case], after: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Return the cases of both sides that no own expectation decides on the candidate."""
    own = {(case.clause, case.scenario) for case in after if case.own}
    kept = [[case for case in cases if (case.clause, case.scenario) not in own] for cases in (before, after)]
    return kept[0], kept[1]


def _finding(clause: str, verdict: str, reason: str, scenarios: list[str]) -> Finding:
    count = f"{counted(len(scenarios), 'case')} ({', '.join(scenarios[:3])}{', ...' * (len(scenarios) > 3)})"
    details: dict[str, object] = {"scenarios": scenarios, "own": True}
    if verdict == UNEXPECTED_PASS:
        says = f"holds in {count}, which your known defects expect to fail ({reason}): narrow the entry's versions"
        return Finding("clause", clause, LOST, says, details)
    return Finding("clause", clause, NOTE, f"fails in {count}, as your known defects say: {reason}", details)
