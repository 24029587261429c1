"""What a verdict depends on in this repository: the code that a clause's tests reach, function by function.

A verdict is stored with a hash of it. From the tests of the clause on, each name is followed to the function, class or value
that it stands for, in the suites and in the modules of `_FOLLOWED`. Comments, docstrings and layout do not count. So a later
commit voids the verdicts of the clauses whose tests use what it changed, and no others.

What trains and observes (subjects/, session/, processes/), models and data are not part of it: `map --anew` judges all again.
"""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.paths import PACKAGE, SUITES
from harness.register.entries import judged_by

#: Modules, and packages of modules, in which names are followed: tests, laws, what laws compare with, and what is trained.
_FOLLOWED = (
    "harness.suites", "harness.laws", "harness.reference", "harness.tolerance", "harness.verdict", "harness.runs",
)  # fmt: skip

#: Laws that judge runs whose tests name no law, such as those of --spec.
_TABLES = (("harness.laws.universal", "LAWS_OF_ONE_RUN"), ("harness.laws.universal", "LAWS_OF_SEVERAL_RUNS"))

_CLAUSE = re.compile(r"[A-Z]+-\d+")

#: (module, name at its top level); the name is "" for all that has no name.
Piece = tuple[str, str]


@functools.cache
def sources(clause: str, tests: tuple[str, ...] = ()) -> str:
    """Return a hash of the code that a clause's tests reach.

    - tests: those that are collected, such as "suites/test_acc.py" or one with "::" and its name; empty for all.
    """
    digest = hashlib.sha256()
    for piece in sorted(reached(clause, tests)):
        digest.update(f"{' '.join(piece)}\n{_text(piece, _entry(piece, clause))}\n".encode())
    return digest.hexdigest()[:16]


def reached(clause: str, tests: Iterable[str] = ()) -> set[Piece]:
    """Return what a clause's tests reach, each as (module, name)."""
    chosen = {one.partition("[")[0] for one in tests}
    ahead: list[Piece] = []
    for test in _tests().get(clause, []):
        file, _, name = test.partition("::")
        if not chosen or chosen & {f"suites/{test}", f"suites/{file}"}:
            ahead.append((f"harness.suites.{file.removesuffix('.py')}", name))
    found: set[Piece] = set()
    for start in (ahead, _TABLES):
        ahead = list(start)
        while ahead:
            piece = ahead.pop()
            if piece not in found:
                found.add(piece)
                ahead += _used(piece, _entry(piece, clause))
        if any(module.startswith("harness.laws") for module, _ in found):
            break
    return found


@functools.cache
def _tests() -> dict[str, list[str]]:
    return judged_by(SUITES)


# ---- one module ----


@dataclass
class _Module:
    """A module's top level.

    - defined: name -> the statements that define or change it; "" -> statements with marks of all its tests.
    - imported: name -> what it stands for: (module, name), or (module, "") for a module.
    """

    defined: dict[str, list[ast.stmt]] = field(default_factory=lambda: defaultdict(list))
    imported: dict[str, list[Piece]] = field(default_factory=lambda: defaultdict(list))


@functools.cache
def _module(name: str) -> _Module:
    found = _Module()
    body = ast.parse(_path(name).read_text(encoding="utf-8"))
    for node in ast.walk(body):  # also within functions
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for one in node.names:
                inside = f"{node.module}.{one.name}"
                target = (inside, "") if _is_followed(inside) else (node.module, one.name)
                if _is_followed(target[0]):
                    found.imported[one.asname or one.name].append(target)
        elif isinstance(node, ast.Import):
            for one in node.names:
                if _is_followed(one.name):
                    found.imported[one.asname or one.name].append((one.name, ""))
    for statement in body.body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.defined[statement.name].append(statement)
        elif not isinstance(statement, (ast.Import, ast.ImportFrom)):
            for changed in _changed(statement):
                found.defined["" if changed == "pytestmark" else changed].append(statement)
    return found


def _changed(statement: ast.stmt) -> set[str]:
    """Return the names that a statement defines, or may change by a method or an index."""
    if isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Call):
        return set()  # the module's docstring
    names = {one.id for one in ast.walk(statement) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    targets = [
        one.func if isinstance(one, ast.Call) else one
        for one in ast.walk(statement)
        if (isinstance(one, ast.Call) and isinstance(statement, ast.Expr))
        or (isinstance(one, (ast.Subscript, ast.Attribute)) and isinstance(one.ctx, ast.Store))
    ]
    for target in targets:
        while isinstance(target, (ast.Attribute, ast.Subscript)):
            target = target.value
        if isinstance(target, ast.Name):
            names.add(target.id)
    return names


def _is_followed(module: str) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in _FOLLOWED) and _path(module).is_file()


def _path(module: str) -> Path:
    package, *rest = module.split(".")[1:]
    path = (SUITES if package == "suites" else PACKAGE / package).joinpath(*rest)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


# ---- one definition ----


def _entry(piece: Piece, clause: str) -> str:
    """Return the clause whose entry counts in a definition; "" if it has no table by clause, so is the same for all."""
    return clause if _has_table(piece) else ""


@functools.cache
def _has_table(piece: Piece) -> bool:
    statements = _module(piece[0]).defined.get(piece[1], ())
    return any(_is_table(node) for statement in statements for node in ast.walk(statement))


def _is_table(node: ast.AST) -> bool:
    """Return whether a node is a dict by clause."""
    return isinstance(node, ast.Dict) and bool(node.keys) and all(map(_is_clause, node.keys))


def _is_clause(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and bool(_CLAUSE.fullmatch(str(node.value)))


@functools.cache
def _used(piece: Piece, clause: str) -> tuple[Piece, ...]:
    """Return what a definition uses."""
    module, name = piece
    at = _module(module)
    found: list[Piece] = []
    if module.startswith("harness.suites") and at.defined.get(""):
        found.append((module, ""))
    for statement in at.defined.get(name, ()):
        for node in _parts(statement, clause):
            if isinstance(node, ast.Attribute):
                # Of a module, such as equal.equal_runs, or harness.laws.equal.equal_runs after `import harness.laws.equal`.
                base, _, last = ast.unparse(node).rpartition(".")
                for target, inside in at.imported.get(base, ()):
                    found += [] if inside else _of(target, last)
                continue
            # An argument of a test is a fixture.
            used = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else ""
            if used and used in at.defined:
                found.append((module, used))
            for target, inside in at.imported.get(used, ()):
                found += _of(target, inside) if inside else []
    return tuple(found)


def _of(module: str, name: str) -> list[Piece]:
    """Return what a name of a module stands for: its own definition, or one that it imports."""
    at = _module(module)
    found = [(module, name)] if name in at.defined else []
    for target, inside in at.imported.get(name, ()):
        if inside and (target, inside) != (module, name):
            found += _of(target, inside)
    return found


def _parts(node: ast.AST, clause: str) -> Iterator[ast.AST]:
    """Yield a node and all below it. Of a table by clause, only the entry of this clause."""
    yield node
    below: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.Dict) and _is_table(node):
        below = [value for key, value in zip(node.keys, node.values, strict=True) if _value(key) == clause]
    for child in below:
        yield from _parts(child, clause)


def _value(node: ast.AST | None) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


class _Normal(ast.NodeTransformer):
    """Removes docstrings, lists of clauses, and other clauses' entries of a table."""

    def __init__(self, clause: str):
        self._clause = clause

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            node.decorator_list = [one for one in node.decorator_list if not _names_clauses(one)]
            kept = [one for one in node.body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
            node.body = kept or [ast.Pass()]
        elif isinstance(node, ast.Dict) and _is_table(node):
            pairs = [
                (key, value) for key, value in zip(node.keys, node.values, strict=True) if _value(key) == self._clause
            ]
            node.keys, node.values = [key for key, _ in pairs], [value for _, value in pairs]
        elif isinstance(node, (ast.Tuple, ast.List)) and all(map(_is_clause, node.elts)):
            node.elts = []
        self.generic_visit(node)
        return node


def _names_clauses(mark: ast.expr) -> bool:
    return isinstance(mark, ast.Call) and isinstance(mark.func, ast.Attribute) and mark.func.attr == "clause"


@functools.cache
def _text(piece: Piece, clause: str) -> str:
    """Return the source of a definition without what does not change what it does."""
    statements = _module(piece[0]).defined.get(piece[1], ())
    return "\n".join(ast.unparse(_Normal(clause).visit(copy.deepcopy(one))) for one in statements)
