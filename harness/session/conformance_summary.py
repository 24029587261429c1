"""What a session prints of `harness.conformance` at its end: for each subject what holds, and whose the failures are."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from harness.causes.cause import Cause
from harness.causes.group import by_root, group
from harness.verdict import KNOWN_DEFECT, NOT_COMPARABLE, PASS, SKIPPED, Case
from harness.words import counted

#: Causes, known defects and reasons that are printed without -v.
_CAUSES, _OTHERS = 12, 5

#: Whose failures are -> what that means.
_MEANING = {
    "yours": "the subject does not do what any training must do",
    "convention": "other than transformers.Trainer does it, which may be on purpose: see allow= and profile=",
}


def show(reporter: Any, cases: Sequence[str], verbose: bool = False) -> None:
    """Print the summary.

    - reporter: pytest's TerminalReporter.
    - cases: as JSON, in the order in which they ended.
    - verbose: whether to print all there is.
    """
    by_subject: dict[str, list[Case]] = defaultdict(list)
    for case in (Case(**json.loads(one)) for one in cases):
        by_subject[case.subject].append(case)
    for subject, judged in by_subject.items():
        reporter.write_sep("=", f"conformance of {subject}", bold=True)
        for line in lines(judged, verbose):
            reporter.write_line(line)


def lines(cases: Sequence[Case], verbose: bool = False) -> Iterator[str]:
    """Return the lines about one subject."""
    if refused := next((case.reason for case in cases if case.misused), ""):
        yield f"nothing is judged: {refused}"
        return
    held = [case for case in cases if case.verdict == PASS]
    known = [case for case in cases if case.verdict == KNOWN_DEFECT]
    aside = [case for case in cases if case.verdict == SKIPPED or (case.verdict == NOT_COMPARABLE and case.reason)]
    done = {id(case) for case in (*held, *known, *aside)}
    failing = [case for case in cases if id(case) not in done]
    clauses = counted(len({case.clause for case in held}), "clause")
    yield (
        f"{counted(len(held), 'case')} of {clauses} hold, {len(failing)} fail, "
        f"{len(known)} fail by known defects, {len(aside)} are not judged"
    )
    causes = by_root(group(cases), cases)
    left = len(causes) if verbose else _CAUSES
    whose = {(case.clause, case.scenario): case.whose for case in failing}
    for who, meaning in _MEANING.items():
        mine = [cause for cause in causes if _whose(cause, whose) == who]
        if mine:
            yield f"{who}: {counted(len(mine), 'cause')} ({meaning})"
        for number, cause in enumerate(mine[:left], start=1):
            yield from _cause(number, cause)
        if len(mine) > left:
            yield f"  and {counted(len(mine) - left, 'more cause')}: -v has all"
        left = max(0, left - len(mine))
    yield from _counted("upstream's", Counter(_reason(case) for case in known if not case.own), verbose)
    yield from _counted("yours, recorded", Counter(_reason(case) for case in known if case.own), verbose)
    yield from _counted("not judged", Counter(case.reason for case in aside), verbose)


def _whose(cause: Cause, whose: dict[tuple[str, str], str]) -> str:
    """Return whose a cause is: yours if it breaks one clause that any training must hold."""
    return "yours" if any(whose.get(member) == "yours" for member in cause.members) else "convention"


def _cause(number: int, cause: Cause) -> Iterator[str]:
    clauses = list(dict.fromkeys(clause for clause, _ in cause.members))
    named = ", ".join(clauses[:6]) + (", ..." if len(clauses) > 6 else "")
    yield f"  {number}. {cause.sentence}"
    yield f"     {counted(len(cause.members), 'case')} of {named}; e.g. {cause.example}"
    if cause.next:
        yield f"     $ {cause.next[0]}"


def _reason(case: Case) -> str:
    return f"{case.clause}: {case.reason}" + (f" ({case.link})" if case.link else "")


def _counted(title: str, reasons: Counter[str], verbose: bool) -> Iterator[str]:
    if not reasons:
        return
    yield f"{title}: {counted(reasons.total(), 'case')}"
    shown = reasons.most_common(None if verbose else _OTHERS)
    for reason, count in shown:
        yield f"  {count} x {reason}"
    if more := reasons.total() - sum(count for _, count in shown):
        yield f"  {more} x other reasons: -v has all"
