"""Watch: the TrainerCallback that judges a run of transformers.Trainer, or of a subclass, while it runs."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from harness.subjects.reporter import newest_checkpoint
from harness.watch import as_spec, certificate
from harness.watch.acting import Safe, act, check_options
from harness.watch.all_checks import ALL
from harness.watch.book import Book, Finding
from harness.watch.run import Run
from harness.watch.seen import Seen, local_of, plain_optimizer, trainer_of_stack


class Watch(Safe, TrainerCallback):
    """Judges a run while it runs. Use one for each Trainer; a second train() gets a certificate of its own.

    - on_violation: what to do within one optimizer step of a finding: "warn" logs it, "stop" also ends training after the
      step, "raise" raises `Violation`.
    - every: each how many steps one is looked at closely; 1 for every step. None: the first three, then every 100th, as
      long as that takes less than 0.2 % of the time.
    - json: a file for the certificate; in a run of several ranks only rank 0 writes.
    - quiet: whether the certificate is not printed at the end.

    Raises UsageError for other values. Nothing that goes wrong in Watch itself ends the run.
    """

    def __init__(
        self,
        on_violation: str = "warn",
        every: int | None = None,
        json: str | Path | None = None,
        quiet: bool = False,
    ):
        self.json = check_options(on_violation, every, json)
        self.on_violation, self.every, self.quiet = on_violation, every, quiet
        self.run: Run | None = None
        #: The certificates of all runs that have ended, as dicts (`certificate_schema.json`).
        self.certificates: list[dict[str, Any]] = []
        self._fresh: list[Finding] = []
        self._made_without_optimizer: bool | None = None
        self._early: list[tuple[str, str]] = []
        reference = weakref.ref(self)

        def left() -> None:
            if (watch := reference()) is not None:
                watch._left()

        atexit.register(left)

    @property
    def findings(self) -> list[Finding]:
        """What the present run, or the last one, was found to do wrong."""
        return self.run.book.findings if self.run else []

    def certificate(self) -> dict[str, Any]:
        """Return the certificate of the present run, or of the last one, as far as it was judged."""
        return certificate.of(self.run, self._failure)

    # ---- events ----

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        def look() -> None:
            import torch

            trainer = trainer_of_stack()
            if trainer is None:
                return
            self._made_without_optimizer = trainer.optimizer is None
            # Trainer() seeds all generators. A model_init may seed them anew.
            if torch.initial_seed() != args.seed and trainer.model_init is None:
                self._early.append(
                    ("random-numbers", f"torch's seed is {torch.initial_seed()} after Trainer(), expected {args.seed}")
                )

        self._safely(look)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        def begin() -> None:
            self._begin(args, state, control, kwargs)

        self._safely(begin)
        self._act(control)

    def _begin(self, args: Any, state: Any, control: Any, given: dict[str, Any]) -> None:
        self._fresh, self._failure = [], ""
        seen = Seen(args=args, state=state, control=control, model=given.get("model"))
        seen.trainer = trainer_of_stack()
        seen.optimizer = plain_optimizer(given.get("optimizer") or getattr(seen.trainer, "optimizer", None))
        seen.scheduler = given.get("lr_scheduler")
        seen.loader = given.get("train_dataloader")
        seen.own_optimizer = _is_own(seen) if self._made_without_optimizer is None else self._made_without_optimizer
        seen.rank, seen.world = int(args.process_index), int(args.world_size)
        seen.sharded = _sharded(seen)
        seen.foreign = _foreign(seen.trainer)
        resumed = local_of("_inner_training_loop", "resume_from_checkpoint")
        if isinstance(resumed, str) and state.global_step:
            seen.resumed, seen.resumed_step = resumed, int(state.global_step)
        seen.number = int(state.global_step)
        seen.look_at_model()
        try:
            seen.spec, seen.unknown = as_spec.spec_of(seen)
        except Exception as error:
            seen.unknown = f"the arguments are not understood ({type(error).__name__}: {error})"
        book = Book(self._fresh.append)
        self.run = Run(seen, book, ALL, self.every)
        for check, sentence in self._early:
            book.breaks(check, 0, sentence)
        self._early = []
        self.run.begin()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(lambda run: run.step_begin(int(state.global_step) + 1), state, control)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(lambda run: run.tell("substep_end"), state, control)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(lambda run: run.tell("before_update"), state, control)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(lambda run: run.tell("after_update"), state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(lambda run: run.tell("step_end"), state, control)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(lambda run: run.tell("epoch_begin"), state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(lambda run: run.tell("epoch_end"), state, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._tell(lambda run: run.tell("logged", dict(logs or {})), state, control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(lambda run: run.tell("prediction_step"), state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self._tell(lambda run: run.tell("evaluated", dict(metrics or {})), state, control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(lambda run: run.tell("saved", newest_checkpoint(args.output_dir, state.global_step)), state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(lambda run: run.end(), state, control)
        self._safely(self._finish)

    # ---- what follows from findings ----

    def _tell(self, event: Callable[[Run], None], state: Any, control: Any) -> None:
        if self.run is None or self._failure:
            return
        run = self.run
        run.seen.state, run.seen.control = state, control
        self._safely(lambda: event(run))
        self._act(control)

    def _act(self, control: Any) -> None:
        def stop() -> None:
            control.should_training_stop = True

        act(self._fresh, self.on_violation, stop, self._give_up)

    def _give_up(self) -> None:
        """Finish before the run is ended by a `Violation`."""
        self._release()
        self._safely(self._finish)

    def _release(self) -> None:
        if self.run is not None:
            self.run.release()

    def _finish(self) -> None:
        if self.run is None or self.run.seen.args is None:
            return
        made = self.certificate()
        self.certificates.append(made)
        if self.run.seen.rank == 0:
            if not self.quiet:
                print(certificate.text(made), flush=True)
            if self.json is not None:
                certificate.write(made, self.json)
        self.run.let_go()

    def _left(self) -> None:
        """The process ends. Say so of a run that was watched and did not come to its end."""
        if self.run is not None and self.run.seen.args is not None and not self.quiet and self.run.seen.rank == 0:
            self._safely(
                lambda: print("Watch: the run did not come to its end\n" + certificate.text(self.certificate()))
            )


def _sharded(seen: Seen) -> str | None:
    trainer = seen.trainer
    if getattr(trainer, "is_deepspeed_enabled", False):
        return "DeepSpeed keeps gradients and optimizer state in partitions of its own"
    if getattr(trainer, "is_fsdp_enabled", False) or any(hasattr(p, "to_local") for p in seen.model.parameters()):
        return "FSDP keeps each tensor in shards"
    if int(getattr(seen.args, "n_gpu", 0) or 0) > 1:
        return "DataParallel computes on copies of the model"
    return None


def _is_own(seen: Seen) -> bool:
    """Return whether the optimizer looks like the Trainer's: Watch was added later than the Trainer was made."""
    groups = getattr(seen.optimizer, "param_groups", ())
    decays = {float(group.get("weight_decay", 0.0)) for group in groups}
    return len(groups) == 2 and decays <= {float(seen.args.weight_decay), 0.0}


def _foreign(trainer: Any) -> tuple[str, ...]:
    callbacks = getattr(getattr(trainer, "callback_handler", None), "callbacks", ())
    known = ("transformers.", "harness.")
    return tuple(type(one).__name__ for one in callbacks if not type(one).__module__.startswith(known))
