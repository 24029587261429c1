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
    return verdicts[0]


def nothing(*args: Any, **kwargs: Any) -> None:
    """In place of a function that upstream calls for its effect."""


def replace(owner: str, name: str, fault: Callable[..., Any]) -> Callable[[Any], None]:
    """Puts `fault` in place of a function, given pytest's monkeypatch.

    owner: "module", or "module:class" for a method. fault: called with the original first, then with its arguments; one
    for the ranks of a run is a function of a module, by which name they find it.
    """

    return functools.partial(_put, owner, name, fault)


def _put(owner: str, name: str, fault: Callable[..., Any], monkeypatch: Any) -> None:
    target = load_object(owner) if ":" in owner else importlib.import_module(owner)
    original = getattr(target, name)
    function = functools.wraps(original)(lambda *args, **kwargs: fault(original, *args, **kwargs))
    bound = isinstance(inspect.getattr_static(target, name), classmethod)
    monkeypatch.setattr(target, name, staticmethod(function) if bound else function)


def in_this_process(put: Callable[[Any], None]) -> None:
    """Put a fault of `replace` into this process for good: what each rank of a run in several processes does."""
    put(pytest.MonkeyPatch())
