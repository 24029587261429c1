"""Set a case's verdict, and pytest's outcome to match, from the verdicts that its test recorded and from how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from harness import contract
from harness.contract.expectations import Expectation
from harness.files import out_of_space
from harness.raised import where_raised
from harness.runs import judging
from harness.session import failure, report
from harness.session.state import VERDICTS, DrawnFailure, NotComparable, NotTrained, Outside, State, Unsupported
from harness.spec import RunSpec
from harness.subjects import WrongSubject
from harness.verdict import (
    AMBIGUOUS,
    FAIL,
    KNOWN_DEFECT,
    NOT_COMPARABLE,
    PASS,
    SKIPPED,
    UNEXPECTED_PASS,
    Case,
    Verdict,
    both,
)
from harness.where import hint

#: What is expected of a case that ends with an exception. `harness.mutants.judge` looks for these words.
RUNS_TO_ITS_END = "the case runs to its end"


def decide(state: State, item: pytest.Item, case: Case, call: pytest.CallInfo[Any], outcome: pytest.TestReport) -> None:
    """Set the verdict of one case of a test that has ended, and pytest's outcome to match.

    - item: the test. Its stash holds the verdicts that `judge` recorded.
    - call: how the test's setup or call ended.
    - outcome: pytest's report of it, which is changed.
    """
    raised = call.excinfo.value if call.excinfo else None
    problems = [verdict for verdict in item.stash.get(VERDICTS, []) if not verdict.holds]
    case.raised = _raised(state, case, raised)
    if isinstance(raised, pytest.skip.Exception) and not problems:
        case.verdict = NOT_COMPARABLE if isinstance(raised, NotComparable) else SKIPPED
        case.reason, case.unsupported = str(raised), isinstance(raised, Unsupported)
        case.refused, case.outside = isinstance(raised, NotTrained), isinstance(raised, Outside)
        return
    wrong = next((error for error in _all(raised) if isinstance(error, WrongSubject)), "") or _full(raised)
    if wrong:
        case.verdict, case.reason, case.misused = SKIPPED, str(wrong), True
        outcome.longrepr = failure.representation(
            item, f"{case.clause}: {wrong}", [f"{case.clause} is not judged: {wrong}"]
        )
        return
    drawn = _drawn_failure(raised)
    if drawn is not None:
        problems += [_shrunk(drawn, raised)] if drawn.clause == case.clause else []
    elif raised is not None:
        problems.append(Verdict(FAIL, RUNS_TO_ITS_END, (f"{type(raised).__name__}: {raised}",)))
    elif not item.stash.get(VERDICTS, []) and case.drawn is None:
        problems.append(Verdict(FAIL, "the test judges its clause", ("the test ended without a verdict",)))
    expected = _expectation(state, case, problems)
    if problems:
        _fails(state, item, case, problems, expected, outcome)
    elif case.drawn == 0:
        case.verdict, case.reason = SKIPPED, "no law of this clause applies to the runs that were drawn"
    elif (broken := _never_completed(state, case)) is not None:
        undecided = Verdict(AMBIGUOUS, "a run of the case is completed", (f"none was: {broken}",))
        _fails(state, item, case, [undecided], None, outcome)
    elif _made_none(state, case):
        case.verdict, case.reason = SKIPPED, f"it makes no run of {state.subject}, and is about what that is built on"
    elif expected is not None and not (expected.sometimes or expected.inherited):
        case.verdict, case.reason, case.link = UNEXPECTED_PASS, expected.reason, expected.link
        case.own = expected.own
        sentence = (
            f"{case.clause} holds on {case.scenario}, but {expected.path} says it must fail "
            f"with {expected.match!r} on {', '.join(expected.versions)}: narrow its versions"
        )
        outcome.outcome = "failed"
        outcome.longrepr = failure.representation(item, sentence, [sentence])


def _never_completed(state: State, case: Case) -> str | None:
    """Return the error of the case's runs, if all of them ended with one and its clause asks for none; otherwise None.

    What is built on upstream may fail for reasons that no law thinks of. Whatever holds then holds of nothing.
    """
    runs = state.runs
    if not state.traits.foreign or runs is None or runs.completed or not runs.broken:
        return None
    return None if contract.clauses()[case.clause].refuses else runs.broken[-1].error


def _made_none(state: State, case: Case) -> bool:
    """Return whether somebody's subject is judged, and the case has neither trained with it nor built a Trainer of it."""
    runs = state.runs
    if not state.traits.foreign or runs is None or case.drawn is not None:
        return False
    return not (runs.completed or runs.broken or runs.built)


def _raised(state: State, case: Case, ended: BaseException | None) -> list[dict[str, Any]]:
    """Return the errors that ended the runs of a case, in the order of the runs, and that of its test."""
    broken = state.runs.broken if state.runs is not None else []
    found: list[dict[str, Any]] = []
    if state.runs is not None and broken:
        specs = [state.runs.on_device(RunSpec.from_json(spec, within_bounds=False)) for spec in case.specs]
        for trace in broken:
            kind, _, message = (trace.error or "").partition(": ")
            error = trace.raised or {"kind": kind, "message": message}  # a subject of the user's says no more
            if trace.spec in specs:
                found.append({**error, "run": specs.index(trace.spec)})
            elif case.drawn is None:  # a test of drawn runs makes many, and is about the last
                found.append(error)
    aside = isinstance(ended, (pytest.skip.Exception, DrawnFailure)) or hasattr(ended, "exceptions")
    if ended is not None and not aside:
        found.append(where_raised(ended))
    return [one for index, one in enumerate(found) if one not in found[:index]]


def _expectation(state: State, case: Case, problems: Sequence[Verdict]) -> Expectation | None:
    """Return the known defect that says how the case fails, if there is one."""
    if case.brought:
        spec = RunSpec.from_json(case.specs[0], within_bounds=False)
        one = both(*problems) if problems else Verdict(PASS, "")
        return judging.explained(case.clause, one, spec, case.subject, state.expectations)
    if case.drawn is not None:
        return None  # A drawn run is excused run by run, in `harness.runs.drawn` (Expectation.excuses).
    applies = (e for e in state.expectations if e.applies(case.clause, case.scenario, case.subject, case.device))
    return next(applies, None)


def _all(raised: BaseException | None) -> tuple[BaseException | None, ...]:
    # hypothesis raises a group if a failure does not come again when it repeats the run.
    return (raised, *getattr(raised, "exceptions", ()))


def _full(raised: BaseException | None) -> str:
    """Return one sentence if the test ended since a disk is full, else ""."""
    return next((sentence for error in _all(raised) if (sentence := out_of_space(error))), "")


def _drawn_failure(raised: BaseException | None) -> DrawnFailure | None:
    return next((error for error in _all(raised) if isinstance(error, DrawnFailure)), None)


def _shrunk(drawn: DrawnFailure, raised: BaseException | None) -> Verdict:
    if drawn is raised:
        return drawn.verdict
    once = Verdict(FAIL, drawn.verdict.expected, ("this was seen once, and not when the same run was made again",))
    return both(drawn.verdict, once)


def _fails(
    state: State,
    item: pytest.Item,
    case: Case,
    problems: Sequence[Verdict],
    expected: Expectation | None,
    outcome: pytest.TestReport,
) -> None:
    """Make the case a known defect if every problem is the expected one, otherwise a failure."""
    whole = both(*problems)
    case.verdict = whole.outcome
    if state.traits.foreign:
        case.whose = "convention" if contract.clauses()[case.clause].profile == "trainer" else "yours"
    case.evidence["expected"], case.evidence["seen"] = whole.expected, list(whole.seen)
    lines = failure.block(state, case, whole)
    texts = ["\n".join(lines)] if len(problems) == 1 else ["\n".join([p.expected, *p.seen]) for p in problems]
    if expected is not None and case.verdict == FAIL and all(expected.match in text for text in texts):
        case.verdict, case.reason, case.link = KNOWN_DEFECT, expected.reason, expected.link
        case.own = expected.own
        if state.traits.foreign:
            case.whose = "yours" if expected.own else "upstream's"
        outcome.outcome = "skipped"
        outcome.wasxfail = expected.reason
        return
    apart = "" if any(problem.expected == RUNS_TO_ITS_END for problem in problems) else _where(state, case)
    if apart:
        case.evidence["first_apart"] = apart
        lines.insert(len(lines) - 1, f"  first apart at: {apart}")
    # The text of a law's verdict is enough. An exception is a fault of the case, which needs the traceback.
    crashed = any(problem.expected == RUNS_TO_ITS_END for problem in problems)
    traceback = [outcome.longreprtext, ""] if crashed else []
    if not crashed:
        outcome.sections = []  # what upstream printed while it trained says nothing that the verdict does not
    outcome.outcome = "failed"
    outcome.longrepr = failure.representation(item, f"{case.clause}: {report.headline(case)}", [*traceback, *lines])


def _where(state: State, case: Case) -> str:
    """Return where the runs of a case part, if that is cheap to find (`harness.where.hint`)."""
    if state.runs is None or case.drawn is not None or case.verdict != FAIL:
        return ""
    specs = [state.runs.on_device(RunSpec.from_json(spec, within_bounds=False)) for spec in case.specs]
    return hint.line(state.runs.subject, specs)
