"""Trace: what was seen of one training run. JSON for facts, safetensors for tensors, versioned.

Names of tensors are canonical (see `harness.tensors.names`): the path of the module in the base model, so that traces of
get_peft_model, add_adapter and the reference are compared name by name.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.spec import RunSpec, read_json

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 1

Tensors = dict[str, "torch.Tensor"]


@dataclass
class MicroBatch:
    """One forward pass in training mode.

    rows: index in the data of each row, in order (-1: no such row). tokens: labels that are not -100; for a causal
    model those after position 0. num_items: the num_items_in_batch that the model was given, None if none. loss: the
    loss that the model returned, None if it returned none.
    """

    rows: list[int]
    tokens: int
    num_items: float | None = None
    loss: float | None = None


@dataclass
class Step:
    """One optimizer step. number: 1-based global step. learning_rates: per parameter group, as the step used them.

    gradients: at the end of the last backward pass, before clipping. clipped: as the optimizer saw them.
    Canonical parameter name -> tensor of the parameter's shape and dtype. seconds: since the step before.
    """

    number: int
    batches: list[MicroBatch]
    learning_rates: list[float]
    gradients: Tensors
    clipped: Tensors
    seconds: float = 0.0


@dataclass
class Group:
    """One parameter group of the optimizer: its parameters' canonical names and its scalar settings."""

    names: list[str]
    settings: dict[str, Any]


@dataclass
class Checkpoint:
    """A checkpoint directory as it was when the save had ended.

    files: relative path -> bytes. tensors: relative path of each safetensors file -> key -> [dtype, shape].
    adapter: canonical name -> tensor, of the adapter at the top of the directory (or its only one below it).
    state: trainer_state.json. siblings: the steps of all checkpoints that lay beside it, itself included.
    """

    step: int
    path: str
    files: dict[str, int]
    tensors: dict[str, dict[str, list[Any]]]
    adapter: Tensors
    state: dict[str, Any]
    siblings: list[int]


@dataclass
class Evaluation:
    """One pass over evaluation rows. step: the global step before it. rows: per batch. metrics: as reported."""

    step: int
    rows: list[list[int]]
    metrics: dict[str, float]


@dataclass(repr=False)
class Trace:
    """All that was seen of a run. `error` is the exception that ended it ("Type: message"), None when it completed.

    log_history: TrainerState.log_history. adapter_before, adapter: trainable tensors at the start and at the end.
    adapter_resumed: trainable tensors after a checkpoint was loaded, before the first step; empty for other runs.
    base_before, base: canonical name -> digest of every other tensor of state_dict(). trainable: canonical names of
    the parameters that require gradients. shared: other names of those of the adapter, which layers share.
    parameters: all parameters' canonical name -> [dtype, shape].
    optimizer_state: canonical name -> state name -> tensor, at the end. output: TrainOutput as
    {"global_step", "training_loss", "metrics"}. best: {"metric", "step", "checkpoint"} of TrainerState.
    base_gradients: names of frozen parameters that held a .grad at an optimizer step.
    seconds: the wall time of train(). memory_bytes: peak, allocated on the device (cuda) or resident (cpu).

    Of a run in several processes this is what rank 0 saw; ranks: what each other rank saw, in order. Gradients, adapters
    and digests are whole on every rank, put together from the shards. distributed: how the run was spread, see
    `harness.tensors.shards`.
    """

    spec: RunSpec
    subject: str
    environment: dict[str, Any]
    directory: str = ""
    error: str | None = None
    events: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    log_history: list[dict[str, Any]] = field(default_factory=list)
    adapter_before: Tensors = field(default_factory=dict)
    adapter: Tensors = field(default_factory=dict)
    adapter_resumed: Tensors = field(default_factory=dict)
    base_before: dict[str, str] = field(default_factory=dict)
    base: dict[str, str] = field(default_factory=dict)
    base_gradients: list[str] = field(default_factory=list)
    trainable: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    parameters: dict[str, list[Any]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    optimizer_state: dict[str, Tensors] = field(default_factory=dict)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    output: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    memory_bytes: int = 0
    distributed: dict[str, Any] = field(default_factory=dict)
    ranks: list[Trace] = field(default_factory=list)

    def __repr__(self) -> str:
        """Short: it is in tracebacks, and its tensors are thousands of numbers."""
        ends = f"ends with {self.error}" if self.error else f"{len(self.checkpoints)} checkpoints"
        return f"<Trace of {self.subject}: {len(self.steps)} steps, {ends}>"

    @property
    def losses(self) -> dict[int, float]:
        """Global step -> logged training loss (the mean since the log before)."""
        return {entry["step"]: entry["loss"] for entry in self.log_history if "loss" in entry}

    @property
    def grad_norms(self) -> dict[int, float]:
        """Global step -> logged gradient norm, before clipping."""
        return {entry["step"]: float(entry["grad_norm"]) for entry in self.log_history if "grad_norm" in entry}

    @property
    def rows(self) -> list[list[int]]:
        """Rows trained on by each optimizer step, in order."""
        return [[row for batch in step.batches for row in batch.rows] for step in self.steps]

    def checkpoint(self, step: int) -> Checkpoint:
        """The checkpoint written at a global step; LookupError if there is none."""
        for checkpoint in self.checkpoints:
            if checkpoint.step == step:
                return checkpoint
        raise LookupError(f"no checkpoint at step {step}; there are {[c.step for c in self.checkpoints]}")

    def save(self, directory: str | Path) -> None:
        """Write trace.json and trace.safetensors into a directory, which is made if it is missing."""
        from safetensors.torch import save_file

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        tensors: Tensors = {}
        body = _pack(self, "trace", tensors)
        body["schema_version"] = SCHEMA_VERSION
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "trace.safetensors")
        (directory / "trace.json").write_text(json.dumps(body, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> Trace:
        """Read what `save` wrote, in this or any earlier release. UsageError if it is newer or not there."""
        from safetensors.torch import load_file

        directory = Path(directory)
        body = read_json(directory / "trace.json")
        version = body.pop("schema_version", 0)
        if version > SCHEMA_VERSION:
            raise UsageError(
                f"{directory}: trace schema_version {version} is newer than {SCHEMA_VERSION}; upgrade peft-harness"
            )
        return cls._read(_unpack(body, load_file(directory / "trace.safetensors")))

    @classmethod
    def _read(cls, read: dict[str, Any]) -> Trace:
        read["spec"] = RunSpec.from_json(read["spec"])
        read["steps"] = [
            Step(**{**step, "batches": [MicroBatch(**batch) for batch in step["batches"]]}) for step in read["steps"]
        ]
        for name, kind in (("evaluations", Evaluation), ("groups", Group), ("checkpoints", Checkpoint)):
            read[name] = [kind(**item) for item in read[name]]
        read["ranks"] = [cls._read(item) for item in read.get("ranks", [])]
        return cls(**read)


_TENSOR = "$tensor"
_NUMBER = "$number"


def _pack(value: Any, name: str, tensors: Tensors) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        # Two names may share storage (tied weights), which safetensors refuses: each gets its own.
        tensors[name] = value.detach().cpu().clone()
        return {_TENSOR: name}
    if isinstance(value, RunSpec):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        return {f.name: _pack(getattr(value, f.name), f"{name}/{f.name}", tensors) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _pack(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pack(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {_NUMBER: repr(value)}
    return value


def _unpack(value: Any, tensors: Tensors) -> Any:
    if isinstance(value, dict):
        if set(value) == {_TENSOR}:
            return tensors[value[_TENSOR]]
        if set(value) == {_NUMBER}:
            return float(value[_NUMBER])
        return {key: _unpack(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    return value
