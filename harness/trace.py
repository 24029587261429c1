"""Trace: what was observed of one training run. Facts are stored as JSON, tensors as safetensors, with a version.

Names of tensors are canonical (see `harness.tensors.names`): the path of the module in the base model. So traces of
get_peft_model, add_adapter and the reference can be compared name by name.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.reading import opened, read_json, shown, shown_path
from harness.spec import RunSpec, check_version
from harness.user_code import quoted

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 1

Tensors = dict[str, "torch.Tensor"]


@dataclass
class MicroBatch:
    """One forward pass in training mode that keeps gradients. Passes without them train nothing, such as a teacher's.

    - rows: the index in the data of each row, in order; -1 if the data have no such row.
    - tokens: the number of labels that are not -100; for a causal model, of those after position 0.
    - num_items: the num_items_in_batch that the model was given; None if it was given none.
    - loss: the loss that the model returned; None if it returned none.
    - labels: for each of `rows`, the row whose labels it was trained with: itself, another one, or -1 if they are no row's
      (a collator may shift or mask them). Empty if the model was given no labels.
    """

    rows: list[int]
    tokens: int
    num_items: float | None = None
    loss: float | None = None
    labels: list[int] = field(default_factory=list)


@dataclass
class Step:
    """One optimizer step.

    - number: the global step, from 1.
    - batches: the micro-batches of its window.
    - learning_rates: the rate that the step used, per parameter group.
    - gradients: the gradients after the last backward pass, before clipping: canonical parameter name -> tensor of the
      parameter's shape and dtype.
    - clipped: the same as the optimizer saw them.
    - seconds: time since the previous step.
    """

    number: int
    batches: list[MicroBatch]
    learning_rates: list[float]
    gradients: Tensors
    clipped: Tensors
    seconds: float = 0.0


@dataclass
class Group:
    """One parameter group of the optimizer: the canonical names of its parameters, and its scalar settings."""

    names: list[str]
    settings: dict[str, Any]


@dataclass
class Checkpoint:
    """A checkpoint directory, as it was right after the save.

    - step: the global step of the save.
    - path: the directory.
    - files: relative path -> size in bytes.
    - tensors: relative path of each safetensors file -> key -> [dtype, shape].
    - adapter: canonical name -> tensor, of the adapter at the top of the directory, or of the only one below it.
    - state: the content of trainer_state.json.
    - siblings: the steps of all checkpoints that were there then, this one included.
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
    """One pass over the evaluation rows.

    - step: the global step before it.
    - rows: the rows of each batch, by index.
    - metrics: the reported metrics.
    """

    step: int
    rows: list[list[int]]
    metrics: dict[str, float]


@dataclass(repr=False)
class Trace:
    """What was observed of one training run.

    - spec, subject, environment: what was trained, by whom, and on which stack.
    - directory: where the run wrote its files.
    - error: the exception that ended the run, as "Type: message"; None if it completed.
    - raised: the same with the place in upstream that raised it (`harness.raised`). Empty if that is not known.
    - events: the names of the callback events, in order.
    - steps, evaluations, checkpoints: in order.
    - log_history: TrainerState.log_history.
    - adapter_before, adapter: the trainable tensors at the start and at the end.
    - optimizer_resumed: how many trained tensors the optimizer had a state of before the first step of a run that resumes;
      -1 for other runs, and if it is not known.
    - adapter_resumed: the trainable tensors after a checkpoint was loaded, before the first step. Empty for runs that do
      not resume.
    - base_before, base: canonical name -> digest of every other tensor of state_dict(), at the start and at the end.
    - base_gradients: names of frozen parameters that held a .grad at an optimizer step.
    - trainable: canonical names of the parameters that require gradients.
    - shared: further names of trainable parameters that several layers share.
    - parameters: canonical name of every parameter -> [dtype, shape].
    - groups: the optimizer's parameter groups.
    - optimizer_state: canonical name -> state name -> tensor, at the end.
    - output: TrainOutput as {"global_step", "training_loss", "metrics"}.
    - best: {"metric", "step", "checkpoint"} of TrainerState.
    - warnings: the messages of upstream's warnings.
    - seconds: wall time of train().
    - memory_bytes: peak memory, allocated on the device (cuda) or resident (cpu).
    - distributed: how the run was spread over ranks, see `harness.tensors.shards`.
    - own_loss: the class whose own compute_loss computed the losses; empty if it is transformers.Trainer's. Another order of
      the same operations rounds otherwise.
    - ranks: the traces of the other ranks, in order. If there are several processes, this trace is rank 0's. Gradients,
      adapters and digests are whole on every rank, assembled from the shards.
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
    raised: dict[str, Any] = field(default_factory=dict)
    optimizer_resumed: int = -1
    own_loss: str = ""

    def __repr__(self) -> str:
        """Return a short text. Tracebacks contain it, and the tensors are thousands of numbers."""
        ends = f"ends with {self.error}" if self.error else f"{len(self.checkpoints)} checkpoints"
        return f"<Trace of {self.subject}: {len(self.steps)} steps, {ends}>"

    @property
    def losses(self) -> dict[int, float]:
        """Return global step -> logged training loss (the mean since the previous log entry)."""
        return {entry["step"]: entry["loss"] for entry in self.log_history if "loss" in entry}

    @property
    def grad_norms(self) -> dict[int, float]:
        """Return global step -> logged gradient norm, before clipping."""
        return {entry["step"]: float(entry["grad_norm"]) for entry in self.log_history if "grad_norm" in entry}

    @property
    def rows(self) -> list[list[int]]:
        """Return the rows that each optimizer step trained, in order."""
        return [[row for batch in step.batches for row in batch.rows] for step in self.steps]

    def checkpoint(self, step: int) -> Checkpoint:
        """Return the checkpoint of a global step. LookupError if there is none."""
        for checkpoint in self.checkpoints:
            if checkpoint.step == step:
                return checkpoint
        raise LookupError(f"no checkpoint at step {step}; there are {[c.step for c in self.checkpoints]}")

    def save(self, directory: str | Path) -> None:
        """Write trace.json and trace.safetensors into a directory, and make the directory if it is missing."""
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
        """Read what `save` of this or an earlier release wrote.

        Raises UsageError if it is from a newer release, missing, cut short, or no trace.
        """
        from safetensors.torch import load_file

        path, where = Path(directory, "trace.json"), shown_path(directory)
        body = read_json(path, _LIMIT, nan=True)
        if not isinstance(body, dict):
            raise UsageError(f"{shown_path(path)}: expected a JSON object, found {shown(body)}")
        check_version(body.pop("schema_version", SCHEMA_VERSION), SCHEMA_VERSION, f"{where}, trace")
        stored = Path(directory, "trace.safetensors")
        opened(stored, _TENSORS_LIMIT).close()
        try:
            tensors = load_file(stored)
        except Exception as error:  # safetensors raises errors of many types for a damaged file
            raise UsageError(f"{shown_path(stored)}: no whole safetensors file ({error})") from None
        trace: Trace = _typed(_unpack(body, tensors, where), cls.__name__, where)
        return trace


#: Bytes of trace.json. A thousand steps take a megabyte.
_LIMIT = 64 * 2**20
#: Bytes of trace.safetensors: the gradients of every step. No machine loads more.
_TENSORS_LIMIT = 2**42

#: What the names in annotations stand for.
_CLASSES: dict[str, type] = {kind.__name__: kind for kind in (MicroBatch, Step, Group, Checkpoint, Evaluation, Trace)}
_SCALARS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (float, int), "None": (type(None),)}


def _typed(value: Any, annotation: str, where: str) -> Any:
    """Return a value as its field's annotation has it: objects become dataclasses. UsageError for another kind."""
    if annotation == "Any":
        return value
    if annotation == "RunSpec":
        return RunSpec.from_json(value, f"{where}, spec", within_bounds=False)
    if annotation in _CLASSES:
        return _object(_CLASSES[annotation], value, where)
    if annotation.startswith("list[") and isinstance(value, list):
        inner = annotation[len("list[") : -1]
        return [_typed(item, inner, where) for item in value]
    if annotation.startswith("dict[str, ") and isinstance(value, dict):
        inner = annotation[len("dict[str, ") : -1]
        return {name: _typed(item, inner, where) for name, item in value.items()}
    if annotation == "Tensors" and isinstance(value, dict) and all(map(_is_tensor, value.values())):
        return value
    kinds = [kind for part in annotation.split(" | ") for kind in _SCALARS.get(part, ())]
    if not isinstance(value, tuple(kinds)) or isinstance(value, bool):
        raise UsageError(f"{where}: expected {annotation}, found {shown(value)}")
    return value


def _object(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a JSON object, found {shown(value)}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            raise UsageError(f"{where}: {kind.__name__} has no field {shown(name)} in this release")
    for name, f in fields.items():
        if name not in value and f.default is f.default_factory is dataclasses.MISSING:
            raise UsageError(f"{where}: {kind.__name__} lacks its field {name!r}; the trace is not whole")
    return kind(**{name: _typed(item, str(fields[name].type), f"{where}, {name}") for name, item in value.items()})


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


#: What each field that holds a list or a dict holds in it, if that is not JSON.
_ITEMS: dict[str, type] = {"steps": Step, "evaluations": Evaluation, "checkpoints": Checkpoint, "groups": Group}


def wrong_fields(trace: Trace) -> str:
    """Return which field of a trace that somebody else made is of the wrong kind, in words; "" if none is.

    Only the fields themselves are looked at, and the entries of lists. What the entries hold is left to the laws.
    """
    import torch

    kinds: dict[str, Any] = {"list": list, "dict": dict, "Tensors": dict, "str": str, "float": (int, float), "int": int}
    for one in dataclasses.fields(trace):
        value, declared = getattr(trace, one.name), str(one.type)
        if one.name == "spec" or (value is None and declared.endswith("| None")):
            continue
        kind = kinds[declared.partition("[")[0].partition(" ")[0]]
        if not isinstance(value, kind):
            return f"{one.name} is {quoted(value)}; expected {declared}"
        item = _ITEMS.get(one.name)
        if item is not None and not all(isinstance(entry, item) for entry in value):
            return f"{one.name} hold something else than {item.__name__}s"
        if declared == "Tensors" and not all(isinstance(entry, torch.Tensor) for entry in value.values()):
            return f"{one.name} holds something else than tensors"
    return "" if isinstance(trace.spec, RunSpec) else f"spec is {quoted(trace.spec)}; expected a RunSpec"


_TENSOR = "$tensor"
_NUMBER = "$number"


def _pack(value: Any, name: str, tensors: Tensors) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        # safetensors refuses names that share storage (tied weights), so each name gets its own copy.
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


def _unpack(value: Any, tensors: Tensors, where: str) -> Any:
    if isinstance(value, dict):
        if set(value) == {_TENSOR}:
            name = value[_TENSOR]
            if not isinstance(name, str) or name not in tensors:
                raise UsageError(f"{where}: trace.safetensors lacks {shown(name)}; the trace is not whole")
            return tensors[name]
        if set(value) == {_NUMBER}:
            if value[_NUMBER] not in ("nan", "inf", "-inf"):
                raise UsageError(f"{where}: {shown(value[_NUMBER])} is no number of a trace")
            return float(value[_NUMBER])
        return {key: _unpack(item, tensors, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, tensors, where) for item in value]
    return value
