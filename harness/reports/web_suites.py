"""The page of `check`, `pytest suites/` and `judge`."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from harness.reports.kinds import fields, items, number, objects, text, texts
from harness.reports.web_model import (
    BAD,
    GOOD,
    UNSURE,
    Cell,
    Page,
    Rows,
    Section,
    causes_of,
    environment_sentence,
    stack_section,
)
from harness.verdict import AMBIGUOUS, FAIL, KNOWN_DEFECT, NOT_COMPARABLE, PASS, SKIPPED, UNEXPECTED_PASS
from harness.words import counted

#: Clauses that the short list names, if a report has no causes.
MOST = 40


def page(report: Mapping[str, Any]) -> Page:
    """Return the page of a report by clause."""
    clauses = objects(report.get("clauses"))
    counts = Counter(text(clause.get("verdict")) for clause in clauses)
    answer, tone = _answer(report, clauses, counts)
    causes, members = causes_of(report)
    environment = fields(report.get("environment"))
    found = Page(f"peft-harness: {answer}", answer, tone, causes=causes)
    found.said = [*_said(report, clauses, counts), environment_sentence(environment)]
    found.rows = Rows("clause", check=check_command(environment))
    for clause, case in cases_of(clauses):
        found.rows.describe_clause(clause)
        scenario = text(case.get("scenario"), 300)
        found.rows.add(
            clause,
            scenario,
            [text(case.get("verdict"), 40)],
            [evidence_of(case)],
            case.get("spec"),
            _cause(case) or members.get((clause, scenario), 0),
            text(case.get("repeat"), 500),
        )
    if causes is None and (section := failing_section(clauses)):
        found.sections.append(section)
    found.sections.append(stack_section({"": fields(environment.get("versions"))}))
    return found


def judged_run(report: Mapping[str, Any]) -> Page:
    """Return the page of a report of `judge`."""
    laws = objects(report.get("laws"))
    counts = Counter(text(law.get("verdict")) for law in laws)
    if counts[FAIL]:
        answer, tone = f"does not hold: {counted(counts[FAIL], 'clause fails', 'clauses fail')}", BAD
    elif counts[PASS]:
        answer, tone = f"holds: {counted(counts[PASS], 'clause')}", GOOD
    else:
        answer, tone = "undecided: no clause could be judged", UNSURE
    found = Page(f"peft-harness: {answer}", answer, tone)
    found.said = [text(report.get("strength")), environment_sentence(report.get("environment"))]
    found.rows = Rows("clause")
    for law in laws:
        clause = text(law.get("clause"), 40)
        found.rows.describe_clause(clause)
        evidence = {"seen": items(law.get("seen")), **({"reason": law["reason"]} if law.get("reason") else {})}
        found.rows.add(clause, "your run", [text(law.get("verdict"), 40)], [evidence], report.get("spec"))
    return found


def cases_of(clauses: list[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (clause, case) for each case of a report."""
    for clause in clauses:
        for case in objects(clause.get("cases")):
            yield text(clause.get("id"), 40), case


def evidence_of(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a case of a report has to show: its evidence, and where an error of its run was raised."""
    raised = items(case.get("raised"))
    return {**fields(case.get("evidence")), **({"raised": raised} if raised else {})}


def _cause(case: Mapping[str, Any]) -> int:
    """Return the number of a case's cause, from 1; 0 if it names none."""
    at = case.get("cause")
    return at + 1 if isinstance(at, int) and not isinstance(at, bool) and at >= 0 else 0


def check_command(environment: Mapping[str, Any], requirements: str = "") -> str:
    """Return the command that judges clauses again in this environment, without the clauses.

    - requirements: the stack to judge; "" for the installed one.
    """
    words = ["peft-harness", "check"]
    for one in requirements.split() if requirements and requirements != "current" else []:
        words += ["--with", one]
    if (device := text(environment.get("device"), 100)) and device != "cpu":
        words += ["--device", "cuda"]
    subject = text(environment.get("subject"), 200)
    words += ["--subject", subject] if subject and subject != "hf-trainer" else []
    for module in texts(environment.get("preloads")):
        words += ["--preload", module]
    return shlex.join(words)


def failing_section(clauses: list[Mapping[str, Any]]) -> Section | None:
    """Return the clauses that do not hold, for a report without causes; None if all hold."""
    bad = [one for one in clauses if text(one.get("verdict")) in (FAIL, UNEXPECTED_PASS, AMBIGUOUS)]
    rows: list[list[str | Cell]] = []
    for clause in bad[:MOST]:
        wrong = [case for case in objects(clause.get("cases")) if case.get("verdict") == clause.get("verdict")]
        rows.append(
            [
                Cell(text(clause.get("id"), 40), code=True),
                text(clause.get("verdict"), 40),
                str(len(wrong)),
                _first(wrong),
            ]
        )
    if not rows:
        return None
    note = "This report names no causes: an older release of peft-harness wrote it. These are its clauses."
    head = ("clause", "verdict", "cases", "seen first")
    return Section("failing", f"Clauses that do not hold ({len(bad)})", head, rows, note, more=len(bad) - len(rows))


def _first(cases: list[Mapping[str, Any]]) -> str:
    evidence = fields(cases[0].get("evidence")) if cases else {}
    seen = texts(evidence.get("seen"))
    return (seen[0] if seen else text(evidence.get("reason")))[:300]


def _answer(report: Mapping[str, Any], clauses: list[Mapping[str, Any]], counts: Counter[str]) -> tuple[str, str]:
    bad = counts[FAIL] + counts[UNEXPECTED_PASS]
    judged = len(clauses) - counts[SKIPPED] - counts[NOT_COMPARABLE]
    if bad:
        return f"fails: {counted(bad, 'clause does', 'clauses do')} not hold", BAD
    if report.get("complete") is False:
        return "not complete: not all was judged that was asked for", UNSURE
    if counts[AMBIGUOUS]:
        return f"undecided: {counted(counts[AMBIGUOUS], 'clause')}", UNSURE
    if not judged:
        return "undecided: no clause was judged", UNSURE
    return f"holds: {counted(judged, 'clause')}", GOOD


def _said(report: Mapping[str, Any], clauses: list[Mapping[str, Any]], counts: Counter[str]) -> Iterator[str]:
    cases = Counter(text(case.get("verdict"), 40) for _, case in cases_of(clauses))
    words = ", ".join(f"{count:,} {verdict.replace('_', ' ')}" for verdict, count in cases.most_common())
    yield f"{counted(sum(cases.values()), 'case')} of {counted(len(clauses), 'clause')}: {words or 'none'}."
    if unjudged := number(report.get("not_judged")):
        verb = "was asked for has" if unjudged == 1 else "were asked for have"
        yield f"{counted(int(unjudged), 'test')} that {verb} no verdict."
    if skipped := counts[SKIPPED] + counts[NOT_COMPARABLE]:
        yield f"Of {counted(skipped, 'clause')} no case was judged; the table says why."
    if counts[KNOWN_DEFECT]:
        yield f"{counted(counts[KNOWN_DEFECT], 'clause has', 'clauses have')} known defects of upstream."
