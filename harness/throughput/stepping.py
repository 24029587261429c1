"""Train a spec and be called at each of its optimizer steps: what counters and clocks hang on."""

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

#: Told of a step that begins: its number from 1, and log_history so far. One more call tells the end of the last step. True
#: ends the run.
OnStep = Callable[[int, "list[dict[str, Any]]"], "bool | None"]


@runtime_checkable
class Stepping(Protocol):
    """A subject that tells of its steps itself. Offer this to have a trainer timed that is no transformers.Trainer."""

    def train_steps(self, spec: RunSpec, directory: Path, on_step: OnStep) -> Any: ...


def train(subject: Subject, spec: RunSpec, directory: Path, on_step: OnStep) -> Any:
    """Train `spec` and observe nothing but the beginning of each step. Returns the trainer, trained.

    Nothing is copied, digested or hooked as in a run whose trace is judged: what is timed here is the subject alone.
    UsageError for a subject that is neither a transformers.Trainer nor the reference nor `Stepping`.
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
            # The step that has begun when it is told to stop is the last: nobody looks at it.
            control.should_training_stop |= self.stopped

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not self.stopped:
                on_step(state.global_step + 1, state.log_history)

    return Stepper()


def _listener(on_step: OnStep) -> Callable[[str, Any], None]:
    stopped = False

    def told(event: str, trainer: Any) -> None:
        nonlocal stopped
        if event == "step_begin" or (event == "train_end" and not stopped):
            stopped |= bool(on_step(trainer.state.global_step + 1, trainer.state.log_history))
        elif event == "step_end":
            trainer.control.should_training_stop |= stopped

    return told
