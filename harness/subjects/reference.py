"""The subject `reference`: harness/reference, observed by the same means as hf-trainer.

Its command line is `harness.real.reference_alone`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from harness import compat, lacking
from harness.errors import UsageError
from harness.fixtures import data, models
from harness.spec import ADD, CONFIG_FAMILY, ModelSpec, RunSpec
from harness.subjects import resumable
from harness.subjects.hf_trainer import record_output, record_state, recorded_warnings
from harness.subjects.observer import Observer
from harness.trace import Trace

if TYPE_CHECKING:
    from harness.reference.settings import Arguments, LoraConfig
    from harness.reference.trainer import ReferenceTrainer

#: TrainingArguments that change nothing in the reference -> the values for which that holds (None: any value).
WITHOUT_EFFECT: dict[str, tuple[Any, ...] | None] = {
    "accelerator_config": (None, {}),
    "auto_find_batch_size": None,  # it acts if memory does not suffice
    "average_tokens_across_devices": None,  # one process
    "batch_eval_metrics": None,  # no metrics are computed but the loss
    "bf16_full_eval": (False,),
    "dataloader_num_workers": None,  # workers read the same rows; `refusal` knows the exception
    "dataloader_persistent_workers": (False,),
    "dataloader_pin_memory": None,
    "dataloader_prefetch_factor": None,
    "ddp_backend": None,
    "ddp_broadcast_buffers": None,
    "ddp_bucket_cap_mb": None,
    "ddp_find_unused_parameters": None,
    "ddp_static_graph": None,
    "ddp_timeout": None,
    "debug": ("", []),
    "deepspeed": (None,),
    "disable_tqdm": None,
    "do_eval": None,  # the Trainer looks at eval_strategy
    "do_predict": None,
    "do_train": None,
    "enable_jit_checkpoint": (False,),
    "eval_accumulation_steps": None,  # of predictions, of which there are none
    "eval_do_concat_batches": None,
    "eval_use_gather_object": None,
    "fp16": (False,),
    "fp16_full_eval": (False,),
    "fsdp": (None, "", []),
    "fsdp_config": None,  # without fsdp
    "full_determinism": None,  # on a CPU each kernel is deterministic
    "hub_always_push": None,
    "hub_model_id": None,
    "hub_private_repo": None,
    "hub_revision": None,
    "hub_strategy": None,
    "hub_token": None,
    "include_for_metrics": None,
    "include_inputs_for_metrics": None,
    "label_names": (["labels"],),
    "length_column_name": None,  # rows have no column of lengths
    "liger_kernel_config": None,
    "local_rank": None,
    "log_level": None,
    "log_level_replica": None,
    "log_on_each_node": None,
    "logging_dir": None,
    "overwrite_output_dir": None,
    "optim_target_modules": (None,),
    "parallelism_config": (None,),
    "prediction_loss_only": None,
    "project": None,
    "push_to_hub": (False,),
    "remove_unused_columns": None,  # rows hold the model's columns only
    "report_to": ("none", ["none"], []),
    "restore_callback_states_from_checkpoint": (False,),
    "run_name": None,
    "save_on_each_node": None,
    "save_safetensors": (True,),
    "skip_memory_metrics": None,  # metrics of memory are not compared
    "tf32": (None, False),
    "torch_compile": (False,),
    "torch_compile_backend": (None,),
    "torch_compile_mode": (None,),
    "torch_empty_cache_steps": None,
    "trackio_bucket_id": None,
    "trackio_space_id": None,
    "trackio_static_space_id": None,
    "use_cache": (False,),
    "use_cpu": None,  # launch.device says it
    "use_liger_kernel": (False,),
    "use_mps_device": (False,),
}

#: Fields of TrainingArguments and LoraConfig of which the reference implements only some values -> those values.
CHOICES: dict[str, tuple[Any, ...]] = {
    "eval_strategy": ("no", "steps", "epoch"),
    "logging_strategy": ("no", "steps", "epoch"),
    "save_strategy": ("no", "steps", "epoch", "best"),
    "lr_scheduler_type": (
        *("linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "cosine_with_min_lr"),
        *("cosine_warmup_with_min_lr", "warmup_stable_decay", "constant", "constant_with_warmup"),
        *("reduce_lr_on_plateau", "greedy"),
    ),
    "optim": (
        *("adamw_torch_fused", "adamw_torch", "sgd", "adafactor", "adagrad", "rmsprop"),
        *("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"),
        *("lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit"),
        *("ademamix", "ademamix_8bit", "paged_ademamix_8bit", "paged_ademamix_32bit"),
        *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
    ),
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
    "include_num_input_tokens_seen": (False, True, "no", "all", "non_padding"),
    "metric_for_best_model": (None, "loss", "eval_loss"),  # no other metric is computed
    "task_type": (None, "CAUSAL_LM"),
    "bias": ("none", "all", "lora_only"),
}

#: Older names of TrainingArguments -> the newest ones.
OLDER_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}

#: Fields of LoraConfig that the reference accepts with their default only.
LORA_DEFAULTS = {"fan_in_fan_out": False, "inference_mode": False, "init_lora_weights": True}

#: Factories of the suites whose models the reference can train.
FACTORIES = (
    "harness.fixtures.on_device:llama",
    "harness.fixtures.widened:llama",
    "harness.fixtures.widened:on_device",
)


def arguments(given: Mapping[str, Any]) -> Arguments:
    """Return TrainingArguments for the reference. Raises UsageError for a name or a value that it does not implement."""
    from harness.reference.settings import Arguments

    values = {OLDER_NAMES.get(name, name): value for name, value in given.items()}
    for name, allowed in WITHOUT_EFFECT.items():
        if name not in values:
            continue
        value = values.pop(name)
        if allowed is not None and value not in allowed:
            raise UsageError(f"the reference does not implement TrainingArguments.{name} = {value!r}")
    _check(values, Arguments, "TrainingArguments")
    for name, value in values.items():
        if name.endswith(("batch_size", "accumulation_steps", "logging_steps", "save_steps")) and value <= 0:
            raise UsageError(f"TrainingArguments.{name} = {value!r}: expected more than 0")
    if unknown := set(values.get("activation_checkpointing_kwargs") or {}) - {"use_reentrant"}:
        raise UsageError(f"the reference does not implement activation_checkpointing_kwargs[{min(unknown)!r}]")
    made = Arguments(**values)
    _check_schedule(made)
    _check_optimizer(made)
    _check_best(made)
    return made


def _check_schedule(args: Arguments) -> None:
    """Check the arguments on the learning rate. Raises UsageError for options that the schedule does not have."""
    import torch

    from harness.reference.schedules import BY_METRIC, CONSTANT, SHAPES, make_schedule

    kind, options = args.lr_scheduler_type, args.lr_scheduler_kwargs or {}
    # The names of the options come after optimizer, or after where the run is.
    parameters = [*inspect.signature(BY_METRIC.get(kind) or SHAPES.get(kind) or SHAPES["linear"]).parameters]
    unknown = set(options) - set(parameters[1:])
    if unknown and kind not in CONSTANT:
        raise UsageError(f"lr_scheduler_kwargs[{min(unknown, key=str)!r}]: the schedule {kind!r} has no such option")
    if kind in BY_METRIC and args.eval_strategy == "no":
        raise UsageError(f"lr_scheduler_type {kind!r} needs evaluations, hence an eval_strategy")
    try:  # a run of ten steps, without a model
        schedule = make_schedule(torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate), args, 10)
        for _ in range(10):
            schedule.optimizer.step()
            schedule.step(*([0.0] if kind in BY_METRIC else []))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(f"lr_scheduler_type {kind!r} with lr_scheduler_kwargs {dict(options)}: {error}") from error


def _check_best(args: Arguments) -> None:
    """Check what asks for a best checkpoint. Raises UsageError, as upstream does, if a checkpoint would have no metric."""
    if args.save_strategy == "best" and not (args.metric_for_best_model or args.load_best_model_at_end):
        raise UsageError("save_strategy 'best' needs a metric_for_best_model")
    if not args.load_best_model_at_end or args.save_strategy == "best":
        return
    each, save = args.eval_steps or args.logging_steps, args.save_steps
    unlike = args.eval_strategy != args.save_strategy
    # Shares of the run's steps are compared as upstream does it.
    multiple = save % each == 0 or (max(each, save) < 1 and (save * 1_000_000) % (each * 1_000_000) == 0)
    if unlike or (args.eval_strategy == "steps" and not multiple):
        raise UsageError("load_best_model_at_end needs an evaluation for each checkpoint")


def _check_optimizer(args: Arguments) -> None:
    """Check optim and optim_args. Raises UsageError if bitsandbytes is missing, or if optim_args cannot be read."""
    import torch

    from harness.reference import optimizers

    packed = args.optim not in ("adamw_torch", "adamw_torch_fused", "adafactor", *optimizers.PLAIN)
    if packed and args.optim_args and "ademamix" not in args.optim:
        raise UsageError(f"the reference does not implement optim_args of {args.optim!r}")
    try:
        if args.optim.startswith("adamw_torch"):
            optimizers.read_options(args.optim_args)
        else:
            optimizers.make([{"params": [torch.nn.Parameter(torch.zeros(1))]}], args)
    except (TypeError, ValueError) as error:
        raise UsageError(f"optim {args.optim!r} with optim_args {args.optim_args!r}: {error}") from error


def lora(given: Mapping[str, Any]) -> LoraConfig:
    """Return a LoraConfig for the reference. Raises UsageError for a name or a value that it does not implement."""
    from harness.reference.settings import LoraConfig

    # A field of LORA_DEFAULTS that has another value stays in, and `_check` refuses its name.
    values = {name: value for name, value in given.items() if LORA_DEFAULTS.get(name, ()) != value}
    _check(values, LoraConfig, "LoraConfig")
    targets = values.get("target_modules")
    names = isinstance(targets, list) and targets and all(isinstance(name, str) for name in targets)
    if targets != "all-linear" and not names:
        raise UsageError(f"LoraConfig.target_modules = {targets!r}: the reference needs names of layers, or all-linear")
    embeddings = {name for name in targets or () if name.rpartition(".")[2] in ("embed_tokens", "lm_head")}
    if embeddings:
        raise UsageError(f"the reference does not adapt {min(embeddings)}, of which peft saves the base layer as well")
    return LoraConfig(**values)


def _check(given: Mapping[str, Any], kind: type, title: str) -> None:
    """Check names, types and values of settings against a dataclass and `CHOICES`. Raises UsageError.

    - kind: the dataclass
    - title: upstream's name of it, for messages
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, value in given.items():
        if name not in fields:
            raise UsageError(f"the reference does not implement {title}.{name}")
        annotation: Any = fields[name].type
        kinds = tuple(get_origin(part) or part for part in get_args(annotation) or (annotation,))
        if not isinstance(value, kinds) and not (float in kinds and isinstance(value, int)):
            raise UsageError(f"{title}.{name} = {value!r}: expected {' or '.join(part.__name__ for part in kinds)}")
        if name in CHOICES and value not in CHOICES[name]:
            choices = ", ".join(map(str, CHOICES[name]))
            raise UsageError(f"{title}.{name} = {value!r}: the reference implements {choices}")


#: Fields of a config that count experts, and layers of dense models whose names peft gives to fused experts.
_COUNTS = {"num_experts", "num_local_experts", "n_routed_experts"}
_OF_EXPERTS = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def refusal(spec: RunSpec) -> str | None:
    """Return why the reference does not train a spec, None if it does."""
    model, adapter, launch = spec.model, spec.adapter, spec.launch
    if launch.strategy != "single" or launch.ranks != 1:
        return f"the reference is one process, not strategy {launch.strategy!r} over {launch.ranks} ranks"
    if model.quantization not in (None, "nf4") or (model.quantization and model.dtype == "float64"):
        return f"the reference has no base model quantized as {model.quantization}, computing in {model.dtype}"
    if model.quantization and (reason := lacking.quantization(model.quant_storage)) is not None:
        return reason
    if model.attn_implementation not in (None, "sdpa"):
        return f"the reference attends by sdpa, not by {model.attn_implementation}"
    if model.prepare_for_kbit and not model.quantization:
        return "the reference prepares quantized base models only"
    if reason := _other_loss(model):
        return f"the reference adapts nn.Linear in causal language models with the usual loss, not {reason}"
    if adapter.peft_type != "LORA" or adapter.name != "default":
        return f"the reference has one LORA adapter named default, not {adapter.peft_type} named {adapter.name!r}"
    targets = adapter.config.get("target_modules") or []
    if _COUNTS & models.config_of(model).keys() and (isinstance(targets, str) or _OF_EXPERTS & {*targets}):
        return "the reference adapts nn.Linear only, and target_modules name parameters of fused experts"
    if adapter.options or adapter.others:
        return "the reference has neither adapter.options nor adapter.others"
    if spec.data.iterable:
        return "the reference does not train on an IterableDataset"
    # model_init changes nothing: the model that it makes is the one that the Trainer is given otherwise.
    if others := set(spec.trainer) - {"model_init"}:
        return f"the reference does not implement the Trainer's {min(others)}"
    try:
        lora(adapter.config)
        args = arguments(spec.arguments)
        if (args.eval_strategy != "no" or args.eval_on_start) and not spec.data.eval_rows:
            return "evaluations need evaluation rows (data.eval_rows)"
        if spec.data.augment and args.train_sampling_strategy == "group_by_length":
            return (
                "the Trainer reads each row once more for group_by_length, and reading an augmented row draws a number"
            )
        if spec.data.augment and spec.arguments.get("dataloader_num_workers"):
            return "the reference reads rows in the process that trains, and reading an augmented row draws a number"
    except UsageError as refused:
        # If no release has the name, that is a mistake in the spec, and no limit of the reference.
        compat.check_arguments(spec.arguments)
        compat.missing_adapter_field(adapter.peft_type, adapter.config)
        return str(refused)
    return None


def _other_loss(model: ModelSpec) -> str | None:
    """Return what a base model is whose loss, or layers, the reference does not have; None if it can train it.

    A directory with weights is always accepted: whether it fits is seen when the model is built.
    """
    if model.path is not None or model.family in FACTORIES:
        return None
    by_name = model.family in models.FAMILIES and ":" not in model.family
    if not (by_name or model.family.startswith(CONFIG_FAMILY)):
        return repr(model.family)
    row = models.family(model)
    if row.task != models.CAUSAL or not row.normalises or row.conv1d:
        return repr(model.family)
    if model.config.get("output_router_logits"):
        return f"{model.family!r} with output_router_logits, which adds a loss of the routers"
    return None


def _fused_experts(base: Any, target_modules: list[str] | str) -> str:
    """Return the name of a parameter of fused experts that target_modules name; "" if they name none.

    peft gives it a LoRA of its own, and leaves out other layers of that name
    (peft/utils/transformers_weight_conversion.py:_convert_peft_config_moe).
    """
    ends = ("",) if target_modules == "all-linear" else tuple(f".{end}" for end in target_modules)
    named = (name for name, parameter in base.named_parameters() if parameter.dim() == 3 and name.endswith(ends))
    return next(named, "")


def build(
    spec: RunSpec, directory: Path, callback: Callable[[str, ReferenceTrainer], None], observer: Observer | None = None
) -> ReferenceTrainer:
    """Return the reference trainer for a spec: rows made, base built, adapter injected. UsageError for what it refuses.

    - directory: where checkpoints go
    - callback: called at each event with its name and the trainer
    - observer: is shown the model before training, if there is one
    """
    import torch

    from harness.reference.lora import AdapterModel, prepare_packed
    from harness.reference.trainer import ReferenceTrainer

    if reason := refusal(spec):
        raise UsageError(reason)
    made = data.rows(spec.data)
    rows, eval_rows = (data.dataset(part, spec.data) for part in made)
    base = models.build(dataclasses.replace(spec.model, prepare_for_kbit=False))
    data.check_vocabulary(spec.data, [*made[0], *made[1]], base)
    config = lora(spec.adapter.config)
    if experts := _fused_experts(base, config.target_modules):
        raise UsageError(f"{experts} is a parameter of fused experts; the reference adapts nn.Linear only")
    if spec.model.prepare_for_kbit:
        prepare_packed(base)
    torch.manual_seed(spec.adapter.seed)
    upcast = spec.adapter.route != ADD
    model = AdapterModel(base, config, upcast, compat.adapts_in_compute_dtype())
    if observer is not None:
        observer.watch_model(model)
    return ReferenceTrainer(model, arguments(spec.arguments), rows, eval_rows, directory, spec.launch.device, callback)


def all_double() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which every conversion to float32 gives float64.

    Base models compute norms and softmax in float32 even if all else is float64. Such a run keeps a quarter of the
    rounding of a float32 run (gradients of the smallest model: 5e-9 against 2e-8), which is too much for an oracle.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class AllDouble(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            # Conversions of a tensor only. What creates one, such as torch.load, must get the dtype that it asks for.
            if kwargs.get("dtype") == torch.float32 and args and isinstance(args[0], torch.Tensor):
                kwargs["dtype"] = torch.float64
            return func(*args, **kwargs)

    # torch does not annotate the constructor of TorchDispatchMode.
    make: Callable[[], contextlib.AbstractContextManager[Any, bool | None]] = AllDouble
    return make()


def train(trainer: ReferenceTrainer, spec: RunSpec, checkpoint: Path | None) -> Any:
    """Train in the spec's precision, from the start or from a checkpoint directory. Return the TrainOutput.

    Raises CheckpointError for a checkpoint that is not whole, or is another run's (`harness.subjects.resumable`).
    """
    with all_double() if spec.model.dtype == "float64" else contextlib.nullcontext():
        if checkpoint is not None:
            resumable.check(checkpoint, trainer)
        return trainer.train(checkpoint)


def _checkpoint(spec: RunSpec, directory: Path) -> Path | None:
    """Return the checkpoint that the spec resumes from, None if it starts from step 0. transformers/trainer.py:train."""
    from harness.reference.checkpoint import CheckpointError, find

    if spec.resume is None or spec.resume.checkpoint is False:
        return None
    if spec.resume.checkpoint is not True:
        return directory / f"checkpoint-{spec.resume.checkpoint}"
    if not (found := find(directory)):
        raise CheckpointError(f"No valid checkpoint found in output directory ({directory})")
    return found[-1]


class Reference:
    """harness/reference as a subject. See `harness.subjects.Subject`."""

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
