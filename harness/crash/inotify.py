"""Linux's inotify through ctypes: which files of a directory changed, in order, whoever changed them.

The kernel queues an event at each change. A program that reads the queue after each of its own calls sees what native code
wrote as well: torch and safetensors open and rename files without Python.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError

MODIFY, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATED, DELETED = 0x2, 0x8, 0x40, 0x80, 0x100, 0x200
_OVERFLOW, _IGNORED, _IS_FOLDER = 0x4000, 0x8000, 0x40000000
_MASK = MODIFY | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATED | DELETED
_HEADER = struct.Struct("iIII")


@dataclass(frozen=True)
class Event:
    """One change. what: one of the masks above. cookie: the same for both halves of a rename."""

    what: int
    folder: str
    name: str
    is_folder: bool
    cookie: int

    @property
    def path(self) -> str:
        return self.name if self.folder == "." else f"{self.folder}/{self.name}"


class Watch:
    """Watches a directory, and those below it that it is told of. UsageError where there is no inotify."""

    def __init__(self, directory: Path):
        if not sys.platform.startswith("linux"):
            raise UsageError("crash states are recorded by inotify, which only Linux has")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._directory = directory
        self.descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise UsageError(f"inotify cannot be used here: {os.strerror(ctypes.get_errno())}")
        #: Watch descriptor -> directory, relative to the watched one.
        self._folders: dict[int, str] = {}
        self.add(".")

    def add(self, folder: str) -> None:
        """Watch a directory below, too. One that is gone by now is passed over."""
        path = os.fsencode(self._directory / folder)
        number = self._libc.inotify_add_watch(self.descriptor, path, _MASK)
        if number >= 0:
            self._folders[number] = folder
        elif not os.path.isdir(path):
            return
        else:
            raise UsageError(f"inotify cannot watch {self._directory / folder}: {os.strerror(ctypes.get_errno())}")

    def moved(self, old: str, new: str) -> None:
        """Take note that a directory has another name now."""
        for number, folder in self._folders.items():
            if folder == old or folder.startswith(f"{old}/"):
                self._folders[number] = new + folder.removeprefix(old)

    def events(self) -> list[Event]:
        """Return what has changed since the last call. UsageError if the kernel dropped events."""
        body = b""
        while True:
            try:
                body += os.read(self.descriptor, 65536)
            except BlockingIOError:
                break
        found, at = [], 0
        while at < len(body):
            number, mask, cookie, length = _HEADER.unpack_from(body, at)
            name = os.fsdecode(body[at + _HEADER.size : at + _HEADER.size + length].rstrip(b"\0"))
            at += _HEADER.size + length
            if mask & _OVERFLOW:
                raise UsageError("inotify dropped events; record a save with fewer files")
            if not mask & _IGNORED and number in self._folders:
                found.append(Event(mask & _MASK, self._folders[number], name, bool(mask & _IS_FOLDER), cookie))
        return found

    def close(self) -> None:
        os.close(self.descriptor)
