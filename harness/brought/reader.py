"""Join what was brought into one RunSpec, and say what was done to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import trust
from harness.brought import argument_names, launching, skeleton, tools
from harness.brought.adapter import FILE as ADAPTER_FILE
from harness.brought.adapter import from_fields, newest_below, read_adapter
from harness.brought.arguments import has_arguments, read_arguments
from harness.brought.configurations import Parts, read_configuration
from harness.brought.fit import closest_family, fit
from harness.brought.jsonl_rows import LENGTH, read_rows
from harness.brought.model import FILE as MODEL_FILE
from harness.brought.model import Base, read_model
from harness.brought.notes import Notes
from harness.brought.quantization import quantized
from harness.brought.small_run import EVAL_ROWS, STEPS, Size, small_run
from harness.environment import gpus
from harness.errors import UsageError
from harness.fixtures import architectures
from harness.fixtures.models import (
    ANSWERS,
    CAUSAL,
    CLASSIFICATION,
    FAMILIES,
    IMAGE_TEXT,
    IMAGES,
    MASKED,
    SEQ2SEQ,
    SPEECH,
    TASK_TYPES,
    TOKENS,
)
from harness.reading import read_json, shown, shown_path
from harness.spec import LIMIT, AdapterSpec, DataSpec, ModelSpec, RunSpec
from harness.subjects import from_file

#: Rows that are made: their tokens, and those of the shortest. Real rows have different lengths, too.
_ROW, _SHORTEST = 16, 6

#: The share of the labels of a row that is left out of the loss, for tools that learn answers alone.
_PROMPT = 0.3

#: Rows that are read of a file if the run is taken as it is.
_ALL_ROWS = 2_000


@dataclass(frozen=True)
class Brought:
    """What somebody brought, as a run.

    - spec: the run.
    - sentences: what was done or changed, in order.
    - not_looked_at: field -> why the run does not have it.
    - where: what messages call the source.
    """

    spec: RunSpec
    sentences: tuple[str, ...]
    not_looked_at: Mapping[str, str]
    where: str


def read(
    spec_file: str | Path | None = None,
    adapter: str | Path | None = None,
    arguments: str | Path | None = None,
    model: str | Path | None = None,
    data: str | Path | None = None,
    launch: str | None = None,
    config: str | Path | None = None,
    as_is: bool = False,
    trust_pickle: bool = False,
    trust_code: bool = False,
    config_kind: str | None = None,
    device: str | None = None,
) -> Brought:
    """Return the run that files describe.

    - spec_file: a RunSpec or a case file. The others replace parts of it, and what they replace is made small.
    - adapter: adapter_config.json, or a directory with one. If a run left the directory, its arguments are read, too.
    - arguments: TrainingArguments as JSON or YAML, training_args.bin, or a run's directory.
    - model: a directory with a config.json, that file, or a family of the harness.
    - data: a JSONL file of rows.
    - launch: a strategy, such as "ddp" or "fsdp2:3".
    - config: the configuration file of TRL, LLaMA-Factory or axolotl. The others replace parts of it.
    - as_is: whether model, steps and rows are taken as they are. Otherwise they are made small by rule.
    - trust_pickle: whether training_args.bin is unpickled.
    - trust_code: whether what the files name may be imported.
    - config_kind: "trl", "llama-factory" or "axolotl"; None: the file's fields tell.
    - device: "cpu" or "cuda"; None: the GPU if there is one.

    Raises UsageError, in one sentence, for what cannot be read or makes no run.
    """
    given = {"--adapter": adapter, "--arguments": arguments, "--model": model, "--data": data, "--launch": launch}
    given["--config"] = config
    others = [name for name, value in given.items() if value is not None]
    if spec_file is not None:
        if config is not None:
            raise UsageError(f"{shown_path(spec_file)}: a spec and a configuration are two runs; name one of them")
        return _changed_spec(
            _read_spec(spec_file), adapter, arguments, model, data, launch, as_is, trust_pickle, trust_code
        )
    if not others:
        raise UsageError("nothing to judge; name a spec, or --adapter, --arguments, --model or --config")
    notes = Notes()
    where = ", ".join(shown_path(value) for value in (config, adapter, arguments) if value is not None) or "this run"
    parts = Parts() if config is None else read_configuration(config, config_kind, tools.TOOLS, notes)
    adapter, arguments = _run_directory(adapter, arguments, config is not None, notes)
    made = _adapter(adapter, parts, where, notes)
    if arguments is not None:
        parts.arguments = read_arguments(arguments, notes, trust_pickle)
    source = str(config if arguments is None and config is not None else arguments or where)
    run = _Run(parts, made, source, notes, as_is, device)
    base = _base(model, parts, run, as_is, trust_code)
    spec = run.spec(base, data, launch)
    checked = RunSpec.from_json(spec.to_json(), where)
    trust.check(checked, where, trust_code)
    return Brought(checked, tuple(notes.sentences), notes.not_looked_at, where)


def _read_spec(file: str | Path) -> Brought:
    notes, where = Notes(), shown_path(file)
    value = read_json(file, LIMIT, nan=True)  # so that the message names the field
    if isinstance(value, dict) and "spec" in value:
        value = value["spec"]
    if isinstance(value, dict) and isinstance(value.get("arguments"), dict):
        arguments = argument_names.newest(value["arguments"], f"{where}, arguments", notes)
        told = {name: item for name, item in value["arguments"].items() if name in ("report_to", "disable_tqdm")}
        value = {**value, "arguments": {**arguments, **told}}
    adapter = value.get("adapter") if isinstance(value, dict) else None
    if isinstance(adapter, dict) and isinstance(adapter.get("config"), dict):
        fields = {
            name: item for name, item in adapter["config"].items() if name not in ("inference_mode", "auto_mapping")
        }
        if adapter["config"].get("inference_mode"):
            notes.say("inference_mode is true, as in every adapter that peft saves; it is judged as if it were trained")
        value = {**value, "adapter": {**adapter, "config": fields}}
    spec, sentences = from_file.as_run(RunSpec.from_json(value, where), where)
    for sentence in sentences:
        notes.say(sentence)
    return Brought(spec, tuple(notes.sentences), notes.not_looked_at, where)


def _changed_spec(
    read: Brought,
    adapter: str | Path | None,
    arguments: str | Path | None,
    model: str | Path | None,
    data: str | Path | None,
    launch: str | None,
    as_is: bool,
    trust_pickle: bool,
    trust_code: bool,
) -> Brought:
    """Return a spec with the parts that are named besides it. Parameters as for `read`."""
    notes, spec = Notes(list(read.sentences), dict(read.not_looked_at)), read.spec
    if adapter is not None:
        spec = dataclasses.replace(spec, adapter=read_adapter(adapter, notes))
    base = Base(spec.model) if model is None else read_model(model, notes, as_is, trust_code)
    parts = Parts(arguments=dict(spec.arguments), trainer=dict(spec.trainer))
    if arguments is not None:
        parts.arguments = read_arguments(arguments, notes, trust_pickle)
    run = _Run(parts, spec.adapter, str(arguments or read.where), notes, as_is, spec.launch.device)
    run.cut = arguments is not None and not as_is
    if model is not None or arguments is not None or data is not None or adapter is not None:
        made = run.spec(base, data, launch)
        kept = (
            made if arguments is not None else dataclasses.replace(made, arguments=spec.arguments, launch=spec.launch)
        )
        spec = dataclasses.replace(kept, resume=spec.resume, data=kept.data if data is not None else spec.data)
    if launch is not None:
        arguments_left = dict(spec.arguments)
        placed = launching.take(arguments_left, launch, read.where, spec.launch.device, notes)
        spec = dataclasses.replace(spec, arguments=arguments_left, launch=placed)
    spec = RunSpec.from_json(spec.to_json(), read.where)
    trust.check(spec, read.where, trust_code)
    return Brought(spec, tuple(notes.sentences), notes.not_looked_at, read.where)


def _run_directory(
    adapter: str | Path | None, arguments: str | Path | None, configured: bool, notes: Notes
) -> tuple[str | Path | None, str | Path | None]:
    """Return adapter and arguments. If one of them is a run's directory, it stands for the other, too."""
    directory = Path(arguments) if arguments is not None else Path("-")
    has_adapter = (directory / ADAPTER_FILE).exists() or newest_below(directory, ADAPTER_FILE) is not None
    if adapter is None and arguments is not None and has_adapter and not configured:
        notes.say(f"the adapter is that of {shown_path(arguments)}")
        return arguments, arguments
    is_directory = adapter is not None and Path(adapter).is_dir()
    if is_directory and arguments is None and not configured and has_arguments(Path(str(adapter))):
        notes.say(f"the arguments are those of {shown_path(str(adapter))}")
        return adapter, adapter
    return adapter, arguments


def _adapter(path: str | Path | None, parts: Parts, where: str, notes: Notes) -> AdapterSpec:
    if path is not None:
        return read_adapter(path, notes)
    if parts.adapter is not None:
        return from_fields(parts.adapter, where, notes)
    if parts.arguments or parts.model:
        raise UsageError(
            f"{where}: trains no adapter (use_peft, finetuning_type or adapter says so), and this harness judges adapters; "
            "name one with --adapter"
        )
    notes.say("no adapter was named: it is LoRA on q_proj and v_proj")
    return AdapterSpec()


def _base(named: str | Path | None, parts: Parts, run: _Run, as_is: bool, trust_code: bool) -> Base:
    """Return the base model: the one that is named, else the one that lies where the configuration says, else a family."""
    notes = run.notes
    if named is not None:
        return read_model(named, notes, as_is, trust_code)
    local = parts.model if isinstance(parts.model, str) else ""
    if local and len(local) < 1000 and "\x00" not in local and (Path(local) / MODEL_FILE).is_file():
        return read_model(local, notes, as_is, trust_code)
    task = run.task(Base(ModelSpec()))
    family = closest_family(run.adapter, task, skeleton.of_family)
    name = f"{shown(local)} is not looked up" if local else "no model was named"
    notes.say(f"{name}: the base is the harness's tiny {family}; --model DIR takes a model's own config.json")
    return Base(ModelSpec(family=family))


#: How the name of a model's class ends -> the task of its rows.
_ARCHITECTURES = {
    "ForSequenceClassification": CLASSIFICATION,
    "ForTokenClassification": TOKENS,
    "ForQuestionAnswering": ANSWERS,
    "ForMaskedLM": MASKED,
    "ForImageClassification": IMAGES,
}


def _shape(task: str, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of a row's image or sound, as a model's config says; empty for rows of text."""
    if task == SPEECH:
        features, frames = config.get("num_mel_bins"), config.get("max_source_positions")
        if not (isinstance(features, int) and isinstance(frames, int)):
            raise UsageError(
                "the model's config has no num_mel_bins and max_source_positions; rows of sound are made for models of "
                "Whisper's kind alone"
            )
        return (features, 2 * frames)
    if task != IMAGES:
        return ()
    size, channels = config.get("image_size"), config.get("num_channels")
    sides = size if isinstance(size, list) and len(size) == 2 else [size if isinstance(size, int) else 32] * 2
    return (channels if isinstance(channels, int) else 3, *sides)


class _Run:
    """The parts of a run that is being put together."""

    def __init__(
        self, parts: Parts, adapter: AdapterSpec, source: str, notes: Notes, as_is: bool, device: str | None
    ) -> None:
        self.parts, self.adapter, self.source, self.notes, self.as_is = parts, adapter, source, notes, as_is
        #: Whether steps and rows are cut.
        self.cut = not as_is
        self.arguments = argument_names.newest(parts.arguments, source, notes)
        on_cpu = self.arguments.pop("use_cpu", False)
        self.device = device or ("cpu" if on_cpu or not gpus() else "cuda")

    def task(self, base: Base) -> str:
        """Return the task of the rows: that of the adapter, else that of the model's class."""
        kind = self.adapter.config.get("task_type")
        known = {peft: task for task, peft in reversed(TASK_TYPES.items()) if peft is not None}
        if kind is not None and not (isinstance(kind, str) and kind in known):
            raise UsageError(f"{self.source}: task_type is {shown(kind)}; rows can be made for {', '.join(known)}")
        if kind is not None:
            return architectures.closest_task(known[kind], base.spec)
        if base.spec.family in FAMILIES:
            return FAMILIES[base.spec.family].task
        plain = SEQ2SEQ if base.spec.config.get("is_encoder_decoder") else CAUSAL
        named = (task for end, task in _ARCHITECTURES.items() if base.architecture.endswith(end))
        return architectures.closest_task(next(named, plain), base.spec)

    def spec(self, base: Base, data: str | Path | None, launch: str | None) -> RunSpec:
        """Return the run on a base model."""
        placed = launching.take(self.arguments, launch, self.source, self.device, self.notes)
        self._without_gpu()
        self._metrics()
        arguments = argument_names.installed(self.arguments, self.notes)
        size = small_run(arguments, placed.ranks, self.notes) if self.cut else self._whole(arguments)
        task = self.task(base)
        model = self._model(dataclasses.replace(base.spec, task=task), base)
        bones = skeleton.skeleton(model, self.source)
        adapter = self.adapter
        if bones is not None and not self.as_is:
            adapter = fit(adapter, bones, size.steps, self.notes)
        rows = self._rows(data, size, task, bones.vocabulary if bones else 256)
        rows = dataclasses.replace(rows, shape=_shape(task, base.spec.config))
        if task == IMAGE_TEXT:
            self.notes.say("the rows are text alone: what the model does with images is not judged")
        arguments |= {"report_to": "none", "disable_tqdm": True}
        trainer = dict(self.parts.trainer)
        if self.parts.collator is not None:
            trainer["data_collator"] = self.parts.collator
        return RunSpec(model=model, adapter=adapter, data=rows, arguments=arguments, trainer=trainer, launch=placed)

    def _without_gpu(self) -> None:
        """Leave out what needs a GPU, if there is none."""
        if self.device != "cpu":
            return
        for name in ("fp16", "fp16_full_eval", "tf32"):
            if self.arguments.pop(name, None):
                what = "TF32" if name == "tf32" else "float16"
                self.notes.leave_out(name, f"{what} needs a GPU, and the run is on the CPU, in float32")
        attention = self.parts.attention
        if attention is not None and (str(attention).startswith("flash") or "/" in str(attention)):
            self.notes.leave_out("attn_implementation", f"{shown(attention)} needs a GPU; transformers chooses")
            self.parts.attention = None

    def _metrics(self) -> None:
        metric = self.arguments.get("metric_for_best_model")
        if metric is not None and metric not in ("loss", "eval_loss"):
            self.arguments.pop("greater_is_better", None)
            self.arguments["metric_for_best_model"] = "loss"
            self.notes.leave_out(
                "metric_for_best_model", f"{shown(metric)} needs compute_metrics; the loss is compared"
            )

    def _model(self, spec: ModelSpec, base: Base) -> ModelSpec:
        changes: dict[str, Any] = {}
        if self.parts.dtype is not None and self.parts.dtype != spec.dtype:
            changes["dtype"] = self.parts.dtype
        if self.device == "cpu" and changes.get("dtype", spec.dtype) == "float16":
            changes["dtype"] = "float32"
            self.notes.leave_out("dtype", "weights in float16 are not trained on a CPU; they are float32")
        quantization = self.parts.quantization or base.quantization
        if quantization is not None:
            changes["quantization"] = quantized(quantization, changes.get("dtype", spec.dtype))
            changes["prepare_for_kbit"] = self.parts.prepares
            if base.quantization is not None:
                said = "with" if self.parts.prepares else "without"
                self.notes.say(f"the base is quantized as its config says, {said} prepare_model_for_kbit_training")
        if self.parts.attention is not None:
            changes["attn_implementation"] = str(self.parts.attention)
        return dataclasses.replace(spec, **changes)

    def _whole(self, arguments: Mapping[str, Any]) -> Size:
        """Return the size of a run that is not cut. Without --data, it has rows for eight steps an epoch."""
        batch = arguments.get("per_device_train_batch_size", 8)
        rows = STEPS * batch * arguments.get("gradient_accumulation_steps", 1)
        evaluates = arguments.get("eval_strategy", "no") != "no"
        return Size(max(arguments.get("max_steps", -1), STEPS), rows, EVAL_ROWS if evaluates else 0)

    def _ignored(self, task: str) -> float:
        """Return the share of the labels of rows that are made which are left out."""
        if not self.parts.prompts_left_out or task not in (CAUSAL, IMAGE_TEXT):
            return 0.0
        self.notes.say(f"{100 * _PROMPT:.0f} % of the labels are left out of the loss, as the tool does with prompts")
        return _PROMPT

    def _rows(self, data: str | Path | None, size: Size, task: str, vocabulary: int) -> DataSpec:
        asked = self.parts.length if isinstance(self.parts.length, int) and self.parts.length > 1 else None
        if data is None:
            length = min(asked or _ROW, _ROW)
            if self.cut:
                self.notes.say(f"the rows are made: {size.rows} of {min(_SHORTEST, length)} to {length} tokens")
            return DataSpec(
                rows=size.rows,
                eval_rows=size.eval_rows,
                length=length,
                min_length=min(_SHORTEST, length),
                ignored=self._ignored(task),
                vocab_size=min(vocabulary or 256, 256),
                task=task,
            )
        at_most = asked if self.as_is else min(asked or LENGTH, LENGTH)
        wanted = _ALL_ROWS if self.as_is else size.rows + size.eval_rows
        rows = read_rows(data, wanted, vocabulary or 256, self.notes, at_most)
        held_out = min(size.eval_rows, len(rows) // 2)
        longest = max(len(row["input_ids"]) for row in rows)
        return DataSpec(
            rows=len(rows) - held_out,
            eval_rows=held_out,
            length=longest,
            vocab_size=min(vocabulary or 256, 2**24),
            inline=tuple(rows),
            task=task,
        )
