"""The life of a model with adapters: trained, saved, killed and resumed, reloaded, given more adapters, merged.

A `Life` does one action after another to a live model, and keeps beside it the values that every adapter must have
(harness/runs/live_model.py). Each action yields verdicts, and after it the invariants are checked. Hypothesis draws lives
(harness/runs/drawn.py); `peft-harness repro` repeats one from its log.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.files import require_space
from harness.fixtures import models
from harness.laws import frozen, injection, rebuilt
from harness.laws.equal import differences, same_adapter
from harness.laws.plan import plan
from harness.runs.live_model import NAMES, Adapters, LiveModel, Stop
from harness.spec import GET, RunSpec
from harness.subjects.hf_trainer import HFTrainer, adapter_config, recorded_warnings
from harness.subjects.observer import checkpoint_step
from harness.tolerance import MERGED
from harness.verdict import Verdict, same, verdict

#: A clause id with the verdict on it.
Judged = tuple[str, Verdict]

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


class Life(LiveModel):
    """A live model, what can be done to it, and what must hold after each action.

    Each public method but `do` is a verb: it acts, updates what is expected, and yields verdicts. The arguments of verbs
    are plain numbers, so that the log of a life is JSON.

    - stops: the checkpoints that a run can be resumed from.
    - saves: the directories that adapters were saved to, with the adapters at that time.
    """

    def __init__(self, subject: HFTrainer, spec: RunSpec, root: Path):
        super().__init__(subject, spec, root)
        self.stops: list[Stop] = []
        self.saves: list[tuple[Path, Adapters]] = []

    def do(self, verb: str, **arguments: Any) -> Iterator[Judged]:
        """Do one action, and yield its verdicts, then those of the invariants.

        If the action raises an error, its clause of `VERBS` fails, and the invariants are not checked. A UsageError is
        raised again.

        - verb: a key of `VERBS`.
        - arguments: of the verb.
        """
        self.log.append({"do": verb, **arguments})
        act, clause = VERBS[verb]
        try:
            yield from act(self, **arguments)
        except UsageError:
            raise
        except Exception as error:
            require_space(error)
            yield clause, verdict(f"{verb} runs to its end", [f"it raised {type(error).__name__}: {error}"])
            return
        yield "FRZ-01", same("digests of the base", self._digests_of_base(), self.base_digests)
        yield "FRZ-15", self._as_expected()
        trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        expected = [name for name, _ in self.model.named_parameters() if self._belongs(name, self.expected.active)]
        yield "FRZ-11", frozen.trains_exactly(trained, expected, f"after {verb}")

    # ---- verbs ----

    def train(self, steps: int, batch: int, window: int, every: int, limit: int) -> Iterator[Judged]:
        """Train the active adapter.

        - steps: max_steps.
        - batch: per_device_train_batch_size.
        - window: gradient_accumulation_steps.
        - every: save_steps.
        - limit: save_total_limit; 0 for none.
        """
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
        end, saved = self._train_reference(spec)
        self._expect_active(end)
        yield "GEN-01", same_adapter(self._values(before.active), end)
        left = sorted(directory.glob("checkpoint-*"), key=checkpoint_step)
        not_rotated = sorted(saved)[-limit:] if limit else sorted(saved)
        yield "CKPT-13", same("checkpoints that are left", [checkpoint_step(path) for path in left], not_rotated)
        for path in left:
            then = before.but({**before.values, before.active: saved[checkpoint_step(path)]})
            yield "CKPT-15", self._saved(path, then)
            if checkpoint_step(path) < plan(spec).total:
                self.stops.append(Stop(spec, path, then, end))

    def resume(self, which: int) -> Iterator[Judged]:
        """Replace the model by one with other values, and resume a run from a checkpoint, to the run's end.

        Nothing is done if there is no checkpoint, or if add_adapter injected the adapters.

        - which: which of `stops`, modulo how many there are.
        """
        if not self.stops or self.spec.adapter.route != GET:
            return
        stop = self.stops[which % len(self.stops)]
        self._rebuild(stop.adapters)
        directory = self._directory("resume")
        path = directory / stop.path.name
        shutil.copytree(stop.path, path)
        self._train(stop.spec, directory, resume_from_checkpoint=str(path))
        self.expected = stop.adapters
        self._expect_active(stop.end)
        yield "RES-01", self._as_expected()

    def save(self) -> Iterator[Judged]:
        """Save the model's adapters to a directory."""
        directory = self._directory("save")
        self.model.save_pretrained(str(directory))
        yield "CKPT-15", self._saved(directory, self.expected)
        self.saves.append((directory, self.expected))

    def reload(self, which: int) -> Iterator[Judged]:
        """Rebuild the base, and load saved adapters into it. Nothing is done if none were saved.

        - which: which of `saves`, modulo how many there are.
        """
        if not self.saves:
            return
        from peft import PeftModel

        directory, adapters = self.saves[which % len(self.saves)]
        base = models.build(self.spec.model)
        with recorded_warnings([]):
            if self.spec.adapter.route == GET:
                first, *others = sorted(adapters.values, key=lambda name: name != adapters.active)
                paths = {name: str(directory / ("" if name == "default" else name)) for name in adapters.values}
                self.model = PeftModel.from_pretrained(base, paths[first], adapter_name=first, is_trainable=True)
                for name in others:
                    self.model.load_adapter(paths[name], adapter_name=name)
            else:
                base.load_adapter(str(directory), adapter_name=adapters.active, is_trainable=True)
                self.model, adapters = base, adapters.but({adapters.active: adapters.values[adapters.active]})
        self.expected = adapters
        yield "CKPT-21", self._as_expected()

    def add(self, r: int, seed: int) -> Iterator[Judged]:
        """Add an adapter under the first free name. Nothing is done if there are three.

        A PeftModel's add_adapter leaves the active adapter active. A transformers model's activates the new one.

        - r: the new adapter's rank.
        - seed: random seed of its initial values.
        """
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
        """Activate an adapter.

        - which: which one in alphabetical order, modulo how many there are.
        """
        name = sorted(self.expected.values)[which % len(self.expected.values)]
        self.model.set_adapter(name)
        self.expected = self.expected.but(active=name)
        yield "FRZ-15", self._as_expected()

    def delete(self, which: int) -> Iterator[Judged]:
        """Delete an adapter, and activate the first one left. Nothing is done if there is only one.

        - which: which one in alphabetical order, modulo how many there are.
        """
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
        """Disable the adapters, compare the logits with the base's, and enable the adapters again."""
        yield "API-02", rebuilt.off_and_on(self.model, self.spec)

    def merge(self, saving: bool) -> Iterator[Judged]:
        """Merge the active adapter into the base, and unmerge it again. Nothing is done if add_adapter injected it.

        Unmerging leaves rounding errors in the base, so the base's exact values are put back afterwards.

        - saving: whether the adapters are saved while one is merged.
        """
        if self.spec.adapter.route != GET:
            return
        unmerged, weights = rebuilt.logits(self.model, self.spec), self._base_tensors()
        self.model.merge_adapter()
        findings = differences(rebuilt.logits(self.model, self.spec), unmerged, MERGED.loss, "merged:")
        sums = self._base_tensors()
        if saving:
            yield from self.save()
        self.model.unmerge_adapter()
        findings += rebuilt.not_restored(self._base_tensors(), weights, sums)
        for name, tensor in self._base_tensors(copies=False).items():
            tensor.copy_(weights[name])
        yield "API-15", verdict("a merged adapter computes what it did, and leaves no trace", findings)

    def evaluate(self, batch: int) -> Iterator[Judged]:
        """Evaluate with the Trainer and with the reference: eval_loss must be the same.

        - batch: per_device_eval_batch_size.
        """
        spec = self._run(max_steps=1, per_device_eval_batch_size=batch)
        with recorded_warnings([]):
            trainer = self.subject.build(spec, self._directory("evaluate"), model=self.model)
            seen = trainer.evaluate()["eval_loss"]
        self._unwrap(trainer)
        reference = self._reference_trainer(spec, lambda event, trainer: None)
        reference.evaluate()
        yield "EVAL-01", same("eval_loss", seen, reference.metrics["eval_loss"])


#: Verb -> the method that does it, and the clause that fails if it raises an error.
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


def describe(action: Mapping[str, Any]) -> str:
    """Return an action of a life's log as a call: "train(steps=3, batch=2)"."""
    return f"{action['do']}({', '.join(f'{name}={value}' for name, value in action.items() if name != 'do')})"
