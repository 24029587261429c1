"""A group of ranks: what it is to do, how it ended, the files that its ranks write, and how both are sent."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.environment import GPUS, gpus
from harness.raised import place_in

#: Seconds that a group may take, unless its spec says otherwise. The slowest group of the suites takes 5 s on a busy CPU.
LIMIT = 60.0

#: Seconds that the other ranks have to end by themselves after one has failed. If all fail with the same error, each
#: reports it within this time, and the group's error is known to be common to all.
GRACE = 2.0

#: The same for ranks that each start CUDA or import upstream. When 28 groups did so at the same time, 2 s were too short.
LONG_GRACE = 10.0

#: The exit status that is noted for a rank which was killed because another had failed, or because time was up.
CUT = -1000

#: What messages call the fork server.
FORKS = "the process that forks the ranks"

_TICK = 0.05


class RanksFailed(Exception):
    """A group of ranks failed. The message names the rank and what happened to it.

    - rank: the rank that failed first; None if the group took too long.
    - alike: whether every rank failed with the same error.
    - raised: the error with the place in upstream that raised it (`harness.raised`).
    """

    def __init__(
        self, message: str, rank: int | None = None, alike: bool = False, raised: Mapping[str, Any] | None = None
    ):
        super().__init__(message)
        self.rank = rank
        self.alike = alike
        # A rank that hangs or is killed leaves its stack in the message.
        first = message.partition("\n")[0]
        self.raised = dict(raised or {"kind": "", "message": first, **place_in(message)})


@dataclass(frozen=True)
class Group:
    """What a group of ranks is to do.

    - call: called without arguments in every rank. It is pickled, so it is a function of a module, or a functools.partial
      of one.
    - world_size: the number of ranks.
    - directory: where each rank writes its output, its error and its stack.
    - limit: seconds after which the group counts as hung.
    - backend: of torch.distributed. None, for GPUs, lets accelerate set it up from the ranks' environment variables.
    - environment: environment variables of the ranks.
    - imports: modules that every rank needs. The fork server imports them once, for all groups.
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
    """How the processes of a group ended.

    - statuses: rank -> exit status; -N if signal N killed it, CUT if the harness did.
    - timed_out: whether the group took longer than its limit.
    - error: what went wrong outside of the ranks; empty if nothing did.
    - unforkable: whether no rank was started, because ranks need CUDA and the fork server has started CUDA.
    """

    statuses: dict[int, int]
    timed_out: bool = False
    error: str = ""
    unforkable: bool = False


def environment() -> dict[str, str]:
    """Return the environment variables of processes that become or start ranks: this process's, and all GPUs."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if GPUS in os.environ:
        # This process sees one GPU only (`harness.environment.see_one_gpu`). It comes first for its ranks, so that the
        # groups of several workers spread over all GPUs.
        names, own = gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
        first = names.index(own) if own in names else 0
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(names[first:] + names[:first])
    return variables


# ---- the files that each rank writes ----


def output_file(directory: Path, rank: int) -> Path:
    """Return the file of what a rank printed."""
    return directory / f"rank-{rank}.out"


def error_file(directory: Path, rank: int) -> Path:
    """Return the JSON file of what a rank raised; there is none if it raised nothing.

    - "time": when, in seconds of the monotonic clock.
    - "error": the exception's message.
    - "usage": whether it was a UsageError.
    - "raised": the exception with the place that raised it (`harness.raised`).
    """
    return directory / f"rank-{rank}.error"


def stack_file(directory: Path, rank: int) -> Path:
    """Return the file of the Python stacks of a rank's threads, written at SIGUSR1 or a crash."""
    return directory / f"rank-{rank}.stack"


#: Seconds that ranks have to write their stacks after their group timed out.
_LAST_WORDS = 2.0


def show_stacks(group: Group, pids: dict[int, int]) -> None:
    """Have ranks write the stacks of their threads to their stack files.

    - pids: rank -> process id.
    """
    for pid in pids.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
    until = time.monotonic() + _LAST_WORDS
    files = [stack_file(group.directory, rank) for rank in pids]
    while time.monotonic() < until and not all(file.is_file() and file.stat().st_size for file in files):
        time.sleep(_TICK)
    time.sleep(_TICK)  # a stack is written line by line


# ---- messages between the fork server and its owner ----


def send(channel: socket.socket, message: Any) -> None:
    """Send one pickled message."""
    body = pickle.dumps(message)
    channel.sendall(struct.pack("<Q", len(body)) + body)


def receive(channel: socket.socket, seconds: float | None = None) -> Any:
    """Return the next message. EOFError if the other end is closed.

    - seconds: how long to wait for all of it; None: as long as the other end is open. TimeoutError if it is not there then.
    """
    until = None if seconds is None else time.monotonic() + seconds
    try:
        (length,) = struct.unpack("<Q", _exactly(channel, 8, until))
        return pickle.loads(_exactly(channel, length, until))  # noqa: S301 - the other end is a process of this command
    finally:
        channel.settimeout(None)


def _exactly(channel: socket.socket, count: int, until: float | None) -> bytes:
    read = bytearray()
    while len(read) < count:
        if until is not None:
            channel.settimeout(max(0.001, until - time.monotonic()))
        part = channel.recv(count - len(read))
        if not part:
            raise EOFError
        read += part
    return bytes(read)
