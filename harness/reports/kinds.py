"""Which command wrote a report, and what its fields hold whatever somebody put there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.environment import STACK
from harness.errors import UsageError
from harness.words import one_line

SUITES, GATE, JUDGE, SWEEP, MUTANTS, WATCH = "suites", "gate", "judge", "sweep", "mutants", "watch"

#: A field that only reports of this kind have, and the type of its value.
_FIELDS = {
    GATE: ("findings", list),
    JUDGE: ("laws", list),
    MUTANTS: ("mutants", list),
    SWEEP: ("configurations", dict),
    SUITES: ("clauses", list),
    WATCH: ("checks", list),
}

#: Characters of a text that is shown. A sentence of the harness has up to 300.
TEXT = 2000


def kind(report: Any, where: str = "the report") -> str:
    """Return which command wrote a report: SUITES (`check`, `pytest suites/`), GATE, JUDGE, SWEEP, MUTANTS or WATCH.

    - where: what messages call the report.

    Raises UsageError if it is none of them.
    """
    if isinstance(report, dict):
        for name, (field, type_) in _FIELDS.items():
            if isinstance(report.get(field), type_):
                return name
    commands = "check, gate, judge, sweep or mutants"
    raise UsageError(f"{where}: is no report of peft-harness; name a file that --json of {commands} wrote")


def text(value: Any, limit: int = TEXT) -> str:
    """Return a text from a report in one printable line, shortened; "" for what is no text."""
    if not isinstance(value, str):
        return ""
    line = one_line(value[: 4 * limit])
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def texts(value: Any) -> tuple[str, ...]:
    """Return the texts of a list, without what is no text."""
    return tuple(line for item in items(value) if (line := text(item)))


def items(value: Any) -> list[Any]:
    """Return a list from a report; an empty one for anything else."""
    return value if isinstance(value, list) else []


def fields(value: Any) -> Mapping[str, Any]:
    """Return an object from a report; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[Mapping[str, Any]]:
    """Return the objects of a list, without what is no object."""
    return [item for item in items(value) if isinstance(item, dict)]


def number(value: Any) -> int | float | None:
    """Return a finite number from a report; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < 1e300 else None


def packages(report: Mapping[str, Any]) -> set[str]:
    """Return the packages whose versions a report names."""
    sides = [fields(report.get(side)).get("versions") for side in ("baseline", "candidate")]
    versions = [*sides, fields(report.get("environment")).get("versions")]
    return {name for found in versions for name in fields(found)} | set(STACK)
