"""Record the file operations of a save: those of Python and those of native code, in their order.

1. inotify queues each change of the directory (`harness.crash.inotify`).
2. A profile function reads the queue after each call that Python makes or returns from, and reads what changed files hold.
   So a Python write is seen by itself. Native code that makes several changes within one call leaves them in order, and
   a file that it wrote is seen as it was when that call returned.
3. os.fsync and os.fdatasync are wrapped. A native fsync is not seen, and counts as none: more states are made, none is
   missed.
4. In the end the operations are replayed, and must give what the directory holds. Writes through a memory map are no
   events, so a save that makes them is refused.

tests/test_crash_recorder.py compares the order with what strace sees.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.crash import inotify
from harness.crash.inotify import Event, Watch
from harness.crash.operations import (
    CREATE,
    LINK,
    MEET,
    MKDIR,
    RENAME,
    RMDIR,
    SYNC,
    UNLINK,
    WRITE,
    Operation,
    Recording,
    apply,
)
from harness.crash.trees import Tree, read_tree
from harness.errors import UsageError

#: Seconds in which a thread that a save began may still write.
_STILL_WRITING = 30.0

#: Seconds without a change after which such a thread is taken to be idle.
_QUIET = 0.2


def record(save: Callable[[Path], Any], directory: Path) -> Recording:
    """Call `save(directory)` and return what it did to the directory, which must exist.

    Raises what `save` raises, and UsageError where the operations cannot be recorded.
    """
    recorder = Recorder(directory)
    with recorder.on():
        save(directory)
    return recorder.recording()


class Recorder:
    """Records what this process does to a directory while `on`."""

    def __init__(self, directory: Path):
        self._directory = directory.resolve()
        self._before: Tree = {}
        self._tree: Tree = {}
        self._operations: list[Operation] = []
        self._watch: Watch | None = None
        self._lock = threading.RLock()
        self._failed: UsageError | None = None

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Record within the block. It may be entered once."""
        if not self._directory.is_dir():
            raise UsageError(f"{self._directory} is no directory; make it before the save is recorded")
        self._watch = Watch(self._directory)
        self._before = read_tree(self._directory)
        for where, node in self._before.items():
            if node is None:
                self._watch.add(where)
        self._tree = dict(self._before)
        threads = set(threading.enumerate())
        earlier, originals = sys.getprofile(), {name: getattr(os, name) for name in ("fsync", "fdatasync")}
        for name, original in originals.items():
            setattr(os, name, self._syncing(original))
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(earlier)
            threading.setprofile(None)
            for name, original in originals.items():
                setattr(os, name, original)
            self._poll()
            self._compare(set(threading.enumerate()) - threads)
            with self._lock:  # threads of the save may still run
                self._watch.close()
                self._watch = None

    def recording(self) -> Recording:
        """Return what was recorded. UsageError if it does not give what the directory held in the end."""
        if self._failed is not None:
            raise self._failed
        return Recording(self._before, tuple(self._operations))

    def _compare(self, threads: set[threading.Thread]) -> None:
        """Check that the operations give what the directory holds. threads: those that the save began."""
        until, made, changed = time.monotonic() + _STILL_WRITING, -1, time.monotonic()
        while True:
            # Asked first: what a thread that has ended did is in the queue by now.
            writing = any(one.is_alive() for one in threads) and time.monotonic() < until
            self._poll()
            wrong = self._unlike()
            if len(self._operations) != made:
                made, changed = len(self._operations), time.monotonic()
            # A thread that waits for work may live as long as the process.
            if not writing or (not wrong and time.monotonic() - changed > _QUIET):
                break
            time.sleep(0.01)
        if wrong:
            self._failed = self._failed or UsageError(
                f"the save changed {wrong[0]} in a way that cannot be recorded, such as through a memory map, so its crash "
                "states are not known"
            )

    def _unlike(self) -> list[str]:
        try:
            there = read_tree(self._directory)
        except FileNotFoundError as gone:  # a thread deletes it just now
            return [str(gone.filename)]
        return sorted(where for where in {*there, *self._tree} if there.get(where, 0) != self._tree.get(where, 0))

    @property
    def before(self) -> Tree:
        """What the directory held when the recording began."""
        return self._before

    def meet(self) -> None:
        """Take note that this rank waits for the others here."""
        with self._lock:
            self._poll()
            if self._watch is not None:
                self._operations.append(Operation(MEET, "."))

    # ---- what calls it ----

    def _profile(self, frame: Any, event: str, argument: Any) -> None:
        if event != "call" and event != "c_call":
            self._poll()

    def _syncing(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def sync(file: Any) -> None:
            descriptor = file if isinstance(file, int) else file.fileno()
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            original(file)
            with self._lock:
                self._poll()
                with contextlib.suppress(ValueError):
                    self._operations.append(Operation(SYNC, Path(path).relative_to(self._directory).as_posix()))

        return sync

    def _poll(self) -> None:
        with self._lock:
            if self._watch is None:
                return
            try:
                events = self._watch.events()
                for at, event in enumerate(events):
                    self._take(event, events[at + 1 :])
            except UsageError as error:
                # A profile function that raises would end the save.
                self._failed = self._failed or error

    # ---- from events to operations ----

    def _do(self, operation: Operation) -> None:
        if apply(self._tree, operation):
            self._operations.append(operation)

    def _take(self, event: Event, later: list[Event]) -> None:
        path = event.path
        if event.what == inotify.CREATED:
            self._appeared(path)
        elif event.what in (inotify.MODIFY, inotify.CLOSE_WRITE):
            self._written(path, _name_now(path, later), whole=event.what == inotify.CLOSE_WRITE)
        elif event.what == inotify.DELETED:
            self._do(Operation(RMDIR if event.is_folder else UNLINK, path))
        elif event.what == inotify.MOVED_FROM:
            arrival = _arrival(event, later)
            if arrival is None:  # moved out of the directory
                for each in sorted((one for one in self._tree if one.startswith(f"{path}/")), reverse=True):
                    self._do(Operation(RMDIR if self._tree[each] is None else UNLINK, each))
                self._do(Operation(RMDIR if event.is_folder else UNLINK, path))
                return
            self._do(Operation(RENAME, path, arrival.path))
            if event.is_folder and self._watch is not None:
                self._watch.moved(path, arrival.path)
        elif event.what == inotify.MOVED_TO and path not in self._tree:  # moved in from elsewhere
            self._appeared(path)

    def _appeared(self, path: str) -> None:
        """Take note of a new file or directory, and of what the directory holds already."""
        real = self._directory / path
        if real.is_symlink():
            self._do(Operation(LINK, path, os.readlink(real)))
        elif real.is_dir():
            assert self._watch is not None
            self._watch.add(path)
            self._do(Operation(MKDIR, path))
            with contextlib.suppress(FileNotFoundError):
                for name in sorted(os.listdir(real)):
                    if f"{path}/{name}" not in self._tree:
                        self._appeared(f"{path}/{name}")
        else:
            self._do(Operation(CREATE, path))
            self._written(path, path, whole=False)

    def _written(self, path: str, real: str | None, whole: bool) -> None:
        """Take note of what a file holds now.

        - real: its name by now; None if it is gone.
        - whole: whether to read all of it. Otherwise what was there is taken as unchanged, if the file has grown.
        """
        had = self._tree.get(path)
        if real is None or not isinstance(had, bytes):
            return
        try:
            with open(self._directory / real, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > len(had) and not whole:
                    file.seek(len(had))
                    data = had + file.read()
                else:
                    data = file.read()
        except OSError:
            return
        if data != had:
            self._do(Operation(WRITE, path, data=data))


def _arrival(event: Event, later: list[Event]) -> Event | None:
    """Return the other half of a rename."""
    return next((one for one in later if one.what == inotify.MOVED_TO and one.cookie == event.cookie), None)


def _name_now(path: str, later: list[Event]) -> str | None:
    """Return what a file is called after events that came later; None if it is gone."""
    for at, event in enumerate(later):
        if event.path == path and event.what == inotify.DELETED:
            return None
        if event.path == path and event.what == inotify.MOVED_FROM:
            arrival = _arrival(event, later[at:])
            return None if arrival is None else _name_now(arrival.path, later[at + 1 :])
    return path
