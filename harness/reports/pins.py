"""Where a package is pinned: the line in a requirements file at which CI systems show a finding.

The line is found by the package's name, so it works for every format: requirements and lock files, pyproject.toml,
environment.yml.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from harness.environment import STACK
from harness.errors import UsageError
from harness.files import leads_out
from harness.reading import read_text
from harness.reports.kinds import fields, text

#: Bytes of a requirements file. A lock with all hashes has 2 MB.
_LIMIT = 4 * 2**20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

#: What follows the name in a line that names one release, and in a line that limits releases.
_EXACT, _LIMITS = re.compile(r"\s*={2,3}"), re.compile(r"""\s*["']?\s*[=<>~!@]""")

#: How uv.lock, poetry.lock and the like begin a package.
_LOCKED = re.compile(r"""name\s*=\s*["']$""")


@dataclass(frozen=True)
class Place:
    """A line of a file. file: a path relative to the repository, with slashes."""

    file: str
    line: int


def find(files: Iterable[Path], packages: Collection[str], root: Path) -> dict[str, Place]:
    """Return where packages are pinned.

    - files: requirements files, in the order in which they are preferred.
    - packages: the names to look for.
    - root: the directory that paths are relative to. Files outside of it are left out, and so are unreadable ones.
    """
    wanted = {canonicalize_name(name) for name in packages}
    found: dict[str, tuple[int, Place]] = {}
    for file in files:
        name = os.path.relpath(os.path.realpath(file), os.path.realpath(root)).replace(os.sep, "/")
        try:
            lines = [] if leads_out(name) else read_text(file, _LIMIT).split("\n")
        except UsageError:
            continue
        for number, line in enumerate(lines, 1):
            for package, rank in _named(line, file.suffix == ".lock"):
                if package in wanted and (package not in found or rank < found[package][0]):
                    found[package] = rank, Place(name, number)
    return {package: place for package, (_, place) in found.items()}


def _named(line: str, locked: bool) -> Iterable[tuple[str, int]]:
    """Yield the packages that a line may name, with a rank: 0 for a pin, 1 for a limit, 2 for a bare name."""
    line = re.split(r"(?:^|\s)#", line, maxsplit=1)[0]
    if line.lstrip().startswith("-") and not line.lstrip().startswith("- "):  # an option; "- " begins an item of YAML
        return
    line = re.sub(r"(?<=[A-Za-z0-9])\[[^\]]*\]", lambda extras: " " * len(extras[0]), line)
    for match in _NAME.finditer(line):
        pinned = _EXACT.match(line, match.end()) or (locked and _LOCKED.fullmatch(line[: match.start()].strip()))
        rank = 0 if pinned else 1 if _LIMITS.match(line, match.end()) else 2
        yield canonicalize_name(match[0]), rank


def to_json(places: Mapping[str, Place]) -> dict[str, Any]:
    """Return places as the field `pins` of a report has them."""
    return {package: {"file": place.file, "line": place.line} for package, place in places.items()}


def of(report: Mapping[str, Any]) -> dict[str, Place]:
    """Return the places that a report names: its own `pins`, or those of a gate's candidate.

    A path that leads out of the repository is left out: a report may come from somebody else.
    """
    places = {}
    for package, place in fields(report.get("pins") or fields(report.get("candidate")).get("pins")).items():
        file, line = text(fields(place).get("file")), fields(place).get("line")
        is_line = isinstance(line, int) and not isinstance(line, bool) and 0 < line < 10**7
        if file and is_line and not leads_out(file) and "://" not in file and "\\" not in file:
            places[str(canonicalize_name(text(package)))] = Place(file, line)
    return places


def place_of(packages: Iterable[str], report: Mapping[str, Any]) -> Place | None:
    """Return the line to show a problem at: that of a package to blame, or else of the first package that moved.

    - packages: those that can be to blame.
    """
    places = of(report)
    versions = [fields(fields(report.get(side)).get("versions")) for side in ("baseline", "candidate")]
    names = [name for name in {**dict.fromkeys(STACK), **versions[1]} if isinstance(name, str)]
    moved = [name for name in names if versions[0].get(name) != versions[1].get(name)]
    for name in (*packages, *moved, *STACK, *places):
        if (place := places.get(canonicalize_name(name))) is not None:
            return place
    return None
