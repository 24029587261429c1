"""Which checkpoint of a run's output_dir to resume from."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.checkpoints.adapter_directory import FOREIGN, TORN, WHOLE
from harness.checkpoints.found import Checkpoint
from harness.checkpoints.judge import NAME, _is_accelerate, judge
from harness.checkpoints.saving import CheckpointError, finish
from harness.errors import UsageError
from harness.reading import shown_path

_log = logging.getLogger("harness.checkpoints")


class NoWholeCheckpoint(CheckpointError):
    """An output_dir has checkpoints, and none of them is whole."""


@dataclass
class Run:
    """An output_dir. checkpoints: newest first. use: the newest whole one that a run can be resumed from."""

    path: Path
    checkpoints: list[Checkpoint] = field(default_factory=list)

    @property
    def use(self) -> Checkpoint | None:
        return next((one for one in self.checkpoints if one.verdict == WHOLE and resumable(one)), None)

    @property
    def verdict(self) -> str:
        verdicts = {one.verdict for one in self.checkpoints}
        return next((one for one in (TORN, FOREIGN, WHOLE) if one in verdicts), FOREIGN)


def resumable(found: Checkpoint) -> bool:
    """Return whether a run can go on from a checkpoint: it is more than an adapter or a model."""
    return found.kind not in ("an adapter", "a model")


def checkpoints_in(output_dir: Path) -> list[Path]:
    """Return the checkpoints of an output_dir, newest first. Links to other directories are none.

    The Trainer's are sorted by their step, those of accelerate's save_state by their time. Raises UsageError if the
    directory cannot be listed.
    """
    try:
        entries = [entry for entry in os.scandir(output_dir) if not entry.is_symlink() and entry.is_dir()]
        named = [(int(match[1]), entry.path) for entry in entries if (match := NAME.fullmatch(entry.name))]
        if named:
            return [Path(path) for _, path in sorted(named, reverse=True)]
        states = [(entry.stat().st_mtime_ns, entry.path) for entry in entries if _is_accelerate(_files(entry.path))]
    except OSError as error:
        kind = "no such directory" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UsageError(f"{shown_path(output_dir)}: {kind}; name a checkpoint, or a run's output_dir") from None
    return [Path(path) for _, path in sorted(states, reverse=True)]


def _files(directory: str) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(directory)}
    except OSError:
        return set()


def newest_whole(output_dir: str | os.PathLike[str]) -> str | None:
    """Return the newest whole checkpoint of a run, for `trainer.train(resume_from_checkpoint=...)`.

    None if the run has no checkpoint yet, so that it starts afresh. What was passed over is logged as a warning.

    - output_dir: TrainingArguments.output_dir, or the directory into which accelerate's save_state writes.

    Raises NoWholeCheckpoint if there are checkpoints and none is whole, and UsageError if they cannot be read.
    """
    path = Path(output_dir)
    if not path.exists():
        return None
    finish(path)
    passed: list[str] = []
    inner = path / "checkpoints"  # accelerate's ProjectConfiguration(automatic_checkpoint_naming=True)
    for directory in checkpoints_in(path) or (checkpoints_in(inner) if inner.is_dir() else []):
        found = judge(directory)
        if found.verdict == WHOLE:
            if passed:
                _log.warning("resuming from %s; passed over: %s", shown_path(directory), "; ".join(passed))
            return str(directory)
        passed.append(f"{directory.name} is {found.verdict} ({found.why})")
    if passed:
        raise NoWholeCheckpoint(
            f"{shown_path(path)}: no whole checkpoint is left: {'; '.join(passed)}; move them away to start afresh"
        )
    return None


def newest_beside(path: Path) -> str | None:
    """Return the newest whole checkpoint of the run that a checkpoint is of; None if there is none, or it is of no run."""
    if not NAME.fullmatch(path.resolve().name):
        return None
    parent = path.parent if path.name not in ("", ".", "..") else path.resolve().parent
    with suppress(UsageError):
        return next((str(each) for each in checkpoints_in(parent) if judge(each).verdict == WHOLE), None)
    return None
