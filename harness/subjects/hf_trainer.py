"""The subject `hf-trainer`: transformers.Trainer over a model whose adapters peft injected, by either route."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import compat, lacking
from harness.environment import version
from harness.errors import UsageError
from harness.fixtures import data, loaded, models, quantized
from harness.spec import ADD, CONFIG_FAMILY, GET, AdapterSpec, ModelSpec, RunSpec
from harness.spec_fields import unknown
from harness.subjects import launch_arguments, trainer_keywords
from harness.subjects.observer import Observer
from harness.tensors.names import is_adapter
from harness.trace import Trace

if TYPE_CHECKING:
    import torch
    from transformers import Trainer, TrainingArguments

    from harness.subjects.reporter import Reporter


def inject(model: Any, spec: AdapterSpec) -> Any:
    """Inject the spec's adapters by its route, after seeding torch with `spec.seed`. Return the model to train.

    get_peft_model returns a PeftModel around `model`. add_adapter changes `model` itself, which is returned. Raises
    UsageError for another route, for an adapter type that peft does not have, and if a parameter of the base model has a
    name like an adapter's.
    """
    import peft
    import torch

    _check_names(model)
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


def _check_options(spec: AdapterSpec) -> None:
    """Check that the spec's route takes its options. UsageError names the nearest option that it takes."""
    import peft
    from transformers import PreTrainedModel

    call = peft.get_peft_model if spec.route == GET else PreTrainedModel.add_adapter
    given = ("self", "model", "peft_config", "adapter_config", "adapter_name")
    known = [name for name in inspect.signature(call).parameters if name not in given]
    for name in spec.options:
        if name not in known:
            raise unknown(f"adapter, options of {spec.route}", name, known)


def _check_names(model: Any) -> None:
    """Check that no parameter of a base model has a name by which peft says that adapters are known.

    Otherwise laws would take a parameter of the base for an adapter's. A model that has adapters already is not checked.
    """
    if getattr(model, "peft_config", None):
        return
    alike = next((name for name, _ in model.named_parameters() if is_adapter(name)), None)
    if alike is not None:
        raise UsageError(f"parameter {alike} of the base model is named like an adapter's, and cannot be told from one")


def adapter_config(peft_type: str, values: dict[str, Any]) -> Any:
    """Return peft's config object for a type such as "LORA". values: its fields. UsageError for an unknown type."""
    import peft

    try:
        # A copy: peft adds the head of a classifier to the very list that it was given as modules_to_save.
        config = peft.get_peft_config({"peft_type": peft_type, **copy.deepcopy(values)})
    except KeyError:
        raise UsageError(f"peft {version('peft')} has no adapter type {peft_type!r}") from None
    if reason := compat.missing_tensor_names(peft_type):
        raise UsageError(f"{reason}, so they cannot be told from the base model's")
    return config


class HFTrainer:
    """transformers.Trainer as a subject, or your own subclass of it.

    To judge your subclass, put a factory into a module that can be imported, and name it on the command line:

        # my_subject.py
        from harness.subjects.hf_trainer import HFTrainer
        from my_package import MyTrainer

        def subject():
            return HFTrainer(MyTrainer)

        # pytest suites/ --subject my_subject:subject

    For each run your class is called once, with keyword arguments only:

    - model: the base with its adapters injected already (a hyperparameter search passes model_init instead, and so does a
      spec that asks for it)
    - args: TrainingArguments
    - train_dataset, eval_dataset: datasets of tokenized rows; eval_dataset is None if the spec has no evaluation rows
    - callbacks: those of the spec, then the one that observes; pass them on to Trainer
    - those of `harness.subjects.trainer_keywords` that the spec asks for, such as compute_metrics

    If your class needs more arguments, give it defaults for them, or make a subclass that sets them. It must be found by
    name in a module, since runs of several ranks pickle it.

    Parameters:

    - trainer_class: the class to judge; None: transformers.Trainer
    - name: shown in reports; default: the name of the class
    - in_each_rank: called without arguments in each rank of a run of several ranks, before anything is built
    - afterwards: called with the Trainer after training. What it returns must be JSON, and becomes
      Trace.distributed["afterwards"]

    Both callables must be functions of a module, or functools.partial of one.
    """

    #: The packages whose known defects are its own, too (`harness.contract.expectations`).
    built_on: tuple[str, ...] = ("transformers", "peft", "accelerate", "bitsandbytes", "torch")
    #: Globs over clauses that say nothing of it -> the reason.
    not_for: Mapping[str, str] = {}
    #: Globs over clauses -> what it adds on purpose (`harness.runs.allowed`).
    allow: Mapping[str, Sequence[str]] = {}
    #: How many sequences its batches have for each row (`harness.subjects.observer.Observer`).
    sequences = 1

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
        #: The device that `build` uses in place of the spec's; None: the spec's.
        self.device: str | None = None
        #: Called with each spec before its Trainer is built.
        self.before_build: Callable[[RunSpec], Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "before_build": None}  # ranks build what was asked for

    def on(self, device: str) -> HFTrainer:
        """Return a copy of this subject whose `build` makes Trainers for that device ("cpu" or "cuda")."""
        subject = copy.copy(self)
        subject.device = device
        return subject

    def in_ranks(
        self,
        name: str,
        in_each_rank: Callable[[], Any] | None = None,
        afterwards: Callable[[Trainer], Any] | None = None,
    ) -> HFTrainer:
        """Return a copy of this subject that does more in each rank. Callables as in `HFTrainer`.

        - name: added to the subject's name, so that traces of its runs are cached by themselves
        - in_each_rank: called after this subject's own
        - afterwards: called in place of this subject's own
        """
        calls = [call for call in (self.in_each_rank, in_each_rank) if call is not None]
        subject = copy.copy(self)
        subject.name = f"{self.name}-{name}"
        subject.in_each_rank = functools.partial(_call_in_turn, calls) if calls else None
        subject.afterwards = afterwards or self.afterwards
        return subject

    @property
    def trainer_class(self) -> type[Trainer]:
        """The class to judge. transformers is imported here, if no class was given."""
        if self._trainer_class is None:
            from transformers import Trainer

            self._trainer_class = Trainer
        return self._trainer_class

    @property
    def own_class(self) -> type[Trainer] | None:
        """Somebody's subclass that is judged; None if it is transformers.Trainer itself."""
        cls = self._trainer_class
        return None if cls is None or cls.__module__ == "transformers.trainer" else cls

    def _own_loss(self) -> str:
        """Return the name of the class that is judged if it computes the loss by a method of its own, "" if not."""
        from transformers import Trainer

        own = self.own_class
        return own.__name__ if own is not None and own.compute_loss is not Trainer.compute_loss else ""

    def unsupported(self, spec: RunSpec) -> str | None:
        """Return what this installation lacks for a spec, None if nothing. See `Subject.unsupported`."""
        if (reason := missing_for_model(spec.model, spec.launch.device)) is not None:
            return reason
        trainer_keywords.check(spec.trainer)
        if (reason := launch_arguments.unsupported(spec.launch)) is not None:
            return reason
        workers = spec.arguments.get("dataloader_num_workers") or 0
        if (reason := launch_arguments.too_many(workers * spec.launch.ranks, "dataloader workers")) is not None:
            return reason
        try:
            compat.training_arguments({**launch_arguments.arguments(spec.launch), **spec.arguments})
        except LookupError as missing:
            return str(missing)
        reason = lacking.package(spec.arguments) or trainer_keywords.missing(spec)
        reason = reason or lacking.method(spec.adapter.peft_type, spec.adapter.config)
        if reason is not None:
            return reason
        parameters = spec.adapter.config.get("target_parameters") or ()
        if spec.model.family == "qwen3-moe":
            reason = lacking.experts(parameters)
        elif spec.model.family.startswith(CONFIG_FAMILY):
            kind = spec.model.family.removeprefix(CONFIG_FAMILY)
            reason = lacking.architecture(kind, spec.data.task, parameters)
        reason = reason or lacking.start(spec.adapter.config.get("init_lora_weights"))
        if reason is not None:
            return reason
        _check_options(spec.adapter)
        fields = [*spec.adapter.config, *(name for other in spec.adapter.others.values() for name in other)]
        return compat.missing_adapter_field(spec.adapter.peft_type, fields)

    def arguments(self, spec: RunSpec, directory: Path) -> TrainingArguments:
        """Return the spec's TrainingArguments, on the spec's device. directory: their output_dir."""
        from transformers import TrainingArguments

        return TrainingArguments(**self.values(spec, directory))

    def values(self, spec: RunSpec, directory: Path) -> dict[str, Any]:
        """Return the spec's fields of TrainingArguments, for the installed release. directory: their output_dir."""
        compat.forget_precision()
        values = {
            **launch_arguments.arguments(spec.launch),
            **spec.arguments,
            "output_dir": str(directory),
            "use_cpu": spec.launch.device == "cpu",
        }
        return compat.training_arguments(values)

    def dataset(self, made: list[data.Row], spec: RunSpec) -> Any:
        """Return rows as the dataset that the class takes."""
        return data.dataset(made, spec.data)

    def keywords(self) -> dict[str, Any]:
        """Return keyword arguments that the class takes beside those of every Trainer."""
        return {}

    def build(
        self, spec: RunSpec, directory: Path, observer: Observer | None = None, model: torch.nn.Module | None = None
    ) -> Trainer:
        """Return the Trainer for a spec, ready to train: base built, adapters injected, rows made.

        - directory: its output_dir
        - observer: watches the run, if there is one
        - model: used instead of the one that the spec describes; its adapters are injected already
        """
        if self.device is not None:
            spec = spec.on_device(self.device)
        if self.before_build is not None:
            self.before_build(spec)
        train_rows, eval_rows = data.rows(spec.data)
        trainer_keywords.check(spec.trainer)

        def watched(made: Any) -> Any:
            data.check_vocabulary(spec.data, [*train_rows, *eval_rows], made)
            if observer is not None:
                observer.watch_model(made)
            return made

        def model_init() -> Any:
            # The fixture seeds torch. What a run draws later does not depend on it.
            with torch_random_state():
                return watched(inject(_base(spec, directory), spec.adapter))

        keywords: dict[str, Any] = {}
        if model is None and spec.trainer.get("model_init"):
            keywords["model_init"] = model_init
        else:
            keywords["model"] = watched(inject(_base(spec, directory), spec.adapter) if model is None else model)
        # After the model: under DeepSpeed's ZeRO-3, a model that is made later is spread at once.
        arguments = self.arguments(spec, directory)
        keywords |= trainer_keywords.optimizers(spec.trainer, keywords.get("model"), arguments)
        # The reporter comes last, so that it sees the control flow as the other callbacks left it.
        reporter = None if observer is None else _reporter(observer)
        callbacks = trainer_keywords.callbacks(spec.trainer)
        trainer = self.trainer_class(
            args=arguments,
            train_dataset=self.dataset(train_rows, spec),
            eval_dataset=self.dataset(eval_rows, spec) if eval_rows else None,
            callbacks=[*callbacks, reporter] if reporter else callbacks,
            **{**self.keywords(), **trainer_keywords.objects(spec.trainer), **keywords},
        )
        if reporter is not None:
            reporter.trainer = trainer
        if observer is not None and spec.launch.several:
            _observe_clipping(trainer, observer)
        return trainer

    def train(self, spec: RunSpec, directory: Path, model: torch.nn.Module | None = None) -> Trace:
        """Train in this process, which is the only one or one of the spec's ranks. See `Subject.train`.

        - model: trained instead of the one that the spec describes; its adapters are injected already

        Raises UsageError if the spec asks for several ranks and this process is none of them.
        """
        if spec.launch.several and "RANK" not in os.environ:
            raise UsageError(
                "a run of several ranks is started by harness.processes.launch.train(subject, spec, directory)"
            )
        if spec.launch.several and self.in_each_rank is not None:
            self.in_each_rank()
        train_rows, eval_rows = data.rows(spec.data)
        observer = Observer(spec, self.name, [*train_rows, *eval_rows], directory, self.sequences)
        observer.trace.own_loss = self._own_loss()
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
                    # Also if train() raised: what was logged until then is evidence.
                    record_state(observer.trace, trainer.state)
            except UsageError:
                raise
            except Exception as caught:
                error = caught
                if spec.launch.several:
                    traceback.print_exception(caught)  # into the output of this rank
        return observer.finish(error)


def _reporter(observer: Observer) -> Reporter:
    # The module imports transformers, which takes seconds. `peft-harness clauses` and the like do without.
    from harness.subjects.reporter import Reporter

    return Reporter(observer)


def missing_for_model(model: ModelSpec, device: str) -> str | None:
    """Return what this installation lacks for a base model on a device, None if nothing."""
    reason = None
    if model.four_bit or model.eight_bit:
        reason = lacking.quantization(model.packed_dtype)
    if reason is None and isinstance(model.quantization, Mapping):
        reason = quantized.missing(model.quantization)
    return reason or lacking.attention(model.attn_implementation, device)


def torch_random_state() -> contextlib.AbstractContextManager[Any]:
    """Return a context that leaves torch's random state as it was."""
    import torch

    return torch.random.fork_rng(devices=range(torch.cuda.device_count()))


def _base(spec: RunSpec, directory: Path) -> torch.nn.Module:
    base: torch.nn.Module
    if spec.launch.strategy not in ("loaded", "tp"):
        base = models.build(spec.model)
    else:
        config = launch_arguments.distributed_config(spec.launch)
        base = loaded.sharded(spec.model, config, directory / "base" / os.environ["RANK"])
    return base


def _call_in_turn(calls: list[Callable[[], Any]]) -> None:
    for call in calls:
        call()


def _observe_clipping(trainer: Trainer, observer: Observer) -> None:
    """Call the observer before each clipping.

    Gradients of several ranks have been put together by then, and not earlier.
    """
    for owner, name in compat.clipping_functions(trainer):
        setattr(owner, name, functools.partial(_clip, observer, getattr(owner, name)))


def _clip(observer: Observer, clip: Callable[..., Any], *args: Any, **options: Any) -> Any:
    observer.before_clipping()
    return clip(*args, **options)


def record_output(trace: Trace, output: Any) -> None:
    """Copy a TrainOutput into a trace."""
    trace.output = {
        "global_step": output.global_step,
        "training_loss": output.training_loss,
        "metrics": dict(output.metrics),
    }


def record_state(trace: Trace, state: Any) -> None:
    """Copy a TrainerState's log and best model into a trace."""
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


@contextlib.contextmanager
def recorded_warnings(into: list[str]) -> Iterator[None]:
    """Append upstream's warnings to `into` instead of printing them: from `warnings` and from upstream's loggers."""

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            into.append(record.getMessage())

    from transformers.utils import logging as upstream_logging

    # warning_once warns once per process. The warning would be missing from all runs but the first.
    upstream_logging.warning_once.cache_clear()
    handler = Collect(level=logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("transformers", "peft", "accelerate")]
    before = [(logger.propagate, logger.handlers[:]) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        into.extend(str(warning.message) for warning in caught)
    finally:
        for logger, (propagate, handlers) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
