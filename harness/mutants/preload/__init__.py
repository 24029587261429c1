"""One mutant as a module to preload: `pytest suites/ --preload harness.mutants.preload.NAME`.

Importing harness.mutants.preload.NAME puts the mutant of that name into the process, so that ranks that torchrun starts
have it as well, and `peft-harness repro` of a failure does.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class _Finder:
    """Finds harness.mutants.preload.NAME for the name of each mutant; names have hyphens, files would not."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        from harness.mutants.catalogue import mutants

        parent, _, mutant = name.rpartition(".")
        if parent != __name__ or mutant not in mutants():
            return None
        return importlib.machinery.ModuleSpec(name, _Loader(), origin="harness.mutants")


class _Loader(importlib.abc.Loader):
    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        from harness.mutants.catalogue import mutants

        mutants()[module.__name__.rpartition(".")[2]].apply()


sys.meta_path.append(_Finder())
