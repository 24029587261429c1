"""Workers: forks of this process that do one task after another. One that hangs or dies is replaced, and its task says so.

The process that owns workers has imported upstream and trained nothing: a process that has trained cannot be forked. Each
worker does a number of tasks and is then replaced, so that what upstream leaves behind in a process does not add up. No
worker outlives its owner (`harness.processes.guard`, `harness.processes.rank.die_with_parent`).

The owner never waits for a worker longer than the limit of its task and `_ANSWER` together. Then it kills the worker and all
that the worker has started, whatever session or process group that is in: the fork server, its ranks, workers of loaders.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from harness.environment import version
from harness.processes import fork_server
from harness.processes.group import receive, send
from harness.processes.launch import environment
from harness.processes.rank import die_with_parent
from harness.spec import LaunchSpec


def prepare() -> None:
    """Import and prepare once what every fork would otherwise prepare at first use. Nothing here trains."""
    if version("deepspeed") is not None:
        # accelerate imports it in every process that trains, which takes seconds.
        os.environ |= environment(LaunchSpec(strategy="zero2", threads=0))
        with contextlib.suppress(ImportError):
            import deepspeed  # noqa: F401
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fork_server.prepare()
    gc.collect()
    gc.freeze()


#: Seconds that an answer may take from its first byte to its last, and that a killed process may take to end.
_ANSWER = 5.0


@dataclass(frozen=True)
class Died:
    """What became of a task whose worker hung, died, or raised an error.

    - how: in one sentence.
    - output: the end of what the worker wrote to its standard streams, and its stack if it hung.
    - hung: whether the task's limit was over.
    """

    how: str
    output: str = ""
    hung: bool = False


@dataclass
class _Worker:
    pid: int
    channel: socket.socket
    output: Path
    done: int = 0
    task: Any = None
    busy: bool = False
    begun: float = 0.0
    until: float = 0.0


class Workers:
    """A number of workers.

    - work: called with a task in a worker; what it returns is pickled.
    - count: how many tasks are done at the same time.
    - directory: where the workers' output goes.
    - begin: called once in each new worker.
    - tasks: how many tasks a worker does before it is replaced.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        count: int,
        directory: Path,
        begin: Callable[[], Any] = lambda: None,
        tasks: int = 40,
    ):
        self._work, self._count, self._directory, self._begin, self._tasks = work, count, directory, begin, tasks
        self._workers: list[_Worker] = []
        self._started = 0
        self._unreaped: set[int] = set()  # process ids of killed workers that had not ended after `_ANSWER`

    @property
    def free(self) -> int:
        """How many tasks could be begun at once."""
        return self._count - self.busy

    @property
    def busy(self) -> int:
        """How many tasks are being done."""
        return sum(worker.busy for worker in self._workers)

    @property
    def longest(self) -> float:
        """For how many seconds the task that was begun first is being done; 0 if none is."""
        return max((time.monotonic() - worker.begun for worker in self._workers if worker.busy), default=0.0)

    def give(self, task: Any, limit: float, fresh: bool = False) -> None:
        """Begin a task. Only called if `free` is not 0.

        - limit: seconds that it may take.
        - fresh: whether a worker that has done nothing yet must do it.
        """
        idle = [worker for worker in self._workers if not worker.busy]
        for worker in [worker for worker in idle if worker.done and (fresh or worker.done >= self._tasks)]:
            self._end(worker)
            idle.remove(worker)
        worker = idle[0] if idle else self._start()
        worker.task, worker.busy, worker.begun = task, True, time.monotonic()
        worker.until = worker.begun + limit
        with contextlib.suppress(OSError):  # it has died; `ended` will say so
            send(worker.channel, task)

    def ended(self, seconds: float) -> list[tuple[Any, Any]]:
        """Return the tasks that have ended, each with its answer or a `Died`. Wait for the first, at most so long."""
        busy = {worker.channel: worker for worker in self._workers if worker.busy}
        wait = max(0.0, min([seconds, *(worker.until - time.monotonic() for worker in busy.values())]))
        readable = select.select(list(busy), [], [], wait)[0]
        found = []
        for channel, worker in busy.items():
            if channel in readable:
                found.append((worker.task, self._answer(worker)))
            elif time.monotonic() > worker.until:
                found.append((worker.task, self._hung(worker)))
        return found

    def _answer(self, worker: _Worker) -> Any:
        try:
            answer = receive(worker.channel, _ANSWER)
        except TimeoutError:
            return self._hung(worker)
        except (EOFError, OSError):
            status = self._end(worker, patience=2.0)
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
            return Died(f"its process {how}", _last(worker.output))
        worker.busy, worker.done = False, worker.done + 1
        return answer

    def _hung(self, worker: _Worker) -> Died:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGUSR1)  # it writes its stack
        time.sleep(0.2)
        self._end(worker)
        return Died("it had not ended when its time was up", _last(worker.output), hung=True)

    def end(self) -> None:
        """End all workers, and what they do."""
        for worker in list(self._workers):
            self._end(worker)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    # ---- processes ----

    def _start(self) -> _Worker:
        self._started += 1
        self._directory.mkdir(parents=True, exist_ok=True)
        output = self._directory / f"worker-{self._started}.out"
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._live(theirs, output, [ours, *(worker.channel for worker in self._workers)], os.getppid())
        theirs.close()
        worker = _Worker(pid, ours, output)
        self._workers.append(worker)
        return worker

    def _live(self, channel: socket.socket, output: Path, others: list[socket.socket], owner: int) -> NoReturn:
        status = 1
        try:
            os.setpgid(0, 0)  # Ctrl-C reaches the owner only, and what it starts is ended with it
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            die_with_parent(owner)
            for other in others:
                other.close()
            _redirect(output)
            faulthandler.enable(sys.stderr)
            faulthandler.register(signal.SIGUSR1, sys.stderr)
            self._begin()
            while True:
                task = receive(channel)
                os.ftruncate(1, 0)
                try:
                    answer = self._work(task)
                except Exception as error:
                    answer = Died(f"{type(error).__name__}: {error}", traceback.format_exc())
                send(channel, answer)
        except (EOFError, OSError):
            status = 0  # the owner needs it no more
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _end(self, worker: _Worker, patience: float = 0.0) -> int:
        """Kill a worker and what it has started. Return its exit status; -N if signal N ended it.

        - patience: seconds that it may take to end by itself.
        """
        self._workers.remove(worker)
        worker.channel.close()
        until = time.monotonic() + patience
        ended, status = _wait(worker.pid, until)
        started = [] if ended else descendants(worker.pid)
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(worker.pid, signal.SIGKILL)
        for pid in started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not ended:
            ended, status = _wait(worker.pid, time.monotonic() + _ANSWER)
        if not ended:  # the kernel does not let it go, as in a call of a driver
            self._unreaped.add(worker.pid)
        self._unreaped = {pid for pid in self._unreaped if not _wait(pid, 0.0)[0]}
        return os.waitstatus_to_exitcode(status) if ended else -signal.SIGKILL


def _wait(pid: int, until: float) -> tuple[int, int]:
    """Wait for the end of a child, at most until then. Return what os.waitpid returns: (0, 0) if it has not ended."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    while not ended and time.monotonic() < until:
        time.sleep(0.01)
        ended, status = os.waitpid(pid, os.WNOHANG)
    return ended, status


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that these have started. None without /proc."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children = [int(child) for child in file.read_text().split()]
            found += [*children, *(each for child in children for each in descendants(child))]
    return found


def _redirect(file: Path) -> None:
    target = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((null, 0), (target, 1), (target, 2)):
        os.dup2(here, there)
    # The owner may have replaced them, as pytest does.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))


def _last(file: Path) -> str:
    """Return the last lines that a worker printed, and the top of its stack, if it has written one."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    stack = next((n for n, line in enumerate(lines) if line.startswith(_STACK)), len(lines))
    return "\n".join([*lines[max(0, stack - 5) : stack], *lines[stack : stack + 12]])


#: How the lines begin with which faulthandler begins.
_STACK = ("Fatal Python error", "Current thread 0x", "Thread 0x")
