"""Each mutant as a module to preload: `pytest suites/ --preload harness.mutants.preload.NAME`.

Importing harness.mutants.preload.NAME puts the mutant of that name into the process, without undoing it. Every process
that trains imports what is preloaded: the ranks that torchrun starts, and `peft-harness repro` of a failure, too.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class _Finder:
    """Find harness.mutants.preload.NAME for each mutant. No files could do it, since the names have hyphens."""

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
