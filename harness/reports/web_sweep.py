"""The page of `sweep`: the pairs that were covered, and what fails, by cause."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from harness.reports.kinds import fields, number, objects, text
from harness.reports.web_model import (
    BAD,
    GOOD,
    TONES,
    UNSURE,
    Cause,
    Cell,
    Page,
    Rows,
    Section,
    environment_sentence,
    stack_section,
)
from harness.words import counted


def page(report: Mapping[str, Any]) -> Page:
    """Return the page of a sweep's report."""
    causes = sorted(objects(report.get("causes")), key=_rank)
    failing = [one for one in causes if TONES.get(text(one.get("kind"), 40)) == BAD]
    pairs = {
        name: int(number(fields(report.get("pairs")).get(name)) or 0) for name in ("all", "not_refused", "covered")
    }
    answer, tone = "holds", GOOD
    if failing:
        answer, tone = f"fails: {counted(len(failing), 'cause')}", BAD
    elif causes:
        answer, tone = f"undecided: {counted(len(causes), 'cause')}", UNSURE
    elif report.get("complete") is not True:
        answer, tone = "undecided: too few of the pairs are covered", UNSURE
    found = Page(f"peft-harness sweep: {answer}", answer, tone, causes=[])
    share = pairs["covered"] / pairs["not_refused"] if pairs["not_refused"] else 0.0
    seconds = number(report.get("seconds")) or 0.0
    kinds = {text(name, 60): int(number(count) or 0) for name, count in fields(report.get("configurations")).items()}
    found.said = [
        f"{pairs['covered']:,} of {pairs['not_refused']:,} pairs of values that are not refused are covered ({share:.1%}); "
        f"{pairs['all'] - pairs['not_refused']:,} are refused.",
        f"{counted(sum(kinds.values()), 'configuration')} in {seconds / 60:.1f} min, seed {number(report.get('seed'))}.",
        environment_sentence(report.get("environment")),
    ]
    found.rows = Rows("clause")
    found.causes = [_cause(found.rows, at, one) for at, one in enumerate(causes, start=1)]
    for one in objects(report.get("known_defects")):
        clause = text(one.get("clause"), 40)
        found.rows.describe_clause(clause)
        count = counted(int(number(one.get("configurations")) or 0), "configuration")
        found.rows.add(clause, count, ["known_defect"], [{"reason": text(one.get("reason"))}])
    for one in objects(report.get("refused")):
        says = {
            "seen" if one.get("crash") else "reason": [text(one.get("sentence"))]
            if one.get("crash")
            else text(one.get("sentence"))
        }
        found.rows.add("upstream", _words(one.get("fields")), ["refused"], [says])
    outcomes: list[list[str | Cell]] = [[name, f"{count:,}"] for name, count in kinds.items()]
    laws: list[list[str | Cell]] = [
        [text(name, 60), f"{int(number(count) or 0):,}"] for name, count in fields(report.get("laws")).items()
    ]
    found.sections = [
        Section("outcomes", "What became of the configurations", ("outcome", "configurations"), outcomes),
        Section("laws", "Laws", ("verdict", "how many"), laws, open=False),
        stack_section({"": fields(fields(report.get("environment")).get("versions"))}),
    ]
    return found


def _rank(cause: Mapping[str, Any]) -> tuple[bool, float]:
    """Return a key that sorts causes: what fails first, then what most configurations have."""
    return TONES.get(text(cause.get("kind"), 40)) != BAD, -(number(cause.get("configurations")) or 0)


def _cause(rows: Rows, at: int, cause: Mapping[str, Any]) -> Cause:
    """Add a row for each clause of a cause. Return the cause."""
    words, kind, file = _words(cause.get("fields")), text(cause.get("kind"), 40), text(cause.get("file"), 500)
    command = f"peft-harness repro {shlex.quote(file)}" if file else ""
    clauses = objects(cause.get("clauses"))
    for one in clauses:
        clause = text(one.get("clause"), 40) or "process"
        rows.describe_clause(clause)
        rows.add(clause, words, [kind], [{"seen": [text(one.get("seen"))]}], cause.get("spec"), at, command)
    reaches = [] if cause.get("smallest") else ["The fewest fields were not found within the time."]
    if cause.get("in_a_new_process") is False:
        reaches.append("Only in a process that had trained other runs before.")
    return Cause(
        at,
        f"{kind}: {words}",
        int(number(cause.get("configurations")) or 0),
        tuple(dict.fromkeys(text(one.get("clause"), 40) or "process" for one in clauses)),
        " ".join(reaches),
        next=(command,) if command else (),
        example=next((sentence for one in clauses if (sentence := text(one.get("seen")))), ""),
    )


def _words(value: Any) -> str:
    return ", ".join(f"{text(name, 100)}={text(one, 200)}" for name, one in fields(value).items()) or "the default run"
