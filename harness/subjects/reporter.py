"""Reporter: the TrainerCallback that passes a Trainer's events on to an Observer.

Importing this module imports transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from harness.subjects.observer import Observer


class Reporter(TrainerCallback):
    """Reports every event of a Trainer to an observer, and changes nothing.

    Each event of TrainerCallback has a method here. One that a later release adds is not observed until it gets its own;
    `tests/test_reporter.py` fails if the installed release has such an event.

    - observer: who gets the events; None: nobody, until the attribute is set
    """

    def __init__(self, observer: Observer | None = None) -> None:
        self.observer = observer
        #: The Trainer, set once it exists: transformers 4.49 passes no optimizer to its callbacks.
        self.trainer: Any = None

    def report(self, event: str, state: Any) -> None:
        """Pass an event on. `event` has no "on_"."""
        if self.observer is not None:
            self.observer.event(event, state.global_step)

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report("init_end", state)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.observer is not None:
            if self.observer.trace.spec.launch.several:
                self.observer.watch_wrapped(self.trainer.model_wrapped)
            optimizer = kwargs.get("optimizer")
            self.observer.watch_optimizer(self.trainer.optimizer if optimizer is None else optimizer)
        self.report("train_begin", state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report("train_end", state)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report("epoch_begin", state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report("epoch_end", state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report("step_begin", state)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report("substep_end", state)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report("pre_optimizer_step", state)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report("optimizer_step", state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report("step_end", state)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report("log", state)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report("prediction_step", state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report("evaluate", state)
        if self.observer is not None:
            self.observer.evaluated(kwargs["metrics"])

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        self.report("predict", state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report("save", state)
        if self.observer is not None:
            self.observer.meet()
            self.observer.checkpoint(newest_checkpoint(args.output_dir, state.global_step))

    def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report("push_begin", state)


def unreported_events() -> list[str]:
    """Return the events of the installed TrainerCallback for which `Reporter` has no method of its own."""
    return [name for name in vars(TrainerCallback) if name.startswith("on_") and name not in vars(Reporter)]


def newest_checkpoint(output_dir: str, step: int) -> Path:
    """Return where the Trainer has just saved: in output_dir, or in a trial's directory inside it."""
    found = [Path(output_dir) / f"checkpoint-{step}", *Path(output_dir).glob(f"run-*/checkpoint-{step}")]
    return max((path for path in found if path.is_dir()), key=lambda path: path.stat().st_mtime_ns)
