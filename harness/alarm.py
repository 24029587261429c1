"""A limit of time for what may never end and cannot be looked through before, such as a regular expression or a template."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any


class TimeIsUp(Exception):
    """The block of `limited` took too long."""


class CutOff(BaseException):
    """A case took too long. It is no Exception, so that a training loop that catches errors and tries again ends, too."""


#: Seconds after which a block that caught `CutOff` gets another.
_AGAIN = 5.0


@contextmanager
def limited(
    seconds: float, error: BaseException | type[BaseException] = TimeIsUp, again: float = 0.0
) -> Iterator[None]:
    """Raise `error` within the block after some seconds. A signal interrupts it, and another thread could not.

    - again: raise it again every so many seconds, until the block ends; 0: once.

    An alarm that somebody else has set goes on afterwards. Only the main thread gets signals; there is no limit in others.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def over(number: int, frame: Any) -> None:
        raise error

    began, handler = time.monotonic(), signal.signal(signal.SIGALRM, over)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, again)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), interval)


def cut_off(seconds: float) -> AbstractContextManager[None]:
    """Raise `CutOff` within the block after some seconds, until it ends; 0: never."""
    if not seconds:
        return nullcontext()
    return limited(seconds, CutOff(f"cut off after {seconds:g} s"), _AGAIN)
