"""The table as text: for the terminal, as Markdown for a README, and as CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from packaging.version import Version
from rich.table import Table

from harness.environment import STACK
from harness.map import results_table
from harness.map.results_table import FAILS, HOLDS
from harness.words import counted

#: Rows of the terminal's table.
_ROWS = 24

#: Mark of a cell in Markdown -> what it says.
_MARKS = {HOLDS: "✓", FAILS: "✗", results_table.UNDECIDED: "?", results_table.NOT_JUDGED: "–"}


def packages(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the packages whose releases differ between cells, in the order of the stack."""
    versions: dict[str, set[str]] = {}
    for cell in cells:
        for name, version in cell["stack"].items():
            versions.setdefault(name, set()).add(version)
    moving = [name for name, found in versions.items() if len(found) > 1] or list(versions)
    return sorted(moving, key=lambda name: (STACK.index(name) if name in STACK else len(STACK), name))


def ordered(cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return cells, the newest stack first."""
    names = packages(cells)
    return sorted(cells, key=lambda cell: [Version(cell["stack"].get(name, "0")) for name in names], reverse=True)


def sentence(table: Mapping[str, Any]) -> str:
    """Return what a table has, in one sentence."""
    cells = table["cells"]
    states = Counter(results_table.of_cell(cell) if cell["state"] == "judged" else cell["state"] for cell in cells)
    words = ", ".join(f"{count} {name}" for name, count in states.most_common()) or "none"
    dates = sorted(cell["date"][:10] for cell in cells)
    when = f"; judged {dates[0]}" + (f" to {dates[-1]}" if dates[0] != dates[-1] else "") if dates else ""
    conflicts = f"; {counted(len(table['conflicts']), 'conflict')}" if table["conflicts"] else ""
    left = len(table.get("not_judged", []))
    return f"{counted(len(cells), 'stack')}: {words}{when}{conflicts}{f'; {left:,} of the matrix not judged' if left else ''}"


def screen_table(table: Mapping[str, Any]) -> tuple[Table, int]:
    """Return the table for a terminal, and how many cells it leaves out."""
    cells = ordered(table["cells"])
    names = packages(cells)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in (*names, "verdict", "causes", "first"):
        shown.add_column(column, overflow="ellipsis", no_wrap=True)
    for cell in cells[:_ROWS]:
        verdict = results_table.of_cell(cell) if cell["state"] == "judged" else cell["state"]
        values = [cell["stack"].get(name, "-") for name in names]
        shown.add_row(*values, verdict, str(len(cell["causes"])), results_table.reason(cell))
    return shown, max(0, len(cells) - _ROWS)


def markdown(table: Mapping[str, Any]) -> str:
    """Return the table as Markdown, a stack a row and a clause a column."""
    cells = ordered(table["cells"])
    names = packages(cells)
    clauses = sorted({clause for cell in cells for clause in cell["clauses"]})
    lines = [
        f"{sentence(table)}.",
        "",
        _row([*names, *clauses, "causes", "judged"]),
        _row(["---"] * (len(names) + len(clauses) + 2)),
    ]
    for cell in cells:
        marks = [_MARKS[results_table.state(cell["clauses"].get(one, {}).get("verdict"))] for one in clauses]
        causes = str(len(cell["causes"])) if cell["state"] == "judged" else _plain(cell["state"])
        lines.append(_row([*(cell["stack"].get(name, "-") for name in names), *marks, causes, cell["date"][:10]]))
    machines = sorted({f"{cell['machine']}, {counted(cell['cores'], 'core')}" for cell in cells})
    lines += ["", f"✓ holds, ✗ fails (or a known defect), ? undecided, – not judged. On {'; '.join(machines)}.", ""]
    if table["conflicts"]:
        lines += ["Conflicts, where two results with the same tests do not agree:", ""]
        lines += [
            f"- {one['requirements']}, {one['clause']}: "
            + ", ".join(f"{each['verdict']} ({each['date'][:10]})" for each in one["verdicts"])
            for one in table["conflicts"]
        ]
    return "\n".join(lines).rstrip() + "\n"


def _row(values: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(value) for value in values) + " |"


def _plain(value: str) -> str:
    """Return a text of a table that others may have written as a cell of Markdown."""
    return value.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def comma_separated(table: Mapping[str, Any]) -> str:
    """Return the table as CSV, a row for each stack and clause."""
    cells = ordered(table["cells"])
    names = list(dict.fromkeys(name for cell in cells for name in cell["stack"]))
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow([*names, "device", "run", "state", "clause", "verdict", "seen", "date", "machine", "cores", "python"])
    for cell in cells:
        head = [*(cell["stack"].get(name, "") for name in names), cell["device"], cell["run"], cell["state"]]
        tail = [cell["machine"], str(cell["cores"]), cell["python"]]
        for clause, entry in sorted(cell["clauses"].items()):
            rows.writerow(map(_safe, [*head, clause, entry["verdict"], entry["seen"], entry["date"], *tail]))
        if not cell["clauses"]:
            rows.writerow(map(_safe, [*head, "", "", cell["sentence"], cell["date"], *tail]))
    return stream.getvalue()


def _safe(value: str) -> str:
    """Return a field that a spreadsheet does not take for a formula."""
    return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t") else value
