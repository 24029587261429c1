"""From a test's outcome to a clause's verdict, and to the words in which a failure is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import contract
from harness.runs.lifecycle import told
from harness.session import report
from harness.session.state import ClauseFailure, NotComparable, State, Unsupported
from harness.spec import changes
from harness.verdict import FAIL, KNOWN_DEFECT, NOT_COMPARABLE, SKIPPED, UNEXPECTED_PASS, Case


def decide(state: State, case: Case, call: pytest.CallInfo[Any], outcome: pytest.TestReport) -> None:
    """Set the case's verdict, and pytest's outcome to match."""
    # Which of the drawn runs meet a known defect is not the case's to expect (Expectation.excuses).
    known = [] if case.drawn is not None else state.expectations
    expected = next((e for e in known if e.applies(case.clause, case.scenario, case.subject, case.device)), None)
    raised = call.excinfo.value if call.excinfo else None
    # A drawn failure that does not come again is within a group of hypothesis's.
    within = (one for one in getattr(raised, "exceptions", ()) if isinstance(one, ClauseFailure))
    error = next(within, raised)
    if isinstance(error, pytest.skip.Exception):
        case.verdict = NOT_COMPARABLE if isinstance(error, NotComparable) else SKIPPED
        case.reason, case.unsupported = str(error), isinstance(error, Unsupported)
        return
    if error is None or (isinstance(error, ClauseFailure) and error.clause != case.clause):
        if case.drawn == 0:
            case.verdict, case.reason = SKIPPED, "the law says nothing of the runs that were drawn"
        elif expected is not None and not expected.sometimes:
            case.verdict, case.reason, case.link = UNEXPECTED_PASS, expected.reason, expected.link
            outcome.outcome = "failed"
            outcome.longrepr = (
                f"{case.clause} holds on {case.scenario}, but suites/expectations/{expected.file} says it must fail "
                f"with {expected.match!r} on {', '.join(expected.versions)}: narrow its versions"
            )
        return
    failed = error.verdict if isinstance(error, ClauseFailure) else None
    case.verdict = failed.outcome if failed else FAIL
    case.evidence["expected"] = failed.expected if failed else "the case runs to its end"
    case.evidence["seen"] = list(failed.seen) if failed else [f"{type(error).__name__}: {error}"]
    if error is not raised:
        case.evidence["seen"].append("this was seen once, and not when the same run was made again")
    message = _message(state, case)
    if expected is not None and case.verdict == FAIL and expected.match in message:
        case.verdict, case.reason, case.link = KNOWN_DEFECT, expected.reason, expected.link
        outcome.outcome = "skipped"
        outcome.wasxfail = expected.reason
        return
    # A law's failure is told by its message; anything else is a fault of the case and needs its traceback.
    outcome.longrepr = message if failed else f"{outcome.longreprtext}\n\n{message}"


def _message(state: State, case: Case) -> str:
    clause = contract.clauses()[case.clause]
    seen = case.evidence["seen"]
    lines = [
        f"{case.clause} does not hold: scenario {case.scenario}, subject {case.subject}, {case.device}",
        f"  clause    {clause.statement}",
        f"  upstream  {clause.source}",
        f"  expected  {case.evidence['expected']}",
        *[f"  {'seen' if index == 0 else '    '}      {one}" for index, one in enumerate(seen[:8])],
    ]
    if len(seen) > 8:
        lines.append(f"            and {len(seen) - 8} more")
    if case.drawn is not None and case.specs:
        lines.append(f"  run       {', '.join(changes(case.specs[0])) or 'the plain one'}")
    lines += [f"  {'life' if index == 0 else '    '}      {told(act)}" for index, act in enumerate(case.life or [])]
    lines.append(f"  repeat    peft-harness repro {_case_file(state, case)}")
    return "\n".join(lines)


def _case_file(state: State, case: Case) -> Path:
    """Write what it takes to repeat just this case, and say where."""
    directory = Path(".peft-harness")
    (directory / "cases").mkdir(parents=True, exist_ok=True)
    (directory / ".gitignore").write_text("*\n")
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{case.clause}-{case.scenario}")
    path = directory / "cases" / f"{name[:120]}.json"
    body = {
        "schema_version": report.SCHEMA_VERSION,
        "clause": case.clause,
        "scenario": case.scenario,
        # A drawn run is repeated from its spec: a test would draw anew.
        **({} if case.drawn else {"test": case.nodeid.rpartition("suites/")[2]}),
        "subject": case.subject,
        "device": case.device,
        "preload": state.preload,
        "spec": case.specs[0] if case.specs else None,
        **({"life": case.life} if case.life else {}),
    }
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return path
