"""Ranks: the one place that starts several processes.

The ranks of a group are forked from a fork server (`harness.processes.fork_server`), a process that has imported upstream
and run nothing. Each process that trains starts one, once, so that a group costs a fork and not the imports. torchrun
starts the ranks, as it does for users, if that is asked for, or if the imports have started CUDA (`cuda_free_fork`).

A group ends in one of three ways: every rank returns; a rank fails, which ends the others at once; or its time is up,
when every rank shows its stack and is killed. No rank outlives the group, the fork server or the process that asked.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.paths import SAFE_PATH
from harness.processes import fork_server, torchrun
from harness.processes.group import (
    CUT,
    Ended,
    Group,
    RanksFailed,
    environment,
    error_file,
    output_file,
    receive,
    send,
    stack_file,
)


@dataclass
class Settings:
    """torchrun: start every group by torchrun. preloads: imported by each rank before upstream is used."""

    torchrun: bool = False
    preloads: tuple[str, ...] = ()


settings = Settings()


def run(group: Group) -> None:
    """Start the ranks of a group and wait until all have ended.

    RanksFailed where one fails or the time is up; UsageError where a rank raises one.
    """
    group.directory.mkdir(parents=True, exist_ok=True)
    if group.world_size < 1:
        raise UsageError(f"{group.world_size} ranks: expected 1 or more")
    ended = None if settings.torchrun else _server().run(group)
    if ended is None or ended.unforkable:
        ended = torchrun.start(group, settings.preloads)
    _judge(group, ended)


def prepare(pristine: bool = False) -> None:
    """Start the fork server ahead of the first group, in place of one from before, which knows other preloads and faults.

    pristine: this process has imported upstream and run nothing, so that a fork of it will do: that spares imports of
    5 to 20 s. Otherwise a new process imports while this one goes on.
    """
    end()
    if not settings.torchrun and hasattr(os, "fork"):
        _server(pristine)


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


class ForkServer:
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
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(nothing, standard)
            # Others wait for the end of what this process has open (xdist's pipes, the owner's end of the channel).
            os.closerange(3, theirs.fileno())
            os.closerange(theirs.fileno() + 1, 4096)
            fork_server.main(theirs, [], self.owner)
        finally:
            os._exit(0)

    def _spawn(self, theirs: socket.socket, preloads: tuple[str, ...]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *SAFE_PATH, "-m", "harness.processes.fork_server", str(theirs.fileno()), *preloads],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment(),
            # Ctrl-C is for the process that asks; it ends the fork server, which ends the ranks.
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
        assert isinstance(answer, Ended)
        return answer

    def end(self) -> None:
        """End the fork server and every rank."""
        self._channel.close()
        until = time.monotonic() + 5
        while self.process.poll() is None:
            if time.monotonic() > until:
                self.process.kill()
            time.sleep(0.005)


_current: ForkServer | None = None


def _server(pristine: bool = False) -> ForkServer:
    global _current
    if _current is None or _current.owner != os.getpid() or _current.process.poll() is not None:
        _current = ForkServer(settings.preloads, pristine)
    return _current


@atexit.register
def end() -> None:
    """End this process's fork server, if it has one: what was patched when it was forked is in every rank of it."""
    global _current
    if _current is not None and _current.owner == os.getpid():
        _current.end()
    _current = None
