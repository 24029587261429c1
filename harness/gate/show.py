"""Show the outcome of a gate: a screen for people, JSON for machines, Markdown for a pull request."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.environment import STACK
from harness.files import write_whole
from harness.gate import locks
from harness.gate.compare import Outcome
from harness.gate.findings import BROKEN, FIXED, LOST, NOTE, SAFE, Finding
from harness.gate.side import Side
from harness.gate.summary import TITLES, one_line
from harness.gate.summary import markdown as summary
from harness.reports import web_page
from harness.session.report import to_json
from harness.words import counted

SCHEMA_VERSION = 1

_STYLES = {BROKEN: "bold red", LOST: "yellow", FIXED: "green", NOTE: "dim"}
#: Lines of each kind on the screen, so that everything fits one screen.
_LINES = {BROKEN: 9, LOST: 4, FIXED: 4, NOTE: 4}


def screen(console: Console, sides: list[Side], outcome: Outcome) -> None:
    """Print both stacks, the gravest findings of each kind, what was compared, and the verdict."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for package in STACK:
        table.add_column(package)
    for side in sides:
        table.add_row(side.name, *[side.environment.stack.get(package, "-") for package in STACK])
    console.print(table)
    for means, title in TITLES.items():
        found = [finding for finding in outcome.findings if finding.means == means]
        if not found:
            continue
        console.print(Text(f"{title} ({len(found)})", _STYLES[means]))
        for finding in _varied(found)[: _LINES[means]]:
            line = Text("  " + one_line(f"{finding.about} {finding.where}: {finding.sentence}"))
            console.print(line, overflow="ellipsis", no_wrap=True)
        if len(found) > _LINES[means]:
            console.print(Text(f"  and {len(found) - _LINES[means]} more in the report"))
    console.print(Text(judged(sides, outcome)))
    style = "bold green" if outcome.verdict == SAFE else "bold red"
    console.print(Text(f"{outcome.verdict}: {_reasons(outcome)}", style))


def _varied(findings: list[Finding]) -> list[Finding]:
    """Put three findings of each sort first, so that forty changed numbers do not hide an empty file."""
    count: Counter[str] = Counter()
    ranked = []
    for finding in findings:
        ranked.append((count[finding.about] >= 3, finding))
        count[finding.about] += 1
    return [finding for _, finding in sorted(ranked, key=lambda pair: pair[0])]


def judged(sides: list[Side], outcome: Outcome) -> str:
    """Return what was compared, as one sentence."""
    kinds = Counter(part.kind for part in outcome.numbers.values())
    numbers = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
    before, after = (len(outcome.cases[name]) for name in ("baseline", "candidate"))
    clauses = len({case.clause for cases in outcome.cases.values() for case in cases})
    if outcome.quick:
        note = " (--quick: the baseline ran only what does not hold on the candidate, so fixes are not listed)"
    else:
        cached = [f"{side.name}: results cached on {side.cached_since}" for side in sides if side.cached_since]
        note = f" ({'; '.join(cached)})" if cached else ""
    if sides[0].judged.specs:
        crossed = [
            f"{name} ({side.name})"
            for name, _ in sides[0].judged.specs
            for side in sides
            if side.done.get(f"across/{name}", {}).get("data") is not None
        ]
        note += (
            f"; checkpoints resumed by the other stack: {', '.join(crossed) or 'none'}; speed and memory: not compared"
        )
    return (
        f"compared: {counted(before, 'case')} of the baseline and {counted(after, 'case')} of the candidate, "
        f"{counted(clauses, 'clause')}{note}; runs trained on both sides: {numbers}; {outcome.seconds:.0f} s"
    )


def _reasons(outcome: Outcome) -> str:
    gravest = [finding for finding in outcome.findings if finding.means in (BROKEN, LOST)]
    if not gravest:
        return "what held on the baseline holds on the candidate"
    names = list(
        dict.fromkeys(
            finding.where if finding.about == "clause" else f"{finding.about} of {finding.where}" for finding in gravest
        )
    )
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def to_report(sides: list[Side], outcome: Outcome, lock_names: dict[str, str]) -> dict[str, Any]:
    """Return the report (report_schema.json): verdict, both stacks with their reports by clause, findings, numbers."""
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": outcome.verdict,
        **{
            side.name: {
                "requirements": side.environment.asked,
                "versions": side.environment.pins,
                "lock": lock_names.get(side.name),
                "known_since": side.cached_since or None,
                "report": to_json(outcome.cases[side.name], _environment(side)),
            }
            for side in sides
        },
        "compared": judged(sides, outcome),
        "findings": [finding.to_json() for finding in outcome.findings],
        "numbers": {name: part.to_json() for name, part in outcome.numbers.items()},
        "timing": outcome.timing,
        "crossed": {side.name: _crossed(side) for side in sides},
        "seconds": outcome.seconds,
    }


def _crossed(side: Side) -> dict[str, list[str]]:
    """Return the cells whose checkpoint of the other side this side resumed, and whose adapter it loaded."""
    return {
        what: [
            name.removeprefix(f"{folder}/")
            for name, answer in side.done.items()
            if name.startswith(f"{folder}/") and answer.get("data") is not None and not answer.get("error")
        ]
        for what, folder in (("resumed", "across"), ("loaded", "loaded"))
    }


def _environment(side: Side) -> dict[str, Any]:
    answer = side.done.get("inventory", {}).get("data") or {}
    environment: dict[str, Any] = answer.get("environment", {})
    return environment


def markdown(sides: list[Side], outcome: Outcome) -> str:
    """Return a summary for a pull request."""
    return summary(to_report(sides, outcome, {}))


def page(sides: list[Side], outcome: Outcome) -> str:
    """Return the report as a page of HTML."""
    return web_page.write(to_report(sides, outcome, {}))


def write_report(path: Path, sides: list[Side], outcome: Outcome) -> None:
    """Write the JSON report, and beside it a lock of each side, from which its environment can be made again."""
    names = {}
    for side in sides:
        beside = path.with_suffix(f".{side.name}.lock")
        names[side.name] = locks.write_beside(beside, side.environment.lock, path).name
    write_whole(path, json.dumps(to_report(sides, outcome, names), indent=1) + "\n")
