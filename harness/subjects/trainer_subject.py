"""TrainerSubject: anybody's subclass of transformers.Trainer, with its own arguments, dataset and collator, as a subject."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import compat
from harness.contract.clause import PROFILES
from harness.errors import UsageError
from harness.fixtures import data
from harness.spec import RunSpec
from harness.subjects import given
from harness.subjects.hf_trainer import HFTrainer
from harness.user_code import guarded, quoted

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

#: Arguments that the harness hands to every class. `extra` cannot name them.
_GIVEN = ("model", "model_init", "args", "train_dataset", "eval_dataset", "callbacks")


class TrainerSubject(HFTrainer):
    """A subclass of transformers.Trainer as a subject.

        TrainerSubject(SFTTrainer, config=SFTConfig, dataset=Dataset.from_list, extra={"processing_class": tokenizer})

    - cls: the class. It is called with keyword arguments: model (adapters are injected already), args, train_dataset,
      eval_dataset, callbacks, those of `extra`, and those that a case asks for, such as compute_metrics.
    - config: the class of its arguments; None: TrainingArguments. Where its defaults differ from those of
      TrainingArguments, the latter are used, since the clauses speak of them.
    - defaults: fields of `config` for every run, such as {"max_length": None}. A case that asks for another value wins.
    - dataset: makes the dataset that the class takes of a list of rows. A row is a dict of input_ids, attention_mask and
      labels, lists of ints, padded on the right with token 0 and label -100. None: a torch Dataset of tensors.
    - extra: further keyword arguments of the class. A function that can be called without arguments is called for each
      run; anything else is passed on as it is.
    - collator: the data_collator, unless a case brings one; None: the class's own.
    - name: shown in reports; None: the name of the class.
    - not_for: globs over clause ids, or over "CLAUSE/scenario" -> why these say nothing of this class, such as
      {"LOSS-*": "its loss is DPO's"}.
    - allow: globs over clause ids -> names of what the class adds on purpose, as in `harness.conformance`.
    - lacks: called with the RunSpec of a run; returns in words why the class does not train such a run, None if it does.
    - profile: the largest that judges the class (`harness.contract.clause.PROFILES`): "checkpoint" if its model is none of
      transformers, so that conventions of the Trainer say nothing of it.
    - padded: False if the class pads by itself: then rows come without padding.
    - sequences: how many sequences your collator makes of each row, such as 2 of a pair. The rows themselves come first.

    What the class or its config does not take is unsupported by name. For runs of several ranks all of this must be found
    by name in a module, since it is pickled.
    """

    def __init__(
        self,
        cls: type[Trainer],
        config: type[TrainingArguments] | None = None,
        defaults: Mapping[str, Any] | None = None,
        dataset: Callable[[list[dict[str, Any]]], Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        collator: Any = None,
        name: str | None = None,
        not_for: Mapping[str, str] | None = None,
        allow: Mapping[str, Sequence[str]] | None = None,
        lacks: Callable[[RunSpec], str | None] | None = None,
        profile: str = "trainer",
        padded: bool = True,
        sequences: int = 1,
    ):
        __tracebackhide__ = True
        from transformers import Trainer, TrainingArguments

        where = "TrainerSubject:"
        if not (isinstance(cls, type) and issubclass(cls, Trainer)):
            raise UsageError(
                f"{where} {quoted(cls)} is no subclass of transformers.Trainer; for a loop use LoopSubject"
            )
        if config is not None and not (isinstance(config, type) and issubclass(config, TrainingArguments)):
            raise UsageError(f"{where} config is {quoted(config)}; expected a subclass of TrainingArguments")
        super().__init__(
            None if cls is Trainer else cls, cls.__name__ if name is None else given.name(f"{where} name", name)
        )
        self._config, self._defaults = config, given.mapping(f"{where} defaults", defaults)
        self._dataset = given.function(f"{where} dataset", dataset)
        self._extra = given.mapping(f"{where} extra", extra)
        self.not_for = given.mapping(f"{where} not_for", not_for, texts=True)
        self.allow = given.lists(f"{where} allow", allow)
        if profile not in PROFILES[:-1]:
            raise UsageError(f"{where} profile is {quoted(profile)}; expected one of {', '.join(PROFILES[:-1])}")
        self.profile = profile
        self._lacks = given.function(f"{where} lacks", lacks)
        self._padded, self.sequences = bool(padded), given.count(f"{where} sequences", sequences)
        if given.function(f"{where} collator", collator) is not None:
            self._extra.setdefault("data_collator", collator)
        if wrong := next((name for name in self._extra if name in _GIVEN), None):
            raise UsageError(f"{where} extra has {wrong!r}, which the harness gives to the class itself")
        kind = config or TrainingArguments
        if wrong := next((name for name in self._defaults if name not in _names(kind)), None):
            raise UsageError(f"{where} defaults has {wrong!r}, which {kind.__name__} has no field for")

    def unsupported(self, spec: RunSpec) -> str | None:
        """Return by name what the class, its config or this installation lacks for a spec."""
        if (reason := super().unsupported(spec)) is not None:
            return reason
        if self._config is not None:
            values = compat.training_arguments(dict(spec.arguments))
            lacking = next((name for name in values if name not in _names(self._config)), None)
            if lacking is not None:
                return f"{self._config.__name__} has no {lacking}"
        if self._lacks is not None and (lack := self._lacks(spec)) is not None:
            return str(lack)
        if self._dataset is not None and (spec.data.iterable or spec.data.augment):
            return "dataset= makes a dataset of a list of rows: none that streams, and none that draws"
        if self._dataset is not None and "data_collator" in spec.trainer:
            return "dataset= makes rows for the class's own collator"
        taken = inspect.signature(self.trainer_class.__init__).parameters
        if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values()):
            return None
        wanted = next((name for name in spec.trainer if name not in taken), None)
        return None if wanted is None else f"{self.trainer_class.__name__} takes no {wanted}"

    def arguments(self, spec: RunSpec, directory: Path) -> TrainingArguments:
        """Return the spec's arguments as the class's own config. directory: their output_dir."""
        if self._config is None and not self._defaults:
            return super().arguments(spec, directory)
        from transformers import TrainingArguments

        config = self._config or TrainingArguments
        usual = {
            field.name: _default(field)
            for field in dataclasses.fields(TrainingArguments)
            if field.init and _default(field) is not dataclasses.MISSING
        }
        others = {
            field.name: usual[field.name]
            for field in dataclasses.fields(config)
            if field.name in usual and _default(field) != usual[field.name]
        }
        return config(**{**others, **self._defaults, **self.values(spec, directory)})

    def dataset(self, made: list[data.Row], spec: RunSpec) -> Any:
        """Return rows as the dataset that the class takes."""
        if self._dataset is None:
            return super().dataset(made, spec)
        return self._dataset([dict(row) if self._padded else data.unpadded(row) for row in made])

    def keywords(self) -> dict[str, Any]:
        """Return `extra`; of each function without parameters what it returns."""
        made = {}
        for name, value in self._extra.items():
            with guarded(f"TrainerSubject, extra, {name}"):
                made[name] = value() if _is_factory(value) else value
        return made


def _names(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config) if field.init}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _is_factory(value: Any) -> bool:
    """Return whether a value is a function that needs no argument. Classes and objects that can be called are values."""
    if not isinstance(value, (types.FunctionType, types.BuiltinFunctionType, functools.partial)):
        return False
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:  # a function in C without a signature
        return False
    return all(one.default is not inspect.Parameter.empty or one.kind in kinds for one in parameters)
