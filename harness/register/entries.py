"""The entries of the register: what judges a clause, what makes it fail, and in which releases it fails."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import contract
from harness.contract import expectations
from harness.contract.clause import Clause
from harness.contract.expectations import Expectation
from harness.contract.releases import RELEASES, Release
from harness.errors import UsageError
from harness.paths import PACKAGE, SUITES
from harness.reading import read_json

#: The faults under which each clause's checks fail, by clause id. `harness.register.write` writes it from tests/.
PROOFS = PACKAGE / "contract" / "proofs.json"
#: The register as a page.
PAGE = SUITES / "CONTRACT.md"


@dataclass(frozen=True)
class Entry:
    """A clause with its tests and with what makes it fail.

    - judged_by: the tests of suites/ that judge it, such as "test_frz.py::test_base_is_bit_identical".
    - faults: the faults put into upstream that make it fail, each {"test": its test in tests/, "fault": a sentence}.
    - defects: the known defects of supported releases on which it fails.
    - releases: the past releases that broke it.
    """

    clause: Clause
    judged_by: tuple[str, ...]
    faults: tuple[dict[str, str], ...]
    defects: tuple[Expectation, ...]
    releases: tuple[Release, ...]

    @property
    def proven(self) -> bool:
        """Whether a fault, a known defect or a past release makes the clause fail.

        Without such a proof, the clause might hold whatever upstream does.
        """
        return bool(self.faults or self.defects or self.releases)


def entries(proofs: dict[str, list[dict[str, str]]] | None = None) -> dict[str, Entry]:
    """Return every clause's entry by clause id, in the contract's order.

    proofs: the faults by clause id; by default those in PROOFS.
    """
    if proofs is None:
        proofs = read_json(PROOFS)
        if not isinstance(proofs, dict) or not all(isinstance(faults, list) for faults in proofs.values()):
            raise UsageError(f"{PROOFS}: is no table of faults; install peft-harness again")
    tests = judged_by(SUITES)
    defects = expectations.load(SUITES / "expectations")
    return {
        id: Entry(
            clause,
            tuple(tests.get(id, ())),
            tuple(proofs.get(id, ())),
            tuple(one for one in defects if one.clause == id),
            tuple(one for one in RELEASES if one.clause == id),
        )
        for id, clause in contract.clauses().items()
    }


def judged_by(suites: Path) -> dict[str, list[str]]:
    """Return the tests of a folder by the clause that they name in a `clause` mark. Reads them without importing."""
    found: dict[str, list[str]] = {}
    for path in sorted(suites.glob("test_*.py")):
        for test in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(test, ast.FunctionDef):
                continue
            for id in [id for mark in test.decorator_list for id in _named(mark)]:
                found.setdefault(id, []).append(f"{path.name}::{test.name}")
    return found


def _named(mark: ast.expr) -> list[str]:
    """Return the clauses that a decorator names.

    It names them as strings, or as one of the tables below with a star.
    """
    if not (isinstance(mark, ast.Call) and isinstance(mark.func, ast.Attribute) and mark.func.attr == "clause"):
        return []
    from harness.laws import universal
    from harness.runs import lifecycle

    tables: dict[str, Iterable[str]] = {
        "LAWS_OF_ONE_RUN": universal.LAWS_OF_ONE_RUN,
        "LAWS_OF_SEVERAL_RUNS": universal.LAWS_OF_SEVERAL_RUNS,
        "lifecycle.CLAUSES": lifecycle.CLAUSES,
    }
    return [
        id
        for argument in mark.args
        for id in (
            [str(argument.value)] if isinstance(argument, ast.Constant) else tables[ast.unparse(argument).lstrip("*")]
        )
    ]
