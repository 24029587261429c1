"""Train a spec, and call a function at the beginning of each optimizer step. Counters and clocks are such functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from harness.errors import UsageError
from harness.spec import RunSpec
from harness.subjects import Subject
from harness.subjects.hf_trainer import HFTrainer, recorded_warnings
from harness.subjects.reference import Reference
from harness.subjects.reference import build as build_reference

#: on_step(number, log_history): called when a step begins, with its number from 1 and the log so far. One more call is made
#: after the last step. If it returns True, the run ends.
OnStep = Callable[[int, "list[dict[str, Any]]"], "bool | None"]


@runtime_checkable
class Stepping(Protocol):
    """A subject that calls `on_step` itself. Implement this to time a trainer that is no transformers.Trainer."""

    def train_steps(self, spec: RunSpec, directory: Path, on_step: OnStep) -> Any: ...


def train(subject: Subject, spec: RunSpec, directory: Path, on_step: OnStep) -> Any:
    """Train a spec, observe nothing but the beginning of each step, and return the trainer.

    Nothing is copied, digested or hooked, as it is in a run whose trace is judged. So only the subject is timed.

    Raises UsageError if the subject does not train the spec, or is neither a transformers.Trainer nor the reference nor
    `Stepping`.
    """
    if reason := subject.unsupported(spec):
        raise UsageError(f"subject {subject.name} does not train such a spec ({reason})")
    with recorded_warnings([]):
        if isinstance(subject, Stepping):
            return subject.train_steps(spec, directory, on_step)
        if isinstance(subject, HFTrainer):
            from transformers import PrinterCallback

            trainer: Any = subject.build(spec, directory)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(_stepper(on_step))
        elif isinstance(subject, Reference):
            trainer = build_reference(spec, directory, _listener(on_step))
        else:
            raise UsageError(f"subject {subject.name} cannot be timed: it has no train_steps(spec, directory, on_step)")
        trainer.train()
    return trainer


def _stepper(on_step: OnStep) -> Any:
    from transformers import TrainerCallback

    class Stepper(TrainerCallback):
        stopped = False

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.stopped |= bool(on_step(state.global_step + 1, state.log_history))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # A step had already begun when `on_step` ended the run. It is the last, and nobody measures it.
            control.should_training_stop |= self.stopped

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not self.stopped:
                on_step(state.global_step + 1, state.log_history)

    return Stepper()


def _listener(on_step: OnStep) -> Callable[[str, Any], None]:
    stopped = False

    def listen(event: str, trainer: Any) -> None:
        nonlocal stopped
        if event == "step_begin" or (event == "train_end" and not stopped):
            stopped |= bool(on_step(trainer.state.global_step + 1, trainer.state.log_history))
        elif event == "step_end":
            trainer.control.should_training_stop |= stopped

    return listen
