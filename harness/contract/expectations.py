"""Known upstream faults: which clause fails, where, in which versions, why, and who said so upstream.

`suites/expectations/*.toml` holds them, one [[defect]] each. They are strict both ways: a case that an expectation
names must fail, with the words that the expectation gives, or the run fails as an unexpected pass or as a new fault.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from harness.environment import satisfies
from harness.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Expectation:
    """One known fault.

    clause: its id. scenario: glob over the names of the cases that fail; an entry that lists several clauses or scenarios
    stands for an expectation each. versions: requirements that must all hold for the fault to be there ("peft>=0.21").
    match: words that the failure's message must contain. reason: one sentence. link: the upstream thread, empty where none
    was found. subjects: globs over subject names. devices: where it shows. sometimes: it is a race, so that a case may hold
    as well; the clause that it always breaks, of which there must be an expectation too.
    spec: for drawn runs, whose faults no name of a case tells: dotted field of a RunSpec -> glob over its value, such as
    {"model.family": "gpt2*"}. Such an entry excuses the drawn runs that have all of these, and asks of none that it fails.
    """

    clause: str
    scenario: str
    versions: tuple[str, ...]
    match: str
    reason: str
    link: str = ""
    subjects: tuple[str, ...] = ("hf-trainer",)
    devices: tuple[str, ...] = ("cpu", "cuda")
    sometimes: str = ""
    spec: Mapping[str, str] = field(default_factory=dict)
    file: str = ""

    def names(self, scenario: str) -> bool:
        """Whether the scenario is one that this expectation is about."""
        return fnmatchcase(scenario, self.scenario)

    def applies(self, clause: str, scenario: str, subject: str, device: str = "cpu") -> bool:
        """Whether a case of this name is expected to fail on the installed stack."""
        return device in self.devices and self._is_about(clause, subject) and self.names(scenario)

    def excuses(self, clause: str, subject: str, spec: Mapping[str, Any], seen: str) -> bool:
        """Whether this explains what was seen of a drawn run on the installed stack. spec: RunSpec.to_json()."""
        return (
            bool(self.spec)
            and self._is_about(clause, subject)
            and self.match in seen
            and all(fnmatchcase(str(_value(spec, path)), glob) for path, glob in self.spec.items())
        )

    def _is_about(self, clause: str, subject: str) -> bool:
        return (
            self.clause == clause
            and any(fnmatchcase(subject, glob) for glob in self.subjects)
            and all(satisfies(requirement) for requirement in self.versions)
        )


def _value(spec: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path of a spec's JSON, None where there is nothing."""
    value: Any = spec
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def load(directory: Path) -> list[Expectation]:
    """All expectations below a directory. UsageError names the file and the entry that is wrong."""
    read = [
        one
        for file in sorted(directory.glob("*.toml"))
        for number, entry in _entries(file)
        for one in _read(entry, file.name, number)
    ]
    always = {(one.clause, device) for one in read if not one.sometimes for device in one.devices}
    for one in read:
        if one.sometimes and not all((one.sometimes, device) in always for device in one.devices):
            raise UsageError(
                f"suites/expectations/{one.file}: {one.clause} {one.scenario!r} fails sometimes, for a fault that always "
                f"breaks {one.sometimes}, of which nothing is expected on {', '.join(one.devices)}"
            )
    return read


def _entries(file: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        body = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: not TOML ({error})") from None
    return list(enumerate(body.get("defect", []), start=1))


_REQUIRED = ("clause", "scenario", "versions", "match", "reason")


def _read(entry: dict[str, Any], file: str, number: int) -> list[Expectation]:
    where = f"suites/expectations/{file}, defect {number}"
    missing = [name for name in _REQUIRED if not entry.get(name)]
    unknown = sorted(set(entry) - {*_REQUIRED, "link", "subjects", "devices", "sometimes", "spec"})
    if missing or unknown:
        raise UsageError(f"{where}: {'missing ' + missing[0] if missing else 'unknown field ' + unknown[0]}")
    values: dict[str, Any] = {**entry, "file": file}
    for name in ("versions", "subjects", "devices"):
        if name in entry:
            values[name] = tuple(entry[name])
    several = ([value] if isinstance(value, str) else value for value in (entry["clause"], entry["scenario"]))
    return [
        Expectation(**{**values, "clause": clause, "scenario": scenario})
        for clause, scenario in itertools.product(*several)
    ]
