"""A report as JUnit XML, which most CI systems show. A test case is a case, and in a gate a clause or a cell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from harness.reports import kinds, problems
from harness.reports.kinds import fields, items, objects, text
from harness.verdict import AMBIGUOUS, FAIL, KNOWN_DEFECT, NOT_COMPARABLE, PASS, SKIPPED, UNEXPECTED_PASS

#: The elements for a verdict; none for one that holds.
ELEMENTS = {
    FAIL: "failure",
    UNEXPECTED_PASS: "failure",
    AMBIGUOUS: "error",
    NOT_COMPARABLE: "skipped",
    SKIPPED: "skipped",
    KNOWN_DEFECT: "skipped",
}

#: Characters that XML 1.0 does not have.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\u007e\u0080-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass
class Test:
    """A test case of JUnit.

    - group, name: its `classname` and `name`.
    - verdict: one of `harness.verdict.ORDER`.
    - sentence, lines: what was seen, in one line and in full.
    - properties: name -> value.
    """

    group: str
    name: str
    verdict: str
    sentence: str = ""
    lines: list[str] = field(default_factory=list)
    properties: dict[str, str] = field(default_factory=dict)


def write(report: Mapping[str, Any]) -> str:
    """Return a report of any command as JUnit XML. Raises UsageError if it is no report."""
    name = kinds.kind(report)
    tests = list(_BY_KIND[name](report))
    elements = [ELEMENTS.get(test.verdict, "") for test in tests]
    counts = {
        "tests": len(tests),
        "failures": elements.count("failure"),
        "errors": elements.count("error"),
        "skipped": elements.count("skipped"),
    }
    attributes = {"name": f"peft-harness {name}", **{name: str(count) for name, count in counts.items()}}
    root = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(root, "testsuite", attributes)
    for test, element in zip(tests, elements, strict=True):
        suite.append(_testcase(test, element))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _testcase(test: Test, element: str) -> ElementTree.Element:
    case = ElementTree.Element("testcase", {"classname": _plain(test.group), "name": _plain(test.name)})
    if test.properties:
        properties = ElementTree.SubElement(case, "properties")
        for name, value in test.properties.items():
            ElementTree.SubElement(properties, "property", {"name": name, "value": _plain(value)})
    if element:
        inner = ElementTree.SubElement(case, element, {"type": test.verdict, "message": _plain(test.sentence)})
        inner.text = _plain("\n".join(test.lines or [test.sentence]))
    return case


def _plain(words: str) -> str:
    return _FORBIDDEN.sub("\ufffd", words)


def _causes(report: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Return (clause, scenario) -> the sentence of its cause."""
    return {
        (text(member.get("clause")), text(member.get("scenario"))): text(cause.get("sentence"))
        for cause in objects(report.get("causes"))
        for member in objects(cause.get("members"))
    }


def _of_suites(report: Mapping[str, Any]) -> Iterator[Test]:
    causes = _causes(report)
    for clause in objects(report.get("clauses")):
        id = text(clause.get("id"))
        for case in objects(clause.get("cases")):
            scenario, verdict = text(case.get("scenario")), text(case.get("verdict"))
            evidence = fields(case.get("evidence"))
            seen = [text(line) for line in items(evidence.get("seen"))]
            lines = [f"expected: {text(evidence.get('expected'))}", *(f"seen: {line}" for line in seen)] if seen else []
            lines += [text(evidence[name]) for name in ("reason", "link") if text(evidence.get(name))]
            properties = case_properties(id, scenario, verdict, causes.get((id, scenario), ""), case.get("spec"))
            yield Test(f"{id.partition('-')[0]}.{id}", scenario, verdict, problems.finding_of(case), lines, properties)


def case_properties(clause: str, scenario: str, verdict: str, cause: str, spec: Any) -> dict[str, str]:
    """Return the properties of a case. `cause` and `spec` (JSON) are left out where there is none."""
    found = {"clause": clause, "scenario": scenario, "verdict": verdict, "cause": cause}
    if isinstance(spec, dict):
        found["spec"] = json.dumps(spec)
    return {name: value for name, value in found.items() if value}


def _of_gate(report: Mapping[str, Any]) -> Iterator[Test]:
    """Yield a test for each clause that was judged, each cell, and whatever else has a finding."""
    causes = {clause: text(cause.get("sentence")) for cause in objects(report.get("causes"))
              for clause in items(cause.get("clauses")) if isinstance(clause, str)}  # fmt: skip
    verdicts = {"broken": FAIL, "lost": AMBIGUOUS}
    findings: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for side in ("baseline", "candidate"):
        judged = fields(fields(report.get(side)).get("report"))
        for clause in objects(judged.get("clauses")):
            findings.setdefault(("clause", text(clause.get("id"))), [])
    for cell in fields(report.get("numbers")):
        findings.setdefault(("numbers", text(cell)), [])
    for finding in objects(report.get("findings")):
        findings.setdefault((text(finding.get("about")), text(finding.get("where"))), []).append(finding)
    for (about, where), found in findings.items():
        grave = [one for means in verdicts for one in found if one.get("means") == means]
        verdict = verdicts[text(grave[0].get("means"))] if grave else PASS
        lines = [text(one.get("sentence")) for one in grave]
        properties = {"verdict": verdict}
        if about == "clause":
            properties = case_properties(where, "", verdict, causes.get(where, ""), None)
        yield Test(f"gate.{about}", where, verdict, (lines or [""])[0], lines, properties)


def _of_judge(report: Mapping[str, Any]) -> Iterator[Test]:
    for law in objects(report.get("laws")):
        id, verdict = text(law.get("clause")), text(law.get("verdict"))
        lines = [line for one in items(law.get("seen")) if (line := text(one))] or [text(law.get("reason"))]
        properties = case_properties(id, "", verdict, "", report.get("spec") if verdict == FAIL else None)
        yield Test(f"judge.{id.partition('-')[0]}", id, verdict, lines[0], lines, properties)


def _of_problems(report: Mapping[str, Any]) -> Iterator[Test]:
    for problem in problems.of(report):
        verdict = FAIL if problem.level == problems.ERROR else AMBIGUOUS
        group = f"{kinds.kind(report)}.{problem.rule}"
        yield Test(group, ", ".join(problem.clauses) or problem.sentence, verdict, problem.words)


def _of_sweep(report: Mapping[str, Any]) -> Iterator[Test]:
    """Yield a test for each cause, and one for the rest: the report has no list of what holds."""
    yield from _of_problems(report)
    counts = ", ".join(f"{text(name)}: {count}" for name, count in fields(report.get("configurations")).items())
    complete = report.get("complete") is True
    sentence = "" if complete else f"not all pairs of fields are covered ({counts})"
    yield Test("sweep", "coverage", PASS if complete else AMBIGUOUS, sentence)


def _of_mutants(report: Mapping[str, Any]) -> Iterator[Test]:
    """Yield a test for each fault that was put in: it passes if a clause catches it."""
    verdicts = {"killed": PASS, "equivalent": SKIPPED}
    for mutant in objects(report.get("mutants")):
        verdict = verdicts.get(text(mutant.get("status")), FAIL)
        yield Test(
            f"mutants.{text(mutant.get('chapter'))}",
            text(mutant.get("name")),
            verdict,
            text(mutant.get("says")),
            [text(mutant.get("says")), text(mutant.get("why"))],
        )


def _of_watch(report: Mapping[str, Any]) -> Iterator[Test]:
    """Yield a test for each check of a certificate."""
    verdicts = {"holds": PASS, "fails": FAIL}
    for check in objects(report.get("checks")):
        verdict = verdicts.get(text(check.get("verdict")), SKIPPED)
        found = [line for one in objects(check.get("findings")) if (line := text(one.get("sentence")))]
        reasons = [line for one in objects(check.get("not_judged")) if (line := text(one.get("reason")))]
        lines = found or reasons or [text(check.get("says"))]
        yield Test("watch", text(check.get("check")), verdict, lines[0], lines)


_BY_KIND = {
    kinds.GATE: _of_gate,
    kinds.SUITES: _of_suites,
    kinds.JUDGE: _of_judge,
    kinds.SWEEP: _of_sweep,
    kinds.MUTANTS: _of_mutants,
    kinds.WATCH: _of_watch,
}
