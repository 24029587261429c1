"""A report for GitHub Actions, without a token: annotations on the pull request, and a summary on the page of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from harness import contract
from harness.environment import STACK
from harness.reports import badge, kinds, problems
from harness.reports.kinds import fields, objects, text
from harness.reports.problems import Problem
from harness.verdict import ORDER
from harness.words import counted

#: Annotations of a level that GitHub shows for a step.
MOST = 10

#: Problems that the summary lists, and characters of a sentence in it.
_LISTED, _QUOTED = 20, 300


def write(report: Mapping[str, Any]) -> str:
    """Return the annotations: workflow commands, one a line, which a step prints. Raises UsageError if it is no report."""
    found = problems.of(report)
    lines = []
    for level in (problems.ERROR, problems.WARNING):
        of_level = [problem for problem in found if problem.level == level]
        shown = of_level if len(of_level) <= MOST else of_level[: MOST - 1]
        lines += [_command(level, problem) for problem in shown]
        if len(of_level) > len(shown):
            more = f"and {counted(len(of_level) - len(shown), 'more problem')} in the report"
            lines.append(f"::{level} title=peft-harness::{more}")
    return "".join(f"{line}\n" for line in lines)


def _command(level: str, problem: Problem) -> str:
    properties = {"title": problem.rule.replace("-", " ")}
    if problem.place is not None:
        properties |= {"file": problem.place.file, "line": str(problem.place.line)}
    named = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in properties.items())
    words = problem.words + (f" Next: {problem.next[0]}" if problem.next else "")
    return f"::{level} {named}::{_escaped(words)}"


def _escaped(words: str, others: str = "") -> str:
    """Escape a text for a workflow command, as @actions/core does. others: what else ends a value."""
    for character in "%\r\n" + others:
        words = words.replace(character, f"%{ord(character):02X}")
    return words


def summary(report: Mapping[str, Any]) -> str:
    """Return a summary in Markdown. A text of the report stands in a code span: it links to nothing and mentions nobody.

    It is for reports of any command; for a gate's, `harness.gate.summary` has more. Raises UsageError if it is no report.
    """
    kind = kinds.kind(report)
    found = problems.of(report)
    versions = fields(fields(report.get("environment")).get("versions"))
    stack = " ".join(f"{name}=={text(versions[name], 40)}" for name in STACK if text(versions.get(name)))
    lines = [f"## peft-harness {kind}: {badge.answer(report)}", ""]
    lines += [_code(stack), ""] if stack else []
    if kind == kinds.SUITES:
        lines += _chapters(report)
    for level, title in ((problems.ERROR, "Does not hold"), (problems.WARNING, "Undecided")):
        of_level = [problem for problem in found if problem.level == level]
        if of_level:
            lines += [f"### {title} ({len(of_level)})", "", *(f"- {_code(one.words)}" for one in of_level[:_LISTED])]
            if len(of_level) > _LISTED:
                lines.append(f"- and {len(of_level) - _LISTED} more in the report")
            lines.append("")
    return "\n".join(lines)


def _chapters(report: Mapping[str, Any]) -> list[str]:
    """Return the table of clauses by chapter and verdict."""
    counts: Counter[tuple[str, str]] = Counter()
    for clause in objects(report.get("clauses")):
        counts[text(clause.get("id")).partition("-")[0], text(clause.get("verdict"))] += 1
    verdicts = [verdict for verdict in ORDER if any(found == verdict for _, found in counts)]
    lines = [f"| chapter | {' | '.join(verdict.replace('_', ' ') for verdict in verdicts)} |"]
    lines.append("|---|" + "---|" * len(verdicts))
    for chapter in contract.chapters():
        numbers = [counts[chapter.id, verdict] for verdict in verdicts]
        if any(numbers):
            lines.append(f"| {chapter.id} {chapter.title} | {' | '.join(str(n) if n else '-' for n in numbers)} |")
    return [*lines, ""]


def _code(words: str) -> str:
    plain = text(words.replace("`", "'"), _QUOTED)
    return f"`{plain}`" if plain else "-"
