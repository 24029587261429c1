"""Be a rank: connect to the others, make the group's call, write down what failed, and end without tidying up."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import UsageError
from harness.processes.group import LONG_GRACE, Group, error_file, output_file, stack_file

_TICK = 0.05


def wait_for_the_others(group: Group) -> None:
    """Called by a rank that has told why it failed, and whose end would be another rank's failure: let it fail by itself."""
    until = time.monotonic() + LONG_GRACE
    files = [error_file(group.directory, rank) for rank in range(group.world_size)]
    while time.monotonic() < until and not all(file.is_file() for file in files):
        time.sleep(_TICK)


def play(group: Group, rank: int, connect: Callable[[], Any], failed: Callable[[], Any] = lambda: None) -> NoReturn:
    """Be a rank: connect to the others, make the group's call, and end the process without any tidying up.

    failed: called once this rank has told what went wrong.
    Tearing a process group down is where ranks hang, and an exit of the process does it as well.
    """
    status = 1
    try:
        _redirect(output_file(group.directory, rank))
        stack = stack_file(group.directory, rank).open("w")
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=True)
        faulthandler.enable(file=stack)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Gloo would otherwise look for the host's own address, which need not be reachable.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        os.environ |= group.environment
        connect()
        group.call()
        status = 0
    except BaseException as error:
        words = str(error) or type(error).__name__
        told = {"time": time.monotonic(), "error": words, "usage": isinstance(error, UsageError)}
        error_file(group.directory, rank).write_text(json.dumps(told))
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


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, which has this id, dies. Linux only; a no-op elsewhere."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
