"""What makes each clause fail, read off the marks of tests/test_faults_*.py: the data behind the register."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from harness.paths import ROOT


def collect() -> dict[str, list[dict[str, str]]]:
    """Clause id -> its faults, each {"test": what puts it into upstream, "fault": what upstream does instead}."""
    found: dict[str, list[dict[str, str]]] = {}
    for path in sorted((ROOT / "tests").glob("test_faults_*.py")):
        module = importlib.import_module(f"tests.{path.stem}")
        for name, fault, ids in _tests(module):
            for id in ids:
                found.setdefault(id, []).append({"test": f"tests/{path.name}::{name}", "fault": fault})
    return found


def _tests(module: ModuleType) -> Iterator[tuple[str, str, list[str]]]:
    """(name as pytest gives it, fault in words, clauses) of each test of a module that proves a clause."""
    for name, function in vars(module).items():
        marks = getattr(function, "pytestmark", [])
        if own := _proven(marks):
            yield name, _words(name), own
        for mark in marks:
            for case in mark.args[1] if mark.name == "parametrize" else ():
                if proven := _proven(getattr(case, "marks", ())):
                    yield f"{name}[{case.id}]", _fault(module, name, case), proven


def _proven(marks: Any) -> list[str]:
    return [id for mark in marks if mark.name == "proves" for id in mark.args]


def _fault(module: ModuleType, test: str, case: Any) -> str:
    """What the fault of a case says of itself (see `tests.faults.replace`), else the test's name in words."""
    row = getattr(module, "FAULTS", {}).get(case.id, case.values)
    for value in reversed(row):
        if isinstance(value, dict) and value and all(map(callable, value.values())):
            return f"Trainer.{' and Trainer.'.join(value)} replaced"
        if callable(value) and not value.__name__.startswith("test_"):
            return getattr(value, "fault", None) or _words(value.__qualname__.partition(".")[0])
    return _words(test)


def _words(name: str) -> str:
    """test_a_norm_logged_after_clipping_is_seen: "a norm logged after clipping"."""
    for end in ("_is_seen", "_are_seen"):
        name = name.removesuffix(end)
    return name.removeprefix("test_").replace("_", " ").strip()
