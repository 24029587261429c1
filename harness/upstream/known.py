"""The known defects as a table: `peft-harness defects`, on the screen, as Markdown, HTML and JSON."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from harness import contract
from harness.contract import expectations
from harness.contract.expectations import Expectation
from harness.environment import satisfies
from harness.errors import UsageError
from harness.paths import PACKAGE, SUITES
from harness.upstream import recipes

#: Whether a fault is seen on the stack of a report.
CONFIRMED, GONE, NOT_SEEN = "confirmed", "gone", "not judged"


@dataclass(frozen=True)
class Row:
    """A known defect.

    - clause, scenario, versions, reason, thread: as in `Expectation`. scenario: for drawn runs, their fields.
    - script: the name of its script; "" if it has none.
    - why_no_script: why it has none.
    - good: a stack without the fault.
    - here: whether its versions are those of the installed stack.
    - state: CONFIRMED, GONE or NOT_SEEN, by a report; "" if there is no report.
    """

    clause: str
    scenario: str
    versions: str
    reason: str
    thread: str
    script: str
    why_no_script: str
    good: str
    here: bool
    state: str

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def table(globs: Iterable[str] = (), report: Mapping[str, Any] | None = None) -> list[Row]:
    """Return the known defects.

    - globs: clauses, as for --clause; all if there are none.
    - report: a report of the suites, as a dict; None if there is none.

    Raises UsageError if a glob matches no clause.
    """
    patterns = list(globs)
    chosen = contract.select(patterns) if patterns else contract.clauses()
    known = expectations.load(SUITES / "expectations")
    scripted = {id(defect): one for one in reversed(recipes.load()) for defect in recipes.defects(one, known)}
    without = {id(defect): one for one in recipes.without_script() for defect in recipes.defects(one, known)}
    rows = []
    for defect in known:
        if defect.clause not in chosen:
            continue
        one, reason = scripted.get(id(defect)), without.get(id(defect))
        fields = ", ".join(f"{name} {glob}" for name, glob in defect.spec.items())
        rows.append(
            Row(
                defect.clause,
                f"{defect.scenario} ({fields})" if fields else defect.scenario,
                ", ".join(defect.versions),
                defect.reason,
                defect.link,
                one.id if one is not None else "",
                "" if one is not None or reason is None else reason.reason,
                one.good if one is not None else "",
                all(satisfies(version) for version in defect.versions),
                "" if report is None else _state(defect, report),
            )
        )
    order = {clause: place for place, clause in enumerate(contract.clauses())}
    return sorted(rows, key=lambda row: order[row.clause])


def _state(defect: Expectation, report: Mapping[str, Any]) -> str:
    """Return whether a report's cases show a defect. A drawn run shows it if the defect describes the run."""
    states = set()
    for clause in report.get("clauses", []):
        for case in clause.get("cases", []) if clause.get("id") == defect.clause else []:
            spec = case.get("spec")
            drawn = isinstance(spec, Mapping) and bool(defect.spec)
            if not defect.names(str(case.get("scenario"))) or (defect.spec and not (drawn and defect.describes(spec))):
                continue
            verdict = case.get("verdict")
            if verdict == "known_defect" and (not drawn or defect.match in str(case.get("evidence"))):
                states.add(CONFIRMED)
            elif not drawn and verdict in ("unexpected_pass", "pass"):
                states.add(GONE)
    return CONFIRMED if CONFIRMED in states else GONE if GONE in states else NOT_SEEN


def counts(rows: list[Row]) -> str:
    """Return in one sentence how many defects there are, and how many have a script."""
    scripts = {row.script for row in rows if row.script}
    covered = sum(bool(row.script) for row in rows)
    listed = sum(bool(row.why_no_script) for row in rows)
    why = f"{listed} {'has' if listed == 1 else 'have'} a reason why not"
    text = f"{len(rows)} known defects; {covered} are shown by {len(scripts)} scripts, {why}"
    states = Counter(row.state for row in rows if row.state)
    return text + "".join(f"; {number} {state}" for state, number in states.items())


def to_screen(rows: list[Row]) -> Table:
    """Return the table for a terminal."""
    shown = Table("clause", "case", "versions", "script", "what is wrong", box=None, pad_edge=False)
    if any(row.state for row in rows):
        shown.add_column("seen")
    for row in rows:
        script = row.script or f"none: {row.why_no_script}"
        text = f"{row.reason} {row.thread}".strip()
        cells = [Text(cell) for cell in (row.clause, row.scenario, row.versions, script, text)]
        shown.add_row(*cells, *([Text(row.state)] if row.state else []))
    return shown


def to_markdown(rows: list[Row]) -> str:
    """Return the table as Markdown, a chapter a table."""
    lines = ["# Known defects of upstream", "", f"{counts(rows)}.", ""]
    for chapter, own in itertools.groupby(rows, lambda row: row.clause.partition("-")[0]):
        lines += [f"## {chapter}", "", "| clause | case | versions | thread | script | seen | what is wrong |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for row in own:
            thread = f"[thread]({row.thread})" if row.thread else ""
            script = f"`{row.script}`" if row.script else f"none: {_cell(row.why_no_script)}"
            cells = (f"`{row.scenario}`".replace("|", "\\|"), _cell(row.versions), thread, script, row.state)
            lines.append(f"| {row.clause} | {' | '.join(cells)} | {_cell(row.reason)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def to_html(rows: list[Row]) -> str:
    """Return the table as one self-contained page."""
    import jinja2

    loader = jinja2.FileSystemLoader(PACKAGE / "upstream")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("defects.html.j2").render(
        rows=rows, counts=counts(rows), clauses=contract.clauses()
    )


def read_report(body: Any, where: str) -> Mapping[str, Any]:
    """Return a report of the suites. Raises UsageError if it is something else."""
    clauses = body.get("clauses") if isinstance(body, Mapping) else None
    right = isinstance(clauses, list) and all(
        isinstance(clause, Mapping)
        and isinstance(clause.get("cases"), list)
        and all(isinstance(case, Mapping) for case in clause["cases"])
        for clause in clauses
    )
    if not right:
        raise UsageError(f"{where}: is no report of check or of pytest suites/")
    return dict(body)
