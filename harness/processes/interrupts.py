"""What a command does at Ctrl-C, at SIGTERM, and when its terminal closes: say so in one sentence, and end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

# By this name also while a user's module is imported, which may not call os._exit (`harness.user_code`).
from os import _exit
from types import FrameType
from typing import Any

#: Added to a signal's number, it is the exit status by which shells know that a signal ended a process.
_BY_SIGNAL = 128

#: Signals that ask a command to end, on this system.
ALL = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
BUT_CTRL_C = tuple(number for number in ALL if number != signal.SIGINT)


@contextlib.contextmanager
def ending_at(*signals: signal.Signals) -> Iterator[None]:
    """Until the block ends, end this process at once if one of these signals arrives: one sentence, exit status 128 + N.

    No exception is raised. At a random moment some code would swallow it, or print its traceback. `harness.processes.guard`
    ends the command's other processes and deletes its temporary files. Files of the user's are written whole or not at all.

    A signal that the caller made this process ignore, as nohup does, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, before = os.getpid(), dict[signal.Signals, Any]()
    # While a run trains, stderr may be a log file.
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed
        stderr = os.open(os.devnull, os.O_WRONLY)

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a fork, which ends as it would without this
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        shown = "\x1b[?25h\r" if os.isatty(stderr) else ""  # a progress bar hides the cursor
        name = signal.Signals(number).name
        sentence = f"interrupted by {name}; if it was a gate, the same command continues it"
        with contextlib.suppress(OSError):
            os.write(stderr, f"{shown}peft-harness: {sentence}\n".encode())
        _exit(_BY_SIGNAL + number)

    for each in signals:
        if signal.getsignal(each) in (signal.SIG_DFL, signal.default_int_handler):
            before[each] = signal.signal(each, end)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        os.close(stderr)
