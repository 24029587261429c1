"""Conformance of the PEFT Trainer path: RunSpec -> Subject -> Trace -> clause -> Verdict.

Importing this package imports neither torch nor transformers, so that the command line answers at once.
"""

from importlib import import_module as _import_module
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

#: What users import from here -> where it is; "" for a module of that name. Each is imported when it is asked for.
#: __init__.pyi has their types: an import here would be one from every floor.
_ENTRIES = {
    "LoopSubject": "harness.subjects.loop_subject",
    "SafeCheckpoints": "harness.checkpoints.safe",
    "TrainerSubject": "harness.subjects.trainer_subject",
    "Violation": "harness.watch.acting",
    "Watch": "harness.watch.callback",
    "WatchLoop": "harness.watch.own_loop",
    "checkpoints": "",
    "conformance": "harness.session.conformance",
    "crash": "",
}


def __getattr__(name: str) -> _Any:
    if name not in _ENTRIES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    if not _ENTRIES[name]:
        return _import_module(f"harness.{name}")
    return getattr(_import_module(_ENTRIES[name]), name)
