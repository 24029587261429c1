"""Print the kill matrix, and write it as JSON and as a web page."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import environment
from harness.files import write_whole
from harness.mutants import usual_checks
from harness.mutants.judge import CHANGED, ERROR, HELD, KILLED, UNDECIDED, Outcome
from harness.mutants.matrix import Matrix
from harness.reports import web_page
from harness.words import counted

SCHEMA_VERSION = 1

#: The order in which outcomes are shown: the worst first.
ORDER = ("survived", "crashed", "equivalent", "killed")
_STYLE = {"survived": "bold red", "crashed": "red", "equivalent": "yellow", "killed": "green"}


def show(console: Console, matrix: Matrix) -> None:
    """Print the mutants, survivors first, then what usual checks would have caught, and a summary."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("mutant", "became", "killed by (cases)"):
        table.add_column(name, no_wrap=name != "killed by (cases)", overflow="fold")
    for name in ("cases", "s"):
        table.add_column(name, justify="right")
    for outcome in _worst_first(matrix):
        words = ", ".join(f"{clause} {count}" for clause, count in outcome.count(KILLED).items())
        table.add_row(
            outcome.mutant.name,
            Text(outcome.status, _STYLE[outcome.status]),
            Text(words or why(outcome)),
            str(len(outcome.cases)),
            f"{outcome.seconds:.1f}",
        )
    console.print(table)
    for case in matrix.unfit:
        console.print(Text(f"{case.clause} {case.scenario} fails without a mutant, so it cannot judge any"))
    console.print()
    console.print(comparison(matrix))
    console.print()
    if any(outcome.watched for outcome in matrix.outcomes):
        console.print(watch_table(matrix))
        console.print()
    console.print(Text(summary(matrix)))


def why(outcome: Outcome) -> str:
    """Say why a mutant is not killed."""
    if outcome.fate:
        return outcome.fate
    if outcome.equivalent:
        return "every run of its cells and of the scenario table is bit-equal"
    counts = {kind: sum(outcome.count(kind).values()) for kind in (ERROR, CHANGED, UNDECIDED)}
    words = {
        ERROR: ("case fails", "cases fail", " only because training raised an error"),
        CHANGED: ("known defect", "known defects", " changed"),
        UNDECIDED: ("case", "cases", " undecided"),
    }
    reasons = [
        counted(count, words[kind][0], words[kind][1]) + words[kind][2] for kind, count in counts.items() if count
    ]
    reasons += [f"runs that it changes: {outcome.differs}"] if outcome.differs else []
    return "; ".join(reasons) or "no case fails"


def comparison(matrix: Matrix) -> Table:
    """Make a table of how many mutants each check would have caught on the same runs.

    Mutants that are proved equivalent do not count.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what is checked")
    for name in ("caught", "missed"):
        table.add_column(name, justify="right")
    table.add_row("the clauses", *_row(matrix, lambda outcome: outcome.status == "killed"))
    for name in usual_checks.CHECKS:
        table.add_row(name, *_row(matrix, functools.partial(_caught_by, name)))
    return table


def watch_table(matrix: Matrix) -> Table:
    """Make a table of the mutants that change what a run trains, logs or saves, and of how many each check catches.

    Below it are those that Watch misses.
    """
    changing = [one for one in matrix.outcomes if one.watched is not None and one.watched.changes]
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column(f"of {len(changing)} mutants that change what a run trains, logs or saves")
    for name in ("caught", "missed"):
        table.add_column(name, justify="right")
    rows: dict[str, Callable[[Outcome], bool]] = {
        "the clauses": lambda one: one.status == "killed",
        "Watch(every=1)": lambda one: one.watched is not None and one.watched.caught,
        "  within one step of showing": lambda one: one.watched is not None and one.watched.soon,
        "Watch(), which samples": lambda one: one.watched is not None and one.watched.sampled,
        **{check: functools.partial(_caught_by, check) for check in usual_checks.CHECKS},
    }
    for name, is_caught in rows.items():
        caught = sum(map(is_caught, changing))
        table.add_row(name, str(caught), str(len(changing) - caught))
    missed = [one.mutant.name for one in changing if one.watched is not None and not one.watched.caught]
    table.caption = f"Watch(every=1) misses {', '.join(missed)}" if missed else None
    table.caption_justify = "left"
    return table


def _caught_by(check: str, outcome: Outcome) -> bool:
    """Return whether a usual check would have caught the mutant."""
    return outcome.usual.get(check, False)


def _row(matrix: Matrix, is_caught: Callable[[Outcome], bool]) -> tuple[str, str]:
    """Return how many mutants that change a run are caught, and how many are not."""
    outcomes = [outcome for outcome in matrix.outcomes if outcome.status != "equivalent"]
    caught = sum(map(is_caught, outcomes))
    return str(caught), str(len(outcomes) - caught)


def summary(matrix: Matrix) -> str:
    """Say in one line how many mutants were killed and by how many clauses, how many cases that took, and how long."""
    became = Counter(outcome.status for outcome in matrix.outcomes)
    clauses = {clause for outcome in matrix.outcomes for clause in outcome.count(KILLED)}
    errors = sum(sum(outcome.count(ERROR).values()) for outcome in matrix.outcomes)
    cases = sum(len(outcome.cases) for outcome in matrix.outcomes)
    parts = [f"{became[status]} {status}" for status in ORDER[::-1] if became[status]]
    by = f", by {counted(len(clauses), 'clause')}" if clauses else ""
    failed = f"; {errors} failed only by an error, which is no kill" if errors else ""
    return (
        f"{counted(len(matrix.outcomes), 'mutant')}: {', '.join(parts)}{by}. "
        f"{counted(cases, 'case')} with a mutant, {matrix.cases:,} without{failed}. "
        f"{matrix.seconds:.0f} s, {counted(matrix.workers, 'process', 'processes')} at a time."
    )


def to_json(matrix: Matrix) -> dict[str, Any]:
    """Return the matrix as harness/mutants/report_schema.json describes it."""
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
                "name": outcome.mutant.name,
                "chapter": outcome.mutant.chapter,
                "says": outcome.mutant.says,
                "thread": outcome.mutant.thread,
                "status": outcome.status,
                "why": "" if outcome.status == "killed" else why(outcome),
                "killed_by": outcome.count(KILLED),
                "usual": outcome.usual,
                "seconds": outcome.seconds,
                "cases": [
                    {"clause": c.clause, "scenario": c.scenario, "outcome": c.outcome, "sentence": c.sentence}
                    for c in outcome.cases
                    if c.outcome != HELD
                ],
                "held": sum(outcome.count(HELD).values()),
                "watch": None if outcome.watched is None else vars(outcome.watched),
            }
            for outcome in matrix.outcomes
        ],
    }


def write_json(matrix: Matrix, path: Path) -> None:
    """Write the matrix as JSON."""
    write_whole(path, json.dumps(to_json(matrix), indent=1) + "\n")


def write_html(matrix: Matrix, path: Path) -> None:
    """Write the matrix as a page of HTML."""
    write_whole(path, web_page.write(to_json(matrix)))


def _worst_first(matrix: Matrix) -> list[Outcome]:
    return sorted(matrix.outcomes, key=lambda outcome: ORDER.index(outcome.status))
