"""The files that repeat what a gate found, beside its report: one for each case that fails now, one for each run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.errors import UsageError
from harness.files import reason, write_whole
from harness.gate.clauses import FAILED, state
from harness.gate.compare import Outcome, cells_of
from harness.gate.findings import BROKEN
from harness.gate.scope import Scope
from harness.reading import read_json
from harness.session import case_file
from harness.verdict import Case

#: A file in the directory, with the names of the others. Only what it names is replaced by a later gate.
_LIST = "made-by-peft-harness.json"

#: Bytes of that file. One of 4,500 names has 0.3 MB.
_LIMIT = 2**24

#: Where the files go if there is no report.
WITHOUT_REPORT = Path(".peft-harness", "gate.cases")


def directory(report: Path | None) -> Path:
    """Return the directory of the case files: beside the report, such as gate.cases for gate.json.

    If the user has something else of that name, the directory has a number in its name.
    """
    first = WITHOUT_REPORT if report is None else report.with_suffix(".cases")
    free, number = first, 1
    while os.path.lexists(free) and not _is_ours(free):
        free = first.with_name(f"{first.stem}-{number}.cases")
        number += 1
    return free


def write_all(place: Path, outcome: Outcome, judged: Scope) -> tuple[dict[tuple[str, str], Path], UsageError | None]:
    """Write the files of what is broken. Returns them as `write` does, and why they could not be written, if so.

    - place: as `directory` returned it. If nothing is broken, it is not made.
    - judged: of the candidate.
    """
    broken = [one for one in outcome.causes if one.means == BROKEN]
    members = {name for one in broken for name in one.cause.members}
    failing = [case for case in outcome.cases["candidate"] if state(case) == FAILED]
    cases = [case for case in failing if (case.clause, case.scenario) in members]
    specs = {name: json.dumps(spec.to_json(), indent=1) + "\n" for name, spec in cells_of(judged).items()}
    runs = {where for one in broken for _, where in one.elsewhere}
    chosen = {name: text for name, text in specs.items() if name in runs}
    if broken:
        # As the user brought them. The cells save checkpoints at other steps.
        chosen |= dict(judged.specs)
    if not cases and not chosen and not os.path.lexists(place):
        return {}, None
    try:
        return write(place, cases, judged.preloads, chosen), None
    except UsageError as error:
        return {}, error


def write(
    place: Path, cases: Iterable[Case], preloads: Iterable[str], specs: Mapping[str, str]
) -> dict[tuple[str, str], Path]:
    """Write the files, and return them by (clause, scenario), or ("cell", its name) for a run.

    - place: as `directory` returned it. What an earlier gate wrote there is removed.
    - preloads: the modules that were imported before upstream.
    - specs: name of a run -> its RunSpec as JSON text.

    Raises UsageError if they cannot be written.
    """
    entries = [
        ((case.clause, case.scenario), json.dumps(case_file.body(case, list(preloads)), indent=1)) for case in cases
    ]
    entries += [(("cell", name), text) for name, text in specs.items()]
    names = _file_names([key for key, _ in entries])
    try:
        place.mkdir(parents=True, exist_ok=True)
        if place == WITHOUT_REPORT and not os.path.lexists(place.parent / ".gitignore"):
            write_whole(place.parent / ".gitignore", "*\n")
        for old in set(_listed(place)) - set(names):
            if (place / old).is_file():
                (place / old).unlink()
        # The list first: if the rest is interrupted, the next gate still knows its own files.
        write_whole(place / _LIST, json.dumps(sorted(names), indent=1) + "\n")
        for name, (_, text) in zip(names, entries, strict=True):
            write_whole(place / name, f"{text.rstrip()}\n")
    except OSError as error:
        raise UsageError(f"{place}: the case files cannot be written there ({reason(error)})") from None
    files: dict[tuple[str, str], Path] = {}
    for name, (key, _) in zip(names, entries, strict=True):
        files.setdefault(key, place / name)  # several tests may have a scenario of the same name
    return files


def _file_names(keys: Iterable[tuple[str, str]]) -> list[str]:
    found: list[str] = []
    # Some file systems do not tell capital letters.
    taken = {_LIST}
    for key in keys:
        stem = case_file.file_stem(*key)
        name, number = f"{stem}.json", 1
        while name.lower() in taken:
            name, number = f"{stem}-{number}.json", number + 1
        taken.add(name.lower())
        found.append(name)
    return found


def _is_ours(place: Path) -> bool:
    return not place.is_symlink() and place.is_dir() and ((place / _LIST).is_file() or not any(place.iterdir()))


def _listed(place: Path) -> list[str]:
    if not (place / _LIST).is_file():
        return []
    try:
        names = read_json(place / _LIST, _LIMIT)
    except UsageError:
        return []
    found = names if isinstance(names, list) else []
    return [name for name in found if isinstance(name, str) and re.fullmatch(r"[\w.-]+\.json", name)]
