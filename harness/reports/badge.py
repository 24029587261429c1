"""A report as a badge: the JSON that shields.io's endpoint badge reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harness.reports import kinds, problems
from harness.reports.kinds import objects, text
from harness.verdict import AMBIGUOUS, FAIL, PASS, SKIPPED
from harness.words import counted

_COLOURS = {PASS: "brightgreen", FAIL: "red", AMBIGUOUS: "yellow", SKIPPED: "lightgrey"}


def write(report: Mapping[str, Any]) -> str:
    """Return the badge: what holds in words, and a colour. Raises UsageError if it is no report."""
    label = {kinds.GATE: "peft upgrade", kinds.JUDGE: "my run"}.get(kinds.kind(report), "peft-harness")
    badge = {"schemaVersion": 1, "label": label, "message": answer(report), "color": _COLOURS[_verdict(report)]}
    return json.dumps(badge, indent=1) + "\n"


def answer(report: Mapping[str, Any]) -> str:
    """Return what came out, in a few words that are never the report's own."""
    kind, verdict = kinds.kind(report), _verdict(report)
    found = problems.of(report)
    if kind == kinds.GATE:
        causes = counted(sum(one.level == problems.ERROR for one in found), "cause")
        return {PASS: "safe", FAIL: f"unsafe: {causes}", AMBIGUOUS: "inconclusive"}.get(verdict, "no verdict")
    if kind == kinds.MUTANTS:
        mutants = objects(report.get("mutants"))
        caught = sum(mutant.get("status") in ("killed", "equivalent") for mutant in mutants)
        return f"{caught} of {counted(len(mutants), 'fault')} caught"
    if kind == kinds.WATCH:
        checks = objects(report.get("checks"))
        failing_checks = sum(check.get("verdict") == "fails" for check in checks)
        holding_checks = sum(check.get("verdict") == "holds" for check in checks)
        return (
            f"{counted(failing_checks, 'check')} failed"
            if failing_checks
            else f"{counted(holding_checks, 'check')} held"
        )
    failing = {clause for one in found if one.level == problems.ERROR for clause in one.clauses}
    if verdict == FAIL:
        return f"{counted(len(failing), 'clause')} {'fails' if len(failing) == 1 else 'fail'}"
    judged = objects(report.get("laws" if kind == kinds.JUDGE else "clauses"))
    holding = sum(one.get("verdict") not in (SKIPPED, "not_comparable", AMBIGUOUS) for one in judged)
    holds = "holds" if holding == 1 else "hold"
    return {
        PASS: f"{counted(holding, 'clause')} {holds}" if judged else "holds",
        AMBIGUOUS: "undecided",
    }.get(verdict, "nothing judged")


def _verdict(report: Mapping[str, Any]) -> str:
    """Return PASS, FAIL, AMBIGUOUS (undecided) or SKIPPED (nothing was judged)."""
    kind = kinds.kind(report)
    if kind == kinds.GATE:
        return {"safe": PASS, "unsafe": FAIL, "inconclusive": AMBIGUOUS}.get(text(report.get("verdict")), SKIPPED)
    found = problems.of(report)
    if any(one.level == problems.ERROR for one in found):
        return FAIL
    if found or report.get("complete") is False:
        return AMBIGUOUS
    if kind == kinds.MUTANTS:
        return PASS if objects(report.get("mutants")) else SKIPPED
    if kind == kinds.SWEEP:
        return PASS
    if kind == kinds.WATCH:
        return PASS if any(one.get("verdict") == "holds" for one in objects(report.get("checks"))) else SKIPPED
    judged = {text(one.get("verdict")) for one in objects(report.get("laws" if kind == kinds.JUDGE else "clauses"))}
    return PASS if judged - {SKIPPED, "not_comparable"} else SKIPPED
