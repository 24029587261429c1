"""Requirements files as pip reads them: one requirement or option a line, and files that include others."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from packaging.utils import canonicalize_name

from harness.errors import UsageError
from harness.gate.asked import CONTENT, Asked
from harness.gate.sources import is_source
from harness.reading import shown, shown_path

#: Reads the file that a line includes: include(path, whether its lines only limit versions).
Include = Callable[[Path, bool], None]

#: Options of a line that uv is given as they are.
_OPTIONS = ("--index-url", "--extra-index-url", "--find-links", "--no-index", "--only-binary", "--trusted-host")
_SHORT = {"-r": "--requirement", "-c": "--constraint", "-e": "--editable", "-i": "--index-url", "-f": "--find-links"}

#: Options that change nothing here: wheels are preferred and hashes are checked anyway.
_WITHOUT_EFFECT = ("--prefer-binary", "--require-hashes")

#: Where a second option begins in a line of options.
_NEXT = re.compile(r"\s+(?=(?:--[a-z][a-z-]+|-[if])(?:[\s=]|$))")


def read(file: Path, text: str, found: Asked, include: Include, constraints: bool = False) -> None:
    """Add the lines of a requirements file, and of those that it includes.

    - include: reads an included file.
    - constraints: whether its lines only limit versions.
    """
    for number, line in _lines(text):
        if line == "@EXPLICIT":
            raise UsageError(
                f"{shown_path(file)}, line {number}: is a list of conda packages (@EXPLICIT), which are not installed here; "
                "name the packages by their names on PyPI"
            )
        read_line(line, file.parent, f"{shown_path(file)}, line {number}", found, include, constraints)


def _lines(text: str) -> list[tuple[int, str]]:
    """Return (number, line) for each line that is not blank, with continued lines joined."""
    lines: list[tuple[int, str]] = []
    joined, first = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        first = first if joined else number
        # A comment ends a line that is continued, as it does for pip.
        comment = re.search(r"(^|\s)#", line)
        if line.endswith("\\") and not comment:
            joined += line[:-1] + " "
            continue
        lines.append((first, (joined + line).strip()))
        joined = ""
    return [(number, line) for number, line in [*lines, (first, joined.strip())] if line]


def read_line(line: str, base: Path, where: str, found: Asked, include: Include, constraints: bool = False) -> None:
    """Add one line of a requirements file.

    - base: the directory that relative paths start from.
    - where: what messages call the line.
    - include, constraints: as for `read`.
    """
    comment = re.search(r"(^|\s)#(.*)$", line)
    remembered = re.search(re.escape(CONTENT) + r"([0-9a-f]{64})", comment[2]) if comment else None
    line = line[: comment.start()].strip() if comment else line
    if not line:
        return
    if not line.isprintable():
        raise UsageError(f"{where}: has characters that cannot be printed ({shown(line)})")
    if not line.startswith("-"):
        found.add(line, base, where, constraints=constraints, content=remembered[1] if remembered else "")
        return
    for part in _NEXT.split(line):
        option, value = _option(part)
        if option == "--editable" and not value:
            raise UsageError(f"{where}: {option} without a folder")
        if option == "--editable":
            found.add(as_path(value), base, where)
        elif option in ("--requirement", "--constraint"):
            include(_included(option, value, base, where, found), constraints or option == "--constraint")
        else:
            _add_option(option, value, base, where, found)


def as_path(word: str) -> str:
    """Return the value of --editable as a requirement: it may be the bare name of a folder."""
    return word if is_source(word) or "@" in word else f"./{word}"


def _included(option: str, value: str, base: Path, where: str, found: Asked) -> Path:
    """Return the path of an included file."""
    if not value:
        raise UsageError(f"{where}: {option} without a file name")
    if "://" in value and not value.startswith("file://"):
        raise UsageError(f"{where}: {option} {value}: only files are read; download it, and name the file")
    included = base / found.expanded(value.removeprefix("file://"), where)
    if not os.path.exists(included):
        raise UsageError(f"{where}: {shown_path(included)}: no such requirements file")
    return included


def _add_option(option: str, value: str, base: Path, where: str, found: Asked) -> None:
    if option == "--no-binary":
        names = [name for name in re.split(r"[,\s]+", value) if name and name != ":none:"]
        if ":all:" in names:
            raise UsageError(f"{where}: --no-binary :all: would build every package; name those that must be built")
        found.build += [str(canonicalize_name(name)) for name in names]
    elif option == "--pre":
        found.prereleases = True
    elif option in _OPTIONS:
        value = found.expanded(value, where)
        if option in ("--index-url", "--extra-index-url", "--find-links", "--trusted-host") and not value:
            raise UsageError(f"{where}: {option} without a value")
        if option == "--find-links" and "://" not in value:
            folder = Path(os.path.abspath(base / os.path.expanduser(value)))
            if not folder.exists():
                raise UsageError(f"{where}: --find-links {value}: no such folder")
            value = str(folder)
        line = f"{option} {value}".strip()
        _check_index(option, line, where, found)
        found.options += [line] if line not in found.options else []
    elif option not in _WITHOUT_EFFECT:
        raise UsageError(f"{where}: the option {shown(option)} is not known here; remove it")


def _check_index(option: str, line: str, where: str, found: Asked) -> None:
    other = next((known for known in found.options if known.startswith("--index-url ")), line)
    if option == "--index-url" and other != line:
        raise UsageError(f"{where}: names a second --index-url; write --extra-index-url for one of them")


def _option(line: str) -> tuple[str, str]:
    """Return the option of a line by its long name, and its value."""
    if not line.startswith("--"):
        return _SHORT.get(line[:2], line[:2]), line[2:].lstrip(" =").strip().strip("\"'")
    option, _, value = re.sub(r"[\s=]", "\0", line, count=1).partition("\0")
    return option, value.strip().strip("\"'")
