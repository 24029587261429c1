"""A hyperparameter search through transformers.Trainer and optuna, with each of its trials observed as a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.fixtures import data, models
from harness.spec import RunSpec
from harness.subjects.hf_trainer import HFTrainer, inject, observing_callback, record_state, recorded_warnings
from harness.subjects.observer import Observer
from harness.trace import Trace

if TYPE_CHECKING:
    from transformers import Trainer

#: What the model is made with, by the name of the LoraConfig field; all other suggestions are TrainingArguments.
OF_THE_MODEL = ("r",)


@dataclass
class Trial:
    """One trial. params: all that optuna suggested. initial_seed: torch's, when training began.

    state: optuna's, such as "COMPLETE" or "PRUNED". value: the objective. reported: step -> intermediate value.
    The trace's spec is that of a run of its own with the suggested values.
    """

    number: int
    trace: Trace
    initial_seed: int | None = None
    params: dict[str, Any] = field(default_factory=dict)
    state: str = ""
    value: float | None = None
    reported: dict[int, float] = field(default_factory=dict)


@dataclass
class Search:
    """What was seen of a search. best: what hyperparameter_search returned. arguments: of the Trainer, afterwards.

    made_for: the numbers of the trials that model_init was called with, None where it was called without a trial.
    """

    best: Any
    trials: list[Trial]
    made_for: list[int | None]
    arguments: Any
    warnings: list[str]


def search(
    subject: HFTrainer,
    spec: RunSpec,
    directory: Path,
    values: Mapping[str, Sequence[Any]],
    before: Callable[[Trainer], Any] | None = None,
    **options: Any,
) -> Search:
    """Search with as many trials as each name has values: the n-th trial is suggested the n-th of each.

    Names of `OF_THE_MODEL` are suggested when model_init is called, all others by hp_space. before: called with the
    Trainer before the search. options: of hyperparameter_search, such as pruner.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    watch = _Watch(subject, spec, directory, values)
    warnings: list[str] = []
    with recorded_warnings(warnings):
        trainer = watch.trainer()
        if before is not None:
            before(trainer)
        best = trainer.hyperparameter_search(
            hp_space=watch.space,
            backend="optuna",
            n_trials=len(next(iter(values.values()))),
            sampler=_scripted(values),
            **options,
        )
    return Search(best, watch.finish(), watch.made_for, trainer.args, warnings)


class _Watch:
    """Makes the model of each trial and watches it train."""

    def __init__(self, subject: HFTrainer, spec: RunSpec, directory: Path, values: Mapping[str, Sequence[Any]]):
        self.subject, self.directory, self.values = subject, directory, values
        self.spec = spec if subject.device is None else spec.on_device(subject.device)
        self.rows, self.eval_rows = data.rows(spec.data)
        self.made_for: list[int | None] = []
        self.trials: list[Trial] = []
        self.study: Any = None
        self.observer: Observer | None = None

    def trainer(self) -> Trainer:
        spec = self.spec
        return self.subject.trainer_class(
            model_init=self.model_init,
            args=self.subject.arguments(spec, self.directory),
            train_dataset=data.dataset(self.rows, spec.data),
            eval_dataset=data.dataset(self.eval_rows, spec.data) if self.eval_rows else None,
            callbacks=[_reporter(self)],
            **{name: models.load_object(value) for name, value in spec.trainer.items()},
        )

    def model_init(self, trial: Any) -> Any:
        import torch

        self.made_for.append(None if trial is None else trial.number)
        rank = self.suggest(trial, OF_THE_MODEL) if trial is not None else {}
        spec = self.spec.but(lora=rank)
        # What the model is made from is no part of the clause: it leaves the generator, and its seed, as they were.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            model = inject(models.build(spec.model), spec.adapter)
        if trial is not None:
            self.end_of_trial()
            self.study = trial.study
            known = {name: value[trial.number] for name, value in self.values.items() if name in spec.arguments}
            self.observer = Observer(
                spec.but(**known), self.subject.name, [*self.rows, *self.eval_rows], self.directory
            )
            self.observer.watch_model(model)
            self.trials.append(Trial(trial.number, self.observer.trace))
        return model

    def space(self, trial: Any) -> dict[str, Any]:
        return self.suggest(trial, [name for name in self.values if name not in OF_THE_MODEL])

    def suggest(self, trial: Any, names: Sequence[str]) -> dict[str, Any]:
        return {
            name: trial.suggest_categorical(name, list(dict.fromkeys(self.values[name])))
            for name in names
            if name in self.values
        }

    def end_of_trial(self) -> None:
        if self.observer is not None:
            self.observer.finish()
        self.observer = None

    def finish(self) -> list[Trial]:
        self.end_of_trial()
        for trial in self.trials:
            made = self.study.trials[trial.number]
            trial.params, trial.state, trial.value = dict(made.params), made.state.name, made.value
            trial.reported = dict(made.intermediate_values)
        return self.trials


def _reporter(watch: _Watch) -> Any:
    """A TrainerCallback that reports the events of a trial to the trial's observer."""
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("on_"):
                return super().__getattribute__(name)

            def report(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if watch.observer is None:
                    return
                getattr(observing_callback(watch.observer), name)(args, state, control, **kwargs)
                if name == "on_train_begin":
                    import torch

                    watch.trials[-1].initial_seed = torch.initial_seed()
                elif name == "on_train_end":
                    trace = watch.observer.trace
                    record_state(trace, state)
                    loss = next((e["train_loss"] for e in reversed(state.log_history) if "train_loss" in e), math.nan)
                    trace.output = {"global_step": state.global_step, "training_loss": loss, "metrics": {}}

            return report

    return Reporter()


def _scripted(values: Mapping[str, Sequence[Any]]) -> Any:
    """An optuna sampler that suggests what `values` says."""
    from optuna.samplers import BaseSampler

    class Scripted(BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return values[param_name][trial.number]

    return Scripted()
