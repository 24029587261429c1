"""[tool.poetry] of a pyproject.toml: dependencies in Poetry's own notation."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from harness.errors import UsageError
from harness.gate.asked import Asked, Index
from harness.gate.formats.common import (
    Chosen,
    check_choice,
    check_python,
    fits_python,
    git_address,
    marker_applies,
    table,
    tables,
    texts,
)
from harness.reading import shown, shown_path


def read(file: Path, text: str, data: dict[str, Any], chosen: Chosen, found: Asked) -> None:
    """Add the dependencies of a Poetry project, and those of the extras and groups that the user chose."""
    poetry = table(table(data.get("tool")).get("poetry"))
    by_group = groups(table(data.get("tool")))
    extras = table(poetry.get("extras"))
    check_choice(file, "extra", chosen.extras, extras)
    check_choice(file, "group", chosen.groups, by_group)
    dependencies = table(poetry.get("dependencies"))
    python = dependencies.get("python")
    if isinstance(python, str):
        check_python(file, specifier(python, f"{shown_path(file)}, python"), "[tool.poetry.dependencies] python")
    found.indexes += indexes(poetry.get("source"))
    wanted = {
        str(canonicalize_name(re.split(r"[\s\[<>=!~(]", line.strip())[0]))
        for extra in chosen.extras
        for key, value in extras.items()
        if canonicalize_name(key) == canonicalize_name(extra)
        for line in texts(file, value, f"the extra {extra}")
    }
    if not dependencies and not chosen.groups:
        raise UsageError(f"{shown_path(file)}: has no dependencies in [tool.poetry]; name a requirements file")
    add(file, text, dependencies, found, wanted)
    for group in chosen.groups:
        (entries,) = (value for key, value in by_group.items() if canonicalize_name(key) == canonicalize_name(group))
        add(file, text, entries, found)


def groups(tool: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the dependencies of [tool.poetry.group] by group."""
    poetry = table(tool.get("poetry"))
    found = {name: table(table(value).get("dependencies")) for name, value in table(poetry.get("group")).items()}
    return found | ({"dev": table(poetry["dev-dependencies"])} if "dev-dependencies" in poetry else {})


def tie(tool: dict[str, Any], found: Asked) -> None:
    """Tie dependencies of [project] to the sources that [tool.poetry.dependencies] gives them."""
    poetry = table(tool.get("poetry"))
    found.indexes += indexes(poetry.get("source"))
    urls = {index.name: index.url for index in found.indexes}
    for name, entry in table(poetry.get("dependencies")).items():
        if (source := table(entry).get("source")) in urls:
            found.pinned[str(canonicalize_name(name))] = urls[source]


def add(file: Path, text: str, entries: dict[str, Any], found: Asked, extras: set[str] | None = None) -> None:
    """Add dependencies in Poetry's notation. extras: the optional ones that are wanted; None for all."""
    for name, entry in entries.items():
        for one in entry if isinstance(entry, list) else [entry]:
            optional = extras is not None and bool(table(one).get("optional"))
            if name == "python" or (optional and canonicalize_name(name) not in (extras or ())):
                continue
            where = f"{shown_path(file)}{_place(text, name)}"
            for line in lines(name, one, where, found):
                found.add(line, file.parent, where)


def indexes(sources: Any) -> list[Index]:
    """Return the indexes of [[tool.poetry.source]]."""
    made = []
    for source in tables(sources):
        if isinstance(source.get("url"), str):
            priority = source.get("priority", "primary")
            default = priority == "default" or bool(source.get("default"))
            made.append(Index(str(source.get("name", "")), source["url"], default, priority == "explicit"))
    return made


def lines(name: str, entry: Any, where: str, found: Asked) -> Iterator[str]:
    """Yield the requirement that an entry such as `peft = "^0.18"` stands for; none if it does not apply here."""
    if isinstance(entry, str):
        entry = {"version": entry}
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: {name} is {shown(entry)}; write a version or a table")
    if entry.get("platform") not in (None, sys.platform):
        return
    if isinstance(entry.get("python"), str) and not fits_python(specifier(entry["python"], where)):
        return
    if not marker_applies(entry.get("markers"), where):
        return
    extras = entry.get("extras")
    name_with_extras = f"{name}[{','.join(map(str, extras))}]" if isinstance(extras, list) and extras else name
    if isinstance(entry.get("git"), str):
        commit = next((str(entry[key]) for key in ("rev", "ref", "tag", "branch") if entry.get(key)), "")
        yield f"{name_with_extras} @ {git_address(entry['git'], commit, entry.get('subdirectory'))}"
    elif isinstance(entry.get("path"), str) or isinstance(entry.get("file"), str):
        yield f"{name_with_extras} @ {entry.get('path') or entry.get('file')}"
    elif isinstance(entry.get("url"), str):
        yield f"{name_with_extras} @ {entry['url']}"
    else:
        source = entry.get("source") or entry.get("index")
        if isinstance(source, str):
            index = next((one for one in found.indexes if one.name == source), None)
            if index is None:
                raise UsageError(f"{where}: {name} is from {shown(source)}, and no source has this name")
            found.pinned[str(canonicalize_name(name))] = index.url
        yield f"{name_with_extras}{specifier(str(entry.get('version', '*')), where)}"


def specifier(text: str, where: str) -> str:
    """Return Poetry's notation of versions (^1.2, ~1.2, 1.2, *) as a set of specifiers such as ">=1.2,<2".

    Raises UsageError for what cannot be said so.
    """
    text = text.strip()
    if "||" in text or " | " in text:
        raise UsageError(
            f"{where}: {shown(text)} has alternatives (||), which cannot be resolved here; write one range"
        )
    parts = [part for part in re.split(r"\s*,\s*|\s+(?=[<>=!~^])", text) if part]
    return ",".join(filter(None, (_one(re.sub(r"\s+", "", part), where) for part in parts)))


def _one(part: str, where: str) -> str:
    if part == "*":
        return ""
    if part[0] not in "^~" or part.startswith("~="):
        return part if part[0] in "<>=!~" else f"=={part}"
    try:
        low = Version(part[1:])
    except InvalidVersion:
        raise UsageError(f"{where}: {shown(part)} is no version") from None
    release = list(low.release)
    if part[0] == "^":
        # The first number that is not zero may not change: ^0.18.1 is below 0.19.
        place = next((index for index, number in enumerate(release) if number), len(release) - 1)
    else:
        place = min(1, len(release) - 1)
    high = [*release[:place], release[place] + 1]
    return f">={low},<{'.'.join(map(str, high))}"


def _place(text: str, name: str) -> str:
    for number, line in enumerate(text.split("\n"), 1):
        if re.match(rf"\"?{re.escape(name)}\"?\s*=", line):
            return f", line {number}"
    return ""
