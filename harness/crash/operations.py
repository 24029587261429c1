"""File operations: what a save did to a directory, one after the other, and what each does to a tree."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from harness.crash.trees import Link, Tree

MKDIR, CREATE, WRITE, RENAME, UNLINK, RMDIR, LINK, SYNC, MEET = (
    "mkdir",
    "create",
    "write",
    "rename",
    "unlink",
    "rmdir",
    "symlink",
    "sync",
    "meet",
)


@dataclass(frozen=True)
class Operation:
    """One change of a directory.

    - kind: one of the names above. "create" makes an empty file. "sync" changes nothing: it is an fsync.
      "meet" changes nothing: it is where a rank waits for the others.
    - path: what it changes, relative to the directory; "." for the directory itself.
    - to: of a rename: the new path. Of a symlink: its target.
    - data: of a write: all that the file holds afterwards.
    """

    kind: str
    path: str
    to: str = ""
    data: bytes = b""

    def __str__(self) -> str:
        """Return the operation in words. The random part of a temporary file's name is left out."""
        if self.kind == RENAME:
            return f"rename {_shown(self.path)} to {_shown(self.to)}"
        size = f" ({len(self.data)} bytes)" if self.kind == WRITE else ""
        return f"{self.kind} {_shown(self.path)}{size}"


def _shown(path: str) -> str:
    return re.sub(r"(^|/)\.tmp\w+$", r"\1.tmp*", path)


@dataclass(frozen=True)
class Recording:
    """What a save did to a directory.

    - before: what the directory held.
    - operations: in the order in which they were made.
    """

    before: Tree
    operations: tuple[Operation, ...]

    @property
    def after(self) -> Tree:
        """What the directory held in the end."""
        return replay(self.before, self.operations)


def replay(before: Tree, operations: Iterable[Operation]) -> Tree:
    """Return a tree after operations. Those that cannot be done, such as a rename of nothing, are passed over."""
    tree = dict(before)
    for operation in operations:
        apply(tree, operation)
    return tree


def parent(path: str) -> str:
    """Return the directory of a path; "." for one at the top."""
    return path.rpartition("/")[0] or "."


def _is_folder(tree: Tree, path: str) -> bool:
    return path == "." or tree.get(path, b"") is None


def apply(tree: Tree, operation: Operation) -> bool:
    """Do an operation to a tree, in place. Return whether it could be done."""
    path = operation.path
    match operation.kind:
        case "sync" | "meet":
            return True
        case "mkdir" | "create" | "symlink":
            if path in tree or not _is_folder(tree, parent(path)):
                return False
            tree[path] = None if operation.kind == MKDIR else Link(operation.to) if operation.kind == LINK else b""
        case "write":
            if not isinstance(tree.get(path), bytes):
                return False
            tree[path] = operation.data
        case "unlink":
            if tree.get(path) is None:
                return False
            del tree[path]
        case "rmdir":
            if not _is_folder(tree, path) or any(each.startswith(f"{path}/") for each in tree):
                return False
            del tree[path]
        case "rename":
            if path not in tree or not _is_folder(tree, parent(operation.to)):
                return False
            moved = [each for each in tree if each == path or each.startswith(f"{path}/")]
            if tree[path] is None and any(each.startswith(f"{operation.to}/") for each in tree):
                return False
            tree.pop(operation.to, None)
            for each in moved:
                tree[operation.to + each.removeprefix(path)] = tree.pop(each)
    return True
