"""The kill matrix as people and machines read it: tables, JSON, and a page."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import contract, environment
from harness.files import write_whole
from harness.mutants import usual_checks
from harness.mutants.judge import CHANGED, ERROR, HELD, KILLED, UNDECIDED, Outcome
from harness.mutants.matrix import Matrix

SCHEMA_VERSION = 1

#: The worst first.
ORDER = ("survived", "crashed", "equivalent", "killed")
_STYLE = {"survived": "bold red", "crashed": "red", "equivalent": "yellow", "killed": "green"}


def show(console: Console, matrix: Matrix) -> None:
    """Print the matrix, survivors first, then what usual checks would have caught, and the time."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("mutant", "became", "killed by (cases)"):
        table.add_column(name, no_wrap=name != "killed by (cases)", overflow="fold")
    for name in ("cases", "s"):
        table.add_column(name, justify="right")
    for outcome in sorted(matrix.outcomes, key=lambda one: ORDER.index(one.status)):
        words = ", ".join(f"{clause} {count}" for clause, count in outcome.count(KILLED).items())
        table.add_row(
            outcome.mutant.name,
            Text(outcome.status, _STYLE[outcome.status]),
            Text(words or why(outcome)),
            str(len(outcome.seen)),
            f"{outcome.seconds:.1f}",
        )
    console.print(table)
    for case in matrix.unfit:
        console.print(Text(f"{case.clause} {case.scenario} fails without a mutant, so it says nothing of any"))
    console.print()
    console.print(comparison(matrix))
    console.print(Text(summary(matrix)))


def why(outcome: Outcome) -> str:
    """Why a mutant is not killed, in words."""
    if outcome.fate:
        return outcome.fate
    if outcome.equivalent:
        return "every run of its cells and of the scenario table is bit-equal"
    rest = {kind: sum(outcome.count(kind).values()) for kind in (ERROR, CHANGED, UNDECIDED)}
    words = {ERROR: "fail by an error alone", CHANGED: "known defects changed", UNDECIDED: "undecided"}
    told = [f"{count} {words[kind]}" for kind, count in rest.items() if count]
    told += [f"runs that it changes: {outcome.differs}"] if outcome.differs else []
    return "; ".join(told) or "no case fails"


def comparison(matrix: Matrix) -> Table:
    """How many of the mutants that change anything each check would have caught, on the same runs."""
    counted = _counted(matrix)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what is checked")
    for name in ("caught", "missed"):
        table.add_column(name, justify="right")
    table.add_row("the clauses", *_row(counted, lambda one: one.status == "killed"))
    for name in usual_checks.CHECKS:
        table.add_row(name, *_row(counted, lambda one, name=name: one.usual.get(name, False)))
    return table


def _counted(matrix: Matrix) -> list[Outcome]:
    return [one for one in matrix.outcomes if one.status != "equivalent"]


def _row(counted: list[Outcome], caught: Any) -> tuple[str, str]:
    number = sum(map(caught, counted))
    return str(number), str(len(counted) - number)


def summary(matrix: Matrix) -> str:
    """One line: how many were killed, of which none by an error alone, how long it took."""
    became = Counter(outcome.status for outcome in matrix.outcomes)
    clauses = {clause for outcome in matrix.outcomes for clause in outcome.count(KILLED)}
    parts = [f"{became[status]} {status}" for status in ORDER[::-1] if became[status]]
    errors = sum(sum(outcome.count(ERROR).values()) for outcome in matrix.outcomes)
    return (
        f"{len(matrix.outcomes)} mutants: {', '.join(parts)}; by {len(clauses)} clauses, not counting {errors} cases that "
        f"fail by an error alone; "
        f"{sum(len(one.seen) for one in matrix.outcomes)} mutated cases of {matrix.cases}; "
        f"{matrix.seconds:.0f} s, {matrix.workers} at a time"
    )


def to_json(matrix: Matrix) -> dict[str, Any]:
    """The matrix as the schema (harness/mutants/report_schema.json) has it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": environment.describe(),
        "seconds": matrix.seconds,
        "workers": matrix.workers,
        "cases": matrix.cases,
        "unfit": [{"clause": case.clause, "scenario": case.scenario} for case in matrix.unfit],
        "usual": list(usual_checks.CHECKS),
        "mutants": [
            {
                "name": one.mutant.name,
                "chapter": one.mutant.chapter,
                "says": one.mutant.says,
                "thread": one.mutant.thread,
                "status": one.status,
                "why": "" if one.status == "killed" else why(one),
                "killed_by": one.count(KILLED),
                "usual": one.usual,
                "seconds": one.seconds,
                "cases": [
                    {"clause": c.clause, "scenario": c.scenario, "outcome": c.outcome, "sentence": c.sentence}
                    for c in one.seen
                    if c.outcome != HELD
                ],
                "held": sum(one.count(HELD).values()),
            }
            for one in matrix.outcomes
        ],
    }


def write_json(matrix: Matrix, path: Path) -> None:
    write_whole(path, json.dumps(to_json(matrix), indent=1) + "\n")


def write_html(matrix: Matrix, path: Path) -> None:
    """The matrix as a page: a row a mutant, a column a clause, how many cases in each cell."""
    from jinja2 import Environment, StrictUndefined

    counts = {one.mutant.name: one.count(KILLED) for one in matrix.outcomes}
    clauses = [id for id in contract.clauses() if any(id in count for count in counts.values())]
    first = {
        one.mutant.name: {c.clause: f"{c.scenario}: {c.sentence}" for c in reversed(one.seen) if c.outcome == KILLED}
        for one in matrix.outcomes
    }
    template = (Path(__file__).parent / "matrix.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(template)
    text = page.render(
        outcomes=sorted(matrix.outcomes, key=lambda one: ORDER.index(one.status)),
        clauses=clauses,
        counts=counts,
        first=first,
        why=why,
        summary=summary(matrix),
    )
    write_whole(path, text + "\n")
