"""Faults put into upstream for one test, and the checks of suites/ that must fail under them.

Each tests/test_faults_*.py has a table of faults. A row (`Row`) holds, in this order:

- the check: a test of suites/,
- its parameters; a RunSpec given as `trace` is trained first, under the fault,
- the fault,
- words that the verdict must contain, so that it names what the fault did.

`each` makes one test case of each row and records which clause the row proves. The case calls `assert_seen`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.mutants import patch
from harness.mutants.catalogue import mutants
from harness.mutants.patch import Patch, in_this_process, nothing
from harness.runs.cache import Runs
from harness.spec import RunSpec
from harness.verdict import Verdict

__all__ = [
    "Fault",
    "assert_fails",
    "assert_holds",
    "assert_seen",
    "each",
    "in_this_process",
    "mutant",
    "nothing",
    "proves",
    "replace",
    "verdict_of",
]

#: Clauses whose check has failed in the current test. tests/conftest.py compares them with the test's `proves` mark.
FAILED: set[str] = set()


@dataclass(frozen=True)
class Fault:
    """A fault of upstream.

    - says: what upstream does instead, in one sentence. suites/CONTRACT.md publishes it. "" for a change that mends.
    - put: puts it into upstream, given pytest's monkeypatch.
    """

    says: str
    put: Patch

    def __call__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.put(monkeypatch)


Check = Callable[..., None]
Row = tuple[Check, dict[str, Any], Fault, str]


def mutant(name: str) -> Fault:
    """Return the fault of a mutant (harness/mutants/)."""
    found = mutants()[name]
    return Fault(found.says, found.put)


def replace(owner: str, name: str, function: Callable[..., Any], says: str = "") -> Fault:
    """Return a fault that calls `function` in place of a function of upstream.

    - owner, name, function: as for `harness.mutants.patch.replace`.
    - says: the fault's sentence; by default the docstring of `function`.
    """
    own = "" if function is nothing else inspect.getdoc(function) or ""
    return Fault(says or own, patch.replace(owner, name, function))


def clauses_of(test: Check) -> tuple[str, ...]:
    """Return the clauses that a test of suites/ judges."""
    return tuple(id for mark in getattr(test, "pytestmark", ()) if mark.name == "clause" for id in mark.args)


def proves(*clauses: str, says: str) -> pytest.MarkDecorator:
    """Decorate a test that makes a check of each of these clauses fail.

    - says: what the fault makes upstream do, in one sentence. tests/proofs.py collects it for the register.

    Raises ValueError if `says` is no sentence.
    """
    if not says.endswith(".") or "\n" in says:
        raise ValueError(f"the fault that proves {', '.join(clauses)} needs one sentence that says it, not {says!r}")
    return pytest.mark.proves(*clauses, says=says)


def each(faults: dict[str, Row] | list[Row]) -> pytest.MarkDecorator:
    """Decorate a test that runs once for each row, and proves the clauses that the row's check judges.

    - faults: a table by name: the test gets `name`. Or a list of rows: the test gets `row`, and the check names the case.
    """
    if isinstance(faults, dict):
        argument, ids, rows = "name", list(faults), list(faults.values())
        values: list[Any] = list(faults)
    else:
        argument, values, rows = "row", faults, faults
        ids = [row[0].__name__.removeprefix("test_") for row in rows]
    marks = [proves(*clauses_of(row[0]), says=row[2].says) for row in rows]
    return pytest.mark.parametrize(
        argument, [pytest.param(value, id=id, marks=mark) for value, id, mark in zip(values, ids, marks, strict=True)]
    )


def verdict_of(test: Check, runs: Runs, directory: Path, /, **arguments: Any) -> Verdict:
    """Run a test of suites/ and return the first verdict that it judges.

    - runs: the training runs that the test may ask for.
    - directory: the test gets it as tmp_path. It is created if it does not exist.
    - arguments: the test's parameters, and fixtures that replace those given here. Names that the test does not take
      are ignored. A RunSpec given as `trace` is trained first.
    """
    directory.mkdir(parents=True, exist_ok=True)
    verdicts: list[Verdict] = []
    offered = {
        "train": runs.train,
        "judge": verdicts.append,
        "upstream": runs.subject,
        "loads_nf4": runs.subject,
        "supported": lambda *args, **options: None,
        "runs": runs,
        "tmp_path": directory,
        "afterwards": lambda spec, call: runs.train(spec, runs.subject.in_ranks(call.__name__, afterwards=call)),  # type: ignore[attr-defined]
        **arguments,
    }
    if isinstance(offered.get("trace"), RunSpec):
        offered["trace"] = runs.train(offered["trace"])
    test(**{name: offered[name] for name in inspect.signature(test).parameters})
    if not verdicts[0].holds:
        FAILED.update(clauses_of(test))
    return verdicts[0]


def assert_fails(test: Check, words: str, runs: Runs, directory: Path, /, **arguments: Any) -> None:
    """Require that a check of suites/ fails and that what it saw contains `words`. Parameters as in `verdict_of`."""
    __tracebackhide__ = True
    verdict = verdict_of(test, runs, directory, **arguments)
    assert not verdict.holds, f"{test.__name__} holds under the fault"
    seen = "\n".join(verdict.seen)
    assert words in seen, f"{words!r} is not in what was seen:\n{seen}"


def assert_seen(row: Row, runs: Runs, directory: Path, monkeypatch: pytest.MonkeyPatch, **offered: Any) -> None:
    """Put the fault of a row into upstream, and require that its check fails and names what the fault did.

    - directory: the test's tmp_path. The check gets a new directory in it.
    - offered: fixtures that the check may take, besides those of `verdict_of`.
    """
    __tracebackhide__ = True
    test, parameters, fault, words = row
    fault(monkeypatch)
    assert_fails(test, words, runs, directory / "test", **{"monkeypatch": monkeypatch, **offered, **parameters})


def assert_holds(
    row: tuple[Check, dict[str, Any], Fault],
    runs: Runs,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    **offered: Any,
) -> None:
    """Mend a known defect of upstream, and require that its check holds. A row has no words; else as `assert_seen`."""
    __tracebackhide__ = True
    test, parameters, mend = row
    mend(monkeypatch)
    verdict = verdict_of(test, runs, directory / "test", **{"monkeypatch": monkeypatch, **offered, **parameters})
    assert verdict.holds, verdict.seen
