"""Conformance of the PEFT Trainer path: RunSpec -> Subject -> Trace -> clause -> Verdict.

Importing this package imports neither torch nor transformers, so that the command line answers at once.
"""

from pathlib import Path as _Path

__version__ = "0.2.0"

# `harness.suites` and `harness.fixtures` have one name each. In a wheel they lie inside this package. In a checkout they
# lie beside it, and the checkout's own directory is searched for them too.
_here = _Path(__file__).resolve().parent
if not (_here / "suites").is_dir() and (_here.parent / "suites" / "CONTRACT.md").is_file():
    __path__ = [*__path__, str(_here.parent)]
del _Path, _here
