"""The register of mutants: a file for each chapter of the contract, and a user's own."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from harness import contract
from harness.errors import UsageError
from harness.mutants.patch import Fault, in_this_process

#: Files of this package that hold mutants, each named after a chapter of the contract. GEN is judged on every mutant.
FILES = tuple(chapter for chapter in contract.CHAPTERS if chapter != "gen")

#: Cells that are run on every mutant: what one plain run and one of ragged rows must be, and the reference's word on it.
COMMON = ("FRZ-02/plain", "LOSS-01/ragged", "GEN-01/llama/lora")


@dataclass(frozen=True)
class Mutant:
    """A fault put into upstream.

    name: what it breaks, in kebab-case. says: what upstream does instead, in a sentence. put: patches one place, given
    pytest's monkeypatch (`replace` makes one). cells: globs "CLAUSE/SCENARIO" of cases that could see it, the clause that
    it is about first; a glob of a clause alone takes all its cases. thread: where upstream had this fault.
    device: "cuda" where no CPU can show it.
    """

    name: str
    says: str
    put: Fault
    cells: tuple[str, ...]
    thread: str = ""
    device: str = "cpu"

    @property
    def chapter(self) -> str:
        """The chapter of the clause that it is about."""
        return self.cells[0].partition("-")[0]

    def apply(self) -> None:
        """Put the fault into this process, for good."""
        in_this_process(self.put)


def matches(glob: str, cell: str) -> bool:
    """Whether a glob of `Mutant.cells` names a case, "CLAUSE/SCENARIO"."""
    return fnmatchcase(cell, glob if "/" in glob else f"{glob}/*")


def mutants() -> dict[str, Mutant]:
    """Every mutant of this package by name, in the contract's order of chapters."""
    found: dict[str, Mutant] = {}
    for file in FILES:
        for mutant in importlib.import_module(f"harness.mutants.{file}").MUTANTS:
            if mutant.name in found:
                raise ValueError(f"two mutants are named {mutant.name}")
            found[mutant.name] = mutant
    return found


def load(file: Path) -> dict[str, Mutant]:
    """The mutants of a user's file. UsageError where it has none, or one that names no clause."""
    if not file.is_file():
        raise UsageError(f"--module {file}: no such file")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"--module {file}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Ranks find its functions by the module's name.
    sys.modules.setdefault(file.stem, module)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"--module {file}: cannot be imported ({type(error).__name__}: {error})") from None
    listed = list(getattr(module, "MUTANTS", ()))
    if not listed or not all(isinstance(one, Mutant) for one in listed):
        raise UsageError(f"--module {file}: needs a list MUTANTS of harness.mutants.Mutant")
    for one in listed:
        _check(one, file)
    return {one.name: one for one in listed}


def _check(mutant: Mutant, file: Path) -> None:
    known = contract.clauses()
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", mutant.name):
        raise UsageError(f"--module {file}: mutant {mutant.name!r} needs a name in kebab-case")
    for glob in mutant.cells:
        if not any(fnmatchcase(id, glob.partition("/")[0]) for id in known):
            raise UsageError(f"--module {file}: cell {glob!r} of mutant {mutant.name} names no clause of the contract")
    if not mutant.cells:
        raise UsageError(f"--module {file}: mutant {mutant.name} names no cells")


def select(available: dict[str, Mutant], globs: Sequence[str]) -> list[Mutant]:
    """The mutants that any of the globs names; all where none is given. UsageError for a glob that names none."""
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in available):
            near = ", ".join(_near(glob, available))
            raise UsageError(f"--mutant {glob!r} names no mutant{'; near it are ' + near if near else ''}")
    return [one for name, one in available.items() if not globs or any(fnmatchcase(name, glob) for glob in globs)]


def _near(name: str, names: Iterable[str]) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, names, n=3, cutoff=0.4)
