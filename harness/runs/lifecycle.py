"""The life of a model with adapters: trained, saved, killed and resumed, reloaded, given more adapters, merged.

A `Life` does one thing after another to a live model, and keeps beside it what must have come of it: the values of every
adapter, computed by the reference and by `harness.laws.injection.drawn`, never read off the model. Each thing done
yields verdicts, and so do the invariants after it. Drawn by hypothesis (harness/runs/drawn.py), repeated from its log
(`peft-harness repro`).
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.fixtures import models
from harness.laws import checkpoint, frozen, injection, rebuilt
from harness.laws.equal import differences, same_adapter
from harness.laws.schedule import plan
from harness.spec import GET, AdapterSpec, RunSpec
from harness.subjects.hf_trainer import HFTrainer, adapter_config, inject, recorded_warnings
from harness.subjects.observer import checkpoint_step, digest
from harness.tensors import names
from harness.tolerance import MERGED
from harness.trace import Tensors
from harness.verdict import Verdict, both, same, verdict

if TYPE_CHECKING:
    from transformers import Trainer

    from harness.reference.trainer import ReferenceTrainer

#: Clause id and what was found.
Judged = tuple[str, Verdict]

#: Names of the adapters of a life, in the order in which they are added.
NAMES = ("default", "second", "third")

#: The clauses that a life judges.
CLAUSES = (
    "API-02",
    "API-03",
    "API-15",
    "CKPT-13",
    "CKPT-15",
    "CKPT-21",
    "EVAL-01",
    "FRZ-01",
    "FRZ-11",
    "FRZ-15",
    "GEN-01",
    "RES-01",
)


@dataclass(frozen=True)
class Adapters:
    """Every adapter of a model by name, as canonical name -> tensor, and the one that is active.

    specs: what each was made from; an adapter that was deleted may have had its name from another.
    """

    values: dict[str, Tensors]
    active: str
    specs: dict[str, AdapterSpec]

    def but(self, values: dict[str, Tensors] | None = None, active: str | None = None) -> Adapters:
        """These with other values, or another one active; without those that `values` leaves out."""
        values = self.values if values is None else values
        return Adapters(values, active or self.active, {name: self.specs[name] for name in values})


@dataclass(frozen=True)
class Stop:
    """A checkpoint before the end of a run: the run, the adapters when it was written, and the active one's end."""

    spec: RunSpec
    path: Path
    adapters: Adapters
    end: Tensors


class Life:
    """One model and what is expected of it.

    subject: who trains. spec: base, adapter, rows, and arguments that the reference knows. root: an empty folder. log:
    what was done. made: training runs.
    """

    def __init__(self, subject: HFTrainer, spec: RunSpec, root: Path):
        self.subject, self.spec, self.root = subject, spec, root
        self.log: list[dict[str, Any]] = []
        self.model = inject(models.build(spec.model), spec.adapter)
        self.expected = Adapters({NAMES[0]: injection.drawn(spec)}, NAMES[0], {NAMES[0]: spec.adapter})
        self.base = self._base()
        self.made = 0
        self.stops: list[Stop] = []
        self.saves: list[tuple[Path, Adapters]] = []

    # ---- what can be done; each argument is a plain number, so that a log of a life is JSON ----

    def train(self, steps: int, batch: int, window: int, every: int, limit: int) -> Iterator[Judged]:
        """Train the active adapter, saving every `every` steps and keeping `limit` checkpoints (0: all)."""
        spec = self._run(
            max_steps=steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=window,
            save_strategy="steps",
            save_steps=every,
            save_total_limit=limit or None,
        )
        directory, before = self._directory("train"), self.expected
        self._train(spec, directory)
        end, saved = self._reference(spec)
        self.expected = self._with(end)
        yield "GEN-01", same_adapter(self._values(before.active), end)
        left = sorted(directory.glob("checkpoint-*"), key=checkpoint_step)
        kept = sorted(saved)[-limit:] if limit else sorted(saved)
        yield "CKPT-13", same("checkpoints that are left", [checkpoint_step(path) for path in left], kept)
        for path in left:
            then = before.but({**before.values, before.active: saved[checkpoint_step(path)]})
            yield "CKPT-15", self._saved(path, then)
            if checkpoint_step(path) < plan(spec).total:
                self.stops.append(Stop(spec, path, then, end))

    def resume(self, which: int) -> Iterator[Judged]:
        """Kill the model, build another with other values, and train it from a checkpoint to that run's end."""
        if not self.stops or self.spec.adapter.route != GET:
            return
        stop = self.stops[which % len(self.stops)]
        self._rebuild(stop.adapters)
        directory = self._directory("resume")
        path = directory / stop.path.name
        shutil.copytree(stop.path, path)
        self._train(stop.spec, directory, resume_from_checkpoint=str(path))
        self.expected = stop.adapters
        self.expected = self._with(stop.end)
        yield "RES-01", self._as_expected()

    def save(self) -> Iterator[Judged]:
        """Write the model's adapters to a directory."""
        directory = self._directory("save")
        self.model.save_pretrained(str(directory))
        yield "CKPT-15", self._saved(directory, self.expected)
        self.saves.append((directory, self.expected))

    def reload(self, which: int) -> Iterator[Judged]:
        """Kill the model, build the base anew and load into it what was saved."""
        if not self.saves:
            return
        from peft import PeftModel

        directory, adapters = self.saves[which % len(self.saves)]
        base = models.build(self.spec.model)
        with recorded_warnings([]):
            if self.spec.adapter.route == GET:
                first, *others = sorted(adapters.values, key=lambda name: name != adapters.active)
                place = {name: str(directory / ("" if name == "default" else name)) for name in adapters.values}
                self.model = PeftModel.from_pretrained(base, place[first], adapter_name=first, is_trainable=True)
                for name in others:
                    self.model.load_adapter(place[name], adapter_name=name)
            else:
                base.load_adapter(str(directory), adapter_name=adapters.active, is_trainable=True)
                self.model, adapters = base, adapters.but({adapters.active: adapters.values[adapters.active]})
        self.expected = adapters
        yield "CKPT-21", self._as_expected()

    def add(self, r: int, seed: int) -> Iterator[Judged]:
        """Add an adapter of another rank; get_peft_model's kind leaves the active one so, add_adapter's activates it."""
        import torch

        free = [name for name in NAMES if name not in self.expected.values]
        if not free:
            return
        name, config = free[0], {**self.spec.adapter.config, "r": r}
        added = dataclasses.replace(self.spec.adapter, config=config, seed=seed)
        torch.manual_seed(seed)
        if self.spec.adapter.route == GET:
            self.model.add_adapter(name, adapter_config("LORA", config))
        else:
            self.model.add_adapter(adapter_config("LORA", config), adapter_name=name)
        drawn = injection.drawn(dataclasses.replace(self.spec, adapter=added))
        active = self.expected.active if self.spec.adapter.route == GET else name
        self.expected = Adapters({**self.expected.values, name: drawn}, active, {**self.expected.specs, name: added})
        yield "API-03", same_adapter(self._values(name), drawn)

    def switch(self, which: int) -> Iterator[Judged]:
        """Activate one of the adapters."""
        name = sorted(self.expected.values)[which % len(self.expected.values)]
        self.model.set_adapter(name)
        self.expected = self.expected.but(active=name)
        yield "FRZ-15", self._as_expected()

    def delete(self, which: int) -> Iterator[Judged]:
        """Delete one of several adapters, and activate the first that is left."""
        if len(self.expected.values) == 1:
            return
        name = sorted(self.expected.values)[which % len(self.expected.values)]
        with recorded_warnings([]):
            self.model.delete_adapter(name)
        left = {other: value for other, value in self.expected.values.items() if other != name}
        self.model.set_adapter(min(left))
        self.expected = self.expected.but(left, min(left))
        yield "FRZ-15", self._as_expected()

    def disable(self) -> Iterator[Judged]:
        """Disable the adapters for a while."""
        yield "API-02", rebuilt.off_and_on(self.model, self.spec)

    def merge(self, saving: bool) -> Iterator[Judged]:
        """Merge the active adapter for a while, and save it meanwhile. What rounding leaves of it is put right."""
        if self.spec.adapter.route != GET:
            return
        beside, weights = rebuilt.logits(self.model, self.spec), self._base_tensors()
        self.model.merge_adapter()
        findings = differences(rebuilt.logits(self.model, self.spec), beside, MERGED.loss, "merged:")
        if saving:
            yield from self.save()
        self.model.unmerge_adapter()
        findings += differences(self._base_tensors(), weights, MERGED.adapter, "unmerged:")
        for name, tensor in self._base_tensors(copies=False).items():
            tensor.copy_(weights[name])
        yield "API-15", verdict("a merged adapter computes what it did, and leaves no trace", findings)

    def evaluate(self, batch: int) -> Iterator[Judged]:
        """Evaluate as the Trainer does; the reference must come to the same loss."""
        spec = self._run(max_steps=1, per_device_eval_batch_size=batch)
        with recorded_warnings([]):
            trainer = self.subject.build(spec, self._directory("evaluate"), model=self.model)
            seen = trainer.evaluate()["eval_loss"]
        self._unwrap(trainer)
        reference = self._reference_trainer(spec, lambda event, trainer: None)
        reference.evaluate()
        yield "EVAL-01", same("eval_loss", seen, reference.metrics["eval_loss"])

    # ---- what holds after each of them ----

    def do(self, verb: str, **arguments: Any) -> Iterator[Judged]:
        """One of `VERBS`, its verdicts, and then the invariants'."""
        self.log.append({"do": verb, **arguments})
        act, clause = VERBS[verb]
        try:
            yield from act(self, **arguments)
        except UsageError:
            raise
        except Exception as error:
            yield clause, verdict(f"{verb} runs to its end", [f"it raised {type(error).__name__}: {error}"])
            return
        yield "FRZ-01", same("digests of the base", self._base(), self.base)
        yield "FRZ-15", self._as_expected()
        trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        wanted = [name for name, _ in self.model.named_parameters() if self._belongs(name, self.expected.active)]
        yield "FRZ-11", frozen.trains_exactly(trained, wanted, f"after {verb}")

    # ---- help ----

    def _directory(self, what: str) -> Path:
        path = self.root / f"{len(self.log):02d}-{what}"
        path.mkdir()
        return path

    def _run(self, **arguments: Any) -> RunSpec:
        """The spec of a run that trains the active adapter."""
        active = self.expected.specs[self.expected.active]
        return dataclasses.replace(self.spec, adapter=active).but(**arguments)

    def _train(self, spec: RunSpec, directory: Path, **options: Any) -> None:
        self.made += 1
        with recorded_warnings([]):
            trainer = self.subject.build(spec, directory, model=self.model)
            trainer.train(**options)
        self._unwrap(trainer)

    def _unwrap(self, trainer: Trainer) -> None:
        """Take off the autocast that a Trainer in mixed precision leaves around the model's forward (AMP-02).

        And the mark by which accelerate would leave the next Trainer's out (AMP-12).
        """
        trainer.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        vars(self.model).pop("_is_accelerate_prepared", None)

    def _with(self, values: Tensors) -> Adapters:
        return self.expected.but({**self.expected.values, self.expected.active: values})

    def _reference_trainer(self, spec: RunSpec, callback: Callable[[str, ReferenceTrainer], None]) -> ReferenceTrainer:
        from harness.subjects import reference

        trainer = reference.build(spec, self._directory("reference"), callback)
        for name, tensor in trainer.model.adapter().items():
            tensor.copy_(self.expected.values[self.expected.active][names.canonical(name)])
        return trainer

    def _reference(self, spec: RunSpec) -> tuple[Tensors, dict[int, Tensors]]:
        """What training makes of the active adapter: at the end, and at each save by its step."""
        saved: dict[int, Tensors] = {}

        def current(trainer: ReferenceTrainer) -> Tensors:
            return {names.canonical(name): value.clone() for name, value in trainer.model.adapter().items()}

        def callback(event: str, trainer: ReferenceTrainer) -> None:
            if event == "save":
                saved[trainer.state.global_step] = current(trainer)

        trainer = self._reference_trainer(spec.but(save_total_limit=None), callback)
        trainer.train()
        return current(trainer), saved

    def _rebuild(self, adapters: Adapters) -> None:
        """Another model with adapters of the same names and shapes, and other values."""
        first, *others = sorted(adapters.values, key=lambda name: name != adapters.active)
        spec = adapters.specs[first]
        more = {name: dict(adapters.specs[name].config) for name in others}
        anew = dataclasses.replace(spec, name=first, others=more, seed=spec.seed + 1000)
        self.model = inject(models.build(self.spec.model), anew)

    def _belongs(self, raw: str, adapter: str) -> bool:
        return names.is_adapter(raw) and f".{adapter}." in raw

    def _values(self, adapter: str) -> Tensors:
        return injection.adapter_tensors(self.model, adapter)

    def _base_tensors(self, copies: bool = True) -> Tensors:
        return {
            names.canonical(raw): tensor.clone() if copies else tensor
            for raw, tensor in self.model.state_dict().items()
            if not names.is_adapter(raw)
        }

    def _base(self) -> dict[str, str]:
        return {name: digest(tensor) for name, tensor in self._base_tensors(copies=False).items()}

    def _as_expected(self) -> Verdict:
        """Every adapter has the values that it must have, and there is no other."""
        there = {name for name in NAMES if self._values(name)}
        return both(
            same("adapters in the model", there, set(self.expected.values)),
            *[
                verdict(f"adapter {name!r} as expected", differences(self._values(name), wanted, 0.0, f"{name}:"))
                for name, wanted in self.expected.values.items()
            ],
        )

    def _saved(self, directory: Path, adapters: Adapters) -> Verdict:
        """Each adapter lies in its file with these values; of add_adapter the active one alone (CKPT-16 is about that)."""
        findings = []
        for name, wanted in adapters.values.items():
            place = "" if name == "default" or self.spec.adapter.route != GET else name
            file = directory / place / checkpoint.ADAPTER_FILE
            if self.spec.adapter.route != GET and name != adapters.active:
                continue
            if not file.is_file():
                findings.append(f"adapter {name!r} has no file {file.relative_to(directory)}")
                continue
            tensors = {names.canonical(key): value for key, value in checkpoint.load_adapter_file(file).items()}
            findings += differences(tensors, wanted, 0.0, f"file of {name!r}:")
        return verdict("each adapter is saved as it is", findings)


#: What can be done, and the clause that it breaks if it raises an error.
VERBS: dict[str, tuple[Callable[..., Iterator[Judged]], str]] = {
    "train": (Life.train, "GEN-01"),
    "resume": (Life.resume, "RES-01"),
    "save": (Life.save, "CKPT-15"),
    "reload": (Life.reload, "CKPT-21"),
    "add": (Life.add, "API-03"),
    "switch": (Life.switch, "FRZ-15"),
    "delete": (Life.delete, "FRZ-15"),
    "disable": (Life.disable, "API-02"),
    "merge": (Life.merge, "API-15"),
    "evaluate": (Life.evaluate, "EVAL-01"),
}


def told(act: dict[str, Any]) -> str:
    """One thing done in a life: "train(steps=3, batch=2)"."""
    return f"{act['do']}({', '.join(f'{name}={value}' for name, value in act.items() if name != 'do')})"
