"""Mutants: faults that are put into the installed upstream on purpose, to see which of them the suites catch.

`peft-harness mutants` runs, for each mutant, the cells that could see it, and prints which clauses killed it. README.md
beside this file describes the command and how to write mutants of your own.
"""

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import nothing, replace

__all__ = ["Mutant", "nothing", "replace"]
