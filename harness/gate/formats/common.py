"""What the formats share: TOML, the choice of extras and groups, markers, and addresses of packages from elsewhere."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from harness.errors import UsageError
from harness.reading import parse_toml, shown, shown_path


@dataclass(frozen=True)
class Chosen:
    """The extras and groups that the user named after a file, as in `pyproject.toml[train]:dev`."""

    extras: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.extras or self.groups)

    def __str__(self) -> str:
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        return extras + (f":{','.join(self.groups)}" if self.groups else "")


#: No extra and no group.
NOTHING = Chosen()


def toml(file: Path, text: str) -> dict[str, Any]:
    """Return the tables of a TOML file. Raises UsageError if it is none."""
    return parse_toml(text, shown_path(file))


def table(value: Any) -> dict[str, Any]:
    """Return a value if it is a table, else an empty one."""
    return value if isinstance(value, dict) else {}


def tables(value: Any) -> list[dict[str, Any]]:
    """Return the tables of a list; an empty list if it is none."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def texts(file: Path, value: Any, what: str) -> list[str]:
    """Return a list of strings, without line breaks in them. Raises UsageError if it is something else."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise UsageError(f"{shown_path(file)}: {what} is no list of requirements; write one string a package")
    return [re.sub(r"\s*\n\s*", " ", line).strip() for line in value]


def check_choice(file: Path, kind: str, wanted: Iterable[str], known: Iterable[str]) -> None:
    """Raise UsageError for an extra or a group that a file does not have. kind: "extra" or "group"."""
    there = sorted({str(canonicalize_name(name)) for name in known})
    for name in wanted:
        if canonicalize_name(name) not in there:
            example = f"[{name}]" if kind == "extra" else f":{name}"
            others = f"its {kind}s are {', '.join(there)}" if there else f"it has no {kind}s; leave {example} out"
            raise UsageError(f"{shown_path(file)}{example}: has no {kind} {name}; {others}")


def no_choice(file: Path, chosen: Chosen) -> None:
    """Raise UsageError if extras or groups are named of a file that has neither."""
    if chosen:
        raise UsageError(
            f"{shown_path(file)}{chosen}: such a file has no extras or groups; leave {chosen} out, or name a pyproject.toml"
        )


def check_python(file: Path, wanted: Any, key: str) -> None:
    """Raise UsageError if a file is for other releases of Python than the running one."""
    if not fits_python(wanted):
        raise UsageError(
            f"{shown_path(file)}: is for Python {wanted} ({key}), and this is Python {platform.python_version()}; run the "
            "harness with such a Python"
        )


def fits_python(wanted: Any) -> bool:
    """Return whether a set of versions such as ">=3.10" has the running Python. What cannot be read has it."""
    try:
        return not isinstance(wanted, str) or SpecifierSet(wanted.strip()).contains(platform.python_version(), True)
    except InvalidSpecifier:
        return True


def marker_applies(marker: Any, where: str, environment: Mapping[str, Any] | None = None) -> bool:
    """Return whether a marker is true here; one that is missing is. Raises UsageError if it is no marker."""
    if marker in (None, ""):
        return True
    try:
        context: Any = {"context": "lock_file"} if environment and "extras" in environment else {}
        return Marker(str(marker)).evaluate(dict(environment or {"extra": ""}), **context)
    except (InvalidMarker, UndefinedComparison, UndefinedEnvironmentName, TypeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{where}: {shown(str(marker))} is no marker ({reason})") from None


def git_address(url: str, commit: str, folder: Any = None) -> str:
    """Return the address of a repository at a commit, a tag or a branch; "" as commit is the newest commit."""
    url = re.sub(r"^git@([^:/]+):", r"ssh://git@\1/", url)
    url = url if url.startswith("git+") else f"git+{url}"
    return url + (f"@{commit}" if commit else "") + (f"#subdirectory={folder}" if folder else "")


def line_of(text: str, needle: str) -> str:
    """Return ", line N" for the first line that has some words; "" if none has."""
    before, found, _ = text.partition(needle) if needle else ("", "", "")
    return f", line {before.count(chr(10)) + 1}" if found else ""
