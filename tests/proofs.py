"""Collect what makes each clause fail from the marks of tests/test_faults_*.py. The register is written from it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from harness.paths import ROOT


def collect() -> dict[str, list[dict[str, str]]]:
    """Return the faults that prove each clause, by clause id.

    A fault is {"test": the pytest node id that puts it into upstream, "fault": what upstream does instead}.
    """
    found: dict[str, list[dict[str, str]]] = {}
    for path in sorted((ROOT / "tests").glob("test_faults_*.py")):
        module = importlib.import_module(f"tests.{path.stem}")
        for test, mark in _proofs(module):
            for id in mark.args:
                found.setdefault(id, []).append({"test": f"tests/{path.name}::{test}", "fault": mark.kwargs["says"]})
    return found


def _proofs(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield the name of each test of a module as pytest prints it, with each of its `proves` marks (tests/faults.py)."""
    for name, function in vars(module).items():
        marks = getattr(function, "pytestmark", [])
        yield from ((name, mark) for mark in marks if mark.name == "proves")
        for mark in marks:
            for case in mark.args[1] if mark.name == "parametrize" else ():
                own = getattr(case, "marks", ())
                yield from ((f"{name}[{case.id}]", proof) for proof in own if proof.name == "proves")
