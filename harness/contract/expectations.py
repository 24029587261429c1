"""Known upstream faults: which clause fails, on which cases, in which versions, why, and the upstream thread.

`suites/expectations/*.toml` holds them, one [[defect]] each. They are strict in both directions. A case that an
expectation names must fail. If it passes, it is an unexpected pass. If its message lacks the expected words, it is a new
fault. Both fail the run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from harness.environment import cpu_flags, satisfies
from harness.errors import UsageError
from harness.reading import parse_toml, read_text, shown, shown_path


@dataclass(frozen=True)
class Expectation:
    """One known fault.

    - clause: the id of the clause that fails.
    - scenario: a glob over the names of the cases that fail. An entry that lists several clauses or scenarios becomes
      one expectation for each.
    - versions: requirements such as "peft>=0.21". The fault is there if all hold.
    - match: words that the failure's message must contain.
    - reason: why it fails, for the summary.
    - link: the upstream thread; empty if none was found.
    - subjects: globs over the names of subjects that have the fault.
    - devices: the devices that show it.
    - processor: an instruction set, by its name in Linux. Only a CPU that has it shows the fault. Empty: any processor.
    - sometimes: set if the fault is a race, so that a case may also pass. It names the clause that the race always
      breaks; that clause needs an expectation of its own.
    - spec: for drawn runs, which have no names: dotted field of a RunSpec -> glob over its value, such as
      {"model.family": "gpt2*"}. The entry excuses the drawn runs that match all of them. It requires no run to fail.
    - file: the file that holds the entry.
    - own: whether it is a file of the user's own (--known-defects), and none of `suites/expectations/`.
    - inherited: whether it is about what the subject is built on (`inherited`). Then a case may pass all the same: the
      subject may do without what is broken.
    """

    clause: str
    scenario: str
    versions: tuple[str, ...]
    match: str
    reason: str
    link: str = ""
    subjects: tuple[str, ...] = ("hf-trainer",)
    devices: tuple[str, ...] = ("cpu", "cuda")
    processor: str = ""
    sometimes: str = ""
    spec: Mapping[str, str] = field(default_factory=dict)
    file: str = ""
    own: bool = False
    inherited: bool = False

    @property
    def packages(self) -> set[str]:
        """The packages whose fault it is: those that `versions` names."""
        from packaging.requirements import Requirement

        return {Requirement(version).name for version in self.versions}

    @property
    def path(self) -> str:
        """What messages call the file."""
        return self.file if self.own else f"suites/expectations/{self.file}"

    def names(self, scenario: str) -> bool:
        """Return whether this expectation is about the scenario."""
        return fnmatchcase(scenario, self.scenario)

    def applies(self, clause: str, scenario: str, subject: str, device: str = "cpu") -> bool:
        """Return whether a case is expected to fail on the installed stack."""
        return device in self.devices and self._is_about(clause, subject) and self.names(scenario)

    def excuses(self, clause: str, subject: str, spec: Mapping[str, Any], seen: str) -> bool:
        """Return whether this fault explains the failure of a drawn run on the installed stack.

        - spec: the run's RunSpec.to_json().
        - seen: the failure's message.
        """
        return bool(self.spec) and self._is_about(clause, subject) and self.match in seen and self.describes(spec)

    def describes(self, spec: Mapping[str, Any]) -> bool:
        """Return whether a RunSpec, as JSON, has the fields that this entry's `spec` names. It does if that is empty."""
        return all(fnmatchcase(str(_value(spec, path)), glob) for path, glob in self.spec.items())

    def _is_about(self, clause: str, subject: str) -> bool:
        return (
            self.clause == clause
            and (not self.processor or self.processor in cpu_flags())
            and any(fnmatchcase(subject, glob) for glob in self.subjects)
            and all(satisfies(requirement) for requirement in self.versions)
        )


def _value(spec: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path of a spec's JSON; None if there is none."""
    value: Any = spec
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def load(directory: Path) -> list[Expectation]:
    """Read all expectations of a directory. UsageError names the file, the entry and the field that is wrong."""
    return _checked(
        [
            one
            for file in sorted(directory.glob("*.toml"))
            for number, entry in _entries(file)
            for one in _read(entry, file.name, number, own=False)
        ]
    )


def load_own(file: Path, subject: str = "") -> list[Expectation]:
    """Read a user's own file of known defects. Errors as for `load`.

    - subject: whose defects they are, if an entry names no subjects. Empty: hf-trainer's.
    """
    where, usual = shown_path(file), {"subjects": [subject]} if subject else {}
    entries = [(number, {**usual, **entry}) for number, entry in _entries(file)]
    return _checked([one for number, entry in entries for one in _read(entry, where, number, own=True)])


def inherited(known: Iterable[Expectation], subject: str, built_on: Iterable[str]) -> list[Expectation]:
    """Return known defects as they are for a subject: those of what it is built on count for it, too.

    - subject: its name, as cases have it.
    - built_on: the packages that it is built on, such as "transformers" and "peft". A defect counts if it names no others.
    """
    packages = set(built_on)
    return [
        one
        if one.own or any(fnmatchcase(subject, glob) for glob in one.subjects) or not one.packages <= packages
        else replace(one, subjects=(*one.subjects, "*"), inherited=True)
        for one in known
    ]


def _checked(read: list[Expectation]) -> list[Expectation]:
    always = {(one.clause, device) for one in read if not one.sometimes for device in one.devices}
    for one in read:
        if one.sometimes and not all((one.sometimes, device) in always for device in one.devices):
            raise UsageError(
                f"{one.path}: {one.clause} {one.scenario!r} fails sometimes, by a fault that always "
                f"breaks {one.sometimes}, but there is no expectation of that on {', '.join(one.devices)}"
            )
    return read


def _entries(file: Path) -> list[tuple[int, dict[str, Any]]]:
    body = parse_toml(read_text(file), str(file))
    unknown = sorted(set(body) - {"defect"})
    defects = body.get("defect", [])
    if unknown or not (isinstance(defects, list) and all(isinstance(entry, dict) for entry in defects)):
        what = f"unknown {shown(unknown[0])}" if unknown else f"defect is {shown(defects)}"
        raise UsageError(f"{file}: {what}; expected tables [[defect]] only")
    return list(enumerate(defects, start=1))


_REQUIRED = ("clause", "scenario", "versions", "match", "reason")
_TEXTS = ("match", "reason", "link", "processor", "sometimes")
_LISTS = ("versions", "subjects", "devices")
#: Fields that hold a text, or a list of texts.
_EITHER = ("clause", "scenario")


def _read(entry: dict[str, Any], file: str, number: int, own: bool) -> list[Expectation]:
    where = f"{'' if own else 'suites/expectations/'}{file}, defect {number}"
    missing = [name for name in _REQUIRED if not entry.get(name)]
    unknown = sorted(set(entry) - {*_REQUIRED, *_TEXTS, *_LISTS, "spec"})
    if missing or unknown:
        raise UsageError(f"{where}: {'missing ' + missing[0] if missing else 'unknown field ' + unknown[0]}")
    if wrong := _wrong(entry):
        raise UsageError(f"{where}: {wrong}")
    values: dict[str, Any] = {**entry, "file": file, "own": own}
    for name in _LISTS:
        if name in entry:
            values[name] = tuple(entry[name])
    several = ([value] if isinstance(value, str) else value for value in (entry["clause"], entry["scenario"]))
    return [
        Expectation(**{**values, "clause": clause, "scenario": scenario})
        for clause, scenario in itertools.product(*several)
    ]


def _wrong(entry: dict[str, Any]) -> str:
    """Return in words which field of an entry is wrong; "" if none is."""
    from packaging.requirements import InvalidRequirement, Requirement

    for name, value in entry.items():
        texts = value if isinstance(value, list) else [value]
        if name in _TEXTS and not isinstance(value, str):
            return f"{name} is {shown(value)}; expected a text"
        if name in _LISTS and not (isinstance(value, list) and value and all(isinstance(one, str) for one in value)):
            return f"{name} is {shown(value)}; expected a list of texts"
        if name in _EITHER and not (texts and all(isinstance(one, str) and one for one in texts)):
            return f"{name} is {shown(value)}; expected a text or a list of texts"
    spec = entry.get("spec", {})
    if not (isinstance(spec, dict) and all(isinstance(glob, str) for glob in spec.values())):
        return f"spec is {shown(spec)}; expected a table of field = glob"
    if not entry["match"].strip() or not entry["reason"].strip():
        return "match and reason must have words"
    for version in entry["versions"]:
        try:
            Requirement(version)
        except InvalidRequirement:
            return f'versions: {shown(version)} is no requirement such as "peft>=0.21,<0.22"'
    unknown = next((device for device in entry.get("devices", ()) if device not in ("cpu", "cuda")), None)
    if unknown is not None:
        return f"devices: {shown(unknown)} is neither cpu nor cuda"
    return ""
