"""RunSpec: what to train, as data. It is frozen and hashable, and a round trip through JSON does not change it.

`arguments` uses the field names of transformers.TrainingArguments. `AdapterSpec.config` uses those of the peft config
class, such as LoraConfig. Neither is renamed here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import spec_fields
from harness.errors import UsageError
from harness.reading import read_json, shown, shown_path

SCHEMA_VERSION = 1

#: Bytes of a spec's file, or of a case file. Most have 2 kB; an order of 100,000 rows has 700 kB. So much JSON is parsed in
#: half a second.
LIMIT = 2 * 2**20

GET = "get_peft_model"
ADD = "add_adapter"

#: The smallest run that is worth judging: ten AdamW steps of four rows. Every step is logged.
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

#: Names that 0.1.0 wrote into specs, and what is called so today. fixtures/ was a package of its own then. The list is
#: closed and has whole names, so that the name of a user's own `fixtures` package is left alone.
MOVED = {
    "fixtures.late:LateRank": "harness.fixtures.late_rank:LateRank",
    "fixtures.metrics:counts": "harness.fixtures.metrics:counts",
    "fixtures.metrics:draws": "harness.fixtures.metrics:draws",
    "fixtures.on_device:llama": "harness.fixtures.on_device:llama",
    "fixtures.overflow:loss": "harness.fixtures.overflow:loss",
    "fixtures.plain_loss:llama": "harness.fixtures.plain_loss:llama",
    "fixtures.plain_loss:shifted_collator": "harness.fixtures.plain_loss:shifted_collator",
    "fixtures.plain_loss:window_loss": "harness.fixtures.plain_loss:window_loss",
    "fixtures.resized:resized": "harness.fixtures.resized_embeddings:resized",
    "fixtures.wrapped:checkpointed_layers": "harness.fixtures.wrapped_layers:checkpointed_layers",
    "fixtures.wrapped:compiled_layers": "harness.fixtures.wrapped_layers:compiled_layers",
}

#: Metadata of a field that came after version 1 of the schema: at its default it is left out of the JSON, so that the hash
#: of an older spec stays as it was.
_LATER: Mapping[str, Any] = {"later": True}

#: Metadata of a field that follows from others, and is in no JSON.
_DERIVED: Mapping[str, Any] = {"derived": True}

#: How the name of a family begins that is a model_type of transformers, such as "config:qwen3_moe".
CONFIG_FAMILY = "config:"

#: LoRA on two projections of each layer. It has dropout, so that a lost RNG state changes the result.
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

    - family: a row of `harness.fixtures.models.FAMILIES`; or "config:MODEL_TYPE", any architecture of the installed
      transformers, such as "config:qwen3_moe"; or "module:factory", a callable that takes this ModelSpec and returns an
      nn.Module.
    - config: config fields that replace those of the family's row, or of the architecture's defaults.
    - dtype: the name of a torch dtype.
    - seed: the seed of the initial weights.
    - quantization: None, "nf4" or "int8" (bitsandbytes); or the fields of a quantization_config, such as
      {"load_in_4bit": true, "bnb_4bit_quant_type": "fp4"}.
    - quant_storage: the dtype that packed NF4 weights are stored in (bnb_4bit_quant_storage). None means uint8.
    - prepare_for_kbit: whether to call peft's prepare_model_for_kbit_training.
    - path: a directory that save_pretrained wrote. It replaces `family`.
    - attn_implementation: as for from_pretrained, such as "eager". None leaves it to upstream.
    - task: of a "config:MODEL_TYPE" family: which of its models is built. A RunSpec sets it to its data's task.
    """

    family: str = "llama"
    config: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    seed: int = 0
    quantization: str | Mapping[str, Any] | None = None
    quant_storage: str | None = None
    prepare_for_kbit: bool = False
    path: str | None = None
    attn_implementation: str | None = field(default=None, metadata=_LATER)
    task: str = field(default="causal", metadata=_DERIVED)

    @property
    def four_bit(self) -> bool:
        """Whether bitsandbytes packs the base's weights into four bits."""
        return self.quantization == "nf4" or self._loads_in("load_in_4bit")

    @property
    def eight_bit(self) -> bool:
        """Whether bitsandbytes packs the base's weights into eight bits."""
        return self.quantization == "int8" or self._loads_in("load_in_8bit")

    @property
    def packed_dtype(self) -> str | None:
        """The dtype that packed four-bit weights are stored in; None for uint8."""
        given = self.quantization.get("bnb_4bit_quant_storage") if isinstance(self.quantization, Mapping) else None
        return self.quant_storage or given

    def _loads_in(self, field_name: str) -> bool:
        return isinstance(self.quantization, Mapping) and bool(self.quantization.get(field_name))


@dataclass(frozen=True)
class AdapterSpec:
    """The adapter and how it is injected.

    - route: "get_peft_model" or "add_adapter" (transformers' PeftAdapterMixin).
    - peft_type: the name of a member of peft.PeftType, such as "LORA".
    - name: the adapter's name.
    - config: fields of the peft config class.
    - options: keyword arguments of get_peft_model (`mixed`, `autocast_adapter_dtype`).
    - others: further adapters, name -> config fields. They are added after this one by the same route. This adapter is
      the active one in the end.
    - seed: torch's global seed at injection.
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

    - rows, eval_rows: the number of rows.
    - length: tokens in a row after padding.
    - min_length: tokens in the shortest row. If it is below `length`, rows are ragged, and padding has label -100.
    - ignored: the share of the remaining labels that is set to -100.
    - vocab_size: token ids are below this.
    - seed: the seed that rows are made from.
    - iterable: whether the training set is an IterableDataset.
    - augment: whether each access draws tokens from torch's global RNG.
    - path: a JSONL file with "input_ids" and "labels" in each line.
    - inline: the rows themselves, each with "input_ids" and "labels". They replace rows that are made.
    - order: if it is not empty, training row i is row order[i] of those that the other fields describe.
    - task: the task of the model's family, a key of `harness.fixtures.models.TASK_TYPES`. Labels are tokens for "causal",
      one int a row for "classification", and the tokens of the answer for "seq2seq"; `harness.fixtures.data` has the others.
    - max_length: tokens that are kept of each row: longer ones are cut, as a tokenizer with truncation does. None: all.
    - shape: of a row's image (channels, height, width) or sound (features, frames). Empty: (3, 16, 16), or (8, 32).
    - prefix: tokens before each row, in whose places a model of images and text puts the image.
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
    max_length: int | None = field(default=None, metadata=_LATER)
    inline: tuple[Mapping[str, Any], ...] = field(default=(), metadata=_LATER)
    shape: tuple[int, ...] = field(default=(), metadata=_LATER)
    prefix: tuple[int, ...] = field(default=(), metadata=_LATER)


@dataclass(frozen=True)
class LaunchSpec:
    """The device and the processes of a run.

    - device: "cpu" or "cuda".
    - ranks: the number of processes.
    - strategy: a row of `harness.subjects.launch_arguments.STRATEGIES`. All but "single" start ranks, even for one.
    - threads: torch's intra-op threads; 0 leaves them as they are.
    - state_dict_type: "FULL_STATE_DICT" or "SHARDED_STATE_DICT"; None leaves it to upstream.
    - activation_checkpointing: whether the strategy checkpoints activations. The Trainer's own is an argument.
    - cpu_offload: whether parameters (or the optimizer state) stay on the CPU.
    - options: further fields of TrainingArguments.fsdp_config, of the DeepSpeed config, or of DistributedConfig ("tp").
    - limit: seconds after which the ranks count as hung. 0 means a minute (`harness.processes.group.LIMIT`).
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
        """Whether ranks are started for this run."""
        return self.strategy != "single"

    @property
    def shimmed(self) -> bool:
        """Whether the run needs `harness.processes.shims`: upstream has no FSDP and no tensor parallelism without a GPU."""
        return self.strategy in ("fsdp1", "fsdp2", "tp") and self.device == "cpu"

    @property
    def row_ranks(self) -> int:
        """How many ranks have rows of their own. Ranks that split the layers between them ("tp") train the same rows."""
        if self.strategy != "tp":
            return self.ranks
        groups = self.options.get("fsdp_size", 1)
        return groups if isinstance(groups, int) and groups > 0 else 1

    @property
    def leaders(self) -> slice:
        """Of all ranks, in order, those that have rows of their own: one of each group that splits the layers."""
        return slice(None, None, max(1, self.ranks // self.row_ranks))

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed trains: the strategy is one of its ZeRO stages."""
        return self.strategy.startswith("zero")


@dataclass(frozen=True)
class ResumeSpec:
    """How a run is resumed: from which checkpoint, who wrote it, and what happened to it in between.

    - checkpoint: the global step of the checkpoint. True lets the subject choose (resume_from_checkpoint=True). False
      means that no checkpoint is read (resume_from_checkpoint=False).
    - writer: the subject that trained the first leg. None means the subject that resumes.
    - first_leg: how the first leg's spec differed, as keyword arguments of `RunSpec.but`.
    - damage: actions on the copied checkpoint, in order: "delete FILE" or "truncate FILE BYTES" (see
      `harness.runs.damage`).
    """

    checkpoint: int | bool = True
    writer: str | None = None
    first_leg: Mapping[str, Any] = field(default_factory=dict)
    damage: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunSpec:
    """One training run.

    - arguments: fields of TrainingArguments.
    - trainer: other keyword arguments of the Trainer (see `harness.subjects.trainer_keywords`), such as
      {"callbacks": ["early_stopping"]}.
    """

    model: ModelSpec = field(default_factory=ModelSpec)
    adapter: AdapterSpec = field(default_factory=AdapterSpec)
    data: DataSpec = field(default_factory=DataSpec)
    arguments: Mapping[str, Any] = field(default_factory=lambda: dict(ARGUMENTS))
    trainer: Mapping[str, Any] = field(default_factory=dict)
    launch: LaunchSpec = field(default_factory=LaunchSpec)
    resume: ResumeSpec | None = None

    def __post_init__(self) -> None:
        if self.model.family.startswith(CONFIG_FAMILY) and self.model.task != self.data.task:
            object.__setattr__(self, "model", dataclasses.replace(self.model, task=self.data.task))

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
        """Return this spec with some fields changed.

        - model, adapter, data, launch: fields to change in that part.
        - lora: fields to merge into adapter.config.
        - trainer: entries to merge into `trainer`.
        - resume: replaces the spec's own; None means that the run is not resumed.
        - arguments: fields of TrainingArguments. The value None removes a field.
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
        """Return this spec on another device."""
        return dataclasses.replace(self, launch=dataclasses.replace(self.launch, device=device))

    def first_leg(self) -> RunSpec:
        """Return the run that wrote the checkpoint which this one resumes from.

        Raises UsageError if this run resumes nothing.
        """
        if self.resume is None:
            raise UsageError(f"spec {self.hash} resumes nothing, so it has no first leg")
        return self.but(resume=None, **self.resume.first_leg)

    def resumed(self, checkpoint: int | bool = True, **resume: Any) -> RunSpec:
        """Return this spec, resumed from one of its own checkpoints. `resume`: fields of ResumeSpec."""
        return self.but(resume=ResumeSpec(checkpoint=checkpoint, **resume))

    def to_json(self) -> dict[str, Any]:
        """Return the spec as a JSON object. Raises UsageError for a value that JSON does not have."""
        return {"schema_version": SCHEMA_VERSION, **_plain(self)}

    @classmethod
    def from_json(cls, value: Any, where: str = "spec", within_bounds: bool = True) -> RunSpec:
        """Return the spec that `to_json` wrote, with names of 0.1.0 replaced by today's (see `MOVED`).

        - where: what messages call the source, such as a file name.
        - within_bounds: whether values are checked beside their kinds. The spec of a run that was made is not.

        Raises UsageError for a newer schema, an unknown field, a wrong type, or a value that `harness.spec_fields` refuses.
        """
        if not isinstance(value, Mapping):
            raise UsageError(
                f"{where}: a run spec is a JSON object, this is {type(value).__name__}; harness/spec.py has its fields"
            )
        body: dict[str, Any] = _with_new_names(value)
        check_version(body.pop("schema_version", SCHEMA_VERSION), SCHEMA_VERSION, where)
        read: dict[str, Any] = {}
        for name, part in body.items():
            if name in _PARTS:
                read[name] = spec_fields.read(_PARTS[name], part, f"{where}, {name}", name if within_bounds else "")
            elif name == "resume":
                key = name if within_bounds else ""
                read[name] = None if part is None else spec_fields.read(ResumeSpec, part, f"{where}, resume", key)
            else:
                read[name] = part
        spec: RunSpec = spec_fields.read(cls, read, where)
        if within_bounds:
            _check(spec, where)
        return spec

    @classmethod
    def load(cls, path: str | Path) -> RunSpec:
        """Return the spec in a JSON file: a bare spec, or the case file of a failure ({"spec": ..., ...})."""
        value = read_json(path, LIMIT, nan=True)  # so that the message names the field
        if isinstance(value, dict) and "spec" in value:
            value = value["spec"]
        return cls.from_json(value, where=shown_path(path))

    @property
    def hash(self) -> str:
        """Twelve hex digits. Equal specs have equal hashes in every process and in every release of the same schema."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    def __hash__(self) -> int:
        return int(self.hash, 16)


_PARTS: dict[str, Any] = {"model": ModelSpec, "adapter": AdapterSpec, "data": DataSpec, "launch": LaunchSpec}


def check_version(version: Any, newest: int, where: str) -> None:
    """Check the schema_version of a file. Raises UsageError if it is none, or newer than `newest`."""
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise UsageError(f"{where}: schema_version {shown(version)} is none; expected 1 to {newest}")
    if version > newest:
        raise UsageError(
            f"{where}: schema_version {version} is newer than {newest}, the newest that this release of peft-harness "
            "reads; upgrade peft-harness"
        )


def _check(spec: RunSpec, where: str) -> None:
    """Check what `spec_fields.read` does not: objects with fields of upstream's, and fields that belong together."""
    spec_fields.check(spec_fields.ARGUMENTS, spec.arguments, f"{where}, arguments")
    spec_fields.check_trainer(spec.trainer, f"{where}, trainer")
    spec_fields.check(spec_fields.MODEL_CONFIG, spec.model.config, f"{where}, model, config")
    if isinstance(spec.model.quantization, Mapping):
        spec_fields.check({}, spec.model.quantization, f"{where}, model, quantization")
    configs = {
        "config": spec.adapter.config,
        **{f"others, {name}": other for name, other in spec.adapter.others.items()},
    }
    for name, config in configs.items():
        if not isinstance(config, Mapping):
            raise UsageError(f"{where}, adapter, {shown_path(name)}: expected a JSON object, found {shown(config)}")
        spec_fields.check_adapter(spec.adapter.peft_type, config, f"{where}, adapter, {shown_path(name)}")
    spec_fields.check_data(spec.data, f"{where}, data")
    if spec.resume is not None:
        _check_first_leg(spec, spec.resume.first_leg, f"{where}, resume, first_leg")


def _check_first_leg(spec: RunSpec, changes: Mapping[str, Any], where: str) -> None:
    """Check that `changes` are arguments of `RunSpec.but`, and that they make a spec."""
    leg = dataclasses.replace(spec, resume=None).to_json()
    for name, value in changes.items():
        if name in (*_PARTS, "trainer", "lora"):
            if not isinstance(value, Mapping):
                raise UsageError(f"{where}, {name}: expected a JSON object, found {shown(value)}")
            part = leg["adapter"]["config"] if name == "lora" else leg[name]
            part.update(value)
        elif name == "resume" or (isinstance(value, Mapping) and name not in spec_fields.OBJECTS):
            raise spec_fields.unknown(where, name, [*_PARTS, "trainer", "lora"])
        elif value is None:
            leg["arguments"].pop(name, None)
        else:
            leg["arguments"][name] = value
    RunSpec.from_json(leg, where)


def changes(spec: Mapping[str, Any]) -> list[str]:
    """Return how a spec (as JSON) differs from the default run: one "model.family='gpt2'" for each difference."""

    def walk(value: Any, plain: Any, path: str) -> list[str]:
        if isinstance(value, Mapping) and isinstance(plain, Mapping):
            names = dict.fromkeys([*plain, *value])
            return [
                part for name in names for part in walk(value.get(name), plain.get(name), f"{path}.{name}".lstrip("."))
            ]
        return [] if value == plain else [f"{path}={value!r}"]

    return walk(spec, RunSpec().to_json(), "")


def _with_new_names(value: Any) -> Any:
    """Return a JSON value in which each name of `MOVED` is replaced, at any depth."""
    if isinstance(value, Mapping):
        return {key: _with_new_names(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_new_names(item) for item in value]
    return MOVED.get(value, value) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = [f for f in dataclasses.fields(value) if "derived" not in f.metadata]
        return {
            f.name: _plain(getattr(value, f.name))
            for f in fields
            if not ("later" in f.metadata and getattr(value, f.name) == f.default)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise UsageError(f"a run spec holds JSON values only, not {value!r}")


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    # A null that is there already stays: upstream may read max_grad_norm=null in another way than no max_grad_norm.
    return {key: value for key, value in {**old, **new}.items() if value is not None or key not in new}


def _replace(part: Any, changes: Mapping[str, Any] | None) -> Any:
    # JSON has lists where a spec has tuples.
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in (changes or {}).items()}
    return dataclasses.replace(part, **values) if values else part
