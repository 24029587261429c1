"""Where suites and fixtures lie: beside `harness` in a checkout, inside it in a wheel."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
BUNDLE = PACKAGE / "bundled"
ROOT = BUNDLE if BUNDLE.is_dir() else PACKAGE.parent
SUITES = ROOT / "suites"
FIXTURES = ROOT / "fixtures"


def make_importable() -> None:
    """Let `import fixtures` and `import suites` find ours, in this process only.

    A wheel must not put packages of such common names into site-packages, where they would shadow others.
    """
    root = str(ROOT)
    if root not in sys.path:
        sys.path.insert(0, root)


def cache_directory() -> Path:
    """Directory for things that are slow to make and safe to lose (PEFT_HARNESS_CACHE, else ~/.cache/peft-harness)."""
    chosen = os.environ.get("PEFT_HARNESS_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "peft-harness"


def keeping_bytecode(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment variables, but bytecode is kept in the cache where Python is told to keep none, as in many containers.

    Each process would otherwise compile upstream anew (12 s).
    """
    kept = dict(variables)
    if kept.pop("PYTHONDONTWRITEBYTECODE", ""):
        kept.setdefault("PYTHONPYCACHEPREFIX", str(cache_directory() / "bytecode"))
    return kept
