"""The subject `hf-trainer`: transformers.Trainer over a model whose adapters peft injected, by either route."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import compat
from harness.environment import version
from harness.errors import UsageError
from harness.fixtures import data, loaded, models
from harness.spec import ADD, GET, AdapterSpec, RunSpec
from harness.subjects import launch_arguments
from harness.subjects.observer import Observer
from harness.trace import Trace

if TYPE_CHECKING:
    import torch
    from transformers import Trainer, TrainingArguments


def inject(model: Any, spec: AdapterSpec) -> Any:
    """The model with adapters injected by the spec's route, seeded by `spec.seed`.

    get_peft_model returns a PeftModel around `model`; add_adapter changes `model` itself and returns it.
    """
    import peft
    import torch

    config = adapter_config(spec.peft_type, dict(spec.config))
    torch.manual_seed(spec.seed)
    if spec.route == GET:
        wrapped = peft.get_peft_model(model, config, adapter_name=spec.name, **spec.options)
    elif spec.route == ADD:
        wrapped = model
        wrapped.add_adapter(config, adapter_name=spec.name, **spec.options)
    else:
        raise UsageError(f"adapter route {spec.route!r} is neither {GET!r} nor {ADD!r}")
    for name, other in spec.others.items():
        values = {**spec.config, **other}
        if spec.route == GET:
            wrapped.add_adapter(name, adapter_config(spec.peft_type, values))
        else:
            wrapped.add_adapter(adapter_config(spec.peft_type, values), adapter_name=name)
    if spec.others and spec.route == ADD:
        wrapped.set_adapter(spec.name)
    return wrapped


def adapter_config(peft_type: str, values: dict[str, Any]) -> Any:
    """The peft config object of a type ("LORA") and its fields."""
    import peft

    try:
        # A copy: peft adds the head of a classifier to the very list that it was given as modules_to_save.
        config = peft.get_peft_config({"peft_type": peft_type, **copy.deepcopy(values)})
    except KeyError:
        raise UsageError(f"peft {version('peft')} has no adapter type {peft_type!r}") from None
    if reason := compat.missing_tensor_names(peft_type):
        raise UsageError(f"{reason}, so they cannot be told from the base model's")
    return config


def observing_callback(observer: Observer) -> Any:
    """A TrainerCallback that reports every event to the observer, and nothing else."""
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        #: Set by `HFTrainer.build`: transformers 4.49 hands its callbacks no optimizer.
        trainer: Any = None

        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("on_"):
                return super().__getattribute__(name)

            def report(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if name == "on_train_begin":
                    optimizer = kwargs.get("optimizer")
                    if observer.trace.spec.launch.several:
                        observer.watch_wrapped(self.trainer.model_wrapped)
                    observer.watch_optimizer(self.trainer.optimizer if optimizer is None else optimizer)
                observer.event(name.removeprefix("on_"), state.global_step)
                if name == "on_evaluate":
                    observer.evaluated(kwargs["metrics"])
                elif name == "on_save":
                    observer.meet()
                    observer.checkpoint(newest_checkpoint(args.output_dir, state.global_step))

            return report

    return Reporter()


def newest_checkpoint(output_dir: str, step: int) -> Path:
    """Where the Trainer has just saved: output_dir, or the trial's directory below it."""
    found = [Path(output_dir) / f"checkpoint-{step}", *Path(output_dir).glob(f"run-*/checkpoint-{step}")]
    return max((path for path in found if path.is_dir()), key=lambda path: path.stat().st_mtime_ns)


def _early_stopping(**options: Any) -> Any:
    from transformers import EarlyStoppingCallback

    return EarlyStoppingCallback(**options)


#: Names that RunSpec.trainer["callbacks"] may hold, as "name" or ["name", {options}].
CALLBACKS: dict[str, Callable[..., Any]] = {"early_stopping": _early_stopping}

#: What else RunSpec.trainer may hold: keyword arguments of the Trainer given as "module:object".
EXTRAS = ("callbacks", "compute_loss_func", "compute_metrics", "data_collator", "optimizer_cls_and_kwargs")


class HFTrainer:
    """transformers.Trainer, or a subclass of it.

    trainer_class: what to judge; it is built as Trainer(model, args, train_dataset, eval_dataset, callbacks). To judge
    your own, give it here in a factory: `def subject(): return HFTrainer(MyTrainer)`, then `--subject my_module:subject`.
    in_each_rank: called in each rank of a run in several processes, before anything is built. afterwards: called there
    with the Trainer when it has trained; what it returns (JSON) is Trace.distributed["afterwards"]. Both are functions
    of a module, or functools.partial of one.
    """

    def __init__(
        self,
        trainer_class: type[Trainer] | None = None,
        name: str | None = None,
        in_each_rank: Callable[[], Any] | None = None,
        afterwards: Callable[[Trainer], Any] | None = None,
    ):
        self._trainer_class = trainer_class
        self.name = name or (trainer_class.__name__ if trainer_class else "hf-trainer")
        self.in_each_rank = in_each_rank
        self.afterwards = afterwards
        #: Where `build` puts its Trainer, whatever the spec says; None leaves it to the spec.
        self.device: str | None = None

    def on(self, device: str) -> HFTrainer:
        """This subject, whose `build` makes Trainers for that device."""
        subject = copy.copy(self)
        subject.device = device
        return subject

    def in_ranks(
        self,
        name: str,
        in_each_rank: Callable[[], Any] | None = None,
        afterwards: Callable[[Trainer], Any] | None = None,
    ) -> HFTrainer:
        """This subject, with something more done in each rank; `name` tells its runs from others."""
        both = [call for call in (self.in_each_rank, in_each_rank) if call is not None]
        together = functools.partial(_in_turn, both) if both else None
        return HFTrainer(self._trainer_class, f"{self.name}-{name}", together, afterwards or self.afterwards)

    @property
    def trainer_class(self) -> type[Trainer]:
        if self._trainer_class is None:
            from transformers import Trainer

            self._trainer_class = Trainer
        return self._trainer_class

    def unsupported(self, spec: RunSpec) -> str | None:
        if spec.model.quantization and (reason := compat.missing_quantization(spec.model.quant_storage)) is not None:
            return reason
        optimizer = str(spec.arguments.get("optim", ""))
        if optimizer.endswith(("_8bit", "_32bit")) and "torch" not in optimizer and version("bitsandbytes") is None:
            return f"optimizer {optimizer!r} needs bitsandbytes, which is not installed"
        if (reason := launch_arguments.unsupported(spec.launch)) is not None:
            return reason
        try:
            compat.training_arguments({**launch_arguments.arguments(spec.launch), **spec.arguments})
        except LookupError as missing:
            return str(missing)
        fields = [*spec.adapter.config, *(name for other in spec.adapter.others.values() for name in other)]
        return compat.missing_adapter_field(spec.adapter.peft_type, fields)

    def arguments(self, spec: RunSpec, directory: Path) -> TrainingArguments:
        """The spec's TrainingArguments, writing to `directory`, on the spec's device."""
        from transformers import TrainingArguments

        compat.forget_precision()
        values = {
            **launch_arguments.arguments(spec.launch),
            **spec.arguments,
            "output_dir": str(directory),
            "use_cpu": spec.launch.device == "cpu",
        }
        return TrainingArguments(**compat.training_arguments(values))

    def build(
        self, spec: RunSpec, directory: Path, observer: Observer | None = None, model: torch.nn.Module | None = None
    ) -> Trainer:
        """The Trainer for a spec, ready to train(): base built, adapters injected, rows made."""
        if self.device is not None:
            spec = spec.on_device(self.device)
        train_rows, eval_rows = data.rows(spec.data)
        if model is None:
            model = inject(_base(spec, directory), spec.adapter)
        if observer is not None:
            observer.watch_model(model)
        keywords = {name: value for name, value in spec.trainer.items() if name != "callbacks"}
        unknown = sorted(set(spec.trainer) - set(EXTRAS))
        if unknown:
            raise UsageError(f"spec.trainer: unknown {unknown[0]!r}; known are {', '.join(EXTRAS)}")
        callbacks = [_callback(item) for item in spec.trainer.get("callbacks", [])]
        # The observer comes last, so that it sees the control flow that the other callbacks left.
        reporter = None if observer is None else observing_callback(observer)
        trainer = self.trainer_class(
            model=model,
            args=self.arguments(spec, directory),
            train_dataset=data.dataset(train_rows, spec.data),
            eval_dataset=data.dataset(eval_rows, spec.data) if eval_rows else None,
            callbacks=[*callbacks, reporter] if reporter else callbacks,
            **{
                name: models.load_object(value) if isinstance(value, str) else value for name, value in keywords.items()
            },
        )
        if reporter is not None:
            reporter.trainer = trainer
        if observer is not None and spec.launch.several:
            _observe_clipping(trainer, observer)
        return trainer

    def train(self, spec: RunSpec, directory: Path, model: torch.nn.Module | None = None) -> Trace:
        """Train in this process, which is the only one or one of the spec's ranks; see `Subject.train`.

        model: trained instead of the one that the spec describes. Its adapters are injected already.
        """
        if spec.launch.several and "RANK" not in os.environ:
            raise UsageError(
                "a run of several ranks is started by harness.processes.launch.train(subject, spec, directory)"
            )
        if spec.launch.several and self.in_each_rank is not None:
            self.in_each_rank()
        train_rows, eval_rows = data.rows(spec.data)
        observer = Observer(spec, self.name, [*train_rows, *eval_rows], directory)
        error: Exception | None = None
        with recorded_warnings(observer.trace.warnings):
            try:
                trainer = self.build(spec, directory, observer, model)
                try:
                    resume = None if spec.resume is None else _checkpoint_argument(spec, directory)
                    record_output(observer.trace, trainer.train(resume_from_checkpoint=resume))
                    if self.afterwards is not None:
                        observer.trace.distributed["afterwards"] = self.afterwards(trainer)
                finally:
                    # Also when train() raised: what was logged until then is evidence.
                    record_state(observer.trace, trainer.state)
            except UsageError:
                raise
            except Exception as caught:
                error = caught
                if spec.launch.several:
                    traceback.print_exception(caught)  # into the rank's own output
        return observer.finish(error)


def _base(spec: RunSpec, directory: Path) -> torch.nn.Module:
    base: torch.nn.Module
    if spec.launch.strategy != "loaded":
        base = models.build(spec.model)
    else:
        base = loaded.sharded(spec.model, spec.launch.ranks, directory / "base" / os.environ["RANK"])
    return base


def _in_turn(calls: list[Callable[[], Any]]) -> None:
    for call in calls:
        call()


def _observe_clipping(trainer: Trainer, observer: Observer) -> None:
    """Tell the observer of each clipping: gradients of several ranks are whole only between the backward pass and it."""
    for owner, name in compat.clipping_functions(trainer):
        setattr(owner, name, functools.partial(_clip, observer, getattr(owner, name)))


def _clip(observer: Observer, clip: Callable[..., Any], *args: Any, **options: Any) -> Any:
    observer.before_clipping()
    return clip(*args, **options)


def record_output(trace: Trace, output: Any) -> None:
    """Copy a TrainOutput into the trace."""
    trace.output = {
        "global_step": output.global_step,
        "training_loss": output.training_loss,
        "metrics": dict(output.metrics),
    }


def record_state(trace: Trace, state: Any) -> None:
    """Copy a TrainerState's log and best model into the trace."""
    trace.log_history = [dict(entry) for entry in state.log_history]
    trace.best = {
        "metric": state.best_metric,
        "step": compat.best_step(state),
        "checkpoint": state.best_model_checkpoint,
    }


def _checkpoint_argument(spec: RunSpec, directory: Path) -> str | bool:
    assert spec.resume is not None
    step = spec.resume.checkpoint
    return step if isinstance(step, bool) else str(directory / f"checkpoint-{step}")


def _callback(item: Any) -> Any:
    name, options = (item, {}) if isinstance(item, str) else item
    if name in CALLBACKS:
        return CALLBACKS[name](**options)
    return models.load_object(name)(**options)


@contextlib.contextmanager
def recorded_warnings(into: list[str]) -> Iterator[None]:
    """Collect what upstream warns of, through `warnings` and through its loggers, instead of printing it."""

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            into.append(record.getMessage())

    from transformers.utils import logging as upstream_logging

    # Said once a process, such a warning would be missing from all runs but the first.
    upstream_logging.warning_once.cache_clear()
    handler = Collect(level=logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("transformers", "peft", "accelerate")]
    kept = [(logger.propagate, logger.handlers[:]) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        into.extend(str(warning.message) for warning in caught)
    finally:
        for logger, (propagate, handlers) in zip(loggers, kept, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
