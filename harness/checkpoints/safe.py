"""`SafeCheckpoints`: the Trainer's checkpoints, saved so that a crash at any moment leaves whole ones only."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

from harness.checkpoints import manifest
from harness.checkpoints.adapter_directory import WHOLE
from harness.checkpoints.saving import SAVING, CheckpointError, agree, commit, delete, finish, rotate, sync, timed
from harness.errors import UsageError

_USE = "class SafeTrainer(harness.SafeCheckpoints, Trainer): pass"


class SafeCheckpoints:
    """Mixin for a Trainer whose checkpoints survive a crash:

        class SafeTrainer(harness.SafeCheckpoints, Trainer):
            pass

    A callback could not do it: it does not choose where a checkpoint is written, nor which one resume=True takes.

    - Saving: the Trainer writes the checkpoint into output_dir/.saving. Then each file and directory is synced to the disk,
      a manifest with the digest of each file is added, and the whole is renamed to checkpoint-N. Older ones go last. If
      one rank cannot write, all raise the same CheckpointError.
    - Resuming: True takes the newest checkpoint whose digests hold; a warning says what was passed over and why. A path to
      a checkpoint that is not whole is refused. If there are checkpoints and none is whole, CheckpointError.
    - checkpoint_seconds: what the last save took: "save" (upstream's own), "digest", "fsync", "rename", "rotate".

    A checkpoint has the files that the Trainer writes, and checkpoint_manifest.json. Nothing is needed to load it.
    """

    checkpoint_seconds: dict[str, float]
    _saving: str | None = None
    _deleting: threading.Thread | None = None
    _agreements = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not hasattr(super(), "_save_checkpoint"):
            raise UsageError(f"SafeCheckpoints is a mixin, and no callback: {_USE}")
        self.checkpoint_seconds = {}
        super().__init__(*args, **kwargs)

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does, from a whole checkpoint. Raises CheckpointError, in all ranks, if there is none."""
        here: Any = self
        if here.args.push_to_hub and str(getattr(here.args.hub_strategy, "value", "")) != "end":
            raise UsageError('SafeCheckpoints renames what push_to_hub would still read; use hub_strategy="end"')
        run, error = Path(self._get_output_dir(trial)), ""
        if here.args.process_index == 0:
            try:
                finish(run)
                resume_from_checkpoint = _chosen(run, resume_from_checkpoint)
                shutil.rmtree(run / SAVING, ignore_errors=True)  # what a crash left there is not whole
            except (CheckpointError, UsageError, OSError) as problem:
                error = str(problem)
        chosen = json.loads(self._agree("resume", error, json.dumps(resume_from_checkpoint, default=str)))
        try:
            return super().train(chosen, trial, *args, **kwargs)  # type: ignore[misc]
        finally:
            self._deleted()

    def _get_output_dir(self, trial: Any = None) -> str:
        return self._saving or super()._get_output_dir(trial)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any = None, *args: Any, **kwargs: Any) -> None:
        here: Any = self
        run = self._get_output_dir(trial)
        seconds: dict[str, float] = {}
        name = f"checkpoint-{here.state.global_step}"
        partial, error = Path(run, SAVING, name), ""
        self._deleted()
        self._agree(f"{name}/begin")  # no rank writes into .saving before rank 0 has done with it
        self._saving = str(partial.parent)
        try:
            with timed(seconds, "save"):
                super()._save_checkpoint(model, trial, *args, **kwargs)  # type: ignore[misc]
        except Exception as problem:  # of many types: the other ranks must learn of it
            error = f"{type(problem).__name__}: {problem}"
        finally:
            self._saving = None
        self._agree_on(name, error)
        if here.state.best_model_checkpoint == str(partial):
            here.state.best_model_checkpoint = os.path.join(run, name)
            if here.args.should_save:
                here.state.save_to_json(str(partial / "trainer_state.json"))
        if here.args.should_save:
            try:
                commit(partial, Path(run, name), seconds)
            except (OSError, UsageError) as problem:
                error = f"{type(problem).__name__}: {problem}"
        self._agree_on(name, error)
        if here.args.should_save:
            best = here.state.best_model_checkpoint
            with timed(seconds, "rotate"):
                doomed = rotate(Path(run), here.args.save_total_limit, {name, *([Path(best).name] if best else [])})
            if doomed:
                with timed(seconds, "fsync"):
                    sync(run)
            # To delete what is on the disk takes as long as to write it, and nothing waits for it.
            self._deleting = threading.Thread(target=delete, args=(Path(run), doomed))
            self._deleting.start()
        self.checkpoint_seconds = seconds

    def _deleted(self) -> None:
        """Wait until the older checkpoints of the last save are deleted."""
        if self._deleting is not None:
            self._deleting.join()
            self._deleting = None

    def _load_best_model(self) -> None:
        here: Any = self
        best = Path(here.state.best_model_checkpoint)
        if (best / manifest.MANIFEST).exists() and (wrong := manifest.wrong(best)):
            raise CheckpointError(f"{best}: the best model is not whole: {wrong[0][0]} {wrong[0][2]}")
        super()._load_best_model()  # type: ignore[misc]

    def _agree(self, what: str, error: str = "", value: str = "") -> str:
        self._agreements += 1
        return agree(f"harness.checkpoints/{what}/{self._agreements}", error, value)

    def _agree_on(self, name: str, error: str) -> None:
        older = "older checkpoints in output_dir are as they were"
        self._agree(name, f"{name} was not saved ({error}); {older}" if error else "")


def _chosen(run: Path, asked: Any) -> Any:
    """Return what to resume from in place of what was asked for. Raises CheckpointError if that is not whole."""
    from harness.checkpoints.choose import newest_whole
    from harness.checkpoints.judge import judge

    if asked is True:
        return newest_whole(run) or True  # without a checkpoint the Trainer raises its own error
    if not isinstance(asked, (str, os.PathLike)):
        return asked
    directory = os.fsdecode(asked)
    found = judge(directory)
    if found.verdict != WHOLE:
        other = newest_whole(Path(directory).parent)
        raise CheckpointError(f"{directory} is {found.verdict}: {found.why}; resume from {other}")
    return directory
