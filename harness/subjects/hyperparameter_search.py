"""A hyperparameter search by transformers.Trainer with optuna. Each of its trials is observed as a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.fixtures import data, models
from harness.spec import RunSpec
from harness.subjects import trainer_keywords
from harness.subjects.hf_trainer import HFTrainer, inject, record_state, recorded_warnings
from harness.subjects.observer import Observer
from harness.trace import Trace

if TYPE_CHECKING:
    from transformers import Trainer

    from harness.subjects.reporter import Reporter

#: LoraConfig fields that are suggested when the model is made. All other suggestions are TrainingArguments.
MODEL_FIELDS = ("r",)


@dataclass
class Trial:
    """One trial.

    - number: optuna's, from 0
    - trace: what was observed; its spec is that of a single run with the suggested values
    - initial_seed: torch's seed when training began
    - params: everything that optuna suggested
    - state: optuna's, such as "COMPLETE" or "PRUNED"
    - value: the objective
    - reported: step -> intermediate value
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
    """What was observed of a search.

    - best: what hyperparameter_search returned
    - trials: in order
    - made_for: the trial's number at each call of model_init; None: it was called without a trial
    - arguments: the Trainer's TrainingArguments after the search
    - warnings: upstream's
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
    """Run a search with scripted suggestions and return what was observed.

    - directory: output_dir of the Trainer
    - values: name -> its values, equally many for each name; trial n is suggested the n-th value. Names in `MODEL_FIELDS`
      are suggested when model_init is called, the others by hp_space
    - before: called with the Trainer before the search
    - options: arguments of hyperparameter_search, such as pruner
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
        #: Passes the events of the trial that is running on to that trial's observer.
        self.reporter = _trial_reporter(self.trials)

    def trainer(self) -> Trainer:
        """Return the Trainer that searches."""
        spec = self.spec
        trainer = self.subject.trainer_class(
            model_init=self.model_init,
            args=self.subject.arguments(spec, self.directory),
            train_dataset=data.dataset(self.rows, spec.data),
            eval_dataset=data.dataset(self.eval_rows, spec.data) if self.eval_rows else None,
            callbacks=[self.reporter],
            **trainer_keywords.objects(spec.trainer),
        )
        self.reporter.trainer = trainer
        return trainer

    def model_init(self, trial: Any) -> Any:
        """Return the model of a trial, and start to observe it. trial: None before the search begins."""
        import torch

        self.made_for.append(None if trial is None else trial.number)
        suggested = self.suggest(trial, MODEL_FIELDS) if trial is not None else {}
        spec = self.spec.but(lora=suggested)
        # How the fixture makes a model is no part of the clause, so torch's generator and its seed stay as they were.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            model = inject(models.build(spec.model), spec.adapter)
        if trial is not None:
            self.end_of_trial()
            self.study = trial.study
            changed = {name: value[trial.number] for name, value in self.values.items() if name in spec.arguments}
            rows = [*self.rows, *self.eval_rows]
            observer = Observer(spec.but(**changed), self.subject.name, rows, self.directory)
            observer.watch_model(model)
            self.reporter.observer = observer
            self.trials.append(Trial(trial.number, observer.trace))
        return model

    def space(self, trial: Any) -> dict[str, Any]:
        """Return the TrainingArguments of a trial: the hp_space of the search."""
        return self.suggest(trial, [name for name in self.values if name not in MODEL_FIELDS])

    def suggest(self, trial: Any, names: Sequence[str]) -> dict[str, Any]:
        """Return optuna's suggestions for those of the names that are searched."""
        return {
            name: trial.suggest_categorical(name, list(dict.fromkeys(self.values[name])))
            for name in names
            if name in self.values
        }

    def end_of_trial(self) -> None:
        """Stop observing the trial that ran last, if there was one."""
        if self.reporter.observer is not None:
            self.reporter.observer.finish()
            self.reporter.observer = None

    def finish(self) -> list[Trial]:
        """Return the trials, with what optuna recorded of each."""
        self.end_of_trial()
        for trial in self.trials:
            recorded = self.study.trials[trial.number]
            trial.params, trial.state, trial.value = dict(recorded.params), recorded.state.name, recorded.value
            trial.reported = dict(recorded.intermediate_values)
        return self.trials


def _trial_reporter(trials: list[Trial]) -> Reporter:
    """Return a Reporter that also records the seed and the result of the newest of `trials`."""
    import torch

    from harness.subjects.reporter import Reporter

    class TrialReporter(Reporter):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_train_begin(args, state, control, **kwargs)
            if self.observer is not None:
                trials[-1].initial_seed = torch.initial_seed()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_train_end(args, state, control, **kwargs)
            if self.observer is not None:
                trace = self.observer.trace
                record_state(trace, state)
                losses = (entry["train_loss"] for entry in reversed(state.log_history) if "train_loss" in entry)
                loss = next(losses, math.nan)
                trace.output = {"global_step": state.global_step, "training_loss": loss, "metrics": {}}

    return TrialReporter()


def _scripted(values: Mapping[str, Sequence[Any]]) -> Any:
    """Return an optuna sampler that suggests the scripted values of `search`."""
    from optuna.samplers import BaseSampler

    class Scripted(BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return values[param_name][trial.number]

    return Scripted()
