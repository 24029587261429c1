"""Pipfile and Pipfile.lock of pipenv."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.gate.asked import Asked, Index
from harness.gate.formats import poetry
from harness.gate.formats.common import Chosen, check_choice, check_python, line_of, table, tables, toml
from harness.gate.formats.pip_file import Include
from harness.reading import parse_json, shown_path

#: Parts of a Pipfile that are no categories of packages.
_OTHER_PARTS = ("source", "requires", "scripts", "pipenv", "pipfile", "_meta")


def read(file: Path, text: str, chosen: Chosen, found: Asked, include: Include) -> None:
    """Add the packages of a Pipfile, and those of the categories that the user chose as groups."""
    data = toml(file, text)
    _add(file, text, data, data, chosen, found, "packages", {"dev": "dev-packages"})


def read_lock(file: Path, text: str, chosen: Chosen, found: Asked, include: Include) -> None:
    """Add the packages of a Pipfile.lock, and those of the categories that the user chose as groups."""
    data = table(parse_json(text, shown_path(file)))
    meta = table(data.get("_meta"))
    as_pipfile = {"source": meta.get("sources"), "requires": meta.get("requires")}
    _add(file, text, data, as_pipfile, chosen, found, "default", {"dev": "develop"})


def _add(
    file: Path,
    text: str,
    data: dict[str, Any],
    settings: dict[str, Any],
    chosen: Chosen,
    found: Asked,
    main: str,
    others: dict[str, str],
) -> None:
    parts = {name: part for name, part in data.items() if name not in (*_OTHER_PARTS, main) and isinstance(part, dict)}
    parts |= {name: parts[part] for name, part in others.items() if part in parts}
    if chosen.extras:
        check_choice(file, "extra", chosen.extras, [])
    check_choice(file, "group", chosen.groups, parts)
    python = table(settings.get("requires")).get("python_full_version") or table(settings.get("requires")).get(
        "python_version"
    )
    if isinstance(python, str):
        check_python(file, f"=={python}.*" if python.count(".") == 1 else f"=={python}", "requires")
    sources = [one for one in tables(settings.get("source")) if isinstance(one.get("url"), str)]
    for number, source in enumerate(sources):
        # The first source is the default one. PyPI itself is left to the user's own settings, which may name a mirror.
        if "pypi.org" not in source["url"]:
            found.indexes.append(Index(str(source.get("name", "")), source["url"], number == 0, number > 0))
    by_name = {str(source.get("name", "")): source["url"] for source in sources}
    entries = [*table(data.get(main)).items()]
    entries += [entry for group in chosen.groups for entry in parts[group].items()]
    if not entries:
        raise UsageError(f"{shown_path(file)}: has no packages in its part {main}; name a requirements file")
    for name, entry in entries:
        where = f"{shown_path(file)}{line_of(text, name)}"
        for line in poetry.lines(name, _entry(entry, by_name), where, found):
            hashes = table(entry).get("hashes")
            found.add(line, file.parent, where, hashes=map(str, hashes) if isinstance(hashes, list) else ())


def _entry(entry: Any, indexes: dict[str, str]) -> Any:
    """Return an entry as Poetry would have it: with one marker, and without the index if that is PyPI."""
    if not isinstance(entry, dict):
        return entry
    keys = ("sys_platform", "platform_system", "platform_machine", "python_version", "os_name")
    markers = [f"{key} {entry[key]}" for key in keys if isinstance(entry.get(key), str)]
    markers += [entry["markers"]] if isinstance(entry.get("markers"), str) else []
    made = {key: value for key, value in entry.items() if key not in keys}
    if markers:
        made["markers"] = " and ".join(f"({marker})" for marker in markers)
    if "pypi.org" in indexes.get(str(entry.get("index")), ""):
        del made["index"]
    return made
