"""A group of ranks: what it is to do, how it ended, the files that each rank leaves, and the messages about it."""

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

#: Seconds that a group may take. The slowest of the suites' takes 5 s on a busy machine.
LIMIT = 60.0

#: Seconds that the other ranks have to end by themselves once one has failed: a fault that all have in common is told
#: by each of them, and then the first one's words are as good as any.
GRACE = 2.0

#: The same of ranks that start CUDA, or import upstream, each by itself: where 28 groups did so at once 2 s were too few.
LONG_GRACE = 10.0

#: The status of a rank that was killed because another had failed.
CUT = -1000

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


#: Seconds that ranks whose time is up have to write their stacks.
_LAST_WORDS = 2.0


def show_stacks(group: Group, pids: dict[int, int]) -> None:
    """Have ranks (rank -> process id) write the stacks of their threads into their stack files."""
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
