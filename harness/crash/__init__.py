"""Crash states of a save: recorded, enumerated, judged.

from harness import crash

made = crash.record(save, directory)      # the file operations of save(directory)
for state in crash.states(made):          # every state that a crash may leave
    state.write(another_directory)
found = crash.explore(save, load)         # each of them loaded and judged
"""

from harness.crash.enumeration import State, states
from harness.crash.operations import Operation, Recording
from harness.crash.recorder import record

__all__ = ["Operation", "Recording", "State", "record", "states"]
