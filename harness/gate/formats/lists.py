"""Locks that list packages with markers: poetry.lock, pdm.lock and pylock.toml (PEP 751)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from harness.errors import UsageError
from harness.gate.asked import Asked
from harness.gate.formats.common import (
    Chosen,
    check_choice,
    check_python,
    fits_python,
    git_address,
    line_of,
    marker_applies,
    table,
    tables,
    toml,
)
from harness.gate.formats.pip_file import Include
from harness.gate.formats.poetry import specifier
from harness.reading import shown, shown_path

Package = dict[str, Any]


def read_poetry(file: Path, text: str, chosen: Chosen, found: Asked, include: Include) -> None:
    """Add the packages of a poetry.lock that apply here. Parameters as for `harness.gate.requirements._Reader`."""
    data, packages = _packages(file, text, "package", "poetry lock")
    wanted = table(data.get("metadata")).get("python-versions")
    if isinstance(wanted, str):
        check_python(file, _range(wanted), "python-versions")
    extras = {str(canonicalize_name(name)): value for name, value in table(data.get("extras")).items()}
    groups = {group for package in packages for group in _names(package.get("groups"))} - {"main"}
    check_choice(file, "extra", chosen.extras, extras)
    check_choice(file, "group", chosen.groups, groups)
    optional = {
        str(canonicalize_name(str(line).split(" ")[0].split("[")[0]))
        for extra in chosen.extras
        for line in extras[str(canonicalize_name(extra))]
    }
    here = []
    for package in packages:
        groups_of = _names(package.get("groups")) or ["main"]
        used = [group for group in ("main", *chosen.groups) if group in groups_of]
        # A lock has no record of what an optional package needs in turn, but uv finds that.
        wanted_too = not package.get("optional") or canonicalize_name(package["name"]) in optional
        markers = package.get("markers")
        of_groups = [markers.get(group) for group in used] if isinstance(markers, dict) else [markers]
        where = f"{shown_path(file)}{_place(text, package)}"
        python = _range(str(package.get("python-versions", "*")))
        true = any(marker_applies(_with_extras(marker, chosen), where) for marker in of_groups)
        if used and wanted_too and fits_python(python) and true:
            here.append(package)
    here = [package for package in here if not _only_elsewhere(package, here, file)]
    for package in _one_each(file, here):
        source = table(package.get("source"))
        kind, url = source.get("type", "legacy"), source.get("url")
        commit = str(source.get("resolved_reference") or source.get("reference") or "")
        where = f"{shown_path(file)}{_place(text, package)}"
        address = None
        if isinstance(url, str) and kind == "git":
            address = git_address(url, commit, source.get("subdirectory"))
        elif isinstance(url, str) and kind != "legacy":
            address = url
        elif isinstance(url, str):
            found.pinned[str(canonicalize_name(package["name"]))] = url
        _add(package, address, file, where, found)


def read_pdm(file: Path, text: str, chosen: Chosen, found: Asked, include: Include) -> None:
    """Add the packages of a pdm.lock that apply here. An extra is one of its groups, so both are named the same way."""
    data, packages = _packages(file, text, "package", "pdm lock")
    metadata = table(data.get("metadata"))
    targets = [one["requires_python"] for one in tables(metadata.get("targets")) if "requires_python" in one]
    if targets and not any(fits_python(one) for one in targets):
        check_python(file, targets[0], "requires_python")
    groups = [*_names(metadata.get("groups")), *(name for one in packages for name in _names(one.get("groups")))]
    kind = "extra" if chosen.extras else "group"
    check_choice(file, kind, [*chosen.extras, *chosen.groups], {*groups} - {"default"})
    wanted = {"default", *chosen.extras, *chosen.groups}
    here = []
    for package in packages:
        where = f"{shown_path(file)}{_place(text, package)}"
        used = wanted & set(_names(package.get("groups")) or ["default"])
        if used and fits_python(package.get("requires_python")) and marker_applies(package.get("marker"), where):
            here.append(package)
    for package in _one_each(file, here):
        address = package.get("path") or package.get("url")
        if isinstance(package.get("git"), str):
            commit = str(package.get("revision") or package.get("ref") or "")
            address = git_address(package["git"], commit, package.get("subdirectory"))
        _add(package, address, file, f"{shown_path(file)}{_place(text, package)}", found)


def read_pylock(file: Path, text: str, chosen: Chosen, found: Asked, include: Include) -> None:
    """Add the packages of a pylock.toml (PEP 751) that apply here."""
    data, packages = _packages(file, text, "packages", "uv export --format pylock.toml")
    check_python(file, data.get("requires-python"), "requires-python")
    check_choice(file, "extra", chosen.extras, _names(data.get("extras")))
    check_choice(file, "group", chosen.groups, _names(data.get("dependency-groups")))
    # The lock's default groups are part of it, unless the user named groups.
    groups = chosen.groups or tuple(_names(data.get("default-groups")))
    environment = {"extras": set(chosen.extras), "dependency_groups": set(groups)}
    here = []
    for package in packages:
        where = f"{shown_path(file)}{_place(text, package)}"
        if fits_python(package.get("requires-python")) and marker_applies(package.get("marker"), where, environment):
            here.append(package)
    for package in _one_each(file, here):
        vcs, archive, folder = (table(package.get(key)) for key in ("vcs", "archive", "directory"))
        address = archive.get("path") or archive.get("url") or folder.get("path")
        if vcs:
            address = git_address(
                str(vcs.get("url") or vcs.get("path")), str(vcs.get("commit-id", "")), vcs.get("subdirectory")
            )
        _add(package, address, file, f"{shown_path(file)}{_place(text, package)}", found)
        index = package.get("index")
        if address is None and isinstance(index, str) and "pypi.org" not in index:
            found.pinned[str(canonicalize_name(package["name"]))] = index


def _packages(file: Path, text: str, key: str, command: str) -> tuple[dict[str, Any], list[Package]]:
    data = toml(file, text)
    packages = [one for one in tables(data.get(key)) if isinstance(one.get("name"), str)]
    if not packages:
        raise UsageError(f"{shown_path(file)}: has no packages; make it anew: {command}")
    return data, packages


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _range(text: str) -> str | None:
    """Return a range of Pythons as specifiers; None for one that has alternatives, which is not checked."""
    try:
        return specifier(text, "")
    except UsageError:
        return None


def _with_extras(marker: Any, chosen: Chosen) -> Any:
    """Put the chosen extras into a marker: Poetry writes `extra == "train"`, which more than one extra can meet."""
    if not isinstance(marker, str):
        return marker

    def replaced(match: re.Match[str]) -> str:
        true = (match[2] in chosen.extras) == (match[1] == "==")
        return "python_version > '0'" if true else "python_version < '0'"

    return re.sub(r"extra\s*(==|!=)\s*[\"']([^\"']+)[\"']", replaced, marker)


def _only_elsewhere(package: Package, packages: list[Package], file: Path) -> bool:
    """Return whether others need a package, but none of them here. Locks before Poetry 2.0 have no markers of their own."""
    if "groups" in package:
        return False
    name = canonicalize_name(package["name"])
    edges = [
        one
        for other in packages
        for key, entry in table(other.get("dependencies")).items()
        if canonicalize_name(key) == name
        for one in (entry if isinstance(entry, list) else [entry])
    ]
    markers = [table(one).get("markers") for one in edges]
    return bool(markers) and not any(marker_applies(_with_extras(one, Chosen()), shown_path(file)) for one in markers)


def _one_each(file: Path, packages: list[Package]) -> list[Package]:
    """Return one entry a package. Raises UsageError if two versions of one apply."""
    chosen: dict[str, Package] = {}
    for package in packages:
        name = str(canonicalize_name(package["name"]))
        other = chosen.setdefault(name, package)
        if other.get("version") != package.get("version"):
            versions = f"{shown(other.get('version'))} and {shown(package.get('version'))}"
            raise UsageError(
                f"{shown_path(file)}: {name} {versions} both apply here; make the lock anew for this Python"
            )
    return list(chosen.values())


def _add(package: Package, address: Any, file: Path, where: str, found: Asked) -> None:
    name, version = str(package["name"]), package.get("version")
    if isinstance(address, str):
        path = address if "://" in address else (file.parent / address).absolute().as_uri()
        found.add(f"{name} @ {path}", file.parent, where)
        return
    if not isinstance(version, str) or not version:
        raise UsageError(f"{where}: {name} has no version; make the lock anew")
    found.add(f"{name}=={version}", file.parent, where, hashes=_hashes(package))


def _hashes(package: Package) -> list[str]:
    """Return the hashes of a package's files: "hash" of Poetry and pdm, "hashes" of pylock.toml."""
    files = [*tables(package.get("files")), *tables(package.get("wheels")), table(package.get("sdist"))]
    found = [one["hash"] for one in files if isinstance(one.get("hash"), str)]
    return found + [f"{kind}:{value}" for one in files for kind, value in table(one.get("hashes")).items()]


def _place(text: str, package: Package) -> str:
    return line_of(text, f'name = "{package["name"]}"\nversion = "{package.get("version", "")}"') or line_of(
        text, f'\nname = "{package["name"]}"'
    )
