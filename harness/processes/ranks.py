"""Start a group of ranks, wait for its end, and say what went wrong. Nothing else in the harness starts ranks.

1. `run` sends the group to this process's fork server (`harness.processes.fork_server`), which is started once. It has
   imported upstream, so a group costs a fork and not the imports. Ranks are patched for speed if this process is.
2. torchrun starts the ranks instead, as it does for users, if `settings.torchrun` says so, or if upstream's imports have
   started CUDA (`harness.processes.cuda_free_fork`).
3. The group ends in one of three ways: every rank returns; or a rank fails, and the others are ended; or the limit is over,
   and every rank writes its stack and is killed.

No rank outlives its group, the fork server, or the process that asked for the group.
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

from harness import patches
from harness.errors import UsageError
from harness.paths import SAFE_PATH
from harness.processes import fork_server, torchrun
from harness.processes.group import (
    CUT,
    FORKS,
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
from harness.processes.rank import close_inherited

#: Seconds that the fork server may take in addition to the limit of a group: at first it imports upstream, which takes a
#: minute on a machine that is busy.
_START = 120.0


@dataclass
class Settings:
    """How this process starts ranks.

    - torchrun: whether torchrun starts every group.
    - preloads: modules that each rank imports before upstream is used.
    """

    torchrun: bool = False
    preloads: tuple[str, ...] = ()


settings = Settings()


def run(group: Group) -> None:
    """Start the ranks of a group and wait until all have ended.

    Raises RanksFailed if a rank fails or the group times out, and UsageError if a rank raises one.
    """
    group.directory.mkdir(parents=True, exist_ok=True)
    if group.world_size < 1:
        raise UsageError(f"{group.world_size} ranks: expected 1 or more")
    ended = None if settings.torchrun else _server().run(group)
    if ended is None or ended.unforkable:
        ended = torchrun.start(group, settings.preloads)
    _judge(group, ended)


def prepare(pristine: bool = False) -> None:
    """Start the fork server before the first group needs it. An earlier one, with other preloads and faults, is ended.

    - pristine: whether this process has imported upstream and trained nothing. If so, the fork server is a fork of it, which
      saves imports of 5 to 20 s. Otherwise a new process imports upstream while this one goes on.
    """
    end()
    if not settings.torchrun and hasattr(os, "fork"):
        _server(pristine)


def _judge(group: Group, ended: Ended) -> None:
    """Raise RanksFailed or UsageError for a group that did not end well."""
    size = group.world_size
    if ended.error:
        raise RanksFailed(ended.error)
    if ended.timed_out:
        stacks = [f"rank {rank} was in:\n{_read(stack_file(group.directory, rank))}" for rank in range(size)]
        raise RanksFailed("\n".join([f"the {size} ranks had not ended after {group.limit:g} s", *stacks]))
    reports = {
        rank: json.loads(error_file(group.directory, rank).read_text())
        for rank in range(size)
        if error_file(group.directory, rank).is_file()
    }
    # A rank that is killed reports nothing, and its end makes the others fail.
    killed = [rank for rank, status in ended.statuses.items() if rank not in reports and status not in (0, CUT)]
    if killed:
        rank = killed[0]
        end = _how_it_ended(ended.statuses[rank])
        raise RanksFailed(f"rank {rank} of {size} {end}{_last_lines(group.directory, rank)}", rank)
    if usage_errors := [report["error"] for report in reports.values() if report["usage"]]:
        raise UsageError(usage_errors[0])
    if reports:
        first = min(reports, key=lambda rank: reports[rank]["time"])
        error = reports[first]["error"]
        alike = len(reports) == size and len({report["error"] for report in reports.values()}) == 1
        message = error if alike else f"rank {first} of {size}: {error}"
        raise RanksFailed(message, first, alike, reports[first].get("raised"))


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    return f"was killed by {signal.Signals(-status).name}"


def _last_lines(directory: Path, rank: int) -> str:
    """Return the top of a rank's stack and the last lines that it printed."""
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
    """The process that forks ranks, and the channel to it.

    - owner: the process id of the process that started it.
    - patched: whether its ranks are patched for speed (`harness.patches`).
    """

    def __init__(self, preloads: tuple[str, ...], pristine: bool = False):
        self.owner, self.patched = os.getpid(), patches.enabled()
        self._channel, theirs = socket.socketpair()
        with theirs:
            self.process = self._fork(theirs) if pristine else self._spawn(theirs, preloads)

    def _fork(self, theirs: socket.socket) -> _Child:
        pid = os.fork()
        if pid:
            return _Child(pid)
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            close_inherited(theirs.fileno())
            fork_server.main(theirs, [], self.owner)
        finally:
            os._exit(0)

    def _spawn(self, theirs: socket.socket, preloads: tuple[str, ...]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *SAFE_PATH, "-m", "harness.processes.fork_server", str(theirs.fileno()), *preloads],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment(),
            # Ctrl-C reaches the owner only. The owner ends the fork server, and that ends the ranks.
            start_new_session=True,
        )

    def run(self, group: Group) -> Ended:
        """Run a group, and return how it ended. UsageError if a preloaded module cannot be imported."""
        try:
            send(self._channel, group)
            answer = receive(self._channel, _START + group.limit)
        except TimeoutError:
            # It watches its ranks itself, so it is the fork server that hangs. It would not notice a closed channel.
            self.process.kill()
            self.end()
            return Ended({}, error=f"{FORKS} did not answer within {_START + group.limit:g} s")
        except (EOFError, OSError):
            self.end()
            return Ended({}, error=f"{FORKS} has died")
        except BaseException:
            # After Ctrl-C, or a time limit of the caller's, nobody needs the group any more.
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
    """Return this process's fork server. It is started if there is none, or if its ranks are patched and must not be."""
    global _current
    if _current is not None and _current.owner == os.getpid() and _current.patched != patches.enabled():
        end()
    if _current is None or _current.owner != os.getpid() or _current.process.poll() is not None:
        _current = ForkServer(settings.preloads, pristine)
    return _current


@atexit.register
def end() -> None:
    """End this process's fork server, if it has one. Faults that were put in before it was forked are in all its ranks."""
    global _current
    if _current is not None and _current.owner == os.getpid():
        _current.end()
    _current = None
