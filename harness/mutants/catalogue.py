"""The list of mutants: a file for each chapter of the contract, or a user's own file."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from harness import contract
from harness.errors import UsageError
from harness.mutants.patch import Patch, in_this_process
from harness.user_code import guarded, quoted

#: Files of this package that hold mutants, each named after a chapter of the contract. GEN has no file: its cells are
#: run on every mutant (COMMON).
FILES = tuple(chapter for chapter in contract.CHAPTERS if chapter != "gen")

#: Cells that are run on every mutant: one plain run, one on rows of unequal lengths, and one compared with the reference.
COMMON = ("FRZ-02/plain", "LOSS-01/ragged", "GEN-01/llama/lora")


@dataclass(frozen=True)
class Mutant:
    """A fault that is put into upstream.

    - name: what it breaks, in kebab-case.
    - says: what upstream does instead, in one sentence. It is published: in the matrix and in suites/CONTRACT.md.
    - put: patches one place of upstream, given pytest's monkeypatch. `replace` makes one.
    - cells: globs "CLAUSE/SCENARIO" of the cases that could see it. The first names the clause that it is about. A glob
      without a scenario takes all cases of its clause.
    - thread: the issue or pull request in which upstream had this fault, "" if there is none.
    - device: "cuda" if no CPU can show it.
    """

    name: str
    says: str
    put: Patch
    cells: tuple[str, ...]
    thread: str = ""
    device: str = "cpu"

    @property
    def chapter(self) -> str:
        """The chapter of the clause that it is about."""
        return self.cells[0].partition("-")[0]

    def apply(self) -> None:
        """Put the fault into this process, without undoing it."""
        in_this_process(self.put)


def matches(glob: str, cell: str) -> bool:
    """Return whether a glob of `Mutant.cells` names a case, "CLAUSE/SCENARIO"."""
    return fnmatchcase(cell, glob if "/" in glob else f"{glob}/*")


def mutants() -> dict[str, Mutant]:
    """Return the mutants of this package by name, in the contract's order of chapters.

    Raises ValueError if two have one name.
    """
    found: dict[str, Mutant] = {}
    for file in FILES:
        for mutant in importlib.import_module(f"harness.mutants.{file}").MUTANTS:
            if mutant.name in found:
                raise ValueError(f"two mutants are named {mutant.name}")
            found[mutant.name] = mutant
    return found


class _Loader(importlib.machinery.SourceFileLoader):
    """Imports a file of the user's, and writes no bytecode beside it."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        pass


def load(file: Path) -> dict[str, Mutant]:
    """Return the mutants of a user's file by name.

    Raises UsageError if the file cannot be imported, has no list MUTANTS, or has a mutant that is not well-formed.
    """
    if not file.is_file():
        raise UsageError(f"--module {file}: {'is a directory; name a file' if file.is_dir() else 'no such file'}")
    loader = _Loader(file.stem, str(file)) if file.suffix == ".py" else None
    spec = importlib.util.spec_from_file_location(file.stem, file, loader=loader)
    if spec is None or spec.loader is None:
        raise UsageError(f"--module {file}: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Ranks find its functions by the module's name.
    sys.modules.setdefault(file.stem, module)
    with guarded(f"--module {file}: cannot be imported"):
        spec.loader.exec_module(module)
    found = getattr(module, "MUTANTS", ())
    found = list(found) if isinstance(found, (list, tuple)) else []
    if not found or not all(isinstance(mutant, Mutant) for mutant in found):
        raise UsageError(f"--module {file}: needs a list MUTANTS of harness.mutants.Mutant")
    for mutant in found:
        _check(mutant, file)
        if [other.name for other in found].count(mutant.name) > 1:
            raise UsageError(f"--module {file}: two mutants are named {mutant.name}")
    return {mutant.name: mutant for mutant in found}


def _check(mutant: Mutant, file: Path) -> None:
    """Raise UsageError if a user's mutant has no proper name, no cells, or a cell that names no clause."""
    clauses = contract.clauses()
    for name, value in (("name", mutant.name), ("says", mutant.says), ("thread", mutant.thread)):
        if not isinstance(value, str):
            raise UsageError(f"--module {file}: {name} of a mutant is {quoted(value)}; expected a text")
    if not (isinstance(mutant.cells, (list, tuple)) and all(isinstance(cell, str) for cell in mutant.cells)):
        raise UsageError(f"--module {file}: cells of mutant {mutant.name} are {quoted(mutant.cells)}; expected texts")
    if not callable(mutant.put) or mutant.device not in ("cpu", "cuda"):
        raise UsageError(f"--module {file}: mutant {mutant.name} needs a function `put`, and the device cpu or cuda")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", mutant.name):
        raise UsageError(f"--module {file}: mutant {mutant.name!r} needs a name in kebab-case")
    for glob in mutant.cells:
        if not any(fnmatchcase(id, glob.partition("/")[0]) for id in clauses):
            raise UsageError(f"--module {file}: cell {glob!r} of mutant {mutant.name} names no clause of the contract")
    if not mutant.cells:
        raise UsageError(f"--module {file}: mutant {mutant.name} names no cells")


def select(available: dict[str, Mutant], globs: Sequence[str]) -> list[Mutant]:
    """Return the mutants whose names match any of the globs, or all mutants if there is no glob.

    Raises UsageError for a glob that matches none.
    """
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in available):
            similar = ", ".join(_similar(glob, available))
            raise UsageError(f"--mutant {glob!r} names no mutant{'; near it are ' + similar if similar else ''}")
    return [mutant for name, mutant in available.items() if not globs or any(fnmatchcase(name, glob) for glob in globs)]


def _similar(name: str, names: Iterable[str]) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, names, n=3, cutoff=0.4)
