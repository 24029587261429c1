"""The clauses of two stacks compared, case by case."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from harness import contract
from harness.gate.findings import BROKEN, LOST, MENDED, NOTE, Finding
from harness.session.report import headline
from harness.verdict import AMBIGUOUS, FAIL, KNOWN_DEFECT, NOT_COMPARABLE, PASS, SKIPPED, UNEXPECTED_PASS, Case

HELD, FAILED, UNDECIDED, UNTESTED = "holds", "fails", "undecided", "untested"
_STATE = {
    PASS: HELD,
    UNEXPECTED_PASS: HELD,
    FAIL: FAILED,
    KNOWN_DEFECT: FAILED,
    AMBIGUOUS: UNDECIDED,
    NOT_COMPARABLE: UNDECIDED,
    SKIPPED: UNTESTED,
}


def state(case: Case | None) -> str:
    """What a case says of its stack; a known defect fails, since a stack without it is better."""
    return UNTESTED if case is None else _STATE[case.verdict]


def not_held(cases: Iterable[Case]) -> list[str]:
    """The tests, by node id, of which a case does not hold."""
    return list(dict.fromkeys(case.nodeid for case in cases if state(case) != HELD))


def of(cases: Iterable[Case], tests: Iterable[str]) -> list[Case]:
    """The cases of some tests."""
    wanted = set(tests)
    return [case for case in cases if case.nodeid in wanted]


def compared(before: Iterable[Case], after: Iterable[Case]) -> list[Finding]:
    """A finding for each clause and each way in which its cases changed."""
    old, new = _by_name(before), _by_name(after)
    changed: dict[tuple[str, str, str], list[tuple[Case | None, Case | None]]] = defaultdict(list)
    for name in dict.fromkeys([*old, *new]):
        pair = old.get(name), new.get(name)
        states = state(pair[0]), state(pair[1])
        # What is recorded of one stack says nothing of the other; a gate counts and times both itself.
        if any(case is not None and case.verdict == NOT_COMPARABLE and case.reason for case in pair):
            continue
        if states[0] != states[1]:
            changed[(name[0], *states)].append(pair)
    order = list(contract.clauses())
    return [
        finding
        for (clause, was, now), pairs in sorted(changed.items(), key=lambda item: order.index(item[0][0]))
        if (finding := _finding(clause, was, now, pairs)) is not None
    ]


def _by_name(cases: Iterable[Case]) -> dict[tuple[str, str], Case]:
    return {(case.clause, case.scenario): case for case in cases}


def _finding(clause: str, was: str, now: str, pairs: list[tuple[Case | None, Case | None]]) -> Finding | None:
    cases = [new or old for old, new in pairs]
    names = [case.scenario for case in cases if case is not None]
    details: dict[str, object] = {"was": was, "is": now, "scenarios": names}
    count = f"{len(names)} case{'s' * (len(names) > 1)} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
    if now == FAILED:
        told = _told(pairs[0][1])
        details["seen"] = told
        if was == UNTESTED:
            return Finding("clause", clause, NOTE, f"can be judged now, and fails in {count}: {told}", details)
        held = "held" if was == HELD else "was undecided"
        return Finding("clause", clause, BROKEN, f"{told} ({held} before, fails now in {count})", details)
    if now == HELD:
        words = {FAILED: "failed before, holds now", UNDECIDED: "was undecided, holds now"}.get(was)
        means = NOTE if words is None else MENDED
        return Finding("clause", clause, means, f"{words or 'can be judged now, and holds'} in {count}", details)
    # What a drawn run has a law for depends on the draw, and says nothing of the stack.
    fixed = [pair for pair in pairs if all(case is None or case.drawn is None for case in pair)]
    lost = [new for old, new in fixed if state(old) == HELD]
    if was != HELD or not lost:
        return None
    reason = next((case.reason for case in lost if case is not None and case.reason), "no such case")
    return Finding("clause", clause, LOST, f"held before and cannot be judged now in {count}: {reason}", details)


def _told(case: Case | None) -> str:
    return "" if case is None else headline(case)
