"""Faults put into upstream for the length of a test, and the checks of suites/ run under them."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.models import load_object
from harness.runs import Runs
from harness.verdict import Verdict

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
        **arguments,
    }
    test(**{name: offered[name] for name in inspect.signature(test).parameters})
    if not verdicts[0].holds:
        FAILED.update(clauses_of(test))
    return verdicts[0]


def nothing(*args: Any, **kwargs: Any) -> None:
    """In place of a function that upstream calls for its effect."""


def replace(owner: str, name: str, fault: Callable[..., Any]) -> Callable[[Any], None]:
    """Puts `fault` in place of a function, given pytest's monkeypatch.

    owner: "module", or "module:class" for a method. fault: called with the original first, then with its arguments; one
    for the ranks of a run is a function of a module, by which name they find it.
    """

    put: Any = functools.partial(_put, owner, name, fault)
    put.__name__ = f"replace_{name}"
    where = f"{owner.partition(':')[2] or owner}.{name}"
    how = "" if "<" in fault.__name__ else f": {fault.__name__.replace('_', ' ').strip()}"
    put.fault = f"{where} does nothing" if fault is nothing else f"{where} replaced{how}"
    return put


def _put(owner: str, name: str, fault: Callable[..., Any], monkeypatch: Any) -> None:
    target = load_object(owner) if ":" in owner else importlib.import_module(owner)
    original = getattr(target, name)
    function = functools.wraps(original)(lambda *args, **kwargs: fault(original, *args, **kwargs))
    bound = isinstance(inspect.getattr_static(target, name), classmethod)
    monkeypatch.setattr(target, name, staticmethod(function) if bound else function)


def in_this_process(put: Callable[[Any], None]) -> None:
    """Put a fault of `replace` into this process for good: what each rank of a run in several processes does."""
    put(pytest.MonkeyPatch())
