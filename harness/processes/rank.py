"""The life of one rank: connect to the others, make the group's call, write down what failed, and end the process."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import UsageError
from harness.processes.group import LONG_GRACE, Group, error_file, output_file, stack_file
from harness.raised import where_raised

_TICK = 0.05


def wait_for_the_others(group: Group) -> None:
    """Wait until each rank of the group has written its error, at most LONG_GRACE seconds.

    A rank that failed calls this if its own end would make the others fail with another error than their own.
    """
    until = time.monotonic() + LONG_GRACE
    files = [error_file(group.directory, rank) for rank in range(group.world_size)]
    while time.monotonic() < until and not all(file.is_file() for file in files):
        time.sleep(_TICK)


def play(group: Group, rank: int, connect: Callable[[], Any], failed: Callable[[], Any] = lambda: None) -> NoReturn:
    """Run one rank to its end: connect to the others, make the group's call, and end the process.

    - connect: called first; sets up torch.distributed.
    - failed: called after an error has been written to the rank's error file.

    The process ends without destroying the process group: ranks hang there, and the end of the process does it as well.
    """
    status = 1
    try:
        _redirect(output_file(group.directory, rank))
        stack = stack_file(group.directory, rank).open("w")
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=True)
        faulthandler.enable(file=stack)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Otherwise gloo looks up the host's own address, which may be unreachable.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        os.environ |= group.environment
        connect()
        group.call()
        status = 0
    except BaseException as error:
        message = str(error) or type(error).__name__
        report = {
            "time": time.monotonic(),
            "error": message,
            "usage": isinstance(error, UsageError),
            "raised": where_raised(error),
        }
        error_file(group.directory, rank).write_text(json.dumps(report))
        sys.excepthook(*sys.exc_info())
        failed()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _redirect(file: Path) -> None:
    target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def close_inherited(kept: int) -> None:
    """Close the descriptors that a fork has inherited, but for 0, 1, 2 and one more, and let loggers write to 2.

    Other processes wait until they are closed: xdist's pipes, and the other end of a channel. pytest captures what is printed
    in a file, and a handler that was made meanwhile keeps its descriptor. The number soon belongs to something else: to the
    pipe that controls torch's store, for example, whose thread then ends by SIGBUS.

    - kept: the descriptor that stays open.
    """
    os.closerange(3, kept)
    os.closerange(kept + 1, 4096)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    handlers: list[Any] = [reference() for reference in vars(logging)["_handlerList"]]
    for handler in handlers:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if handler.stream.fileno() > 2:
                # A handler without a stream opens its file again.
                handler.stream = None if isinstance(handler, logging.FileHandler) else sys.__stderr__


def die_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent dies. On Linux only; elsewhere this does nothing.

    The parent is the thread that started this process, so that thread must not end before.

    - parent: the parent's process id. If the parent has died before this call, the process ends with status 1.
    - by: the signal.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, by, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
