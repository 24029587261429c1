"""[tool.uv] of a pyproject.toml: where its packages come from, and what limits their versions."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from harness.errors import UsageError
from harness.gate.asked import Asked, Index
from harness.gate.formats.common import Chosen, git_address, marker_applies, table, tables, texts, toml
from harness.reading import read_text, shown, shown_path

#: Folders above a project in which its workspace is looked for.
_LEVELS = 4


@dataclass
class Settings:
    """Where the packages of a pyproject.toml come from.

    - file: the pyproject.toml.
    - sources: [tool.uv.sources] with canonical names.
    - found: what is gathered; packages of a named index go into its `pinned`.
    """

    file: Path
    sources: dict[str, list[dict[str, Any]]]
    found: Asked

    def with_source(self, line: str, where: str, chosen: Chosen, own: Any) -> Iterator[str]:
        """Yield a requirement as it is to be read: with the address that [tool.uv.sources] gives it, if it gives one.

        - where: what messages call the line.
        - chosen: the extras and groups that are asked for; a source may be for one of them only.
        - own: the project's name. A requirement of the project itself is left out.
        """
        try:
            parsed = Requirement(line)
        except InvalidRequirement:
            yield line  # the reader of lines says what is wrong
            return
        name = canonicalize_name(parsed.name)
        if isinstance(own, str) and name == canonicalize_name(own):
            return
        source = self._source(name, where, chosen)
        address = self._address(name, source, where) if source else ""
        if not address:
            yield line
            return
        extras = f"[{','.join(sorted(parsed.extras))}]" if parsed.extras else ""
        yield f"{parsed.name}{extras} @ {address}" + (f" ; {parsed.marker}" if parsed.marker else "")

    def _source(self, name: str, where: str, chosen: Chosen) -> dict[str, Any]:
        for source in self.sources.get(name, []):
            for_extra, for_group = source.get("extra"), source.get("group")
            wanted = (for_extra is None or for_extra in chosen.extras) and (
                for_group is None or for_group in chosen.groups
            )
            if wanted and marker_applies(source.get("marker"), f"{where}, [tool.uv.sources] {name}"):
                return source
        return {}

    def _address(self, name: str, source: dict[str, Any], where: str) -> str:
        """Return the address of a source; "" if it is a release of an index."""
        where = f"{where}, [tool.uv.sources] {name}"
        if isinstance(source.get("git"), str):
            commit = next((str(source[key]) for key in ("rev", "tag", "branch") if source.get(key)), "")
            return git_address(source["git"], commit, source.get("subdirectory"))
        if isinstance(source.get("url"), str):
            folder = source.get("subdirectory")
            return str(source["url"]) + (f"#subdirectory={folder}" if folder else "")
        if isinstance(source.get("path"), str):
            return Path(os.path.abspath(self.file.parent / str(source["path"]))).as_uri()
        if source.get("workspace"):
            return _member(self.file, name, where).absolute().as_uri()
        if isinstance(source.get("index"), str):
            index = next((one for one in self.found.indexes if one.name == source["index"]), None)
            if index is None:
                raise UsageError(f"{where}: there is no [[tool.uv.index]] with the name {shown(source['index'])}")
            self.found.pinned[name] = index.url
            return ""
        raise UsageError(f"{where}: expected git, url, path, index or workspace")


def read(file: Path, uv: dict[str, Any], found: Asked) -> Settings:
    """Add what [tool.uv] says about indexes and versions, and return where its packages come from."""
    for entry in tables(uv.get("index")):
        if isinstance(entry.get("url"), str):
            name, url = str(entry.get("name", "")), _index_address(file, entry["url"])
            found.indexes.append(Index(name, url, bool(entry.get("default")), bool(entry.get("explicit"))))
    if isinstance(uv.get("index-url"), str):
        found.indexes.append(Index("", uv["index-url"], default=True))
    found.indexes += [Index("", url) for url in texts(file, uv.get("extra-index-url"), "[tool.uv] extra-index-url")]
    for link in texts(file, uv.get("find-links"), "[tool.uv] find-links"):
        found.options.append(f"--find-links {_index_address(file, link)}")
    if uv.get("no-index") is True:
        found.options.append("--no-index")
    if uv.get("prerelease") == "allow":
        found.prereleases = True
    for line in texts(file, uv.get("constraint-dependencies"), "[tool.uv] constraint-dependencies"):
        found.add(line, file.parent, f"{shown_path(file)}, constraint-dependencies", constraints=True)
    found.overrides += texts(file, uv.get("override-dependencies"), "[tool.uv] override-dependencies")
    sources = {
        str(canonicalize_name(name)): tables(value if isinstance(value, list) else [value])
        for name, value in table(uv.get("sources")).items()
    }
    return Settings(file, sources, found)


def _index_address(file: Path, url: str) -> str:
    return url if "://" in url else os.path.abspath(file.parent / url)


def _member(file: Path, name: str, where: str) -> Path:
    """Return the folder of a member of the workspace that a project belongs to."""
    for root in [file.absolute().parent, *file.absolute().parents[1 : _LEVELS + 1]]:
        if not (root / "pyproject.toml").is_file():
            continue
        data = toml(root / "pyproject.toml", read_text(root / "pyproject.toml"))
        workspace = table(table(table(data.get("tool")).get("uv")).get("workspace"))
        for pattern in texts(root / "pyproject.toml", workspace.get("members"), "[tool.uv.workspace] members"):
            for folder in sorted(glob.glob(os.path.join(glob.escape(str(root)), pattern))):
                project = Path(folder, "pyproject.toml")
                if project.is_file():
                    own = table(toml(project, read_text(project)).get("project")).get("name")
                    if isinstance(own, str) and canonicalize_name(own) == name:
                        return Path(folder)
    raise UsageError(f'{where}: no member of the workspace has this name; write path = "FOLDER" instead')
