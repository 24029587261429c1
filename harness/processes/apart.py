"""Judge a run in a process of its own, so that code of the user's cannot decide how the command ends.

A subject or a model that somebody brought may call os._exit, crash, or hang. The parent, in which none of it runs, gives
the exit code that the child told it, and 2 if it told none.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable

from harness import ending
from harness.errors import UsageError
from harness.processes.parent_watch import OWNER
from harness.processes.rank import die_with_parent

#: Seconds in which a run must train once, or be judged by one law. The slowest law trains two more runs, and ranks that
#: hang are ended after a minute each.
LIMIT = 600.0

#: How a child calls its parent; -1 in other processes.
_pipe = -1

_ALIVE, _CODE, _ERROR = b".", b"=", b"!"

_TICK = 0.05

#: Bytes of a sentence. A pipe holds more.
_MOST = 32_000

#: If this process did not run for so many seconds, both were stopped (Ctrl-Z). That is not the run's time.
_STOPPED = 5.0


def alive() -> None:
    """Tell the parent, if there is one, that something was done: its clock starts anew."""
    if _pipe >= 0:
        os.write(_pipe, _ALIVE)


def judged(work: Callable[[], int], what: str, limit: float = LIMIT) -> int:
    """Call `work` in a child, and return the exit code that it returns.

    A UsageError of the child is raised here. What else it raises is said in one sentence, and the code is 2.

    - work: calls `alive` whenever something is done.
    - what: what messages call the run.
    - limit: seconds between two calls of `alive` after which the child is ended; 0: never.

    Raises UsageError if the child ends without an answer, or is ended. Without fork, `work` is called in this process.
    """
    if not hasattr(os, "fork"):
        return work()
    reads, writes = os.pipe()
    sys.stdout.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reads)
        _child(work, writes, parent)
    os.close(writes)
    try:
        answer = _told(pid, reads, limit)
    finally:
        os.close(reads)
    if answer is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise UsageError(f"{what}: did nothing for {limit:g} s, so it was ended, and nothing is judged; see --limit")
    told, status = answer
    if told[:1] == _CODE:
        return int(told[1:])
    if told[:1] == _ERROR:
        raise UsageError(told[1:].decode("utf-8", "backslashreplace"))
    code = os.waitstatus_to_exitcode(status)
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
    raise UsageError(f"{what}: the process that trained it {how} before all laws were applied, so nothing is judged")


def _child(work: Callable[[], int], writes: int, parent: int) -> None:
    global _pipe
    die_with_parent(parent)
    os.environ.pop(OWNER, None)
    _pipe = writes
    try:
        answer = _CODE + str(ending.ended(work())).encode()
    except UsageError as error:
        answer = _ERROR + str(error).encode("utf-8", "backslashreplace")[:_MOST]
    except BaseException as error:
        answer = _CODE + str(ending.ended_by(error)).encode()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(writes, answer)
    os._exit(0)


def _told(pid: int, reads: int, limit: float) -> tuple[bytes, int] | None:
    """Return what the child has told when it ended, and its wait status. None if it was silent for too long.

    Its forks may keep the pipe open, so its end is asked for, and not only that of the pipe.
    """
    told, since, before = b"", time.monotonic(), time.monotonic()
    while True:
        ready, _, _ = select.select([reads], [], [], _TICK)
        now = time.monotonic()
        if now - before > _STOPPED:  # this process was stopped, and the child with it
            since += now - before
        before = now
        part = os.read(reads, 4096) if ready else b""
        if part:
            told, since = (told + part).lstrip(_ALIVE), now  # the answer comes last
            continue
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return told, status
        if not told and limit and now - since > limit:
            return None
        if ready:  # the pipe is closed, and the child is about to end
            time.sleep(_TICK)
