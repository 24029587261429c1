"""Locks: requirements files that make one stack again, with the hash of each file or the commit of each repository."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from packaging.utils import canonicalize_name

from harness.errors import UsageError
from harness.files import write_whole
from harness.gate.requirements import CONTENT
from harness.gate.sources import Source

#: The first line of a lock that is written beside a report. Only a file that begins with it is replaced.
MARK = "# A lock by peft-harness: as a requirements file it makes the same stack again."


@dataclass(frozen=True)
class Entry:
    """One package of a lock.

    - version: of a release; empty for a package from elsewhere.
    - url: of a package from elsewhere; empty for a release.
    - text: the entry as it is in the lock, with a line feed at its end.
    - hashes: such as "sha256:1f...".
    - content: hash of a local folder.
    """

    name: str
    version: str
    url: str
    text: str
    hashes: tuple[str, ...]
    content: str

    @property
    def identity(self) -> str:
        """What the package is: its version, or the hash or commit of what is elsewhere."""
        if self.version:
            return f"{self.name}=={self.version}"
        if self.content or self.hashes:
            return f"{self.name} @ {self.content or ' '.join(sorted(self.hashes))}"
        parts = urlsplit(self.url)
        return f"{self.name} @ {parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()}"


def entries(lock: str) -> list[Entry]:
    """Return the packages of a lock."""
    found = []
    for match in re.finditer(r"^[A-Za-z0-9](?:.*\\\n)*.*(?:\n|\Z)", lock, re.MULTILINE):
        text = match[0]
        head = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*(?:==([^\s;\\]+)|@\s+([^\s\\]+))", text)
        if head is None:
            continue
        content = re.search(re.escape(CONTENT) + r"([0-9a-f]{64})", text)
        hashes = tuple(re.findall(r"--hash=(\S+)", text))
        name = str(canonicalize_name(head[1]))
        found.append(Entry(name, head[2] or "", head[3] or "", text, hashes, content[1] if content else ""))
    return found


def built(lock: str) -> list[str]:
    """Return the packages that are built from source although they are releases."""
    return re.findall(r"^--no-binary (\S+)$", lock, re.MULTILINE)


def copied(lock: str) -> dict[str, str]:
    """Return the packages that are copied from the running environment (`harness.gate.taken_along`), with their versions."""
    return dict(re.findall(r"^# copied (\S+)==(\S+) sha256:[0-9a-f]{64}$", lock, re.MULTILINE))


def key(lock: str) -> str:
    """Return a name that is equal for locks of the same distributions, for the same Python and platform."""
    pins = "".join(f"{entry.identity}\n" for entry in sorted(entries(lock), key=lambda entry: entry.name))
    pins += "".join(f"--no-binary {name}\n" for name in sorted(built(lock)))
    pins += "".join(sorted(re.findall(r"^# copied .*\n", lock, re.MULTILINE)))
    machine = f"{platform.python_version()} {platform.machine()} {sys.platform}\n"
    return hashlib.sha256((machine + pins).encode()).hexdigest()[:16]


def completed(
    resolved: str,
    sources: Iterable[Source],
    hashes: Mapping[str, set[str]],
    build: Iterable[str],
    place: Callable[[str], str] = lambda name: "",
) -> str:
    """Return the lock from what uv resolved.

    - sources: packages that are no releases.
    - hashes: package -> the hashes that the user's requirements allow.
    - build: releases that are built from source.
    - place: returns how a message about a package begins, such as "pins.txt, line 3 (peft==1.0): ".

    Raises UsageError if no file of a release has one of the hashes that the user gave.
    """
    own = {source.name: source for source in sources}
    lines = [f"--no-binary {name}\n" for name in sorted(set(build) - own.keys())]
    for entry in entries(resolved):
        source = own.get(entry.name)
        if source is not None and source.folder:
            lines.append(f"{source}  # {CONTENT}{source.content}\n")
        elif source is not None and source.content:
            url = source.url.partition("#")[0]
            lines.append(f"{source.name}{source.extras} @ {url} \\\n    --hash=sha256:{source.content}\n")
        elif allowed := hashes.get(entry.name):
            both = [found for found in entry.hashes if found in allowed]
            if not both:
                raise UsageError(
                    f"{place(entry.name)}{entry.name}=={entry.version}: no file on the index has a hash that the "
                    "requirements give; make the hashes anew, or take them out"
                )
            head = entry.text.partition("\\")[0].strip()
            lines.append(" \\\n".join([head, *(f"    --hash={found}" for found in both)]) + "\n")
        else:
            lines.append(entry.text if entry.text.endswith("\n") else f"{entry.text}\n")
    return "".join(lines)


def write_beside(path: Path, lock: str, *taken: Path) -> Path:
    """Write a lock, and return its path: `path`, or a free name like it if the user has another file there.

    Passwords in the addresses of indexes are left out.

    - taken: names that are not free, although no file may be there yet.
    """
    free, number = path, 1
    while free in taken or (os.path.lexists(free) and not _is_ours(free)):
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    lock = re.sub(r"^(--(?:extra-)?index-url|--find-links) (\w+://)[^/\s@$]*@", r"\1 \2", lock, flags=re.MULTILINE)
    write_whole(free, f"{MARK}\n{lock}")
    return free


def _is_ours(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MARK)) == MARK.encode()
