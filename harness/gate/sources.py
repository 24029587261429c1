"""Packages that are no releases of an index: wheels, archives, folders and git repositories, as `name @ URL`.

What is asked for is installed as it is, and known by its content: the hash of a file or folder, or the commit of a
repository. So two wheels of the same version are two stacks.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import hashlib
import os
import re
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from packaging.tags import sys_tags
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)

from harness.errors import UsageError
from harness.reading import parse_toml, read_text, shown

#: Files and bytes of a folder that is installed. A checkout of transformers has 8,000 files and 200 MB.
_MOST_FILES, _MOST_BYTES = 100_000, 4 * 2**30

#: Folders that are no part of a package: build outputs at the top, and what tools keep everywhere.
_TOP_OUTPUTS = ("build", "dist")
_TOOLS = (".*", "__pycache__", "*.egg-info", "node_modules", "venv")

#: What is not copied for a build, either.
_NOT_COPIED = (
    "__pycache__",
    "*.egg-info",
    "node_modules",
    "venv",
    ".venv",
    ".tox",
    ".nox",
    ".*_cache",
    ".peft-harness",
)

#: Endings of packages in one file.
ARCHIVES = (".whl", ".tar.gz", ".zip", ".tar.bz2", ".tar.xz", ".tgz")


@dataclass(frozen=True)
class Source:
    """A package from a file, a folder, a repository or an address.

    - name: of the package.
    - url: with an absolute path, as uv reads it.
    - content: sha256 of a local file or folder, empty for the rest.
    - extras: such as "[cuda]".
    - builds: whether the package's own code runs when it is installed.
    - folder: whether it is a local folder.
    """

    name: str
    url: str
    content: str = ""
    builds: bool = True
    folder: bool = False
    extras: str = ""

    def __str__(self) -> str:
        return f"{self.name}{self.extras} @ {self.url}"


def is_source(word: str) -> bool:
    """Return whether a word names a package by an address, an archive or a folder, rather than by its name."""
    if word.startswith("-") or re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[^\]]*\])?\s*@", word):
        return False
    path = re.sub(r"\[[\w\s,.-]*\]$", "", word.partition(";")[0].strip())
    return "://" in word or "/" in path or path.startswith(".") or path.lower().endswith(ARCHIVES)


def read(name: str, url: str, base: Path, where: str) -> Source:
    """Return a source, checked as far as that is possible here.

    - name: of the package; empty if only the address was given.
    - url: an address or a path.
    - base: the directory that a relative path starts from.
    - where: what messages call the place where it is written.

    Raises UsageError if there is no such file, it does not fit this machine, has another name, or is damaged.
    """
    address, _, fragment = url.partition("#")
    named = re.search(r"(?:^|&)egg=([A-Za-z0-9._-]+)", fragment)
    name = name or (named[1] if named else "")
    if address.startswith("git+"):
        if not name:
            raise UsageError(f"{where}: {shown(url)} does not say its name; write NAME @ {url}")
        return Source(_canonical(name), url)
    scheme = urlsplit(address).scheme if "://" in address else ""
    if scheme in ("http", "https"):
        file = unquote(urlsplit(address).path.rpartition("/")[2])
        found = _name_in(file, where)
        if not found and not name:
            raise UsageError(f"{where}: {shown(url)} does not say its name; write NAME @ {url}")
        return Source(_same(name, found, where, file), url, builds=not file.lower().endswith(".whl"))
    if scheme not in ("", "file"):
        raise UsageError(f"{where}: {shown(url)}: expected https://, file:// or git+https://")
    path = Path(os.path.abspath(base / _path(address, scheme, where)))
    if path.is_dir():
        return _folder(name, path, where)
    if not path.exists():
        raise UsageError(f"{where}: {path}: no such file or folder")
    if not path.is_file():
        raise UsageError(f"{where}: {path}: is no regular file; name a wheel or a folder")
    return _archive(name, path, fragment, where)


def _path(address: str, scheme: str, where: str) -> str:
    if not scheme:
        return os.path.expanduser(address)
    if urlsplit(address).netloc not in ("", "localhost"):
        raise UsageError(f"{where}: {shown(address)} names another machine; write file:///PATH")
    return url2pathname(urlsplit(address).path)


def _archive(name: str, path: Path, fragment: str, where: str) -> Source:
    found = _name_in(path.name, where)
    if not found:
        raise UsageError(f"{where}: {path}: is neither a wheel (.whl) nor a source archive (.tar.gz)")
    name = _same(name, found, where, path.name)
    content = file_hash(path, path.stat().st_mtime_ns, path.stat().st_size)
    expected = re.search(r"sha256=([0-9a-fA-F]+)", fragment)
    if expected and expected[1].lower() != content:
        raise UsageError(f"{where}: {path}: has the sha256 {content}, and {expected[1].lower()} was asked for")
    if path.suffix == ".whl":
        try:
            with zipfile.ZipFile(path) as wheel:
                inside = wheel.namelist()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise UsageError(f"{where}: {path}: is damaged ({error})") from None
        if not any(re.fullmatch(r"[^/]+\.dist-info/METADATA", entry) for entry in inside):
            raise UsageError(f"{where}: {path}: is no wheel (it has no .dist-info/METADATA)")
    return Source(name, path.as_uri(), content, builds=path.suffix != ".whl")


def _folder(name: str, path: Path, where: str) -> Source:
    project: Any = {}
    if (path / "pyproject.toml").is_file():
        file = path / "pyproject.toml"
        project = parse_toml(read_text(file), str(file)).get("project", {})
    elif not (path / "setup.py").is_file():
        raise UsageError(f"{where}: {path}: is a directory without pyproject.toml and setup.py; name a package")
    found = project.get("name") if isinstance(project, dict) else None
    if not name and not isinstance(found, str):
        raise UsageError(f"{where}: {path} does not say its name; write 'NAME @ {path.as_uri()}'")
    name = _same(name, found if isinstance(found, str) else "", where, str(path))
    return Source(name, path.as_uri(), folder_hash(path), folder=True)


def _name_in(file: str, where: str) -> str:
    """Return the package that the name of an archive names; empty if it is no archive. UsageError if it cannot be used."""
    if file.lower().endswith(".whl"):
        try:
            name, _, _, tags = parse_wheel_filename(file)
        except InvalidWheelFilename as error:
            raise UsageError(f"{where}: {shown(file)}: is not the name of a wheel ({error})") from None
        if not tags & _usable():
            raise UsageError(
                f"{where}: {file}: does not fit Python {sys.version_info[0]}.{sys.version_info[1]} on this machine"
            )
        return name
    try:
        return parse_sdist_filename(file)[0] if file.endswith((".tar.gz", ".zip")) else ""
    except InvalidSdistFilename:
        return ""


@functools.cache
def _usable() -> frozenset[Any]:
    return frozenset(sys_tags())


def _same(name: str, found: str, where: str, file: str) -> str:
    if name and found and canonicalize_name(name) != canonicalize_name(found):
        raise UsageError(f"{where}: {file}: is the package {canonicalize_name(found)}, and {name} was asked for")
    return _canonical(name or found)


def _canonical(name: str) -> str:
    return str(canonicalize_name(name))


def copied(source: Source, into: Path) -> Source:
    """Return a source that can be built without a trace in the user's folder: of a folder a copy, others as they are.

    - into: a temporary directory.
    """
    if not source.folder:
        return source
    folder = Path(url2pathname(urlsplit(source.url).path))
    outputs = {str(folder): set(_TOP_OUTPUTS)}

    def left_out(place: str, names: list[str]) -> set[str]:
        return {name for glob in _NOT_COPIED for name in fnmatch.filter(names, glob)} | outputs.get(place, set())

    target = into / f"{source.name}-{source.content[:16]}"
    # Tools that ask git for the version need .git.
    shutil.copytree(folder, target, symlinks=True, ignore=left_out)
    return dataclasses.replace(source, url=target.as_uri())


@functools.lru_cache(64)
def file_hash(path: Path, mtime: int, size: int) -> str:
    """Return the sha256 of a file, in hex. mtime and size: so that a changed file is read again."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def folder_hash(folder: Path) -> str:
    """Return a hash of the files in a folder that may be part of its package.

    Hidden files, bytecode and build outputs do not count. Raises UsageError if there are too many files.
    """
    digest, count, size = hashlib.sha256(), 0, 0
    for place, folders, files in os.walk(folder):
        top = Path(place) == folder
        folders[:] = sorted(
            name
            for name in folders
            if not any(fnmatch.fnmatch(name, glob) for glob in _TOOLS) and not (top and name in _TOP_OUTPUTS)
        )
        for name in sorted(files):
            path = Path(place, name)
            if name.startswith(".") or name.endswith(".pyc") or not path.is_file():
                continue
            found = path.stat()
            count, size = count + 1, size + found.st_size
            if count > _MOST_FILES or size > _MOST_BYTES:
                raise UsageError(f"{folder}: has too many files for a package; build a wheel and name that")
            digest.update(f"{path.relative_to(folder).as_posix()}\0{found.st_mode & 0o111}\0".encode(errors="replace"))
            digest.update(bytes.fromhex(file_hash(path, found.st_mtime_ns, found.st_size)))
    return digest.hexdigest()
