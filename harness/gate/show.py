"""Show the outcome of a gate: a screen for people, JSON for machines, Markdown for a pull request."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.environment import STACK, now
from harness.errors import UsageError
from harness.files import write_whole
from harness.gate import locks, outside
from harness.gate.compare import Outcome
from harness.gate.extract import TITLES, Answer, Listed, read
from harness.gate.findings import BROKEN, FIXED, LOST, NOTE, SAFE
from harness.gate.requirements import CURRENT
from harness.gate.requirements import read as read_requirements
from harness.gate.side import Side
from harness.reports import pins
from harness.session.report import to_json
from harness.verdict import AMBIGUOUS, FAIL, NOT_COMPARABLE, Case
from harness.words import counted, one_line

SCHEMA_VERSION = 1

_STYLES = {BROKEN: "bold red", LOST: "yellow", FIXED: "green", NOTE: "dim"}

#: Lines of the screen that name causes. With the answer and what is required they are the first ten.
_CAUSES = 7

#: Lines of the screen for what packages require, and for each other kind of finding with its title.
_REQUIRES = 2
_OTHERS = {LOST: 3, FIXED: 2, NOTE: 3}

#: Commands of the screen. Each of the first causes has as many as fit.
_COMMANDS = 6


def screen(console: Console, report: Mapping[str, Any], files: Sequence[str] = (), full: bool = False) -> None:
    """Print the answer, the causes, both stacks, what else changed, what was compared, and the commands to type next.

    At most 30 lines, and the causes in the first ten, unless `full`.

    - report: as `to_report` made it.
    - files: what was written: the report, the directory of the case files.
    - full: print all causes, findings and commands.
    """
    answer = read(report, own=True)
    most = None if full else _REQUIRES
    style = "bold green" if answer.verdict == SAFE else "bold red"
    _whole(console, f"{answer.verdict.upper()}: {answer.sentence}", style)
    for sentence in answer.requires[:most]:
        _whole(console, f"requires: {sentence}", "bold yellow")
    broken = (answer.causes or {}).get(BROKEN, [])
    _causes(console, broken, None if full else _CAUSES)
    console.print(_stacks(report))
    for means, lines in _OTHERS.items():
        _others(console, means, answer, None if full else lines)
    _whole(console, str(report["compared"]))
    _commands(console, broken, None if full else _COMMANDS)
    said = [f"written: {', '.join(files)}"] if files else []
    said += ["--full shows what is left out here"] if not full and _left_out(answer) else []
    _cut(console, "; ".join(said), "dim")


def _whole(console: Console, text: str, style: str = "") -> None:
    console.print(Text(one_line(text), style), soft_wrap=True)


def _cut(console: Console, text: str, style: str = "") -> None:
    """Print a line that may be cut at the end of the screen's."""
    if text:
        indent = len(text) - len(text.lstrip())
        console.print(Text(" " * indent + one_line(text), style), overflow="ellipsis", no_wrap=True)


def _causes(console: Console, causes: list[Listed], lines: int | None) -> None:
    """Print causes: the first in two lines each, the others in one, so that a big one hides no small one."""
    two = len(causes) if lines is None else max(0, min(len(causes), lines - len(causes)))
    listed = len(causes) if lines is None or len(causes) <= lines else lines - 1
    for number, one in enumerate(causes[:listed], start=1):
        if number <= two:
            _whole(console, f"{number}. {one.sentence}", _STYLES[BROKEN])
            _cut(console, "   " + "; ".join([one.counts, *one.details]))
        else:
            _cut(console, f"{number}. {one.sentence} ({one.counts}: {', '.join(one.clauses)})", _STYLES[BROKEN])
    if rest := causes[listed:]:
        clauses = dict.fromkeys(id for one in rest for id in one.clauses)
        _cut(console, f"and {counted(len(rest), 'smaller cause')} (--full): {', '.join(clauses)}", _STYLES[BROKEN])


def _stacks(report: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for package in STACK:
        table.add_column(package)
    for side in ("baseline", "candidate"):
        table.add_row(side, *[report[side]["versions"].get(package, "-") for package in STACK])
    return table


def _others(console: Console, means: str, answer: Answer, lines: int | None) -> None:
    if means == LOST and answer.causes is not None:
        entries = [f"{one.sentence} ({one.counts})" for one in answer.causes[LOST]]
        title = f"{TITLES[means]} ({counted(len(entries), 'reason')})"
    else:
        entries = [f"{about} {where}: {sentence}" for about, where, sentence in answer.findings[means]]
        title = f"{TITLES[means]} ({len(entries)})"
    if not entries:
        return
    shown = len(entries) if lines is None else lines - 1
    more = f"; {len(entries) - shown} of them in the report" if len(entries) > shown else ""
    _cut(console, f"{title}{more}", _STYLES[means])
    for entry in entries[:shown]:
        _cut(console, f"  {entry}")


def _commands(console: Console, causes: list[Listed], most: int | None) -> None:
    commands = [(number, command) for number, one in enumerate(causes, start=1) for command in one.next]
    if not commands:
        return
    console.print(Text("Next:", "bold"))
    for _, command in commands[:most]:
        console.print(Text(f"  {one_line(command)}"), soft_wrap=True)


def _left_out(answer: Answer) -> bool:
    """Return whether the screen leaves out something."""
    causes = answer.causes or {}
    return (
        len(causes.get(BROKEN, [])) > _CAUSES // 2
        or len(causes.get(LOST, [])) >= _OTHERS[LOST]
        or any(len(answer.findings[means]) >= _OTHERS[means] for means in (FIXED, NOTE))
    )


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
    if left_out := sides[0].judged.left_out:
        note += "; left out on both sides: " + "; ".join(f"{name} ({why})" for name, why in left_out)
    if said := outside.sentence(sides[0].judged, outcome.cases["candidate"]):
        note += f"; {said}"
    return (
        f"compared: {counted(before, 'case')} of the baseline and {counted(after, 'case')} of the candidate, "
        f"{counted(clauses, 'clause')}{note}; runs trained on both sides: {numbers}; {outcome.seconds:.0f} s"
    )


def to_report(sides: list[Side], outcome: Outcome) -> dict[str, Any]:
    """Return the report (report_schema.json): verdict, both stacks with their reports by clause, causes, findings, numbers.

    The locks are named when it is written.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "date": now(),
        "verdict": outcome.verdict,
        "requires": outcome.requires,
        "causes": [cause.to_json() for cause in outcome.causes],
        **{
            side.name: {
                "requirements": side.environment.asked,
                "versions": side.environment.pins,
                "lock": None,
                "known_since": side.cached_since or None,
                "pins": _pins(side),
                "report": to_json([_short(case) for case in outcome.cases[side.name]], _environment(side)),
            }
            for side in sides
        },
        "compared": judged(sides, outcome),
        "outside": outside.to_json(sides[0].judged, outcome.cases["candidate"]),
        "left_out": [{"package": name, "reason": reason} for name, reason in sides[0].judged.left_out],
        "findings": [finding.to_json() for finding in outcome.findings],
        "numbers": {name: part.to_json() for name, part in outcome.numbers.items()},
        "timing": outcome.timing,
        "crossed": {side.name: _crossed(side) for side in sides},
        "seconds": outcome.seconds,
    }


def _short(case: Case) -> Case:
    """Return a case as a report has it: without its specs if nobody has to repeat it, since specs are most of a report.

    The commands of the causes name the case files that stay; those of the suites are gone with the gate's directory.
    """
    specs = case.specs if case.verdict in (FAIL, AMBIGUOUS, NOT_COMPARABLE) else []
    return dataclasses.replace(case, specs=specs, repeat="")


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


def _pins(side: Side) -> dict[str, Any]:
    """Return where the side's packages stand in the requirements files that were given."""
    asked = side.environment.asked
    try:
        files = [] if asked.strip() == CURRENT else [file for file, _ in read_requirements(asked).files]
    except UsageError:  # the file is gone, or has changed since
        return {}
    return pins.to_json(pins.find(files, side.environment.pins, Path.cwd()))


def _environment(side: Side) -> dict[str, Any]:
    answer = side.done.get("inventory", {}).get("data") or {}
    environment: dict[str, Any] = answer.get("environment", {})
    return environment


def write_report(path: Path, sides: list[Side], report: dict[str, Any]) -> None:
    """Write the JSON report, and beside it a lock of each side, from which its environment can be made again.

    The report then has the names of the locks.
    """
    for side in sides:
        beside = path.with_suffix(f".{side.name}.lock")
        report[side.name]["lock"] = locks.write_beside(beside, side.environment.lock, path).name
    write_whole(path, f"{_dumped(report)}\n")


#: What is written with a line for each entry. Anything else is one line, which halves a report.
_IN_LINES = {"baseline", "candidate", "report", "clauses", "cases", "causes", "findings"}


def _dumped(value: Any, in_lines: bool = True) -> str:
    """Return JSON with one line for each case, finding and cause."""
    if isinstance(value, dict) and (in_lines or _IN_LINES & value.keys()):
        parts = [f"{json.dumps(key)}: {_dumped(item, key in _IN_LINES)}" for key, item in value.items()]
        return "{\n" + ",\n".join(parts) + "\n}"
    if isinstance(value, list) and in_lines and any(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(_dumped(item, False) for item in value) + "\n]"
    return json.dumps(value)
