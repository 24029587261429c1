"""A Trainer's save recorded, and its crash states loaded: resumed, resumed by path, for inference, and as the best model.

Everything here works in the current directory with the relative path "run": trainer_state.json holds the path of the best
checkpoint, so a state must lie where it was recorded.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from harness import compat
from harness.crash.operations import Recording
from harness.crash.outcomes import Answer, folders
from harness.crash.recorder import Recorder
from harness.crash.savers import digest_of, local
from harness.crash.trees import Node, write_tree
from harness.errors import UsageError
from harness.fixtures import models
from harness.fixtures.prototypes import Prototypes
from harness.spec import ADD, RunSpec
from harness.subjects.hf_trainer import HFTrainer, inject, recorded_warnings
from harness.tensors.checksum import checksum
from harness.tensors.names import is_adapter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import Trainer

RESUME, PATH, INFERENCE, BEST = "resume=True", "resume by path", "load for inference", "load as best"
WAYS = (RESUME, PATH, INFERENCE, BEST)

#: output_dir of every run.
RUN = Path("run")


@dataclass(frozen=True)
class SavedRun:
    """A run whose save is recorded.

    - spec: what is trained. It saves by itself (save_strategy).
    - step: the global step of the recorded save.
    - until: the last save that belongs to the recording; None: `step`. With a later one, a crash loses what an earlier
      save wrote.
    - before: a run in the same directory beforehand, whose checkpoints are overwritten; None: none.
    - resume_with: "module:function", called with output_dir, returns what is passed as resume_from_checkpoint in place of
      True. "": True is passed.
    """

    spec: RunSpec
    step: int
    until: int | None = None
    before: RunSpec | None = None
    resume_with: str = ""


@dataclass
class Recorded:
    """A recorded save. recording: its operations. end: what the undisturbed run ended with (`fingerprint`)."""

    recording: Recording
    end: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def working_in(directory: Path) -> Iterator[None]:
    """Make a directory the current one within the block, and make it if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    earlier = os.getcwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(earlier)


def record_run(saved: SavedRun, directory: Path, subject: HFTrainer | None = None) -> Recorded:
    """Train a run in a directory and record its save. Raises UsageError if the save cannot be recorded."""
    subject = subject or HFTrainer()
    with working_in(directory):
        shutil.rmtree(RUN, ignore_errors=True)
        RUN.mkdir()
        with quiet([]):
            if saved.before is not None:
                subject.build(saved.before, RUN).train()
            trainer = subject.build(saved.spec, RUN)
            recorder = Recorder(RUN)
            while_saving(trainer, recorder, saved.step, saved.until or saved.step)
            trainer.train()
        made = Recorded(recorder.recording(), fingerprint(trainer))
        shutil.rmtree(RUN)
    return made


def while_saving(trainer: Trainer, recorder: Recorder, first: int, last: int) -> None:
    """Have a Trainer's saves of steps `first` to `last` recorded, with what its callbacks do at a save."""
    save = trainer._maybe_log_save_evaluate
    stack = contextlib.ExitStack()

    def recorded(*arguments: Any, **options: Any) -> Any:
        if trainer.state.global_step == first:
            stack.enter_context(recorder.on())
        try:
            return save(*arguments, **options)
        finally:
            if trainer.state.global_step == last:
                stack.close()

    trainer._maybe_log_save_evaluate = recorded  # type: ignore[method-assign]


# ---- loading a state ----


def ways_of(tree: Mapping[str, Node], torn: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Return in which ways a state is loaded, each with the checkpoint that is named.

    A checkpoint is named if it is the newest, or not whole.
    """
    there = folders(tree)
    named = [name for name in there if name == there[-1] or torn(name)]
    return [(RESUME, ""), *((way, name) for way in WAYS[1:] for name in named)]


def chooser(saved: SavedRun) -> Callable[[str], Any]:
    """Return the function that is called with output_dir, and returns what is passed as resume_from_checkpoint."""
    return models.load_object(saved.resume_with) if saved.resume_with else lambda directory: True


class Loader:
    """Loads states of one run. The injected model is built once, and copied for each state.

    - saved: the run.
    - subject: who trains.
    """

    def __init__(self, saved: SavedRun, subject: HFTrainer | None = None):
        self._spec, self._subject = saved.spec, subject or HFTrainer()
        self._choose = chooser(saved)
        self._models = Prototypes()

    def load(self, tree: Mapping[str, Node], way: str, folder: str) -> Answer:
        """Write a state into the current directory's `RUN`, load it in one of `WAYS`, and return what that gave.

        - folder: the checkpoint that is named, for all ways but RESUME.
        """
        shutil.rmtree(RUN, ignore_errors=True)
        write_tree(tree, RUN)
        said: list[str] = []
        began: list[int] = []
        value: Any = None
        error = ""
        try:
            with quiet(said):
                if way in (RESUME, PATH):
                    value = self._resumed(self._choose(str(RUN)) if way == RESUME else str(RUN / folder), began)
                elif way == INFERENCE:
                    value = _for_inference(self._spec, RUN / folder)
                else:
                    value = self._as_best(RUN / folder)
        except UsageError:
            raise
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        finally:
            compat.forget_precision()
        return Answer(value, error, tuple(said), began[0] if began else None)

    def _trainer(self) -> Trainer:
        model = self._models.make("injected", lambda: inject(models.build(self._spec.model), self._spec.adapter))
        return self._subject.build(self._spec, RUN, model=model)

    def _resumed(self, checkpoint: Any, began: list[int]) -> dict[str, str]:
        if checkpoint is None:
            raise FileNotFoundError(f"no checkpoint was chosen in {RUN}")
        trainer = self._trainer()
        trainer.add_callback(_beginning(began))
        trainer.train(resume_from_checkpoint=checkpoint)
        return fingerprint(trainer)

    def _as_best(self, checkpoint: Path) -> dict[str, str]:
        trainer = self._trainer()
        trainer.state.best_model_checkpoint, trainer.state.best_metric = str(checkpoint), 0.0
        trainer._load_best_model()
        return {"adapter": tensors_digest(trainer.model)}


def _beginning(began: list[int]) -> Any:
    from transformers import TrainerCallback

    class Beginning(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            began.append(state.global_step)

    return Beginning()


def _for_inference(spec: RunSpec, checkpoint: Path) -> dict[str, str]:
    """Return the digests of the tensors of all adapters that a checkpoint holds, loaded onto a new base."""
    import peft

    found = {}
    names = (spec.adapter.name, *spec.adapter.others)
    for name in names:
        # peft writes the adapter "default" at the top, and others below it.
        where = checkpoint if name == "default" or spec.adapter.route == ADD else checkpoint / name
        base: Any = models.build(spec.model)
        if spec.adapter.route == ADD:
            base.load_adapter(str(where), adapter_name=name)
            model = base
        else:
            model = peft.PeftModel.from_pretrained(base, str(where), adapter_name=name)
        found[name] = tensors_digest(model)
    return found


@contextlib.contextmanager
def quiet(said: list[str]) -> Iterator[None]:
    """Collect warnings instead of printing them, print no log of training, and ask the hub nothing.

    peft looks on the hub for a directory's adapter_config.json if it is missing, and tries again for half a minute.
    """
    offline = mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with recorded_warnings(said), offline, open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        yield


# ---- what a run is compared by ----


def tensors_digest(model: Any) -> str:
    """Return a digest of all adapter tensors of a model, with their names, dtypes and shapes."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        if is_adapter(name):
            total.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}{checksum(local(tensor))}".encode())
    return total.hexdigest()[:16]


def fingerprint(trainer: Trainer) -> dict[str, str]:
    """Return digests of what a run ended with, by what they are of: adapter, optimizer, schedule, random, log, step."""
    import numpy as np
    import torch

    optimizer, schedule = trainer.optimizer, trainer.lr_scheduler
    assert optimizer is not None and schedule is not None  # it has trained
    log = [
        {name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}
        for entry in trainer.state.log_history
        if "train_loss" not in entry
    ]
    return {
        "adapter": tensors_digest(trainer.model),
        "optimizer": digest_of(optimizer.state_dict()),
        "schedule": digest_of(schedule.state_dict()),
        "random numbers": digest_of([random.getstate(), np.random.get_state(), torch.random.get_rng_state()]),
        "log": digest_of(log),
        "step": str(trainer.state.global_step),
    }
