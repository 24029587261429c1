"""uv.lock: the packages that the project needs here, found by walking from the project along its dependencies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from packaging.utils import canonicalize_name

from harness.errors import UsageError
from harness.gate.asked import Asked
from harness.gate.formats.common import (
    Chosen,
    check_choice,
    check_python,
    git_address,
    line_of,
    marker_applies,
    no_choice,
    table,
    tables,
    toml,
)
from harness.gate.formats.pip_file import Include
from harness.reading import shown_path

#: Indexes that stand for "the default one": a mirror of PyPI has the same files.
_PYPI = ("pypi.org", "files.pythonhosted.org")

Package = dict[str, Any]


def read(file: Path, text: str, chosen: Chosen, found: Asked, include: Include) -> None:
    """Add the packages of a uv.lock that are needed here, each at its version and with its hashes.

    Without a project in it, all packages count. Parameters as for `harness.gate.requirements._Reader`.
    """
    data = toml(file, text)
    check_python(file, data.get("requires-python"), "requires-python")
    packages = [one for one in tables(data.get("package")) if isinstance(one.get("name"), str)]
    if not packages:
        raise UsageError(f"{shown_path(file)}: has no packages; make it anew: uv lock")
    roots = _roots(data, packages)
    extras = [name for root in roots for name in table(root.get("optional-dependencies"))]
    groups = [name for root in roots for name in table(root.get("dev-dependencies"))]
    if not roots:
        no_choice(file, chosen)
    check_choice(file, "extra", chosen.extras, extras)
    check_choice(file, "group", chosen.groups, groups)
    walk = _Walk(file, packages, _conflicts(chosen))
    needed = walk.needed(roots, chosen) if roots else [one for one in packages if walk.is_for_here(one)]
    seen: dict[str, str] = {}
    for package in needed:
        if any(package is root for root in roots):
            continue
        name, version = str(canonicalize_name(package["name"])), str(package.get("version", ""))
        where = f"{shown_path(file)}{_place(text, package)}"
        if seen.setdefault(name, version) != version:
            raise UsageError(f"{where}: {name} {version} and {seen[name]} both apply here; make the lock anew: uv lock")
        _add(package, name, version, file, where, found)


def _roots(data: dict[str, Any], packages: list[Package]) -> list[Package]:
    """Return the project of the lock's own folder; the members of the workspace if there is none."""
    own = [one for one in packages if "." in (table(one.get("source")).get(key) for key in ("editable", "virtual"))]
    members = table(data.get("manifest")).get("members")
    return own or [one for one in packages if one["name"] in (members if isinstance(members, list) else [])]


def _conflicts(chosen: Chosen) -> set[str]:
    """Return the ends of the names by which uv's markers refer to the chosen extras and groups."""
    return {f"extra-{name}" for name in chosen.extras} | {f"group-{name}" for name in chosen.groups}


class _Walk:
    """Finds packages along dependencies whose markers apply here."""

    def __init__(self, file: Path, packages: list[Package], chosen: set[str]) -> None:
        self.file, self.chosen = file, chosen
        self.by_name: dict[str, list[Package]] = {}
        for package in packages:
            self.by_name.setdefault(package["name"], []).append(package)

    def needed(self, roots: list[Package], chosen: Chosen) -> list[Package]:
        """Return the packages that the roots need, with their extras and groups that were chosen."""
        queue: list[tuple[Package, str]] = [(root, "") for root in roots]
        queue += [(root, extra) for root in roots for extra in chosen.extras]
        for root in roots:
            groups = table(root.get("dev-dependencies"))
            for edge in (edge for group in chosen.groups for edge in tables(_by_name(groups, group))):
                queue += self._ends(edge)
        found: list[Package] = []
        done: set[tuple[int, str]] = set()
        while queue:
            package, extra = queue.pop(0)
            if (id(package), extra) in done:
                continue
            done.add((id(package), extra))
            if not any(package is other for other in found):
                found.append(package)
            edges = (
                _by_name(table(package.get("optional-dependencies")), extra) if extra else package.get("dependencies")
            )
            for edge in tables(edges):
                queue += self._ends(edge)
        return found

    def _ends(self, edge: dict[str, Any]) -> list[tuple[Package, str]]:
        """Return where a dependency leads: (package, extra) for the package itself and for each extra of it."""
        if not self._true(edge.get("marker")):
            return []
        named = self.by_name.get(str(edge.get("name")), [])
        fitting = [
            one for one in named if all(one.get(key) == edge[key] for key in ("version", "source") if key in edge)
        ]
        if len(fitting) > 1:
            fitting = [one for one in fitting if self.is_for_here(one)]
        extras = edge.get("extra") if isinstance(edge.get("extra"), list) else []
        return [(one, str(extra)) for one in fitting for extra in ("", *(extras or []))]

    def is_for_here(self, package: Package) -> bool:
        """Return whether one of the package's resolution-markers is true here."""
        markers = package.get("resolution-markers")
        return not isinstance(markers, list) or any(self._true(marker) for marker in markers)

    def _true(self, marker: Any) -> bool:
        """Return whether a marker is true. Where extras conflict, uv writes them into markers as `extra-5-train-cpu`."""

        def replaced(match: re.Match[str]) -> str:
            named = match[2].split("-", 2)
            end = f"{named[0]}-{named[2]}" if len(named) == 3 else ""
            chosen = any(
                end.startswith(one.split("-")[0]) and end.endswith(one.partition("-")[2]) for one in self.chosen
            )
            return "python_version > '0'" if chosen == (match[1] == "==") else "python_version < '0'"

        if isinstance(marker, str):
            marker = re.sub(r"extra\s*(==|!=)\s*'((?:extra|group|project)-\d+-[^']*)'", replaced, marker)
        return marker_applies(marker, shown_path(self.file))


def _by_name(values: dict[str, Any], name: str) -> Any:
    return next((value for key, value in values.items() if canonicalize_name(key) == canonicalize_name(name)), None)


def _add(package: Package, name: str, version: str, file: Path, where: str, found: Asked) -> None:
    source = table(package.get("source"))
    path = next((source[key] for key in ("path", "directory", "editable", "virtual") if key in source), None)
    if isinstance(source.get("git"), str):
        parts = urlsplit(source["git"])
        folder = re.search(r"(?:^|&)subdirectory=([^&]+)", parts.query)
        address = git_address(parts._replace(query="", fragment="").geturl(), parts.fragment, folder and folder[1])
        found.add(f"{name} @ {address}", file.parent, where)
    elif isinstance(source.get("url"), str):
        found.add(f"{name} @ {source['url']}", file.parent, where)
    elif isinstance(path, str):
        if "virtual" not in source:  # a member that is no package: only its dependencies are installed
            found.add(f"{name} @ {(file.parent / path).absolute().as_uri()}", file.parent, where)
    elif not version:
        raise UsageError(f"{where}: {name} has no version; make the lock anew: uv lock")
    else:
        files = [table(package.get("sdist")), *tables(package.get("wheels"))]
        hashes = [one["hash"] for one in files if isinstance(one.get("hash"), str)]
        found.add(f"{name}=={version}", file.parent, where, hashes=hashes)
        registry = source.get("registry")
        if isinstance(registry, str) and not (urlsplit(registry).hostname or "").endswith(_PYPI):
            local = "://" not in registry
            found.pinned[name] = str((file.parent / registry).absolute()) if local else registry


def _place(text: str, package: Package) -> str:
    name = f'name = "{package["name"]}"'
    return line_of(text, f'{name}\nversion = "{package.get("version", "")}"') or line_of(text, f"\n{name}")
