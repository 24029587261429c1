"""The scripts of the known defects, as data: suites/upstream/*.toml.

Each known defect (`harness.contract.expectations`) is in one of two tables:

- [[script]]: a run and a check that show it. `script_of` makes the script.
- [[unscripted]]: the reason why no script of one or two processes on a CPU shows it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import contract
from harness.contract import expectations
from harness.contract.expectations import Expectation
from harness.environment import satisfies
from harness.errors import UsageError
from harness.fixtures.models import FAMILIES
from harness.paths import SUITES
from harness.reading import parse_toml, read_text, shown_path
from harness.runs.scenarios import spec_for
from harness.spec import GET, RunSpec
from harness.upstream import generator

DIRECTORY = SUITES / "upstream"


@dataclass(frozen=True)
class Recipe:
    """What a script shows, and how.

    - id: its name, which is that of its file.
    - clause: the clauses that fail. The first is the one that the script judges.
    - shows: the known defects, each by its scenario or by its match (`Expectation`).
    - family, method, route: as for `harness.runs.scenarios.spec_for`.
    - change: keyword arguments of `RunSpec.but`.
    - check: the check; "" for the clause's own (`generator.check_for`).
    - options: what the check takes.
    - words: words of the script's output where the fault is.
    - null: TrainingArguments that are None.
    - bad: requirements of a stack on which the script exits with 1, if the installed one is good; "" for the installed one.
    - good: requirements of a stack on which the script exits with 0; "" if none is known.
    """

    id: str
    clause: tuple[str, ...]
    shows: tuple[str, ...]
    family: str = "llama"
    method: str = "lora"
    route: str = GET
    change: Mapping[str, Any] = field(default_factory=dict)
    check: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    words: str = ""
    good: str = ""
    bad: str = ""
    null: tuple[str, ...] = ()

    @property
    def spec(self) -> RunSpec:
        """The run that the script trains."""
        made = spec_for(self.family if self.family in FAMILIES else "llama", self.method, self.route)
        made = made.but(model={"family": self.family}).but(**self.change)
        return dataclasses.replace(made, arguments={**made.arguments, **dict.fromkeys(self.null)})


@dataclass(frozen=True)
class Unscripted:
    """Known defects without a script.

    - reason: what a script of one or two processes on a CPU lacks.
    - spec: a field that the entries' `spec` names, or "processor" if they name one; "" for any entry.
    """

    clause: tuple[str, ...]
    shows: tuple[str, ...]
    reason: str
    spec: str = ""

    def is_about(self, defect: Expectation) -> bool:
        """Return whether a known defect has the field of `spec`."""
        return not self.spec or self.spec in defect.spec or (self.spec == "processor" and bool(defect.processor))


def load(directory: Path = DIRECTORY) -> list[Recipe]:
    """Return the recipes of all scripts. UsageError names the file, and the entry that is wrong."""
    made = [_read(Recipe, entry, file) for file, entry in _entries(directory, "script")]
    ids = [one.id for one in made]
    twice = next((id for id in ids if ids.count(id) > 1), None)
    if twice is not None:
        raise UsageError(f"{directory}: two scripts are named {twice}")
    return made


def without_script(directory: Path = DIRECTORY) -> list[Unscripted]:
    """Return the known defects without a script. Errors as `load`."""
    return [_read(Unscripted, entry, file) for file, entry in _entries(directory, "unscripted")]


def _entries(directory: Path, kind: str) -> Iterable[tuple[Path, dict[str, Any]]]:
    for file in sorted(directory.glob("*.toml")):
        body = parse_toml(read_text(file), shown_path(file))
        for entry in body.get(kind, []):
            yield file, entry


def _read(kind: Any, entry: dict[str, Any], file: Path) -> Any:
    values = {
        name: (value,) if name in ("clause", "shows") and isinstance(value, str) else value
        for name, value in entry.items()
    }
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise UsageError(f"{file}, {entry.get('id') or entry.get('shows')}: {error}") from None


@functools.cache
def _all_known() -> tuple[Expectation, ...]:
    return tuple(expectations.load(SUITES / "expectations"))


def defects(one: Recipe | Unscripted, known: Iterable[Expectation] | None = None) -> list[Expectation]:
    """Return the known defects that a recipe shows. known: all of them; None reads them.

    A defect of drawn runs is shown only by a run that its `spec` describes.
    """
    found = []
    body = one.spec.to_json() if isinstance(one, Recipe) else {}
    for defect in _all_known() if known is None else known:
        named = defect.clause in one.clause and any(_is(defect, name) for name in one.shows)
        if named and (one.is_about(defect) if isinstance(one, Unscripted) else defect.describes(body)):
            found.append(defect)
    return found


def _is(defect: Expectation, name: str) -> bool:
    """Return whether a known defect is the one that `shows` names by its scenario or its match."""
    return name in (defect.scenario, defect.match)


def here(one: Recipe) -> bool:
    """Return whether the installed stack has a fault that a recipe shows."""
    return any(all(satisfies(version) for version in defect.versions) for defect in defects(one))


def script_of(one: Recipe) -> str:
    """Return the text of a recipe's script. UsageError if it cannot be so short."""
    shown = defects(one)
    if not shown:
        raise UsageError(f"script {one.id}: shows no known defect")
    first = min(shown, key=lambda defect: one.shows.index(next(name for name in one.shows if _is(defect, name))))
    threads = [first.link] if first.link else []
    seen = f"Seen with {', '.join(first.versions)}."
    check = one.check or generator.check_for(one.clause[0])
    return generator.script(one.spec, check, _title(one.clause[0]), [first.reason, *threads, seen], one.options)


def _title(clause: str) -> str:
    return f"Must hold: {contract.clauses()[clause].statement}"
