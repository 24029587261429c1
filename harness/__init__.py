"""Conformance of the PEFT Trainer path: RunSpec -> Subject -> Trace -> clause -> Verdict.

Importing this package imports neither torch nor transformers, so that the command line answers at once.
"""

__version__ = "0.1.0"
