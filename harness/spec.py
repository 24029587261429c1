"""RunSpec: what to train, as data. Frozen, hashable, and the same after a round trip through JSON.

Field names inside `arguments` are those of transformers.TrainingArguments, names inside `AdapterSpec.config` are
those of the peft config class (LoraConfig and its kin); neither is renamed here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UsageError

SCHEMA_VERSION = 1

GET = "get_peft_model"
ADD = "add_adapter"

#: Arguments of the smallest run worth judging: ten AdamW steps of four rows, every step logged.
ARGUMENTS: dict[str, Any] = {
    "max_steps": 10,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 42,
}

#: LoRA on two projections of each layer, with dropout, so that a lost RNG state shows.
LORA: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}


@dataclass(frozen=True)
class ModelSpec:
    """The base model.

    family: a row of `harness.fixtures.models.FAMILIES`, or "module:factory", called with this ModelSpec, which returns an
    nn.Module.
    config: overrides of that row's config fields. dtype: a torch dtype's name. seed: drawn from when built.
    quantization: None, "nf4" or "int8" (bitsandbytes). quant_storage: the dtype in which packed NF4 weights are kept
    (bnb_4bit_quant_storage), uint8 where None. prepare_for_kbit: call prepare_model_for_kbit_training.
    path: a directory saved with save_pretrained, instead of `family`.
    """

    family: str = "llama"
    config: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    seed: int = 0
    quantization: str | None = None
    quant_storage: str | None = None
    prepare_for_kbit: bool = False
    path: str | None = None


@dataclass(frozen=True)
class AdapterSpec:
    """The adapter and how it is injected.

    route: "get_peft_model" or "add_adapter" (transformers' PeftAdapterMixin). peft_type: "LORA" and its kin.
    config: fields of the peft config class. options: keyword arguments of get_peft_model (`mixed`,
    `autocast_adapter_dtype`). seed: torch's global seed at injection. others: further adapters by name, added after
    this one through the same route; the first stays (or is made) active.
    """

    route: str = GET
    peft_type: str = "LORA"
    name: str = "default"
    config: Mapping[str, Any] = field(default_factory=lambda: dict(LORA))
    options: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 1


@dataclass(frozen=True)
class DataSpec:
    """Training and evaluation rows, made from a seed or read from `path` (see `harness.fixtures.data`).

    rows, eval_rows: how many. length: tokens a row after padding. min_length: shortest row (ragged where below
    `length`; padding has label -100). ignored: share of the remaining labels set to -100. vocab_size: token ids used.
    iterable: an IterableDataset. augment: tokens are drawn from torch's global RNG at every access.
    path: JSONL with "input_ids" and "labels" a line. order: training row i is the row order[i] of what that makes; as
    they are made where it is empty. task: what the labels are for, "causal" (the tokens themselves), "classification"
    (one int a row) or "seq2seq" (the tokens to answer with); that of the model's family.
    """

    rows: int = 40
    eval_rows: int = 0
    length: int = 16
    min_length: int | None = None
    ignored: float = 0.0
    vocab_size: int = 256
    seed: int = 0
    iterable: bool = False
    augment: bool = False
    path: str | None = None
    order: tuple[int, ...] = ()
    task: str = "causal"


@dataclass(frozen=True)
class LaunchSpec:
    """Where it runs, and in how many processes.

    - device: "cpu" or "cuda".
    - ranks: how many processes.
    - strategy: a row of `harness.subjects.launch_arguments.STRATEGIES`. All but "single" start ranks, even for one.
    - threads: torch's intra-op threads; 0 leaves them as they are.
    - state_dict_type: "FULL_STATE_DICT" or "SHARDED_STATE_DICT"; None leaves it to upstream.
    - activation_checkpointing: that of the strategy. The Trainer's own is an argument.
    - cpu_offload: parameters (or the optimizer state) are kept on the CPU.
    - options: further fields of TrainingArguments.fsdp_config, or of the DeepSpeed config.
    - limit: seconds after which the ranks count as hung; 0 stands for a minute (`harness.processes.group.LIMIT`).
    """

    device: str = "cpu"
    ranks: int = 1
    strategy: str = "single"
    threads: int = 1
    state_dict_type: str | None = None
    activation_checkpointing: bool = False
    cpu_offload: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    limit: float = 0.0

    @property
    def several(self) -> bool:
        """Whether ranks are started for it."""
        return self.strategy != "single"

    @property
    def shimmed(self) -> bool:
        """Whether upstream does it only with the shims of `harness.processes.shims`: FSDP without a GPU."""
        return self.strategy in ("fsdp1", "fsdp2") and self.device == "cpu"


@dataclass(frozen=True)
class ResumeSpec:
    """How a run is continued: from which checkpoint, written by whom, and what happened to it in between.

    checkpoint: the global step of the checkpoint; True lets the subject pick (resume_from_checkpoint=True), False
    leaves all of them unread (resume_from_checkpoint=False).
    writer: the subject that ran the first leg; None means the one that resumes.
    first_leg: what the first leg's spec had otherwise, as keyword arguments of `RunSpec.but`.
    damage: done to the copied checkpoint in order, "delete FILE", "truncate FILE BYTES" (see `harness.runs.damage`).
    """

    checkpoint: int | bool = True
    writer: str | None = None
    first_leg: Mapping[str, Any] = field(default_factory=dict)
    damage: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunSpec:
    """One training run.

    trainer: keyword arguments of the Trainer that are no TrainingArguments, by name (see
    `harness.subjects.hf_trainer.EXTRAS`), such as {"callbacks": ["early_stopping"]}.
    """

    model: ModelSpec = field(default_factory=ModelSpec)
    adapter: AdapterSpec = field(default_factory=AdapterSpec)
    data: DataSpec = field(default_factory=DataSpec)
    arguments: Mapping[str, Any] = field(default_factory=lambda: dict(ARGUMENTS))
    trainer: Mapping[str, Any] = field(default_factory=dict)
    launch: LaunchSpec = field(default_factory=LaunchSpec)
    resume: ResumeSpec | None = None

    def but(
        self,
        *,
        model: Mapping[str, Any] | None = None,
        adapter: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        trainer: Mapping[str, Any] | None = None,
        launch: Mapping[str, Any] | None = None,
        resume: ResumeSpec | None = None,
        **arguments: Any,
    ) -> RunSpec:
        """This spec with some fields changed.

        model, adapter, data, launch: fields of that part. lora: fields merged into adapter.config. Any other keyword
        is a TrainingArguments field; the value None takes it out. `resume` replaces (None: not resumed).
        """
        new_adapter = _replace(self.adapter, adapter)
        if lora:
            new_adapter = dataclasses.replace(new_adapter, config=_merge(new_adapter.config, lora))
        return RunSpec(
            model=_replace(self.model, model),
            adapter=new_adapter,
            data=_replace(self.data, data),
            arguments=_merge(self.arguments, arguments),
            trainer=_merge(self.trainer, trainer or {}),
            launch=_replace(self.launch, launch),
            resume=resume,
        )

    def on_device(self, device: str) -> RunSpec:
        """This spec on a device; the same in every other part."""
        return dataclasses.replace(self, launch=dataclasses.replace(self.launch, device=device))

    def first_leg(self) -> RunSpec:
        """The run that wrote the checkpoint this one resumes from, as if it had never been interrupted."""
        if self.resume is None:
            raise UsageError(f"spec {self.hash} resumes nothing, so it has no first leg")
        return self.but(resume=None, **self.resume.first_leg)

    def resumed(self, checkpoint: int | bool = True, **resume: Any) -> RunSpec:
        """This spec, continued from one of its own checkpoints."""
        return self.but(resume=ResumeSpec(checkpoint=checkpoint, **resume))

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **_plain(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "spec") -> RunSpec:
        """Read what `to_json` wrote. Raises UsageError for a newer schema, an unknown field or a wrong type."""
        if not isinstance(value, Mapping):
            raise UsageError(f"{where}: a run spec is a JSON object, this is {type(value).__name__}; see README.md")
        value = dict(value)
        version = value.pop("schema_version", SCHEMA_VERSION)
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise UsageError(
                f"{where}: schema_version {version!r} is newer than {SCHEMA_VERSION}, the newest that this release of "
                "peft-harness reads; upgrade peft-harness"
            )
        parts = {"model": ModelSpec, "adapter": AdapterSpec, "data": DataSpec, "launch": LaunchSpec}
        read: dict[str, Any] = {}
        for name, part in value.items():
            if name in parts:
                read[name] = _read(parts[name], part, f"{where}, {name}")
            elif name == "resume":
                read[name] = None if part is None else _read(ResumeSpec, part, f"{where}, resume")
            else:
                read[name] = part
        return _read(cls, read, where)

    @classmethod
    def load(cls, path: str | Path) -> RunSpec:
        """Read a spec from a JSON file: a bare spec, or a case file that a failure wrote ({"spec": ..., ...})."""
        value = read_json(path)
        if isinstance(value, dict) and "spec" in value:
            value = value["spec"]
        return cls.from_json(value, where=str(path))

    @property
    def hash(self) -> str:
        """Twelve hex digits, equal for equal specs in every process and release of the same schema."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    def __hash__(self) -> int:
        return int(self.hash, 16)


def changes(spec: Mapping[str, Any]) -> list[str]:
    """What a spec (as JSON) has otherwise than the plain run, as "model.family='gpt2'", one sentence part each."""

    def walk(value: Any, plain: Any, path: str) -> list[str]:
        if isinstance(value, Mapping) and isinstance(plain, Mapping):
            names = dict.fromkeys([*plain, *value])
            return [
                part for name in names for part in walk(value.get(name), plain.get(name), f"{path}.{name}".lstrip("."))
            ]
        return [] if value == plain else [f"{path}={value!r}"]

    return walk(spec, RunSpec().to_json(), "")


def read_json(path: str | Path) -> Any:
    """The JSON value in a file; UsageError where there is none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not JSON ({error})") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise UsageError(f"a run spec holds JSON values only, not {value!r}")


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**old, **new}.items() if value is not None}


def _replace(part: Any, changes: Mapping[str, Any] | None) -> Any:
    return dataclasses.replace(part, **changes) if changes else part


def _read(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: expected a JSON object, found {value!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise UsageError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(fields)}")
    read = {}
    for name, item in value.items():
        if str(fields[name].type).startswith("tuple") and isinstance(item, list):
            item = tuple(item)
        _check(item, str(fields[name].type), f"{where}, {name}")
        read[name] = item
    return kind(**read)


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "None": (type(None),),
    "tuple[str, ...]": (tuple,),
    "tuple[int, ...]": (tuple,),
}


def _check(value: Any, annotation: str, where: str) -> None:
    if annotation.startswith("Mapping"):
        allowed: tuple[type, ...] = (Mapping,)
    elif all(part.strip() in _TYPES for part in annotation.split("|")):
        allowed = tuple(kind for part in annotation.split("|") for kind in _TYPES[part.strip()])
    else:
        return
    if not isinstance(value, allowed):
        raise UsageError(f"{where}: expected {annotation}, found {value!r}")
