"""Forked children, so many at a time, each watched to its end."""

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

from harness.mutants import child
from harness.mutants.child import Record, Writer


class Pool:
    """Runs children, so many at a time, each in a directory below `root` that is taken away with it."""

    def __init__(self, root: Path, workers: int, limit: float):
        self.root = root
        self.workers = workers
        self.limit = limit
        self._made = 0

    def run(self, tasks: Iterable[tuple[Any, Callable[[Writer], Any]]]) -> Iterator[tuple[Any, Record, str]]:
        """(the task's key, what its child left, how it ended early or "") of each task, as they end."""
        waiting = deque(tasks)
        going: dict[int, tuple[Any, Path, float]] = {}
        try:
            while waiting or going:
                while waiting and len(going) < self.workers:
                    key, work = waiting.popleft()
                    self._made += 1
                    directory = self.root / f"{self._made:04d}"
                    going[child.start(directory, work)] = (key, directory, time.monotonic())
                for pid, (key, directory, started) in list(going.items()):
                    late = time.monotonic() - started > self.limit
                    if late:
                        _kill(pid)
                    done, status = os.waitpid(pid, 0 if late else os.WNOHANG)
                    if done:
                        del going[pid]
                        with suppress(ProcessLookupError, PermissionError):
                            os.killpg(pid, signal.SIGKILL)  # what it has started and left
                        record = child.read(directory)
                        fate = _fate(record, os.waitstatus_to_exitcode(status), late)
                        shutil.rmtree(directory, ignore_errors=True)
                        yield key, record, fate
                time.sleep(0.01)
        finally:
            for pid in going:
                _kill(pid)
                os.waitpid(pid, 0)


def _fate(record: Record, status: int, late: bool) -> str:
    where = f" in {record.running.rpartition('/')[2]}" if record.running else ""
    if late:
        return f"hung{where}"
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}{where}"
    if record.error:
        return f"{record.error}{where}"
    return f"ended with exit status {status}{where}" if status or record.running else ""


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # a child that has just been forked leads no group yet
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
