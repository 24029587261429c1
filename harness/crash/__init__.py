"""Crash states of a save: recorded, enumerated, judged.

from harness import crash

made = crash.record(save, directory)      # the file operations of save(directory)
for state in crash.states(made):          # every state that a crash may leave
    state.write(another_directory)
print(crash.explore(save, load))          # each of them loaded and judged
"""

from harness.crash.enumeration import State, states
from harness.crash.exploration import Exploration
from harness.crash.operations import Operation, Recording
from harness.crash.recorder import record
from harness.crash.savers import explore

__all__ = ["Exploration", "Operation", "Recording", "State", "explore", "record", "states"]
