"""Conformance of the PEFT Trainer path: RunSpec -> Subject -> Trace -> clause -> Verdict.

Importing this package imports neither torch nor transformers, so that the command line answers at once.
"""

from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from harness import checkpoints as checkpoints
    from harness.checkpoints.safe import SafeCheckpoints as SafeCheckpoints

#: The only place where the version is written: pyproject.toml reads it from here.
__version__ = "0.2.0"

# `harness.suites` and `harness.fixtures` have these names everywhere. In a wheel both folders are inside this package.
# In a checkout they are beside it, so the checkout's directory is searched for them too.
_here = _Path(__file__).resolve().parent
if not (_here / "suites").is_dir() and (_here.parent / "suites" / "CONTRACT.md").is_file():
    __path__ = [*__path__, str(_here.parent)]
del _Path, _here

#: Names that are imported when they are asked for -> the module that has them; "" for a module of that name.
_LATER = {"SafeCheckpoints": "harness.checkpoints.safe", "checkpoints": ""}


def __getattr__(name: str) -> _Any:
    if name not in _LATER:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    import importlib

    if not _LATER[name]:
        return importlib.import_module(f"harness.{name}")
    return getattr(importlib.import_module(_LATER[name]), name)
