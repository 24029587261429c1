"""Which links of a checkpoint's directory are followed: those of the hub's cache, from a snapshot to its blobs."""

from __future__ import annotations

import re
from pathlib import Path

from harness.files import inside, leads_out

_REPOSITORY = re.compile(r"(models|datasets|spaces)--.+")


def readable(directory: Path, name: str, where: str) -> Path:
    """Return the path of a file in a directory. Its links count as files if they lead into the blobs of the same download.

    huggingface_hub keeps models--me--mine/snapshots/REVISION/FILE as a link to models--me--mine/blobs/DIGEST. Otherwise as
    `harness.files.inside`, whose parameters and errors these are.
    """
    path = directory / name
    blobs = _blobs(directory) if path.is_symlink() and not leads_out(name) else None
    if blobs is not None and path.resolve().is_relative_to(blobs):
        return path
    return inside(directory, name, where)


def is_followed(path: Path) -> bool:
    """Return whether a path is no link, or one that `readable` follows."""
    blobs = _blobs(path.parent) if path.is_symlink() else None
    return not path.is_symlink() or (blobs is not None and path.resolve().is_relative_to(blobs))


def _blobs(directory: Path) -> Path | None:
    """Return the directory of the blobs that a snapshot's links lead to; None if the directory is in no snapshot."""
    for each in (directory.absolute(), *directory.absolute().parents):
        if each.parent.name == "snapshots" and _REPOSITORY.fullmatch(each.parent.parent.name):
            return (each.parent.parent / "blobs").resolve()
    return None
