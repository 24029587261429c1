"""Read the reports of many nights from a directory: what was judged, on which versions, with which numbers."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.environment import STACK
from harness.errors import UsageError
from harness.reading import read_json, read_json_lines, shown_path
from harness.reports import kinds
from harness.reports.kinds import fields, number, objects, text
from harness.verdict import ORDER

#: Bytes of a report. A gate's has both sides' cases, and with all of them failing 11 MB.
_LIMIT = 2**27

#: Files of a directory that are read: ten years of nights.
_MOST = 4000

#: Chapters whose cases count or time something.
_MEASURED = ("PERF", "MEM")

_DAY = re.compile(r"(?<!\d)(20\d\d)-?(\d\d)-?(\d\d)(?!\d)")


@dataclass
class Night:
    """A report.

    - date: when it was written, in UTC: the report's own `date`, or that in the file's name, or the file's.
    - file: the file's name, with the line for JSON lines.
    - kind, device: of the report. Only reports of the same kind and device are compared.
    - verdict: of a gate; "" otherwise.
    - versions: package -> version, of the stack that was judged. In a gate that is the candidate.
    - clauses: clause -> verdict.
    - numbers: series -> value.
    """

    date: datetime.datetime
    file: str
    kind: str
    device: str
    verdict: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    clauses: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


def read(directory: Path) -> tuple[list[Night], list[tuple[str, str]]]:
    """Return the nights, oldest first, and the files that are left out, each with the reason.

    Raises UsageError if it is no directory, or if nothing in it is a report.
    """
    if not directory.is_dir():
        raise UsageError(f"{shown_path(directory)}: no such directory; name one that has reports of many nights")
    found: list[Night] = []
    left_out: list[tuple[str, str]] = []
    files = sorted(file for file in directory.iterdir() if file.suffix in (".json", ".jsonl"))
    for file in files[:_MOST]:
        try:
            if file.is_symlink():
                raise UsageError("is a link, and none is followed")
            for place, report in _reports(file):
                found.append(_night(report, place, file))
        except UsageError as error:
            left_out.append((shown_path(file.name), re.sub(r"^.*?\.jsonl?(, line \d+)?: ", _line, str(error))))
    left_out += [(shown_path(file.name), f"more than {_MOST:,} files") for file in files[_MOST:]]
    if not found:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out[:3])
        raise UsageError(f"{shown_path(directory)}: has no report in a *.json or *.jsonl file{f' ({why})' * bool(why)}")
    return sorted(found, key=lambda night: (night.date, night.file)), left_out


def _line(name: re.Match[str]) -> str:
    """Return what is left of the file's name before an error: the line."""
    return f"{name[1].removeprefix(', ')}: " if name[1] else ""


def _reports(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the reports of a file, each with its place."""
    name = shown_path(file.name)
    if file.suffix == ".json":
        yield name, read_json(file, _LIMIT, nan=True)
        return
    for number_, report in read_json_lines(file, nan=True):
        yield f"{name}, line {number_}", report


def _night(report: Any, place: str, file: Path) -> Night:
    """Return what a trend needs of a report. Raises UsageError for a file of something else."""
    kind = kinds.kind(report, place)
    if kind not in (kinds.SUITES, kinds.GATE):
        raise UsageError(f"is a report of {kind}; a trend is made of those of check, pytest suites/ and gate")
    judged = fields(fields(report.get("candidate")).get("report")) if kind == kinds.GATE else report
    environment = fields(judged.get("environment"))
    versions = fields(environment.get("versions"))
    night = Night(_date(report, file), place, kind, text(environment.get("device"), 80) or "unknown device")
    night.verdict = text(report.get("verdict"), 20)
    night.versions = {name: text(versions[name], 40) for name in STACK if text(versions.get(name))}
    for clause in objects(judged.get("clauses")):
        id, verdict = text(clause.get("id"), 20), text(clause.get("verdict"), 20)
        if verdict in ORDER:
            night.clauses[id] = verdict
        if id.partition("-")[0] in _MEASURED:
            night.numbers |= _counted(id, clause)
    night.numbers |= _timed(report)
    return night


def _date(report: Mapping[str, Any], file: Path) -> datetime.datetime:
    try:
        found = datetime.datetime.fromisoformat(text(report.get("date"), 40).replace("Z", "+00:00"))
        utc = datetime.timezone.utc
        return found.replace(tzinfo=utc) if found.tzinfo is None else found.astimezone(utc)
    except (ValueError, OverflowError):
        pass
    try:
        year, month, day = map(int, (_DAY.findall(file.name) or [("0", "0", "0")])[-1])
        return datetime.datetime(year, month, day, tzinfo=datetime.timezone.utc)
    except ValueError:
        return datetime.datetime.fromtimestamp(file.stat().st_mtime, datetime.timezone.utc)


def _counted(id: str, clause: Mapping[str, Any]) -> dict[str, float]:
    """Return what the cases of a clause counted."""
    found = {}
    for case in objects(clause.get("cases")):
        for name, value in fields(case.get("evidence")).items():
            if (counted := number(value)) is not None:
                found[f"{id} {text(case.get('scenario'), 80)}: {text(name, 40)}"] = counted
    return found


def _timed(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the time of a gate's candidate beside its baseline: 1.01 is 1 % slower."""
    found = {}
    for shape, judgement in fields(report.get("timing")).items():
        for metric in ("wall", "cpu"):
            slower = number(fields(fields(judgement).get(metric)).get("estimate"))
            if slower is not None:
                found[f"step of {text(shape, 40)}: {metric} time beside the baseline's"] = 1 + slower
    return found
