"""The register: of each clause, what judges it, what makes it fail, and in which releases it fails."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import contract
from harness.contract import expectations
from harness.contract.clause import Clause
from harness.contract.expectations import Expectation
from harness.contract.releases import RELEASES, Release
from harness.paths import PACKAGE, SUITES

#: Clause id -> faults put into upstream under which its checks fail; written by `write`, judged in tests/.
PROOFS = PACKAGE / "contract" / "proofs.json"
PAGE = SUITES / "CONTRACT.md"


@dataclass(frozen=True)
class Entry:
    """A clause and what is known of it.

    judged_by: tests of suites/ ("test_frz.py::test_base_is_bit_identical"). faults: {"test", "fault"} of each fault
    that makes it fail. defects: where it fails on releases that are still supported. releases: that broke it.
    """

    clause: Clause
    judged_by: tuple[str, ...]
    faults: tuple[dict[str, str], ...]
    defects: tuple[Expectation, ...]
    releases: tuple[Release, ...]

    @property
    def proven(self) -> bool:
        """Whether anything is known to make it fail: a fault put into upstream, a known defect, or a release.

        A clause that nothing makes fail may be one that cannot fail.
        """
        return bool(self.faults or self.defects or self.releases)


def entries(proofs: dict[str, list[dict[str, str]]] | None = None) -> dict[str, Entry]:
    """Every clause's entry by id, in the contract's order. proofs: instead of those in PROOFS."""
    if proofs is None:
        proofs = json.loads(PROOFS.read_text(encoding="utf-8"))
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
    """Clause id -> the tests below `suites` that name it in a `clause` mark, read without importing them."""
    found: dict[str, list[str]] = {}
    for path in sorted(suites.glob("test_*.py")):
        for test in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(test, ast.FunctionDef):
                continue
            for id in [id for mark in test.decorator_list for id in _named(mark)]:
                found.setdefault(id, []).append(f"{path.name}::{test.name}")
    return found


def _named(mark: ast.expr) -> list[str]:
    """The clauses that a decorator names: as strings, or as a table such as *LAWS_OF_ONE_RUN or *lifecycle.CLAUSES."""
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
