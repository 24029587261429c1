"""Paths of the harness's own folders, and of its cache."""

import os
from collections.abc import Mapping
from pathlib import Path

#: The installed package `harness`.
PACKAGE = Path(__file__).resolve().parent
#: The folder that holds suites/ and fixtures/: the package itself in a wheel, its parent in a checkout.
ROOT = PACKAGE if (PACKAGE / "suites").is_dir() else PACKAGE.parent
SUITES = ROOT / "suites"
FIXTURES = ROOT / "fixtures"


def cache_directory() -> Path:
    """Return the directory for files that are slow to make and safe to delete.

    It is $PEFT_HARNESS_CACHE, or ~/.cache/peft-harness if that is not set.
    """
    chosen = os.environ.get("PEFT_HARNESS_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "peft-harness"


def keeping_bytecode(variables: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables for a child process that writes its bytecode.

    Containers often set PYTHONDONTWRITEBYTECODE. Each process would then compile upstream again, which takes 12 s. If it
    is set, it is dropped and the bytecode goes into the cache.
    """
    changed = dict(variables)
    if changed.pop("PYTHONDONTWRITEBYTECODE", ""):
        changed.setdefault("PYTHONPYCACHEPREFIX", str(cache_directory() / "bytecode"))
    return changed
