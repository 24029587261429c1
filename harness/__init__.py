"""Conformance of the PEFT Trainer path: RunSpec -> Subject -> Trace -> clause -> Verdict.

Importing this package imports neither torch nor transformers, so that the command line answers at once.
"""

from pathlib import Path as _Path
from typing import Any as _Any

#: The only place where the version is written: pyproject.toml reads it from here.
__version__ = "0.2.0"

# `harness.suites` and `harness.fixtures` have these names everywhere. In a wheel both folders are inside this package.
# In a checkout they are beside it, so the checkout's directory is searched for them too.
_here = _Path(__file__).resolve().parent
if not (_here / "suites").is_dir() and (_here.parent / "suites" / "CONTRACT.md").is_file():
    __path__ = [*__path__, str(_here.parent)]
del _Path, _here


def __getattr__(name: str) -> _Any:
    """Import `Watch` and its like when they are asked for: they need torch and transformers."""
    if name == "Watch":
        from harness.watch.callback import Watch

        return Watch
    if name == "WatchLoop":
        from harness.watch.own_loop import WatchLoop

        return WatchLoop
    if name == "Violation":
        from harness.watch.acting import Violation

        return Violation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
