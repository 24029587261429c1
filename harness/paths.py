"""Where suites and fixtures lie: beside `harness` in a checkout, inside it in a wheel."""

import os
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE if (PACKAGE / "suites").is_dir() else PACKAGE.parent
SUITES = ROOT / "suites"
FIXTURES = ROOT / "fixtures"


def cache_directory() -> Path:
    """Directory for things that are slow to make and safe to lose (PEFT_HARNESS_CACHE, else ~/.cache/peft-harness)."""
    chosen = os.environ.get("PEFT_HARNESS_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "peft-harness"


def keeping_bytecode(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment variables, with bytecode kept in the cache where Python is told to keep none, as in containers.

    Without it each process compiles upstream again, which takes 12 s.
    """
    kept = dict(variables)
    if kept.pop("PYTHONDONTWRITEBYTECODE", ""):
        kept.setdefault("PYTHONPYCACHEPREFIX", str(cache_directory() / "bytecode"))
    return kept
