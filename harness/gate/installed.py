"""What is installed in a cached environment: recorded when it is made, and verified before it is used again.

A manifest in the environment has the size and time of every file. A file whose time has changed is compared with its hash in
the package's RECORD. Bytecode that changed is removed, since Python compiles it again; anything else that changed is damage.

uv links the files of its own cache into environments. So a file that is edited in one environment is edited there, too:
`record` finds that when the environment is made again, and names the packages that uv has to fetch anew.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import platform
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from harness.errors import UsageError
from harness.files import write_whole
from harness.gate.sources import file_hash
from harness.reading import read_text

_MANIFEST = ".peft-harness.json"
_SCHEMA = 1

#: Bytes of a manifest. One of 25,000 files has 3 MB.
_LIMIT = 64 * 2**20

#: A file that is newer than its package's metadata by more than these seconds is compared with its hash, in case that it was
#: edited in uv's cache. To unpack torch takes 15 s.
_UNPACKING = 10

#: Run by the environment's interpreter. It prints its version, and then the bytecode files that it cannot read.
_INTERPRETER = """
import marshal, platform, sys
print(platform.python_version(), flush=True)
for line in sys.stdin:
    try:
        with open(line[:-1], "rb") as file:
            file.seek(16)
            marshal.loads(file.read())
    except Exception:
        print(line, end="", flush=True)
print("end")
"""


def record(directory: Path, thorough: bool = False) -> list[str]:
    """Write the manifest of an environment. Returns the packages whose files are not those of their RECORD.

    - thorough: compare every file with its hash, which takes 10 s for torch; else new ones only.
    """
    files, links, _ = _walk(directory)
    if odd := [name for name, (size, _) in files.items() if size < 0]:
        raise UsageError(f"{odd[0]}: is no regular file")
    packages = site_packages(directory)
    recorded, damaged = _records(packages), []
    for package, entries in recorded.items():
        unpacked = (packages / package / "WHEEL").lstat().st_mtime if (packages / package / "WHEEL").is_file() else 0
        for name, (digest, size) in entries.items():
            found = files.get(name)
            whole = found is not None and (size is None or found[0] == size)
            if whole and digest and found is not None and (thorough or found[1] > (unpacked + _UNPACKING) * 1e9):
                whole = file_hash(directory / name, found[1], found[0]) == digest
            if not whole and "__pycache__" not in name:
                damaged.append(package)
                break
    known = {name for entries in recorded.values() for name, (digest, _) in entries.items() if digest}
    hashes = {name: file_hash(directory / name, *reversed(found)) for name, found in files.items() if name not in known}
    _write(directory, {"schema": _SCHEMA, "files": files, "links": links, "hashes": hashes, "bytecode": {}})
    return sorted({str(canonicalize_name(package.partition("-")[0])) for package in damaged})


def damage(directory: Path, pins: dict[str, str]) -> str:
    """Return what is wrong with an environment; empty if it can be used.

    - pins: package -> version, of what must be installed.
    """
    if directory.is_symlink() or not directory.is_dir():
        return "is no directory"
    manifest = _read(directory)
    if manifest is None:
        # Made by an earlier release, or the manifest itself is damaged: the packages' own records decide.
        try:
            packages = record(directory)
        except (OSError, ValueError, UsageError) as error:
            return f"is incomplete ({error})"
        if packages:
            return f"the files of {', '.join(packages)} are not those that were installed"
        manifest = _read(directory) or {}
    files, links, bytecode = _walk(directory)
    if links != manifest["links"]:
        name = next(iter(sorted(links.items() ^ manifest["links"].items())))[0]
        return f"{name}: the link is not as it was made"
    if files != manifest["files"]:
        if wrong := _changed(directory, files, manifest):
            return wrong
        _write(directory, manifest | {"files": files})
    lacking = _lacking(directory, pins)
    return lacking or _interpreter(directory, bytecode, manifest | {"files": files})


def versions(directory: Path) -> dict[str, str]:
    """Return package -> version, of what is installed in an environment."""
    import importlib.metadata

    found = importlib.metadata.distributions(path=[str(site_packages(directory))])
    return {str(canonicalize_name(made.metadata["Name"])): made.version for made in found if made.metadata["Name"]}


def _changed(directory: Path, files: dict[str, list[int]], manifest: dict[str, Any]) -> str:
    """Return which file is not as it was installed; empty if only times have changed."""
    before: dict[str, list[int]] = manifest["files"]
    if gone := sorted(before.keys() - files.keys()):
        return f"{gone[0]}: is gone{f', and {len(gone) - 1} more' if len(gone) > 1 else ''}"
    if new := sorted(files.keys() - before.keys()):
        return f"{new[0]}: was not installed"
    changed = [name for name in files if files[name] != before[name]]
    if other := [name for name in changed if files[name][0] != before[name][0]]:
        return f"{other[0]}: has {files[other[0]][0]:,} bytes instead of {before[other[0]][0]:,}"
    recorded = {
        name: digest for entries in _records(site_packages(directory)).values() for name, (digest, _) in entries.items()
    }
    for name in changed:
        # The RECORD itself is in the hashes, so an edited one does not vouch for an edited file.
        expected = manifest["hashes"].get(name) or recorded.get(name)
        if not expected or file_hash(directory / name, *reversed(files[name])) != expected:
            return f"{name}: has changed"
    return ""


def _lacking(directory: Path, pins: dict[str, str]) -> str:
    """Return which package of the stack has no metadata of its version."""
    there = {path.name.removesuffix(".dist-info").lower() for path in site_packages(directory).glob("*.dist-info")}
    there = {f"{canonicalize_name(name.rpartition('-')[0])}-{name.rpartition('-')[2]}" for name in there}
    return next(
        (f"lacks {name} {version}" for name, version in pins.items() if f"{name}-{version.lower()}" not in there), ""
    )


def _interpreter(directory: Path, bytecode: dict[str, list[int]], manifest: dict[str, Any]) -> str:
    """Return what is wrong with the interpreter. Bytecode that changed, or that it cannot read, is removed."""
    before: dict[str, list[int]] = manifest["bytecode"]
    new = [name for name, found in bytecode.items() if before.get(name) != found]
    for name in [name for name in new if name in before]:
        (directory / name).unlink(missing_ok=True)
        new.remove(name)
        del bytecode[name]
    python = directory / "bin" / "python"
    lines = "".join(f"{directory / name}\n" for name in new if "\n" not in name)
    variables = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    try:
        done = subprocess.run(
            [str(python), "-I", "-S", "-c", _INTERPRETER],
            input=lines, capture_output=True, text=True, errors="replace", check=False, timeout=60, env=variables,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"its interpreter does not start ({error})"
    version, *unreadable = done.stdout.splitlines() or [""]
    if version != platform.python_version():
        return f"its interpreter is Python {version or 'of no version'} instead of {platform.python_version()}"
    # Bytecode that ends the interpreter is not found one by one.
    unreadable = unreadable[:-1] if unreadable[-1:] == ["end"] else [str(directory / name) for name in new]
    for path in unreadable:
        Path(path).unlink(missing_ok=True)
        bytecode.pop(os.path.relpath(path, directory), None)
    if bytecode != before:
        _write(directory, manifest | {"bytecode": bytecode})
    return ""


# ---- files ----


def site_packages(directory: Path) -> Path:
    found = sorted(directory.glob("lib/python*/site-packages"))
    if len(found) != 1:
        raise UsageError("has no site-packages")
    return found[0]


def _walk(directory: Path) -> tuple[dict[str, list[int]], dict[str, str], dict[str, list[int]]]:
    """Return files, links and bytecode below a directory, by their paths relative to it.

    Files and bytecode have [size, time in ns], links have their target. Links are not followed.
    """
    files: dict[str, list[int]] = {}
    links: dict[str, str] = {}
    bytecode: dict[str, list[int]] = {}
    for path, entry in _entries(directory, ""):
        if entry.is_symlink():
            links[path] = os.readlink(entry.path)
            continue
        found = entry.stat(follow_symlinks=False)
        into = bytecode if "__pycache__/" in path else files
        into[path] = [found.st_size if stat.S_ISREG(found.st_mode) else -1, found.st_mtime_ns]
    files.pop(_MANIFEST, None)
    return files, links, bytecode


def _entries(directory: Path, below: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(directory / below) as found:
        for entry in found:
            path = f"{below}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(directory, f"{path}/")
            else:
                yield path, entry


def _records(packages: Path) -> dict[str, dict[str, tuple[str, int | None]]]:
    """Return directory of a package's metadata -> file -> (sha256 in hex or "", size), with paths as `_walk` has them."""
    found: dict[str, dict[str, tuple[str, int | None]]] = {}
    directory = packages.parents[2]
    below = packages.relative_to(directory).as_posix()
    for info in packages.glob("*.dist-info"):
        entries = found.setdefault(info.name, {f"{below}/{info.name}/RECORD": ("", None)})
        file = info / "RECORD"
        for row in csv.reader(read_text(file, _LIMIT).splitlines()) if file.is_file() else ():
            if len(row) != 3:
                continue
            path = os.path.normpath(f"{below}/{row[0]}")
            digest = row[1].removeprefix("sha256=") if row[1].startswith("sha256=") else ""
            size = int(row[2]) if row[2].isdigit() else None
            entries[path] = (base64.urlsafe_b64decode(f"{digest}=").hex() if digest else "", size)
    return found


def _write(directory: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest)
    write_whole(directory / _MANIFEST, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")


def _read(directory: Path) -> dict[str, Any] | None:
    """Return the manifest; None if there is none that was written by this release."""
    file = directory / _MANIFEST
    try:
        digest, _, text = read_text(file, _LIMIT).partition("\n")
        if hashlib.sha256(text.rstrip("\n").encode()).hexdigest() != digest:
            return None
        manifest = json.loads(text)
    except (UsageError, ValueError, RecursionError):
        return None
    parts = ("files", "links", "hashes", "bytecode")
    is_ours = isinstance(manifest, dict) and manifest.get("schema") == _SCHEMA
    return manifest if is_ours and all(isinstance(manifest.get(part), dict) for part in parts) else None
