"""A sweep's tasks, done by an engine (`harness.processes.engine`).

1. `Elsewhere` hands each task to the engine, as many at a time as the engine has places.
2. `done` is what the engine runs. The first one in a process starts a host, which the later ones ask, too.
3. A host (`main`) has imported upstream, and forks a worker for the tasks, as a sweep without an engine does here.

python -m harness.runs.sweep_elsewhere CHANNEL SUBJECT     a host; CHANNEL is the number of its open socket
"""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from pathlib import Path
from typing import Any

from harness import subjects
from harness.contract import expectations
from harness.errors import OutOfSpace, UsageError
from harness.paths import SAFE_PATH, SUITES
from harness.processes import ranks
from harness.processes.cuda_free_fork import cuda_untouched
from harness.processes.engine import Engine
from harness.processes.group import receive, send
from harness.processes.imports import import_upstream
from harness.processes.workers import Died, Workers, prepare
from harness.runs.sweep import work
from harness.runs.trial import Trial

#: Seconds until a host has imported upstream, and seconds that it may take longer than its task's limit.
_IMPORTS, _GRACE = 600.0, 60.0


class Elsewhere:
    """Does tasks as `Workers` does, but in an engine's places."""

    def __init__(self, at: Engine, subject: str):
        self._at, self._subject = at, subject
        #: What is being done or waits -> the task, and when it was handed over.
        self._ahead: dict[Future[Any], tuple[Any, float]] = {}

    @property
    def busy(self) -> int:
        return len(self._ahead)

    @property
    def free(self) -> int:
        return self._at.width - self.busy

    @property
    def longest(self) -> float:
        """For how many seconds the task that was handed over first is being done or waits; 0 if there is none."""
        return max((time.monotonic() - begun for _, begun in self._ahead.values()), default=0.0)

    def give(self, task: Any, limit: float, fresh: bool = False) -> None:
        future = self._at.executor.submit(done, self._subject, task, limit, fresh)
        self._ahead[future] = task, time.monotonic()

    def ended(self, seconds: float) -> list[tuple[Any, Any]]:
        """Return tasks that have ended, each with its answer. Raises UsageError if a host cannot be started."""
        ended, _ = wait(self._ahead, timeout=seconds, return_when=FIRST_COMPLETED)
        return [(self._ahead.pop(future)[0], _answer(future)) for future in ended]

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        # What is being judged is not waited for; the engine ends it.
        for future in self._ahead:
            with contextlib.suppress(NotImplementedError):  # of Parsl, which cannot cancel
                future.cancel()
        end_hosts()


def _answer(future: Future[Any]) -> Any:
    try:
        return future.result()
    except (UsageError, OutOfSpace):
        raise
    except Exception as error:  # the engine has lost the worker again and again
        return Died(f"its worker was lost ({type(error).__name__}: {error})")


# ---- in a place of the engine ----

#: Subject -> the host of this process, and its channel.
_HOSTS: dict[str, tuple[subprocess.Popen[bytes], socket.socket]] = {}

#: A host does one task at a time.
_ONE = threading.Lock()


def done(subject: str, task: Any, limit: float, fresh: bool) -> Any:
    """Have a host do a task, and return its answer; `Died` if the host died or hung.

    - limit: seconds that the task may take.
    - fresh: whether a worker that has done nothing yet must do it.
    """
    with _ONE:
        process, channel = _HOSTS[subject] if subject in _HOSTS else _started(subject)
        try:
            channel.settimeout(limit + _GRACE)
            send(channel, (task, limit, fresh))
            return receive(channel)
        except (OSError, EOFError) as error:  # a timeout is an OSError
            hung = isinstance(error, TimeoutError)
            process.kill()
            _HOSTS.pop(subject)
            status = process.wait()
            channel.close()
            return Died(
                "it had not ended when its time was up" if hung else f"its process ended with {status}", hung=hung
            )


def _started(subject: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryFile() as output, theirs:
        words = [sys.executable, *SAFE_PATH, "-m", __name__, str(theirs.fileno()), subject]
        process = subprocess.Popen(
            words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        theirs.close()
        ours.settimeout(_IMPORTS)
        try:
            receive(ours)
        except (OSError, EOFError):
            process.kill()
            process.wait()
            output.seek(0)
            said = output.read().decode(errors="replace").strip().splitlines()
            raise UsageError(
                f"the sweep could not start its process: {said[-1] if said else 'it said nothing'}"
            ) from None
    _HOSTS[subject] = process, ours
    return process, ours


def end_hosts() -> None:
    """End the hosts of this process. Those of an engine's workers end with these."""
    for subject in list(_HOSTS):
        process, channel = _HOSTS.pop(subject)
        with contextlib.suppress(OSError):
            channel.shutdown(socket.SHUT_RDWR)
        channel.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ---- a host ----


def main(channel: socket.socket, subject: str) -> None:
    """Do one task after the other, until the other end of the channel is closed."""
    import_upstream()
    with cuda_untouched():
        prepare()
    trial = Trial(subjects.load(subject), expectations.load(SUITES / "expectations"))
    with tempfile.TemporaryDirectory() as root:
        with Workers(partial(work, trial), 1, Path(root), partial(ranks.prepare, pristine=True)) as workers:
            send(channel, "ready")
            for task, limit, fresh in _tasks(channel):
                workers.give(task, limit, fresh)
                while not (found := workers.ended(1.0)):
                    if select.select([channel], [], [], 0)[0]:  # it says nothing during a task: it is closed
                        return
                send(channel, found[0][1])


def _tasks(channel: socket.socket) -> Iterator[tuple[Any, float, bool]]:
    while True:
        try:
            yield receive(channel)
        except (EOFError, OSError):
            return


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
