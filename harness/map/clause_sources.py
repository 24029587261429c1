"""What a verdict depends on in this repository: the sources of a clause's tests and laws.

A verdict is stored with a hash of them. A later commit that touches neither the tests of a clause, nor what they use of
harness/laws/ and harness/reference/, leaves its verdicts valid. What trains and observes (subjects/, runs/, processes/) is
not part of it: `map --anew` judges all again.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from harness.paths import PACKAGE, SUITES
from harness.register.entries import judged_by

#: Packages of the harness whose modules are laws, or what laws compare with.
_LAWS = ("harness.laws", "harness.reference", "harness.tolerance")

#: Tests that judge runs by a table of laws name no clause in their marks. This module is the table.
_TABLE = "harness.laws.universal"


@functools.cache
def sources(clause: str, tests: tuple[str, ...] = ()) -> str:
    """Return a hash of the sources of a clause's tests and laws.

    - tests: those that are collected, such as "suites/test_acc.py" or one with "::" and its name; empty for all.
    """
    digest = hashlib.sha256()
    modules: set[str] = set()
    for test in sorted(_tests().get(clause, [])):
        if tests and not {f"suites/{test}", f"suites/{test.partition('::')[0]}"} & set(tests):
            continue
        file, _, name = test.partition("::")
        for text, used in _parts(SUITES / file, name):
            digest.update(text.encode())
            modules |= used
    for module in sorted(_closure(modules or {_TABLE})):
        digest.update(_path(module).read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _tests() -> dict[str, list[str]]:
    return judged_by(SUITES)


def _parts(file: Path, test: str) -> list[tuple[str, set[str]]]:
    """Return (source, modules of laws) of a test and of what it uses in its file, by name, from the test on."""
    text, defined, imported = _read(file)
    lines = text.splitlines()
    ahead, found, seen = [test], [], set()
    while ahead:
        name = ahead.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in defined.get(name, ()):
            used = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
            used |= {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}  # fixtures
            first = min([node.lineno, *(mark.lineno for mark in getattr(node, "decorator_list", []))])
            source = "\n".join(lines[first - 1 : node.end_lineno])
            found.append((source, {imported[one] for one in used if one in imported}))
            ahead += sorted(used)
    return found


@functools.cache
def _read(file: Path) -> tuple[str, dict[str, list[ast.stmt]], dict[str, str]]:
    """Return a module's text, its top-level statements by the name that they define, and imported name -> module of laws."""
    text = file.read_text(encoding="utf-8")
    defined: dict[str, list[ast.stmt]] = {}
    imported: dict[str, str] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for one in node.names:
                module = next((name for name in (f"{node.module}.{one.name}", node.module) if _is_law(name)), None)
                if module:
                    imported[one.asname or one.name] = module
        elif isinstance(node, ast.Import):
            imported |= {one.asname or one.name: one.name for one in node.names if _is_law(one.name)}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.setdefault(node.name, []).append(node)
        else:
            for part in ast.walk(node):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    defined.setdefault(part.id, []).append(node)
    return text, defined, imported


def _is_law(module: str) -> bool:
    return module.startswith(_LAWS) and _path(module).is_file()


def _path(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _closure(modules: Iterable[str]) -> set[str]:
    """Return modules with all modules of laws that they import."""
    ahead, found = list(modules), set()
    while ahead:
        module = ahead.pop()
        if module not in found:
            found.add(module)
            ahead += _imports(module)
    return found


@functools.cache
def _imports(module: str) -> tuple[str, ...]:
    found = []
    for node in ast.walk(ast.parse(_path(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
            found += [name for name in names if _is_law(name)]
    return tuple(found)
