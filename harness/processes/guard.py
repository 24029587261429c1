"""Leave nothing behind: end every process of a command, and delete its temporary files, however the command ends.

1. `guarded` makes a directory, TMPDIR of every process of the command, and starts a watcher: this file, as a script.
2. When the command ends, its other processes are killed, and the directory is deleted.
3. If the command is killed, the watcher does the same.
4. If the watcher is killed, too, as when a container stops, the next command deletes the directory.

A process belongs to the command if its environment has RUN, or if it has the command's own words and holds the pipe to the
watcher. Processes that were started have the first; processes that were forked have the second. Both are read in /proc.
Without it, processes end by other means (`harness.processes.parent_watch`, `harness.processes.rank.die_with_parent`), and
files are still deleted.

This file imports nothing but the standard library, so that the watcher starts in 20 ms and takes 8 MB.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

#: The environment variable that names the command's directory. Every process of the command has it.
RUN = "PEFT_HARNESS_RUN"

#: How the directory is named, and the file in it that says it is ours.
_PREFIX, _MARK = "peft-harness-run-", "command"

#: Seconds that a new directory is left alone by other commands, since it is locked only after it was made.
_NEW = 60.0

#: Seconds that killed processes may take to end.
_PATIENCE = 5.0

_TICK = 0.02

#: Seconds between two looks at whether the command is alive.
_INTERVAL = 0.2

#: What the command sends to its watcher when there is nothing left to do.
_FAREWELL = b"."


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Guard this process's command until the block ends. Within a command that is guarded already, this does nothing.

    Raises OSError if there is no temporary directory, or if no process can be started.
    """
    if sys.platform == "win32" or is_guarded():
        yield
        return
    common = Path(tempfile.gettempdir())
    _delete_left_over(common)
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=common))
    lock = _locked(directory)
    before = {name: os.environ.get(name) for name in (RUN, "TMPDIR")}
    try:
        (directory / _MARK).write_text(f"{os.getpid()}\n")
        reads, writes = os.pipe()
        with os.fdopen(writes, "wb", buffering=0) as pipe:
            fork = _Fork(_words(os.getpid()), _inode(writes))
            watcher = _start_watcher(reads, directory, fork)
            _let_use(directory)
            try:
                yield
            finally:
                _set(before)
                clean(directory, fork, {os.getpid(), watcher.pid})
                pipe.write(_FAREWELL)
        watcher.wait()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def is_guarded() -> bool:
    """Return whether this process belongs to a command that is guarded."""
    return os.path.isdir(os.environ.get(RUN) or "\0")


def common_directory() -> Path:
    """Return the directory for temporary files that commands share, such as locks. It outlives them."""
    return Path(os.environ[RUN]).parent if is_guarded() else Path(tempfile.gettempdir())


def end_the_others() -> None:
    """Kill every process of this command but this one."""
    if is_guarded():
        _end(lambda: [pid for pid in _with_variable(os.environ[RUN]) if pid != os.getpid()])


def ignore_ctrl_c() -> None:
    """For subprocess's preexec_fn: leave Ctrl-C, which a terminal sends to every process, to the one that starts this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# ---- the command ----


def _start_watcher(reads: int, directory: Path, fork: _Fork) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-I", "-S", __file__, str(directory), *map(str, (os.getpid(), reads, *fork))]
    try:
        # In a session of its own, neither Ctrl-C nor the end of a terminal reaches it.
        return subprocess.Popen(
            words,
            pass_fds=[reads],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(reads)


def _let_use(directory: Path) -> None:
    _set({RUN: str(directory), "TMPDIR": str(directory)})


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # It is asked of TMPDIR again.
    tempfile.tempdir = None


def _locked(directory: Path) -> int | None:
    """Lock a directory for the life of this process. Returns the descriptor; None if another process holds the lock."""
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _delete_left_over(common: Path) -> None:
    """Delete the directories of commands that were killed together with their watchers."""
    for directory in common.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            found = directory.lstat()
            ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and (directory / _MARK).is_file()
            if not ours or time.time() - found.st_mtime < _NEW:
                continue
            # The lock is held as long as the command lives. Process ids are no help: containers may share the directory.
            lock = _locked(directory)
            if lock is not None:
                shutil.rmtree(directory, ignore_errors=True)
                os.close(lock)


# ---- what the command and its watcher do at the end ----


class _Fork(NamedTuple):
    """What a process has that the command's own process forked: a checksum of its words, and the inode of the pipe."""

    words: int
    pipe: int


def clean(directory: Path, fork: _Fork, spared: set[int]) -> None:
    """Kill the processes of a command, and delete its directory.

    - fork: what shows processes that the command forked.
    - spared: process ids that are not killed.
    """
    _end(lambda: [pid for pid in {*_with_variable(str(directory)), *_forks(fork)} if pid not in spared])
    shutil.rmtree(directory, ignore_errors=True)


def _end(found: Callable[[], list[int]]) -> None:
    until = time.monotonic() + _PATIENCE
    while (pids := found()) and time.monotonic() < until:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_TICK)


def _pids() -> list[int]:
    """Return the process ids of this user. None without /proc."""
    mine = os.geteuid()
    pids = []
    with contextlib.suppress(OSError), os.scandir("/proc") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and entry.stat().st_uid == mine:
                    pids.append(int(entry.name))
    return pids


def _with_variable(directory: str) -> list[int]:
    """Return the processes that have RUN in their environment. A zombie's is empty."""
    wanted = f"{RUN}={directory}".encode()
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as stream:
            if wanted in stream.read().split(b"\0"):
                found.append(pid)
    return found


def _forks(fork: _Fork) -> list[int]:
    """Return the processes that the command forked. Others may have a million open files, so the words are compared first."""
    wanted = f"pipe:[{fork.pipe}]"
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            folder = f"/proc/{pid}/fd"
            if _words(pid) == fork.words and any(_target(f"{folder}/{name}") == wanted for name in os.listdir(folder)):
                found.append(pid)
    return found


def _words(pid: int) -> int:
    """Return a checksum of the command line of a process; that of nothing if it cannot be read."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as stream:
        return zlib.crc32(stream.read())
    return zlib.crc32(b"")


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:  # it was closed just now
        return ""


def _inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


# ---- the watcher ----


def _watch(directory: Path, owner: int, pipe: int, fork: _Fork) -> None:
    """Wait until the owner has said farewell or is gone. In the second case, do its work."""
    while os.getppid() == owner:
        if select.select([pipe], [], [], _INTERVAL)[0]:
            if os.read(pipe, 1) == _FAREWELL:
                return
            break  # Nobody holds the other end.
    clean(directory, fork, {os.getpid()})


if __name__ == "__main__":
    _watch(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), _Fork(int(sys.argv[4]), int(sys.argv[5])))
