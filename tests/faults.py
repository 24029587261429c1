"""Faults put into upstream for the length of a test, and the checks of suites/ run under them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.mutants.catalogue import mutants
from harness.mutants.patch import Fault, in_this_process, nothing, replace
from harness.runs.cache import Runs
from harness.verdict import Verdict

__all__ = ["each", "in_this_process", "mutant", "nothing", "proves", "replace", "verdict_of"]

#: Clauses whose check did not hold since the test in hand began; tests/conftest.py compares them with what it proves.
FAILED: set[str] = set()


def clauses_of(test: Callable[..., None]) -> tuple[str, ...]:
    """The clauses that a test of suites/ judges."""
    return tuple(id for mark in getattr(test, "pytestmark", ()) if mark.name == "clause" for id in mark.args)


def proves(*clauses: str) -> pytest.MarkDecorator:
    """Decorator: this test makes a check of each of these clauses fail. The register is made of it (tests/proofs.py)."""
    return pytest.mark.proves(*clauses)


def each(faults: dict[str, Any] | list[Any], names: str = "name") -> pytest.MarkDecorator:
    """Decorator: the test puts each of these faults into upstream, and proves the clause that the fault's check judges.

    faults: a table by name, the test gets the name; or rows, the test gets their values as `names`. The first value
    of either is the check, a test of suites/.
    """
    rows = faults.values() if isinstance(faults, dict) else faults
    marks = [proves(*clauses_of(row[0])) for row in rows]
    given = [(name,) for name in faults] if isinstance(faults, dict) else faults
    ids = list(faults) if isinstance(faults, dict) else [row[0].__name__.removeprefix("test_") for row in rows]
    return pytest.mark.parametrize(
        names, [pytest.param(*values, id=id, marks=mark) for values, id, mark in zip(given, ids, marks, strict=True)]
    )


def verdict_of(test: Callable[..., None], runs: Runs, directory: Path, **arguments: Any) -> Verdict:
    """The first verdict that a test of suites/ judges, when it is run here with these parameters.

    directory: for the test's tmp_path.
    """
    verdicts: list[Verdict] = []
    offered = {
        "train": runs.train,
        "judge": verdicts.append,
        "upstream": runs.subject,
        "runs": runs,
        "tmp_path": directory,
        "afterwards": lambda spec, call: runs.train(spec, runs.subject.in_ranks(call.__name__, afterwards=call)),
        **arguments,
    }
    test(**{name: offered[name] for name in inspect.signature(test).parameters})
    if not verdicts[0].holds:
        FAILED.update(clauses_of(test))
    return verdicts[0]


def mutant(name: str) -> Fault:
    """The fault of a mutant (harness/mutants/), given pytest's monkeypatch."""
    return mutants()[name].put
