"""The subject `reference`: harness/reference, observed by the same means as hf-trainer. Also its command line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin

from harness import compat
from harness.errors import UsageError
from harness.fixtures import data, models
from harness.spec import ADD, RunSpec
from harness.subjects.hf_trainer import record_output, record_state, recorded_warnings
from harness.subjects.observer import Observer
from harness.trace import Trace

if TYPE_CHECKING:
    from harness.reference.settings import Arguments, LoraConfig
    from harness.reference.trainer import ReferenceTrainer

#: TrainingArguments that change nothing in the reference, and the values for which that is so (None: any).
WITHOUT_EFFECT: dict[str, tuple[Any, ...] | None] = {
    "average_tokens_across_devices": None,  # one process
    "dataloader_num_workers": (0,),
    "dataloader_pin_memory": None,
    "disable_tqdm": None,
    "fp16": (False,),
    "load_best_model_at_end": (False,),
    "remove_unused_columns": None,  # rows hold the model's columns only
    "report_to": ("none", ["none"], []),
}

#: TrainingArguments and LoraConfig fields of which the reference implements some values only.
CHOICES: dict[str, tuple[Any, ...]] = {
    "eval_strategy": ("no", "steps", "epoch"),
    "logging_strategy": ("no", "steps", "epoch"),
    "save_strategy": ("no", "steps", "epoch"),
    "lr_scheduler_type": ("linear", "cosine", "constant", "constant_with_warmup"),
    "optim": ("adamw_torch", "adamw_torch_fused", "sgd"),
    "task_type": (None, "CAUSAL_LM"),
}

#: LoraConfig fields that the reference takes at their defaults only.
LORA_DEFAULTS = {"bias": "none", "fan_in_fan_out": False, "inference_mode": False, "init_lora_weights": True}


#: Base models that are Llamas with the usual loss. `refusal` takes any directory with weights for one.
KNOWN = ("llama", "llama-tied", "harness.fixtures.on_device:llama")


def arguments(given: Mapping[str, Any]) -> Arguments:
    """TrainingArguments for the reference. UsageError for a name or a value that it does not implement."""
    from harness.reference.settings import Arguments

    taken = dict(given)
    for name, allowed in WITHOUT_EFFECT.items():
        if name in taken and (value := taken.pop(name)) not in (allowed or (value,)):
            raise UsageError(f"the reference does not implement TrainingArguments.{name} = {value!r}")
    _check(taken, Arguments, "TrainingArguments")
    for name, value in taken.items():
        if name.endswith(("batch_size", "accumulation_steps", "logging_steps", "save_steps")) and value <= 0:
            raise UsageError(f"TrainingArguments.{name} = {value!r}: expected more than 0")
    if unknown := set(taken.get("activation_checkpointing_kwargs") or {}) - {"use_reentrant"}:
        raise UsageError(f"the reference does not implement activation_checkpointing_kwargs[{min(unknown)!r}]")
    return Arguments(**taken)


def lora(given: Mapping[str, Any]) -> LoraConfig:
    """A LoraConfig for the reference. UsageError for a name or a value that it does not implement."""
    from harness.reference.settings import LoraConfig

    taken = {name: value for name, value in given.items() if LORA_DEFAULTS.get(name, ()) != value}
    _check(taken, LoraConfig, "LoraConfig")
    targets = taken.get("target_modules")
    if targets != "all-linear" and not (isinstance(targets, list) and targets):
        raise UsageError(f"LoraConfig.target_modules = {targets!r}: the reference wants names of layers, or all-linear")
    if saved_whole := {name for name in targets if name.rpartition(".")[2] in ("embed_tokens", "lm_head")}:
        raise UsageError(f"the reference does not adapt {min(saved_whole)}, of which peft saves the base layer as well")
    return LoraConfig(**taken)


def _check(given: Mapping[str, Any], kind: type, title: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, value in given.items():
        if name not in fields:
            raise UsageError(f"the reference does not implement {title}.{name}")
        annotation: Any = fields[name].type
        kinds = tuple(get_origin(part) or part for part in get_args(annotation) or (annotation,))
        if not isinstance(value, kinds) and not (float in kinds and isinstance(value, int)):
            raise UsageError(f"{title}.{name} = {value!r}: expected {' or '.join(part.__name__ for part in kinds)}")
        if name in CHOICES and value not in CHOICES[name]:
            raise UsageError(f"{title}.{name} = {value!r}: the reference knows {', '.join(map(str, CHOICES[name]))}")


def refusal(spec: RunSpec) -> str | None:
    """Why the reference does not train a spec, None if it does."""
    model, adapter, launch = spec.model, spec.adapter, spec.launch
    if launch.strategy != "single" or launch.ranks != 1:
        return f"the reference is one process, not strategy {launch.strategy!r} over {launch.ranks} ranks"
    if model.quantization not in (None, "nf4") or (model.quantization and model.dtype == "float64"):
        return f"the reference has no base model quantized as {model.quantization}, computing in {model.dtype}"
    if model.quantization and (reason := compat.missing_quantization(model.quant_storage)) is not None:
        return reason
    if model.prepare_for_kbit and not model.quantization:
        return "the reference prepares quantized base models only"
    if model.path is None and model.family not in KNOWN:
        return f"the reference adapts nn.Linear in causal language models with the usual loss, not {model.family!r}"
    if adapter.peft_type != "LORA" or adapter.name != "default":
        return f"the reference has one LORA adapter named default, not {adapter.peft_type} named {adapter.name!r}"
    if adapter.options or adapter.others:
        return "the reference has neither adapter.options nor adapter.others"
    if spec.data.iterable:
        return "the reference does not train on an IterableDataset"
    if spec.trainer:
        return f"the reference does not implement the Trainer's {min(spec.trainer)}"
    try:
        lora(adapter.config)
        if arguments(spec.arguments).eval_strategy != "no" and not spec.data.eval_rows:
            return "eval_strategy wants evaluation rows (data.eval_rows)"
    except UsageError as refused:
        return str(refused)
    return None


def build(
    spec: RunSpec, directory: Path, callback: Callable[[str, ReferenceTrainer], None], observer: Observer | None = None
) -> ReferenceTrainer:
    """The reference trainer for a spec: base built, adapter injected, rows made. UsageError for what it refuses."""
    import torch

    from harness.reference.lora import AdapterModel, prepare_packed
    from harness.reference.trainer import ReferenceTrainer

    if reason := refusal(spec):
        raise UsageError(reason)
    rows, eval_rows = (data.dataset(part, spec.data) for part in data.rows(spec.data))
    base = models.build(dataclasses.replace(spec.model, prepare_for_kbit=False))
    if spec.model.prepare_for_kbit:
        prepare_packed(base)
    torch.manual_seed(spec.adapter.seed)
    upcast = spec.adapter.route != ADD
    model = AdapterModel(base, lora(spec.adapter.config), upcast, compat.adapts_in_compute_dtype())
    if observer is not None:
        observer.watch_model(model)
    return ReferenceTrainer(model, arguments(spec.arguments), rows, eval_rows, directory, spec.launch.device, callback)


def all_double() -> contextlib.AbstractContextManager[Any]:
    """Within it, whatever asks for float32 gets float64.

    Base models compute norms and softmax in float32 even where all else is float64. That leaves such a run a quarter of
    the rounding of a float32 run (gradients of the smallest model: 5e-9 against 2e-8), too much for an oracle.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class AllDouble(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            # Only what converts a tensor: what makes one, such as torch.load, must get what it asks for.
            if kwargs.get("dtype") == torch.float32 and args and isinstance(args[0], torch.Tensor):
                kwargs["dtype"] = torch.float64
            return func(*args, **kwargs)

    return AllDouble()


def train(trainer: ReferenceTrainer, spec: RunSpec, checkpoint: Path | None) -> Any:
    """Train in the precision that the spec asks for."""
    with all_double() if spec.model.dtype == "float64" else contextlib.nullcontext():
        return trainer.train(checkpoint)


def _checkpoint(spec: RunSpec, directory: Path) -> Path | None:
    from harness.reference.checkpoint import CheckpointError, find

    if spec.resume is None or spec.resume.checkpoint is False:
        return None
    if spec.resume.checkpoint is not True:
        return directory / f"checkpoint-{spec.resume.checkpoint}"
    if not (found := find(directory)):
        raise CheckpointError(f"No valid checkpoint found in output directory ({directory})")
    return found[-1]


class Reference:
    """harness/reference as a subject."""

    name = "reference"

    def unsupported(self, spec: RunSpec) -> str | None:
        return refusal(spec)

    def train(self, spec: RunSpec, directory: Path) -> Trace:
        observer = Observer(spec, self.name, [row for part in data.rows(spec.data) for row in part], directory)

        def report(event: str, trainer: ReferenceTrainer) -> None:
            if event == "train_begin":
                observer.watch_optimizer(trainer.optimizer)
            observer.event(event, trainer.state.global_step)
            if event == "evaluate":
                observer.evaluated(trainer.metrics)
            elif event == "save":
                observer.checkpoint(trainer.saved)

        error: Exception | None = None
        with recorded_warnings(observer.trace.warnings):
            try:
                trainer = build(spec, directory, report, observer)
                try:
                    record_output(observer.trace, train(trainer, spec, _checkpoint(spec, directory)))
                finally:
                    record_state(observer.trace, trainer.state)
            except UsageError:
                raise
            except Exception as caught:
                error = caught
        return observer.finish(error)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(given: list[str] | None = None) -> int:
    """`python -m harness.reference`: train a spec and print a row for each step. Bad input: a sentence, and 2."""
    parser = _Parser(prog="python -m harness.reference", description="Train a LoRA adapter with the reference.")
    parser.add_argument("--spec", type=Path, help="a run spec as JSON; default: ten steps of the smallest run")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the spec's")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), help="of the base model")
    parser.add_argument("--resume", type=Path, metavar="CHECKPOINT", help="a checkpoint directory, Trainer's or ours")
    parser.add_argument("--output", type=Path, help="a new or empty directory for checkpoints and the adapter")
    try:
        chosen = parser.parse_args(given)
        spec = RunSpec.load(chosen.spec) if chosen.spec else RunSpec()
        if spec.resume is not None:
            raise UsageError(f"{chosen.spec}: resume is not read here; name the checkpoint with --resume")
        spec = spec.but(
            model={"dtype": chosen.dtype} if chosen.dtype else None,
            launch={"device": chosen.device} if chosen.device else None,
        )
        with tempfile.TemporaryDirectory() as scratch:
            _demonstrate(spec, chosen.output or Path(scratch), chosen.resume, keep=chosen.output is not None)
    except UsageError as error:
        print(f"python -m harness.reference: {error}", file=sys.stderr)
        return 2
    return 0


def _demonstrate(spec: RunSpec, output: Path, resume: Path | None, keep: bool) -> None:
    import torch
    from rich.console import Console
    from rich.table import Table

    from harness.reference.checkpoint import CheckpointError, save_adapter

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"--output {output}: not an empty directory, and nothing is overwritten")
    if spec.launch.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here")
    if spec.launch.threads:
        torch.set_num_threads(spec.launch.threads)
    console = Console(highlight=False)
    table = Table("step", "epoch", "loss", "gradient norm", "learning rate", "evaluation loss")

    status = console.status("training")

    def report(event: str, trainer: ReferenceTrainer) -> None:
        status.update(f"step {trainer.state.global_step} of {trainer.state.max_steps}")
        entry = trainer.state.log_history[-1] if event == "log" else {}
        if "loss" in entry or "eval_loss" in entry:
            shown = (entry.get(name) for name in ("epoch", "loss", "grad_norm", "learning_rate", "eval_loss"))
            table.add_row(str(entry["step"]), *("" if value is None else f"{value:.6g}" for value in shown))

    trainer = build(spec, output, report)
    try:
        with status:
            result = train(trainer, spec, resume)
    except CheckpointError as error:
        raise UsageError(f"--resume: {error}") from None
    console.print(table)
    seconds = result.metrics["train_runtime"]
    console.print(f"{result.global_step} steps, mean loss {result.training_loss:.6f}, {seconds:.2f} s")
    if keep:
        save_adapter(output, trainer.model)
        console.print(f"adapter and checkpoints: {output}", soft_wrap=True)
