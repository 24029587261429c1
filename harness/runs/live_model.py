"""A live model with adapters, and beside it the values that each adapter must have.

`LiveModel` is the workshop of a life (harness/runs/lifecycle.py): it trains the model, trains the reference alike, and
compares the two. The expected values come from `harness.laws.injection.drawn` and from the reference, never from the
model itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.fixtures import models
from harness.laws import checkpoint, injection
from harness.laws.equal import differences
from harness.spec import GET, AdapterSpec, RunSpec
from harness.subjects.hf_trainer import HFTrainer, inject, recorded_warnings
from harness.subjects.observer import digest
from harness.tensors import names
from harness.trace import Tensors
from harness.verdict import Verdict, both, same, verdict

if TYPE_CHECKING:
    from transformers import Trainer

    from harness.reference.trainer import ReferenceTrainer

#: Names of the adapters of a life, in the order in which they are added.
NAMES = ("default", "second", "third")


@dataclass(frozen=True)
class Adapters:
    """All adapters of a model.

    - values: adapter's name -> canonical tensor name -> tensor.
    - active: the name of the active adapter.
    - specs: adapter's name -> what it was made from. A name can be used again after its adapter was deleted, so the spec
      is kept beside the values.
    """

    values: dict[str, Tensors]
    active: str
    specs: dict[str, AdapterSpec]

    def but(self, values: dict[str, Tensors] | None = None, active: str | None = None) -> Adapters:
        """Return the adapters with other values, or another active one. Adapters that `values` lacks are left out."""
        values = self.values if values is None else values
        return Adapters(values, active or self.active, {name: self.specs[name] for name in values})


@dataclass(frozen=True)
class Stop:
    """A checkpoint that was written before its run's end, so that the run can be resumed from it.

    - spec: the run.
    - path: the checkpoint's directory.
    - adapters: the adapters when the checkpoint was written.
    - end: the active adapter's values at the run's end.
    """

    spec: RunSpec
    path: Path
    adapters: Adapters
    end: Tensors


class LiveModel:
    """One model, and the adapters that are expected in it.

    - subject: who trains it.
    - spec: base, adapter, rows, and arguments that the reference supports.
    - root: an empty directory.
    - log: the actions so far, as JSON objects {"do": verb, argument: number}.
    - expected: the adapters that the model must have now.
    - base_digests: canonical name -> digest, of the base's tensors at the start.
    - made: how many training runs were made.
    """

    def __init__(self, subject: HFTrainer, spec: RunSpec, root: Path):
        self.subject, self.spec, self.root = subject, spec, root
        self.log: list[dict[str, Any]] = []
        self.model = inject(models.build(spec.model), spec.adapter)
        self.expected = Adapters({NAMES[0]: injection.drawn(spec)}, NAMES[0], {NAMES[0]: spec.adapter})
        self.base_digests = self._digests_of_base()
        self.made = 0

    # ---- training, by the Trainer and by the reference ----

    def _directory(self, what: str) -> Path:
        """Create a directory below `root` for the action that is done now."""
        path = self.root / f"{len(self.log):02d}-{what}"
        path.mkdir()
        return path

    def _run(self, **arguments: Any) -> RunSpec:
        """Return the spec of a run that trains the active adapter, with these TrainingArguments."""
        active = self.expected.specs[self.expected.active]
        return dataclasses.replace(self.spec, adapter=active).but(**arguments)

    def _train(self, spec: RunSpec, directory: Path, **options: Any) -> None:
        """Train the model. options: of Trainer.train()."""
        self.made += 1
        with recorded_warnings([]):
            trainer = self.subject.build(spec, directory, model=self.model)
            trainer.train(**options)
        self._unwrap(trainer)

    def _unwrap(self, trainer: Trainer) -> None:
        """Undo what a Trainer leaves on the model.

        A Trainer in mixed precision leaves autocast around the model's forward (AMP-02). accelerate also marks the model
        as prepared, and leaves out the next Trainer's autocast if the mark is there (AMP-12).
        """
        trainer.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        vars(self.model).pop("_is_accelerate_prepared", None)

    def _reference_trainer(self, spec: RunSpec, callback: Callable[[str, ReferenceTrainer], None]) -> ReferenceTrainer:
        """Build the reference for a run of the active adapter, with the values that are expected of it."""
        from harness.subjects import reference

        trainer = reference.build(spec, self._directory("reference"), callback)
        for name, tensor in trainer.model.adapter().items():
            tensor.copy_(self.expected.values[self.expected.active][names.canonical(name)])
        return trainer

    def _train_reference(self, spec: RunSpec) -> tuple[Tensors, dict[int, Tensors]]:
        """Train the reference. Return the active adapter at the end, and at each save by its step."""
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
        """Replace the model by a new one, whose adapters have the same names and shapes, but other values."""
        first, *others = sorted(adapters.values, key=lambda name: name != adapters.active)
        spec = adapters.specs[first]
        more = {name: dict(adapters.specs[name].config) for name in others}
        other_values = dataclasses.replace(spec, name=first, others=more, seed=spec.seed + 1000)
        self.model = inject(models.build(self.spec.model), other_values)

    # ---- what is in the model and in files, compared with what is expected ----

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

    def _digests_of_base(self) -> dict[str, str]:
        return {name: digest(tensor) for name, tensor in self._base_tensors(copies=False).items()}

    def _expect_active(self, values: Tensors) -> None:
        """Expect these values of the active adapter from now on."""
        self.expected = self.expected.but({**self.expected.values, self.expected.active: values})

    def _as_expected(self) -> Verdict:
        """Check that the model has exactly the expected adapters, with the expected values."""
        present = {name for name in NAMES if self._values(name)}
        return both(
            same("adapters in the model", present, set(self.expected.values)),
            *[
                verdict(f"adapter {name!r} as expected", differences(self._values(name), values, 0.0, f"{name}:"))
                for name, values in self.expected.values.items()
            ],
        )

    def _saved(self, directory: Path, adapters: Adapters) -> Verdict:
        """Check that each adapter lies in its file below `directory`, with these values.

        If add_adapter injected them, only the active one is looked for; CKPT-16 is about the others.
        """
        findings = []
        for name, values in adapters.values.items():
            folder = "" if name == "default" or self.spec.adapter.route != GET else name
            file = directory / folder / checkpoint.ADAPTER_FILE
            if self.spec.adapter.route != GET and name != adapters.active:
                continue
            if not file.is_file():
                findings.append(f"adapter {name!r} has no file {file.relative_to(directory)} in {directory.name}/")
                continue
            tensors = {names.canonical(key): value for key, value in checkpoint.load_adapter_file(file).items()}
            findings += differences(tensors, values, 0.0, f"file of {name!r}:")
        return verdict("each adapter is saved as it is", findings)
