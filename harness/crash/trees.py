"""Trees: what a directory holds, as a value. They are compared, changed and written out again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError


@dataclass(frozen=True)
class Link:
    """A symbolic link. target: as it is written in the link."""

    target: str


#: What has a path: the bytes of a file, a symbolic link, or None for a directory.
Node = bytes | Link | None

#: Path, relative to the directory and with "/" between its parts -> what is there.
Tree = dict[str, Node]

#: Bytes of all files of a tree. Each state of a save is a tree, and there are hundreds.
LIMIT = 256 * 2**20


def read_tree(directory: Path) -> Tree:
    """Return what a directory holds. UsageError if it holds more than `LIMIT` bytes."""
    tree: Tree = {}
    left = LIMIT
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = Path(folder, name)
            where = path.relative_to(directory).as_posix()
            if path.is_symlink():
                tree[where] = Link(os.readlink(path))
            elif path.is_dir():
                tree[where] = None
            else:
                left -= path.stat().st_size
                if left < 0:
                    raise UsageError(
                        f"{directory} holds more than {LIMIT // 2**20} MiB; crash states are made of small checkpoints: "
                        "save a tiny model"
                    )
                tree[where] = path.read_bytes()
    return tree


def write_tree(tree: Mapping[str, Node], directory: Path) -> None:
    """Write a tree into a directory, which is made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    for where in sorted(tree):
        node, path = tree[where], directory / where
        if node is None:
            path.mkdir(exist_ok=True)
        elif isinstance(node, Link):
            path.symlink_to(node.target)
        else:
            path.write_bytes(node)


def below(tree: Mapping[str, Node], folder: str) -> Tree | None:
    """Return the part of a tree in one of its directories, with paths relative to that; None if it is not there."""
    if tree.get(folder, b"") is not None:
        return None
    start = f"{folder}/"
    return {where.removeprefix(start): node for where, node in tree.items() if where.startswith(start)}


def key(tree: Mapping[str, Node]) -> frozenset[tuple[str, Node]]:
    """Return a value that is equal for equal trees, to deduplicate by content."""
    return frozenset(tree.items())


def digest(tree: Mapping[str, Node]) -> str:
    """Return a name for the content of a tree: 16 hexadecimal digits."""
    total = hashlib.sha256()
    for where in sorted(tree):
        node = tree[where]
        kind = b"d" if node is None else b"l" if isinstance(node, Link) else b"f"
        body = b"" if node is None else node.target.encode() if isinstance(node, Link) else node
        total.update(b"%s%d:%s%d:" % (kind, len(where.encode()), where.encode(), len(body)))
        total.update(body)
    return total.hexdigest()[:16]
