"""Compare the verdicts of two stacks, case by case."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness import contract
from harness.gate.findings import BROKEN, FIXED, LOST, NOTE, Finding
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
    """Return what a case says of its stack.

    A known defect counts as a failure: a stack without it is better. So does a run of --spec that the stack refuses.
    """
    if case is not None and case.refused:
        return FAILED
    return UNTESTED if case is None else _STATE[case.verdict]


def not_held(cases: Iterable[Case]) -> list[str]:
    """Return the node ids of the tests that have a case which does not hold."""
    return list(dict.fromkeys(case.nodeid for case in cases if state(case) != HELD))


def of_tests(cases: Iterable[Case], tests: Iterable[str]) -> list[Case]:
    """Return the cases of these tests (node ids)."""
    chosen = set(tests)
    return [case for case in cases if case.nodeid in chosen]


@dataclass(frozen=True)
class Change:
    """The cases of a clause that changed in the same way: from the state `was` to the state `now`.

    - pairs: (case on the baseline, case on the candidate). None if there is no such case.
    """

    clause: str
    was: str
    now: str
    pairs: tuple[tuple[Case | None, Case | None], ...]

    @property
    def lost(self) -> tuple[tuple[Case, Case | None], ...]:
        """The pairs of cases that held and cannot be judged any more.

        Which laws apply to a drawn run depends on the draw, so an untested case of one says nothing of the stack.
        """
        if self.was != HELD or self.now in (HELD, FAILED):
            return ()
        named = (pair for pair in self.pairs if all(case is None or case.drawn is None for case in pair))
        return tuple((old, new) for old, new in named if old is not None)


def changes(before: Iterable[Case], after: Iterable[Case]) -> list[Change]:
    """Return what changed: one entry for each clause and each way in which its cases changed, in the contract's order."""
    old, new = _by_name(before), _by_name(after)
    # `cell_findings.trained` reports a run of --spec that a side refuses.
    refused = {case.scenario for case in [*old.values(), *new.values()] if case.refused}
    changed: dict[tuple[str, str, str], list[tuple[Case | None, Case | None]]] = defaultdict(list)
    for name in dict.fromkeys([*old, *new]):
        pair = old.get(name), new.get(name)
        states = state(pair[0]), state(pair[1])
        # Such a case compares with figures that were recorded on another stack. A gate counts and times both sides itself.
        # A run of --spec is compared with others of the same stack.
        cases = [case for case in pair if case is not None]
        if any(case.verdict == NOT_COMPARABLE and case.reason and not case.brought for case in cases):
            continue
        if name[1] in refused:
            continue
        if states[0] != states[1]:
            changed[(name[0], *states)].append(pair)
    order = list(contract.clauses())
    ordered = sorted(changed.items(), key=lambda item: order.index(item[0][0]))
    return [Change(*key, tuple(pairs)) for key, pairs in ordered]


def compared(before: Iterable[Case], after: Iterable[Case]) -> list[Finding]:
    """Return the findings: one for each change of `changes` that means anything."""
    return findings(changes(before, after))


def findings(changed: Iterable[Change]) -> list[Finding]:
    """Return what changes of clauses mean."""
    return [finding for change in changed if (finding := _finding(change)) is not None]


def unchanged(before: Iterable[Case], after: Iterable[Case]) -> list[Finding]:
    """Return what is as before, but no success: runs of --spec that fail on both sides, and clauses that neither judged."""
    old = _by_name(before)
    found: list[Finding] = []
    unjudged: dict[str, list[str]] = defaultdict(list)
    for case in after:
        states = {state(old.get(_name(case))), state(case)}
        if case.refused or not case.brought:
            continue
        if states == {FAILED}:
            found.append(
                Finding("clause", case.clause, NOTE, f"fails on both sides ({case.scenario}): {headline(case)}")
            )
        elif not states & {HELD, FAILED}:
            unjudged[case.scenario].append(f"{case.clause} ({headline(case)})")
    found += [
        Finding("cell", name, NOTE, f"not judged on either side: {'; '.join(clauses)}", {"clauses": clauses})
        for name, clauses in unjudged.items()
    ]
    return found


def _name(case: Case) -> tuple[str, str, str]:
    # Several tests of a clause may have scenarios of the same name.
    return case.clause, case.scenario, case.nodeid


def _by_name(cases: Iterable[Case]) -> dict[tuple[str, str, str], Case]:
    return {_name(case): case for case in cases}


def _finding(change: Change) -> Finding | None:
    clause, was, now = change.clause, change.was, change.now
    names = [case.scenario for old, new in change.pairs if (case := new or old) is not None]
    details: dict[str, object] = {"was": was, "is": now, "scenarios": names}
    count = _count(names)
    if now == FAILED:
        case = change.pairs[0][1]
        seen = "" if case is None else headline(case)
        details["seen"] = seen
        if was == UNTESTED:
            return Finding("clause", clause, NOTE, f"can be judged now, and fails in {count}: {seen}", details)
        held = "held" if was == HELD else "was undecided"
        return Finding("clause", clause, BROKEN, f"{seen} ({held} before, fails now in {count})", details)
    if now == HELD:
        words = {FAILED: "failed before, holds now", UNDECIDED: "was undecided, holds now"}.get(was)
        means = NOTE if words is None else FIXED
        return Finding("clause", clause, means, f"{words or 'can be judged now, and holds'} in {count}", details)
    if not change.lost:
        return None
    details["scenarios"] = names = [old.scenario for old, _ in change.lost]
    reason = next((headline(new) for _, new in change.lost if new is not None), "no such case")
    sentence = f"held before and cannot be judged now in {_count(names)}: {reason}"
    return Finding("clause", clause, LOST, sentence, details)


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} case{'s' * (len(names) > 1)} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
