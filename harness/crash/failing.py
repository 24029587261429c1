"""A save that cannot write: from one of its operations on, the disk is full or read-only.

- full: files can be made, and no byte can be written. RLIMIT_FSIZE does that to native code, too; the error is EFBIG.
- read-only: besides, Python can make, rename and remove nothing (EROFS). Native code can still make an empty file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.crash.outcomes import folders
from harness.crash.recorder import Recorder
from harness.crash.trainer_ways import RUN, SavedRun, quiet, while_saving, working_in
from harness.crash.trees import Tree, below, key, read_tree
from harness.subjects.hf_trainer import HFTrainer
from harness.verdict import Verdict, verdict

FULL, READ_ONLY = "full", "read-only"

#: Whether the audit hook refuses changes. A hook cannot be removed, so there is one for the life of the process.
_refusing = [False]
_hooked: list[bool] = []

_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _refusing[0]:
        return
    flags = arguments[2] if event == "open" and len(arguments) > 2 else 0
    writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and arguments[0] != os.devnull
    if event in _CHANGES or writes:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))


class _Failing(Recorder):
    """A recorder after whose operation `number` nothing can be written."""

    def __init__(self, directory: Path, number: int, how: str):
        super().__init__(directory)
        self._number, self._how = number, how

    def _poll(self) -> None:
        super()._poll()
        if len(self._operations) >= self._number and self._watch is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            _refusing[0] = self._how == READ_ONLY


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Let this process write again after the block."""
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked.append(True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        _refusing[0] = False
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _lost(before: Tree, after: Tree) -> list[str]:
    """Say what the newest checkpoint lacks of what the one before it has.

    With another torch a save may have fewer operations, so that none was left to fail. Then nothing is lost.
    """
    older, newer = folders(before)[-1], folders(after)[-1]
    if newer == older:
        return [f"and wrote no checkpoint after {older}"]
    had, has = (
        {name for name, node in (below(tree, at) or {}).items() if node}
        for tree, at in ((before, older), (after, newer))
    )
    return [f"and {newer}/{name} is missing or empty" for name in sorted(had - has)]


def fail(saved: SavedRun, number: int, how: str, directory: Path, subject: HFTrainer | None = None) -> Verdict:
    """Train a run whose save cannot write after `number` operations, and return whether it ended as it must.

    - how: FULL or READ_ONLY.
    - directory: to work in.
    """
    error = ""
    with working_in(directory), quiet([]):
        shutil.rmtree(RUN, ignore_errors=True)
        RUN.mkdir()
        trainer = (subject or HFTrainer()).build(saved.spec, RUN)
        recorder = _Failing(RUN, number, how)
        while_saving(trainer, recorder, saved.step, saved.step)
        with _restored():
            try:
                trainer.train()
            except Exception as caught:
                error = f"{type(caught).__name__}: {caught}"
        after = read_tree(RUN)
    findings = []
    if not error:
        findings = [
            f"disk {how} after operation {number}: train() ended without an error, {loss}"
            for loss in _lost(recorder.before, after)
        ]
    findings += [
        f"disk {how} after operation {number}: {name} is not as it was before the save"
        for name in folders(recorder.before)
        if key(below(after, name) or {}) != key(below(recorder.before, name) or {})
    ]
    return verdict("a save that cannot write ends with an error and leaves older checkpoints whole", findings)
