"""Run forked children, a few at a time, and watch each to its end."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.files import require_space_in
from harness.mutants import child
from harness.mutants.child import Record, Writer


class Pool:
    """Runs children, each in a directory of its own that is deleted when the child has ended.

    - root: where the directories are made.
    - workers: how many children run at a time.
    - limit: seconds that a child may run. After that it is killed.
    - tick: called between two looks at the children, some 100 times a second.
    """

    def __init__(self, root: Path, workers: int, limit: float, tick: Callable[[], object] = lambda: None):
        self.root = root
        self.workers = workers
        self.limit = limit
        self.tick = tick
        self._children = 0

    def run(self, tasks: Iterable[tuple[Any, Callable[[Writer], Any]]]) -> Iterator[tuple[Any, Record, str]]:
        """Run each task in a child, and yield (its key, what the child wrote, its fate) in the order in which they end.

        - tasks: (key, work) of each.

        The fate says how the child ended early, and is "" if it ran to its end. Raises OutOfSpace if a full disk is why a
        child ended, or judged not all.
        """
        waiting = deque(tasks)
        running: dict[int, tuple[Any, Path, float]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    key, work = waiting.popleft()
                    self._children += 1
                    directory = self.root / f"{self._children:04d}"
                    running[child.start(directory, work)] = (key, directory, time.monotonic())
                for pid, (key, directory, started) in list(running.items()):
                    late = time.monotonic() - started > self.limit
                    if late:
                        _kill(pid)
                    ended, status = os.waitpid(pid, 0 if late else os.WNOHANG)
                    if ended:
                        del running[pid]
                        # Processes that the child started and left behind.
                        with suppress(ProcessLookupError, PermissionError):
                            os.killpg(pid, signal.SIGKILL)
                        record = child.read(directory)
                        fate = _fate(record, os.waitstatus_to_exitcode(status), late)
                        _require_space(record, fate, directory)
                        shutil.rmtree(directory, ignore_errors=True)
                        yield key, record, fate
                self.tick()
                time.sleep(0.01)
        finally:
            for pid in running:
                _kill(pid)
                os.waitpid(pid, 0)


def _require_space(record: Record, fate: str, directory: Path) -> None:
    """Raise OutOfSpace if a full disk is the cause: a mutant that was not judged has not survived."""
    if fate:
        require_space_in(fate, [directory])
    for case in record.cases:
        if case.misused:
            require_space_in(case.reason, ())


def _fate(record: Record, status: int, late: bool) -> str:
    """Say how a child ended early, and in which case; "" if it ran to its end."""
    where = f" in {record.running.rpartition('/')[2]}" if record.running else ""
    if late:
        return f"hung{where}"
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}{where}"
    if record.error:
        return f"{record.error}{where}"
    return f"ended with exit status {status}{where}" if status or record.running else ""


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # A child that has just been forked leads no group yet.
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
