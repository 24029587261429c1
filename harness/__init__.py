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


#: What the package has beside its modules -> the module that it is imported from, once it is asked for: those need torch
#: and transformers. They lie on a high floor, so nothing inside the package takes them from here.
_LATER = {
    "Watch": "harness.watch.callback",
    "WatchLoop": "harness.watch.own_loop",
    "Violation": "harness.watch.acting",
}


def __getattr__(name: str) -> _Any:
    """Import one of `_LATER`."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATER[name]), name)
