"""pyproject.toml: [project] with its extras, [dependency-groups], [tool.uv] and [tool.poetry]."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from harness.errors import UsageError
from harness.gate.asked import Asked, name_of
from harness.gate.formats import poetry, uv_settings
from harness.gate.formats.common import Chosen, check_choice, check_python, line_of, table, texts, toml
from harness.gate.formats.pip_file import Include
from harness.reading import shown, shown_path


def read(file: Path, text: str, chosen: Chosen, found: Asked, include: Include) -> None:
    """Add the dependencies of a project, and those of the extras and groups that the user chose.

    The project itself is not installed. Parameters as for `harness.gate.requirements._Reader`.
    """
    data = toml(file, text)
    project, tool = table(data.get("project")), table(data.get("tool"))
    check_python(file, project.get("requires-python"), "requires-python")
    if "poetry" in tool and "dependencies" not in project:
        poetry.read(file, text, data, chosen, found)
        return
    extras = table(project.get("optional-dependencies"))
    of_poetry = poetry.groups(tool)
    groups = of_poetry | _groups(data, table(tool.get("uv")))
    dynamic = texts(file, project.get("dynamic"), "dynamic")
    files = _files_of_setuptools(file, table(tool.get("setuptools")), dynamic)
    check_choice(file, "extra", chosen.extras, [*extras, *files.get("extras", {})])
    check_choice(file, "group", chosen.groups, groups)
    lines = texts(file, project.get("dependencies"), "[project] dependencies")
    if "dependencies" in dynamic and "main" not in files:
        raise UsageError(
            f"{shown_path(file)}: its dependencies are dynamic: the project's own build makes them; name its folder, as "
            f"{shown_path(file.parent)}/, so that it is built and installed"
        )
    if not lines and not chosen and "main" not in files:
        raise UsageError(
            f"{shown_path(file)}: has no list of dependencies in [project]{_what_there_is(extras, groups)}; name a "
            "requirements file"
        )
    own = project.get("name")
    for extra in chosen.extras:
        lines += _of_extra(file, extras, extra, own, ())
    poetry.tie(tool, found)
    for group in chosen.groups:
        if entries := next(
            (of_poetry[key] for key in of_poetry if canonicalize_name(key) == canonicalize_name(group)), {}
        ):
            poetry.add(file, text, entries, found)
        else:
            lines += of_group(file, groups, group)
    settings = uv_settings.read(file, table(tool.get("uv")), found)
    names_of_files = [*files.get("main", []), *(name for extra in chosen.extras for name in _listed(files, extra))]
    for name in names_of_files:
        include(file.parent / name, False)
    for line in dict.fromkeys(lines):
        where = f"{shown_path(file)}{_place(text, line)}"
        for made in settings.with_source(line, where, chosen, own):
            found.add(made, file.parent, where)


def _place(text: str, line: str) -> str:
    # The line as it is written, or, where it was written over several lines, the package's name.
    return line_of(text, line) or line_of(text, name_of(line) or line)


def _what_there_is(extras: dict[str, Any], groups: dict[str, Any]) -> str:
    ways = [f"[{name}]" for name in extras] + [f":{name}" for name in groups]
    return f", and was named without an extra or a group (there are {', '.join(ways[:8])})" if ways else ""


def _groups(data: dict[str, Any], uv: dict[str, Any]) -> dict[str, Any]:
    """Return [dependency-groups]. [tool.uv] dev-dependencies, which are older, belong to the group dev."""
    groups = dict(table(data.get("dependency-groups")))
    if isinstance(uv.get("dev-dependencies"), list) and isinstance(groups.get("dev", []), list):
        groups["dev"] = [*groups.get("dev", []), *uv["dev-dependencies"]]
    return groups


def _of_extra(file: Path, extras: dict[str, Any], extra: str, own: Any, within: tuple[str, ...]) -> list[str]:
    """Return the requirements of an extra. It may name other extras of the same project, as `name[train,eval]`."""
    name = canonicalize_name(extra)
    if name in within:
        circle = " -> ".join([*within, name])
        raise UsageError(f"{shown_path(file)}: the extra {name} includes itself ({circle}); remove one of them")
    value: Any = next((value for key, value in extras.items() if canonicalize_name(key) == name), [])
    lines: list[str] = []
    for line in texts(file, value, f"the extra {name}"):
        inner = _own_extras(line, own)
        check_choice(file, "extra", inner, extras)
        lines += [one for other in inner for one in _of_extra(file, extras, other, own, (*within, name))] or (
            [] if inner else [line]
        )
    return lines


def _own_extras(line: str, own: Any) -> list[str]:
    if not isinstance(own, str):
        return []
    try:
        parsed = Requirement(line)
    except InvalidRequirement:
        return []
    return sorted(parsed.extras) if canonicalize_name(parsed.name) == canonicalize_name(own) else []


def of_group(file: Path, groups: dict[str, Any], group: str, within: tuple[str, ...] = ()) -> list[str]:
    """Return the requirements of a dependency group (PEP 735), with those of the groups that it includes."""
    name = canonicalize_name(group)
    if name in within:
        circle = " -> ".join([*within, name])
        raise UsageError(f"{shown_path(file)}: the group {name} includes itself ({circle}); remove one of them")
    value = next((value for key, value in groups.items() if canonicalize_name(key) == name), None)
    if not isinstance(value, list):
        raise UsageError(f"{shown_path(file)}: the group {name} is no list; write one requirement a string")
    lines: list[str] = []
    for entry in value:
        if isinstance(entry, dict) and isinstance(entry.get("include-group"), str):
            check_choice(file, "group", [entry["include-group"]], groups, f" (the group {name} includes it)")
            lines += of_group(file, groups, entry["include-group"], (*within, name))
        elif isinstance(entry, str):
            lines.append(re.sub(r"\s*\n\s*", " ", entry).strip())
        else:
            raise UsageError(
                f"{shown_path(file)}: the group {name} has {shown(entry)}; write a requirement or {{include-group = ...}}"
            )
    return lines


def _files_of_setuptools(file: Path, setuptools: dict[str, Any], dynamic: list[str]) -> dict[str, Any]:
    """Return the requirements files that setuptools reads dynamic dependencies from: "main", and "extras" by name."""
    table_of_files = table(setuptools.get("dynamic"))
    found: dict[str, Any] = {}
    if "dependencies" in dynamic and (main := _names(table_of_files.get("dependencies"))):
        found["main"] = main
    if "optional-dependencies" in dynamic:
        optional = table(table_of_files.get("optional-dependencies"))
        found["extras"] = {str(canonicalize_name(name)): _names(value) for name, value in optional.items()}
    for name in [*found.get("main", []), *(name for names in found.get("extras", {}).values() for name in names)]:
        if not (file.parent / name).is_file():
            raise UsageError(f"{shown_path(file)}: {shown_path(name)} ([tool.setuptools.dynamic]): no such file")
    return found


def _listed(files: dict[str, Any], extra: str) -> list[str]:
    return list(files.get("extras", {}).get(str(canonicalize_name(extra)), []))


def _names(value: Any) -> list[str]:
    named = table(value).get("file")
    return [named] if isinstance(named, str) else [name for name in named or [] if isinstance(name, str)]
