"""A lease: the file by which tasks on any machine know that the command which started them is alive.

The command renews it every second. Tasks, and the pilots of a cluster that run them, watch it. They end if it was not renewed
for LIMIT seconds, or if another command has taken it: a task that nobody waits for must not go on beside the task that took
its place.

    python -m harness.processes.lease FILE OWNER PROCESS     ends PROCESS and all that it started when the lease is lost
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UsageError
from harness.files import write_whole

#: Seconds between two renewals.
PERIOD = 1.0

#: Seconds without a renewal after which a lease is lost. Clocks of several machines differ, and network file systems show a
#: change late (NFS: after 3 s to 60 s by default), so the renewals are counted and not their times compared.
LIMIT = float(os.environ.get("PEFT_HARNESS_LEASE", "90"))


class Lost(UsageError):
    """The command that started this task has ended, or another one has taken its place."""


@contextlib.contextmanager
def held(file: Path) -> Iterator[str]:
    """Hold a lease while the block runs. Yields its owner's name, which tasks are given.

    Of a command that was killed it is taken over: tasks of that command which still run end. Raises UsageError if another
    command holds it and is alive.
    """
    if _is_renewed(file):
        raise UsageError(f"{file.parent}: another command is at work there; wait for it, or name another directory")
    owner, over = uuid.uuid4().hex, threading.Event()
    write_whole(file, f"{owner} 0\n")

    def renew() -> None:
        count = 0
        while not over.wait(PERIOD):
            count += 1
            with contextlib.suppress(OSError):
                if not file.read_text(encoding="utf-8").startswith(owner):
                    return  # taken by another command
                write_whole(file, f"{owner} {count}\n")

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield owner
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError):
            if file.read_text(encoding="utf-8").startswith(owner):
                file.unlink()


def _is_renewed(file: Path) -> bool:
    """Return whether a command renews a lease. That takes a moment, if there is a lease."""

    def text() -> str:
        try:
            return file.read_text(encoding="utf-8")
        except OSError:
            return ""

    first = text()
    if first:
        time.sleep(2.5 * PERIOD)
    return text() not in ("", first)


class Watch:
    """Watches a lease from a task. `check` raises Lost as soon as it is seen to be lost."""

    def __init__(self, file: Path, owner: str):
        self._file, self._owner = file, owner
        self._text, self._since = "", time.monotonic()

    def check(self) -> None:
        """Raise Lost if the lease is another's, is gone, or was not renewed for LIMIT seconds of this process."""
        try:
            text = self._file.read_text(encoding="utf-8")
        except FileNotFoundError:
            text = "gone"
        except OSError:  # a network file system that is away for a moment
            text = self._text
        if text == "gone" or (text and not text.startswith(self._owner)):
            raise Lost(f"{self._file}: the command that started this task has ended")
        if text != self._text:
            self._text, self._since = text, time.monotonic()
        if time.monotonic() - self._since > LIMIT:
            raise Lost(f"{self._file}: the command that started this task has not renewed it for {LIMIT:g} s")


def fence(file: Path, owner: str) -> str:
    """Return a line of shell that ends the shell which runs it, and all that it started, when the lease is lost."""
    import shlex

    return f"{shlex.quote(sys.executable)} -m {__name__} {shlex.quote(str(file))} {owner} $$ &"


def _end(process: int) -> None:
    """Kill a process and all its descendants, as /proc lists them; youngest last, so that none is missed."""
    for child in _children(process):
        _end(child)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, signal.SIGKILL)


def _children(process: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(word) for word in (task / "children").read_text().split()]
    return [child for child in found if child != os.getpid()]


def main(words: list[str]) -> None:
    """Watch a lease until it is lost or the process has ended."""
    watch, process = Watch(Path(words[0]), words[1]), int(words[2])
    try:
        while os.getppid() == process:
            watch.check()
            time.sleep(PERIOD)
    except Lost:
        _end(process)


if __name__ == "__main__":
    main(sys.argv[1:])
