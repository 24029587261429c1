"""What the clauses of the chapter CRASH say of an exploration."""

from __future__ import annotations

from collections.abc import Iterable

from harness.crash.exploration import Exploration
from harness.crash.outcomes import MEANING, REFUSED, SILENT, Judged
from harness.verdict import Verdict, verdict
from harness.words import counted, one_line


def never_silent(explored: Exploration, *ways: str) -> Verdict:
    """Check that no crash state gives another result in silence, in these ways of loading."""
    wrong = [one for way in ways for one in explored.of(way=way) if one.outcome == SILENT]
    findings = _sentences(explored, wrong, "end with another result, and nothing names the damaged file")
    return verdict(
        f"no crash state gives another result in silence ({', '.join(ways)})", findings, **measured(explored)
    )


def helpful(explored: Exploration, *ways: str) -> Verdict:
    """Check that each crash state that is refused is refused with the damaged file and the whole checkpoint to use."""
    wrong = [one for way in ways for one in explored.of(way=way) if one.outcome == REFUSED]
    findings = _sentences(explored, wrong, "are refused without naming a damaged file and the whole checkpoint to use")
    expected = f"a crash state goes on from a whole checkpoint, or is {MEANING['named']} ({', '.join(ways)})"
    return verdict(expected, findings, **measured(explored))


def something_left(explored: Exploration) -> Verdict:
    """Check that each crash state has a whole checkpoint."""
    wrong = [one for one in explored.found if not one.left]
    findings = _sentences(explored, wrong, "have no whole checkpoint left")
    return verdict("every crash state has a whole checkpoint", findings, **measured(explored))


def _sentences(explored: Exploration, wrong: Iterable[Judged], what: str) -> list[str]:
    by_state = {one.state: one for one in reversed(list(wrong))}
    if not by_state:
        return []
    first = list(by_state.values())[-1]
    example = f"e.g. {first.how}: {first.way} {first.folder}".rstrip()
    said = one_line(first.said)[:200]
    share = f"{len(by_state)} of {counted(explored.judged, 'state')}"
    return [f"{share} {what}, {example}: {said}" if said else f"{share} {what}, {example}"]


def measured(explored: Exploration) -> dict[str, object]:
    """Return the numbers for the report."""
    return {"states": explored.judged, "outcomes": explored.outcomes}
