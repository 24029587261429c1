"""What a gate tells: a screen for people, JSON for machines, Markdown for a pull request."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.files import write_whole
from harness.gate.compare import Outcome
from harness.gate.environments import STACK
from harness.gate.findings import BROKEN, LOST, MENDED, NOTE, SAFE, Finding
from harness.gate.side import Side
from harness.session.report import to_json

SCHEMA_VERSION = 1

_TITLES = {
    BROKEN: "Broken by the upgrade",
    LOST: "Cannot be judged any more",
    MENDED: "Mended by the upgrade",
    NOTE: "Worth knowing",
}
_STYLES = {BROKEN: "bold red", LOST: "yellow", MENDED: "green", NOTE: "dim"}
#: Lines of each kind on the screen: all of it fits one.
_LINES = {BROKEN: 9, LOST: 4, MENDED: 4, NOTE: 4}


def screen(console: Console, sides: list[Side], outcome: Outcome) -> None:
    """The verdict, the two stacks, the gravest findings of each kind, and what was compared."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for package in STACK:
        table.add_column(package)
    for side in sides:
        table.add_row(side.name, *[side.environment.stack.get(package, "-") for package in STACK])
    console.print(table)
    for means, title in _TITLES.items():
        found = [one for one in outcome.findings if one.means == means]
        if not found:
            continue
        console.print(Text(f"{title} ({len(found)})", _STYLES[means]))
        for one in _varied(found)[: _LINES[means]]:
            console.print(Text(f"  {one.about} {one.where}: {one.sentence}"), overflow="ellipsis", no_wrap=True)
        if len(found) > _LINES[means]:
            console.print(Text(f"  and {len(found) - _LINES[means]} more in the report"))
    console.print(Text(judged(sides, outcome)))
    style = "bold green" if outcome.verdict == SAFE else "bold red"
    console.print(Text(f"{outcome.verdict}: {_because(outcome)}", style))


def _varied(findings: list[Finding]) -> list[Finding]:
    """One finding of each sort first, so that forty changed numbers do not hide an empty file."""
    seen: Counter[str] = Counter()
    ranked = []
    for one in findings:
        ranked.append((seen[one.about] >= 3, one))
        seen[one.about] += 1
    return [one for _, one in sorted(ranked, key=lambda pair: pair[0])]


def judged(sides: list[Side], outcome: Outcome) -> str:
    """What was compared, in a sentence."""
    kinds = Counter(part.kind for part in outcome.numbers.values())
    numbers = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
    cases = " and ".join(str(len(cases)) for cases in outcome.cases.values())
    clauses = len({case.clause for cases in outcome.cases.values() for case in cases})
    known = "".join(f" ({side.name}: those that held were judged on {side.known})" for side in sides if side.known)
    if outcome.quick:
        known = " (quick: the baseline in those that do not hold under the candidate, so that none is told as mended)"
    return (
        f"compared: {cases} cases of {clauses} clauses{known}; runs trained on both sides: {numbers}; "
        f"{outcome.seconds:.0f} s"
    )


def _because(outcome: Outcome) -> str:
    gravest = [one for one in outcome.findings if one.means in (BROKEN, LOST)]
    if not gravest:
        return "what held under the baseline holds under the candidate"
    names = list(
        dict.fromkeys(one.where if one.about == "clause" else f"{one.about} of {one.where}" for one in gravest)
    )
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def to_report(sides: list[Side], outcome: Outcome, locks: dict[str, str]) -> dict[str, Any]:
    """The gate's report: verdict, both stacks, findings, numbers by cell, and both sides' reports by clause."""
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": outcome.verdict,
        **{
            side.name: {
                "requirements": side.environment.asked,
                "versions": side.environment.pins,
                "lock": locks.get(side.name),
                "known_since": side.known or None,
                "report": to_json(outcome.cases[side.name], _seen(side)),
            }
            for side in sides
        },
        "findings": [one.to_json() for one in outcome.findings],
        "numbers": {name: part.to_json() for name, part in outcome.numbers.items()},
        "seconds": outcome.seconds,
    }


def _seen(side: Side) -> dict[str, Any]:
    answer = side.done.get("inventory", {}).get("data") or {}
    return answer.get("environment", {})


def markdown(sides: list[Side], outcome: Outcome) -> str:
    """A summary for a pull request."""
    from jinja2 import Environment

    text = Path(__file__).with_name("summary.md.j2").read_text(encoding="utf-8")
    sections = [(title, [one for one in outcome.findings if one.means == means]) for means, title in _TITLES.items()]
    return (
        Environment(trim_blocks=True)
        .from_string(text)
        .render(
            verdict=outcome.verdict,
            packages=STACK,
            sides={side.name: side.environment.stack for side in sides},
            sections=sections,
            broken=[one for one in outcome.findings if one.means == BROKEN],
            judged=judged(sides, outcome),
            limit=20,
        )
        .strip()
        + "\n"
    )


def write_report(path: Path, sides: list[Side], outcome: Outcome) -> None:
    """Write the JSON report, and beside it a lock of each side: what makes its environment again."""
    locks = {side.name: path.with_suffix(f".{side.name}.lock").name for side in sides}
    for side in sides:
        write_whole(path.with_name(locks[side.name]), side.environment.lock)
    write_whole(path, json.dumps(to_report(sides, outcome, locks), indent=1) + "\n")
