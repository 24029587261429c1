"""The crash states of many saves, judged by several processes at a time.

A worker (`harness.processes.workers`) records a save, and then judges its states a few at a time. If a state ends its process
or hangs, the states of that task are judged one by one, and the one that does so is said.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.crash.enumeration import State, states
from harness.crash.exploration import Exploration
from harness.crash.judged_run import Judge
from harness.crash.outcomes import REFUSED, Judged
from harness.crash.trainer_ways import RESUME, Recorded, SavedRun, record_run, working_in
from harness.errors import UsageError
from harness.processes.workers import Died, Workers
from harness.subjects.hf_trainer import HFTrainer
from harness.user_code import cause

#: States that a worker judges at a time: a second of work.
_CHUNK = 20

#: Bytes that must be free in memory. A worker writes one state at a time, of 100 KB.
_FREE = 2**25

#: Seconds for a task. Recording a save takes two, a state a tenth of one.
_LIMIT = 120.0


@dataclass(frozen=True)
class Sample:
    """Which states of each save are judged. Fields as the parameters of `states`."""

    at_most: int | None
    crashes: tuple[str, ...]
    seed: int
    at_end: bool = False


@dataclass(frozen=True)
class _Task:
    """What a worker does: record a save, or judge `numbers` of its states."""

    name: str
    numbers: tuple[int, ...] = ()


@dataclass
class _Done:
    """What a worker found."""

    found: list[Judged] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    refused: str = ""


class _Work:
    """What workers do. What a worker has prepared for a save stays in its process."""

    def __init__(self, saves: Mapping[str, SavedRun], sample: Sample, root: Path, subject: HFTrainer, memory: Path):
        self._saves, self._sample, self._root, self._subject, self._memory = saves, sample, root, subject, memory
        self._judges: dict[str, tuple[Judge, list[State]]] = {}

    def __call__(self, task: _Task) -> _Done:
        began = time.monotonic()
        done = _Done()
        # A save is recorded on the disk that the user chose: the order of its operations may depend on it.
        with working_in((self._memory if task.numbers else self._root) / str(os.getpid())):
            try:
                if task.numbers:
                    self._judge(task, done)
                else:
                    made = record_run(self._saves[task.name], Path("recorded"), self._subject)
                    file(self._root, task.name).write_bytes(pickle.dumps(made))
            except UsageError as error:
                done.refused = str(error)
            except Exception as error:
                if task.numbers:
                    raise
                done.refused = f"cannot be recorded: {cause(error)}"
        done.seconds = time.monotonic() - began
        return done

    def _judge(self, task: _Task, done: _Done) -> None:
        if task.name not in self._judges:
            made = recorded(self._root, task.name)
            self._judges[task.name] = Judge(self._saves[task.name], made, self._subject), chosen(made, self._sample)
        judge, made_of = self._judges[task.name]
        for number in task.numbers:
            done.found += judge.judge(made_of[number])
        done.notes = judge.notes


def file(root: Path, name: str) -> Path:
    return root / f"{name.replace('/', '-')}.recorded"


def recorded(root: Path, name: str) -> Recorded:
    made = pickle.loads(file(root, name).read_bytes())  # noqa: S301 - a worker of this command wrote it
    assert isinstance(made, Recorded)
    return made


def chosen(made: Recorded, sample: Sample) -> list[State]:
    return states(made.recording, sample.crashes, sample.at_most, sample.seed, sample.at_end)


def explore_all(
    saves: Mapping[str, SavedRun],
    root: Path,
    workers: int,
    sample: Sample,
    subject: HFTrainer,
    told: Callable[[int, int, str], Any] = lambda done, total, text: None,
) -> Iterator[Exploration]:
    """Judge the crash states of saves, and yield what became of those of each save, in the order of `saves`.

    This process must have imported upstream and trained nothing.

    - root: a directory to work in.
    - workers: how many processes.
    - subject: who trains and loads.
    - told: called with how many tasks are done, of how many, and which.

    Raises UsageError if a save cannot be recorded.
    """
    with (
        tempfile.TemporaryDirectory(dir=_memory()) as memory,
        Workers(_Work(saves, sample, root, subject, Path(memory)), workers, root / "output", tasks=1000) as team,
    ):
        for _ in _all_done(team, [_Task(name) for name in saves], told):
            pass
        for name in saves:
            began = time.monotonic()
            made = recorded(root, name)
            those = chosen(made, sample)
            everything = len(states(made.recording, sample.crashes))
            exploration = Exploration(name, everything, len(those))
            numbers = range(len(those))
            tasks = [_Task(name, tuple(numbers[at : at + _CHUNK])) for at in range(0, len(numbers), _CHUNK)]
            found: dict[int, list[Judged]] = {}
            for task, done in _all_done(team, tasks, told):
                if isinstance(done, Died):
                    state = those[task.numbers[0]]
                    said = f"{done.how}: {done.output[-200:]}" if done.output else done.how
                    found[task.numbers[0]] = [Judged(state.digest, state.crash, state.how, RESUME, "", REFUSED, said)]
                    continue
                found[task.numbers[0]] = done.found
                exploration.notes += [note for note in done.notes if note not in exploration.notes]
            exploration.found = [one for at in sorted(found) for one in found[at]]
            exploration.seconds = time.monotonic() - began
            yield exploration


def _memory() -> str | None:
    """Return a directory in memory, where states are written and loaded; None for the default one.

    On ext4 a third of the time of a state is spent in removing its directories. TMPDIR is respected.
    """
    place = "/dev/shm"  # noqa: S108 - a directory with a random name is made in it
    if os.environ.get("TMPDIR") or not os.access(place, os.W_OK):
        return None
    return place if shutil.disk_usage(place).free > _FREE else None


def _all_done(
    team: Workers, tasks: Iterable[_Task], told: Callable[[int, int, str], Any]
) -> Iterator[tuple[_Task, Any]]:
    """Have tasks done, and yield each with its answer. A task of several states that died is done again one by one."""
    left = list(tasks)
    total, ended = len(left), 0
    while left or team.busy:
        while left and team.free:
            task = left.pop(0)
            team.give(task, _LIMIT)
        for task, done in team.ended(1.0):
            ended += 1
            told(ended, total, f"{task.name}: {'states judged' if task.numbers else 'recorded'}")
            if isinstance(done, Died) and len(task.numbers) > 1:
                left += [_Task(task.name, (number,)) for number in task.numbers]
                total += len(task.numbers)
                continue
            if isinstance(done, Died) and not task.numbers:
                raise UsageError(f"the save {task.name} cannot be recorded: {done.how}\n{done.output}")
            if not isinstance(done, Died) and done.refused:
                raise UsageError(f"the save {task.name}: {done.refused}")
            yield task, done
