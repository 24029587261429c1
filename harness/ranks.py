"""Ranks: the one place that starts several processes.

The ranks of a group are forked from a zygote (`harness.zygote`): a process that has imported upstream and run nothing. It
is started once for each process that trains, so that a group costs a fork and not the imports. On request each group is
started by torchrun, as a user's would be, and so is one of CUDA where the imports have started that (`harness.forkable`).

A group ends in one of three ways: every rank returns; a rank fails, which ends the others at once; or its time is up,
when every rank shows its stack and is killed. No rank outlives the group, the zygote or the process that asked.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.environment import GPUS, gpus
from harness.errors import UsageError


@dataclass
class Settings:
    """torchrun: start every group by torchrun. preloads: imported by each rank before upstream is used."""

    torchrun: bool = False
    preloads: tuple[str, ...] = ()


settings = Settings()

#: Seconds that a group may take. The slowest of the suites' takes 5 s on a busy machine.
LIMIT = 60.0

#: Seconds that the other ranks have to end by themselves once one has failed: a fault that all have in common is told
#: by each of them, and then the first one's words are as good as any.
GRACE = 2.0

#: The same of ranks that start CUDA, or import upstream, each by itself: where 28 groups did so at once 2 s were too few.
LONG_GRACE = 10.0

_TICK = 0.05


class RanksFailed(Exception):
    """A group that did not end well. The message names the rank and what happened to it.

    rank: the first that failed, None where the time was up. alike: whether every rank failed with the same words.
    """

    def __init__(self, message: str, rank: int | None = None, alike: bool = False):
        super().__init__(message)
        self.rank = rank
        self.alike = alike


@dataclass(frozen=True)
class Group:
    """What a group of ranks is to do.

    call: called without arguments in every rank; it is pickled, so it is a module's function, or a functools.partial of
    one. world_size: how many ranks. directory: where each leaves its output, its error and its stack. limit: seconds.
    backend: None, which is for GPUs, lets accelerate set up torch.distributed from what stands in the ranks' environment.
    environment: variables of the ranks. imports: modules that all will need, imported once for all groups.
    """

    call: Callable[[], Any]
    world_size: int
    directory: Path
    limit: float = LIMIT
    backend: str | None = "gloo"
    environment: Mapping[str, str] = field(default_factory=dict)
    imports: tuple[str, ...] = ()


@dataclass
class Ended:
    """How the processes of a group ended. statuses: rank -> exit status, -N for signal N. late: the time was up.

    unforkable: none was started, for they need CUDA, and the process that would fork them has started it.
    """

    statuses: dict[int, int]
    late: bool = False
    error: str = ""
    unforkable: bool = False


def run(group: Group) -> None:
    """Start the ranks of a group and wait until all have ended.

    RanksFailed where one fails or the time is up; UsageError where a rank raises one.
    """
    group.directory.mkdir(parents=True, exist_ok=True)
    if group.world_size < 1:
        raise UsageError(f"{group.world_size} ranks: expected 1 or more")
    ended = None if settings.torchrun else _zygote().run(group)
    if ended is None or ended.unforkable:
        from harness.torchrun import start

        ended = start(group, settings.preloads)
    _judge(group, ended)


def prepare(pristine: bool = False) -> None:
    """Start the zygote ahead of the first group, in place of one from before, which knows other preloads and faults.

    pristine: this process has imported upstream and run nothing, so that a fork of it will do: that spares imports of
    5 to 20 s. Otherwise a new process imports while this one goes on.
    """
    end()
    if not settings.torchrun and hasattr(os, "fork"):
        _zygote(pristine)


def environment() -> dict[str, str]:
    """The environment of processes that become ranks, or start them: ours, and all GPUs that ranks may use."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if GPUS in os.environ:
        # This process itself sees one of them (`harness.environment.see_one_gpu`). Its groups start there, so that those of
        # several workers lie on all of many GPUs.
        names, own = gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
        first = names.index(own) if own in names else 0
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(names[first:] + names[:first])
    return variables


# ---- what each rank leaves behind ----


def output_file(directory: Path, rank: int) -> Path:
    """What a rank printed."""
    return directory / f"rank-{rank}.out"


def error_file(directory: Path, rank: int) -> Path:
    """What a rank's call raised, and when: {"time": seconds of the monotonic clock, "error": words, "usage": UsageError?}."""
    return directory / f"rank-{rank}.error"


def stack_file(directory: Path, rank: int) -> Path:
    """The Python stack of each thread of a rank, written when it is told to (SIGUSR1)."""
    return directory / f"rank-{rank}.stack"


def wait_for_the_others(group: Group) -> None:
    """Called by a rank that has told why it failed, and whose end would be another rank's failure: let it fail by itself."""
    until = time.monotonic() + LONG_GRACE
    files = [error_file(group.directory, rank) for rank in range(group.world_size)]
    while time.monotonic() < until and not all(file.is_file() for file in files):
        time.sleep(_TICK)


def _judge(group: Group, ended: Ended) -> None:
    size = group.world_size
    if ended.error:
        raise RanksFailed(ended.error)
    if ended.late:
        stacks = [f"rank {rank} was in:\n{_read(stack_file(group.directory, rank))}" for rank in range(size)]
        raise RanksFailed("\n".join([f"the {size} ranks had not ended after {group.limit:g} s", *stacks]))
    told = {
        rank: json.loads(error_file(group.directory, rank).read_text())
        for rank in range(size)
        if error_file(group.directory, rank).is_file()
    }
    # A rank that is killed tells nothing, and the others then fail for want of it.
    killed = [rank for rank, status in ended.statuses.items() if rank not in told and status not in (0, CUT)]
    if killed:
        rank = killed[0]
        raise RanksFailed(f"rank {rank} of {size} {_fate(ended.statuses[rank])}{_tail(group.directory, rank)}", rank)
    if wrong := [one["error"] for one in told.values() if one["usage"]]:
        raise UsageError(wrong[0])
    if told:
        rank = min(told, key=lambda one: told[one]["time"])
        words = {one["error"] for one in told.values()}
        alike = len(told) == size and len(words) == 1
        raise RanksFailed(
            told[rank]["error"] if alike else f"rank {rank} of {size}: {told[rank]['error']}", rank, alike
        )


#: The status of a rank that was killed because another had failed.
CUT = -1000


def _fate(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    return f"was killed by {signal.Signals(-status).name}"


def _tail(directory: Path, rank: int) -> str:
    lines = [
        *_read(stack_file(directory, rank)).splitlines()[:12],
        *_read(output_file(directory, rank)).splitlines()[-5:],
    ]
    return "".join(f"\n  {line}" for line in lines)


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""


# ---- the zygote, seen from the process that asks ----


def send(channel: socket.socket, message: Any) -> None:
    """Send one pickled message."""
    body = pickle.dumps(message)
    channel.sendall(struct.pack("<Q", len(body)) + body)


def receive(channel: socket.socket) -> Any:
    """The next message; EOFError where the other end is gone."""
    (length,) = struct.unpack("<Q", _exactly(channel, 8))
    return pickle.loads(_exactly(channel, length))


def _exactly(channel: socket.socket, count: int) -> bytes:
    read = b""
    while len(read) < count:
        part = channel.recv(count - len(read))
        if not part:
            raise EOFError
        read += part
    return read


class _Child:
    """A forked process, with the part of subprocess.Popen's interface that is needed here."""

    def __init__(self, pid: int):
        self.pid = pid
        self._ended = False

    def poll(self) -> int | None:
        if not self._ended:
            self._ended = os.waitpid(self.pid, os.WNOHANG)[0] != 0
        return 0 if self._ended else None

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Zygote:
    """The process that forks ranks, and the channel to it."""

    def __init__(self, preloads: tuple[str, ...], pristine: bool = False):
        self.owner = os.getpid()
        self._channel, theirs = socket.socketpair()
        with theirs:
            self.process = self._fork(theirs) if pristine else self._spawn(theirs, preloads)

    def _fork(self, theirs: socket.socket) -> _Child:
        pid = os.fork()
        if pid:
            return _Child(pid)
        try:
            from harness.zygote import main

            os.setsid()
            nothing = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(nothing, standard)
            # Others wait for the end of what this process has open (xdist's pipes, the owner's end of the channel).
            os.closerange(3, theirs.fileno())
            os.closerange(theirs.fileno() + 1, 4096)
            main(theirs, [], self.owner)
        finally:
            os._exit(0)

    def _spawn(self, theirs: socket.socket, preloads: tuple[str, ...]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "harness.zygote", str(theirs.fileno()), *preloads],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment(),
            # Ctrl-C is for the process that asks; it ends the zygote, which ends the ranks.
            start_new_session=True,
        )

    def run(self, group: Group) -> Ended:
        """How the group ended. UsageError where a preloaded module cannot be imported."""
        try:
            send(self._channel, group)
            answer = receive(self._channel)
        except (EOFError, OSError):
            self.end()
            return Ended({}, error="the process that forks the ranks has died")
        except BaseException:
            # Ctrl-C, or a time limit of whoever asked: the group is of no use to anyone now.
            self.end()
            raise
        if isinstance(answer, UsageError):
            self.end()
            raise answer
        return answer

    def end(self) -> None:
        """End the zygote and every rank."""
        self._channel.close()
        until = time.monotonic() + 5
        while self.process.poll() is None:
            if time.monotonic() > until:
                self.process.kill()
            time.sleep(0.005)


_current: Zygote | None = None


def _zygote(pristine: bool = False) -> Zygote:
    global _current
    if _current is None or _current.owner != os.getpid() or _current.process.poll() is not None:
        _current = Zygote(settings.preloads, pristine)
    return _current


@atexit.register
def end() -> None:
    """End this process's zygote, if it has one: what was patched when it was forked is in every rank of it."""
    global _current
    if _current is not None and _current.owner == os.getpid():
        _current.end()
    _current = None
