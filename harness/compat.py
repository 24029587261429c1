"""The place that knows how releases of upstream differ. Everything else is written for the newest names.

Supported are the releases from `OLDEST` on. Each function says what differs and since when. A function whose name starts with
"missing" returns why a case cannot run on this stack, or None if it can; those of `harness.lacking` do, too.

A name of an argument or of an adapter's field is one of three kinds:

- The installed release has it: it is passed on.
- Another supported release has it (`ARGUMENTS`, `FIELDS`, `TYPES`): the case is skipped with that reason.
- No supported release has it: it is a mistake. UsageError names the nearest name that exists.

If a new release adds or drops a name, it needs a line in these tables. Otherwise older or newer releases take it for a
mistake.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from harness.environment import satisfies, version
from harness.errors import UsageError

# ---- the supported window ----

#: The oldest release of each package that is judged.
OLDEST = {"transformers": "4.45.2", "peft": "0.13.2", "accelerate": "1.0.1", "torch": "2.4"}


def too_old(versions: Mapping[str, str | None]) -> str | None:
    """Say which package of a stack is older than the oldest release that is judged; None if none is.

    - versions: package -> version. A package that is not there, and a version that is none, are left to others.
    """
    from packaging.version import InvalidVersion, Version

    for package, oldest in OLDEST.items():
        with contextlib.suppress(InvalidVersion):
            found = versions.get(package)
            if found is not None and Version(found) < Version(oldest):
                return f"{package} {found} is {_older_than(package)}"
    return None


def asks_for_too_old(requirement: str) -> str | None:
    """Say that a requirement, such as "peft<0.10", allows only releases that are too old to be judged; None otherwise."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    parsed = Requirement(requirement)
    package = str(canonicalize_name(parsed.name))
    if package not in OLDEST:
        return None
    oldest = Version(OLDEST[package])
    if any(_is_below(one.operator, one.version, oldest) for one in parsed.specifier):
        return f"{package}{parsed.specifier} is {_older_than(package)}"
    return None


def _is_below(operator: str, version: str, oldest: Any) -> bool:
    """Return whether one part of a specifier, such as "~=" and "4.36.0", excludes every release from `oldest` on."""
    from packaging.version import InvalidVersion, Version

    try:
        named = Version(version.removesuffix(".*"))
    except InvalidVersion:
        return False
    if operator == "~=":
        # "~=4.36.1" is "<4.37", and "~=4.36" is "<5".
        head = named.release[:-1]
        return bool(Version(".".join(map(str, [*head[:-1], head[-1] + 1]))) <= oldest)
    if operator == "==" and version.endswith(".*"):
        return bool(named < oldest and oldest.release[: len(named.release)] != named.release)
    return bool((operator in ("==", "===", "<=") and named < oldest) or (operator == "<" and named <= oldest))


def _older_than(package: str) -> str:
    return f"older than {package} {OLDEST[package]}, which is the oldest that is judged"


def require_supported() -> None:
    """Raise UsageError if an installed package is too old to be judged."""
    if sentence := too_old({package: version(package) for package in OLDEST}):
        raise UsageError(f"{sentence}; install a newer one")


# ---- names of arguments ----

#: Fields of TrainingArguments whose name changed: newest name -> the name in older releases.
_OLDER_NAMES = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}

#: Fields of TrainingArguments that some supported releases have and others do not, by the releases that have them.
#: Read from the sources of the last patch of each minor release, 4.45.2 to 5.24.0.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "transformers<4.51": ("dispatch_batches", "evaluation_strategy", "split_batches"),
    "transformers<4.57": ("use_ipex",),
    "transformers<5": (
        "_n_gpu",
        "adafactor",
        "fp16_backend",
        "fp16_opt_level",
        "fsdp_min_num_params",
        "fsdp_transformer_layer_cls_to_wrap",
        "half_precision_backend",
        "include_inputs_for_metrics",
        "include_tokens_per_second",
        "jit_mode_eval",
        "mp_parameters",
        "no_cuda",
        "overwrite_output_dir",
        "past_index",
        "per_gpu_eval_batch_size",
        "per_gpu_train_batch_size",
        "push_to_hub_model_id",
        "push_to_hub_organization",
        "push_to_hub_token",
        "ray_scope",
        "save_safetensors",
        "torchdynamo",
        "tpu_metrics_debug",
        "tpu_num_cores",
        "use_legacy_prediction_loop",
        "use_mps_device",
    ),
    "transformers<5.2": ("group_by_length",),
    "transformers<5.15": ("logging_dir", "warmup_ratio"),
    "transformers>=4.46": ("average_tokens_across_devices", "include_for_metrics"),
    "transformers>=4.50,<4.52": ("tp_size",),
    "transformers>=4.53": ("hub_revision", "liger_kernel_config"),
    "transformers>=4.56": ("parallelism_config",),
    "transformers>=4.57": ("project", "trackio_space_id"),
    "transformers>=5": ("enable_jit_checkpoint", "use_cache"),
    "transformers>=5.2": ("train_sampling_strategy",),
    "transformers>=5.6": ("ddp_static_graph", "trackio_bucket_id", "trackio_static_space_id"),
    "transformers>=5.15": ("dataloader_in_order", "dataloader_multiprocessing_context"),
    "transformers>=5.23": ("activation_checkpointing", "activation_checkpointing_kwargs"),
}

#: Types of adapters that some supported releases of peft have and others do not.
TYPES: dict[str, tuple[str, ...]] = {
    "peft>=0.14": ("CPT",),
    "peft>=0.14,<0.19": ("BONE",),
    "peft>=0.15": ("TRAINABLE_TOKENS",),
    "peft>=0.16": ("C3A", "RANDLORA"),
    "peft>=0.17": ("MISS", "SHIRA"),
    "peft>=0.18": ("DELORA", "OSF", "ROAD", "WAVEFT"),
    "peft>=0.19": ("ADAMSS", "CARTRIDGE", "GRALORA", "LILY", "PEANUT", "PSOFT", "PVERA", "TINYLORA"),
    "peft>=0.20": ("BEFT", "DEFT", "FROD", "GLORA", "HIRA", "UNILORA"),
    "peft>=0.21": ("SHADOW", "SUPERTUNING"),
}

_PROMPTS = ("CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING")
_EXCLUDING = ("BOFT", "FOURIERFT", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "OFT", "POLY", "VBLORA")

#: Fields of adapter configs that came or went after their type was there: releases of peft, types, fields. No types:
#: every type has it. ADALORA has all fields of LORA. Read from the sources of peft 0.13.2 to 0.21.2.
FIELDS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("peft>=0.14", _EXCLUDING, ("exclude_modules",)),
    ("peft>=0.14", ("LORA",), ("eva_config", "lora_bias")),
    ("peft>=0.14", ("LOKR",), ("rank_dropout_scale",)),
    ("peft>=0.14", ("OFT",), ("bias", "fan_in_fan_out", "oft_block_size")),
    ("peft<0.15", ("OFT",), ("alpha_pattern", "rank_pattern")),
    ("peft>=0.15", ("LORA",), ("corda_config", "trainable_token_indices")),
    ("peft>=0.16", ("LORA",), ("qalora_group_size", "use_qalora")),
    ("peft>=0.16", ("OFT",), ("num_cayley_neumann_terms", "use_cayley_neumann")),
    ("peft>=0.17", ("LORA",), ("target_parameters",)),
    ("peft>=0.17", _PROMPTS, ("modules_to_save",)),
    ("peft>=0.18", ("LORA",), ("alora_invocation_tokens", "arrow_config", "ensure_weight_tying")),
    ("peft>=0.18", (), ("peft_version",)),
    ("peft>=0.19", ("LORA",), ("lora_ga_config", "use_bdlora")),
    ("peft>=0.19", ("PREFIX_TUNING",), ("init_weights",)),
    ("peft>=0.20", ("LORA",), ("monteclora_config", "velora_config")),
    ("peft>=0.20", ("ADAMSS", "PSOFT"), ("random_seed",)),
    ("peft>=0.20", ("PVERA",), ("generator_seed",)),
    ("peft>=0.21", ("LORA",), ("kasa_config",)),
)


@functools.cache
def _argument_names() -> frozenset[str]:
    from transformers import TrainingArguments

    return frozenset(field.name for field in dataclasses.fields(TrainingArguments))


def all_argument_names() -> frozenset[str]:
    """Return the fields of TrainingArguments of all supported releases. transformers is imported for it."""
    return _argument_names() | {*_OLDER_NAMES, *(name for names in ARGUMENTS.values() for name in names)}


@functools.cache
def argument_defaults() -> dict[str, Any]:
    """Return the default of each TrainingArguments field that has one, by the newest name. Of an enum, its value."""
    from transformers import TrainingArguments

    here = {_older_name(name): name for name in _OLDER_NAMES}
    return {here.get(name, name): value for name, value in _defaults(TrainingArguments).items()}


@functools.cache
def adapter_defaults(peft_type: str) -> dict[str, Any]:
    """Return the default of each field of an adapter's config that has one. Empty for an unknown type."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    kinds = {str(getattr(kind, "value", kind)): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    # peft_type is set as the object is made.
    return {k: v for k, v in _defaults(kinds[peft_type]).items() if k != "peft_type"} if peft_type in kinds else {}


def _defaults(kind: Any) -> dict[str, Any]:
    missing: Any = dataclasses.MISSING
    fields: Iterable[Any] = dataclasses.fields(kind)
    found = {
        field.name: field.default if field.default is not missing else field.default_factory()
        for field in fields
        if not (field.default is missing and field.default_factory is missing)
    }
    return {name: getattr(value, "value", value) for name, value in found.items()}


def _absent(name: str, kind: str, installed: Iterable[str], elsewhere: dict[str, str], label: str) -> str:
    """Return why this release does not have a name. UsageError if no supported release has it.

    - name: the name that is not installed.
    - kind: what sort of name it is, such as "transformers has the argument".
    - installed: the names of that sort in the installed release.
    - elsewhere: name -> releases that have it, for names of that sort.
    - label: what the name is called in the reason.
    """
    if name in elsewhere:
        package = re.split("[<>=]", elsewhere[name])[0]
        return f"{package} {version(package)} has no {label}, which needs {elsewhere[name]}"
    near = difflib.get_close_matches(name, sorted({*installed, *elsewhere}), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"no release of {kind} {name!r}{hint}")


def _absent_argument(name: str) -> str:
    elsewhere = {field: releases for releases, fields in ARGUMENTS.items() for field in fields}
    return _absent(
        name, "transformers has the argument", _argument_names(), elsewhere, label=f"TrainingArguments.{name}"
    )


def _older_name(name: str) -> str:
    """Return the name by which the installed release has an argument; the name itself if it has neither."""
    return name if name in _argument_names() else _OLDER_NAMES.get(name, name)


def check_arguments(names: Iterable[str]) -> None:
    """Check that some supported release has each of these TrainingArguments. UsageError names the first other one."""
    for name in names:
        if _older_name(name) not in _argument_names():
            _absent_argument(name)


def training_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Return TrainingArguments keywords for the installed release, from newest names.

    LookupError names a field or a value that only another release has. UsageError names a field that no release has.
    """
    names = _argument_names()
    translated = {}
    for name, value in values.items():
        here = _older_name(name)
        if here == "warmup_steps" and 0 < value < 1 and "warmup_ratio" in names and satisfies("transformers<5"):
            here = "warmup_ratio"  # before 5.0 a share of the steps had a field of its own
        if name == "train_sampling_strategy" and value == "group_by_length" and name not in names:
            here, value = "group_by_length", True  # a flag until the strategies had a field
        if here not in names:
            raise LookupError(_absent_argument(name))
        if name == "data_seed" and satisfies("transformers>=4.46") and not satisfies("accelerate>=1.1"):
            raise LookupError("TrainingArguments.data_seed needs accelerate 1.1")
        if here == "include_num_input_tokens_seen" and isinstance(value, str) and satisfies("transformers<4.57"):
            raise LookupError(f"transformers before 4.57 has no include_num_input_tokens_seen {value!r}")
        if here == "save_strategy" and value == "best" and satisfies("transformers<4.47"):
            raise LookupError("transformers before 4.47 has no save_strategy 'best'")
        if here == "lr_scheduler_type" and (missing := _missing_schedule(value)) is not None:
            raise LookupError(missing)
        translated[here] = value
    return translated


def _missing_schedule(kind: Any) -> str | None:
    """Return why a schedule that the newest release has is not there, or has other options; None if it is as there."""
    from transformers import optimization

    if kind == "warmup_stable_decay":
        options = inspect.signature(optimization.get_wsd_schedule).parameters
        old = "warmup_type" not in options
        return f"transformers {version('transformers')} has a warmup_stable_decay with other options" if old else None
    known = {str(each.value) for each in optimization.SchedulerType}  # type: ignore[attr-defined]
    added = kind in ("cosine_warmup_with_min_lr", "greedy") and kind not in known
    return f"transformers {version('transformers')} has no lr_scheduler_type {kind!r}" if added else None


def missing_adapter_field(peft_type: str, config: Iterable[str]) -> str | None:
    """Return why the installed peft lacks an adapter type or a field of its config; None if it has them all.

    UsageError names a type or a field that no release has.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    kinds = {getattr(kind, "value", kind): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if peft_type not in kinds:
        elsewhere = {kind: releases for releases, types in TYPES.items() for kind in types}
        return _absent(peft_type, "peft has the adapter type", kinds, elsewhere, label=f"adapter type {peft_type!r}")
    kind = kinds[peft_type]
    names = {field.name for field in dataclasses.fields(kind)}
    like = {peft_type, "LORA"} if peft_type == "ADALORA" else {peft_type}
    elsewhere = {
        field: releases for releases, types, fields in FIELDS if not types or like & set(types) for field in fields
    }
    label = kind.__name__
    return next(
        (
            _absent(name, f"peft has the field {label}", names, elsewhere, f"{label}.{name}")
            for name in config
            if name not in names
        ),
        None,
    )


# ---- names of adapters' tensors ----


def tensor_prefix(peft_type: str) -> str | None:
    """Return how the names of an adapter's tensors begin, such as "lora_"; None if peft does not say it.

    Asked is peft's tuner class, which has a prefix in all supported releases. VeRA's, "vera_lambda_" ("vera_lambda"
    before peft 0.15), names the trained vectors only; its random matrices are vera_A and vera_B. A prefix that begins
    with the type's own name is therefore cut down to that. Prompt learning has no prefix.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    prefix = getattr(dict[Any, Any](PEFT_TYPE_TO_TUNER_MAPPING).get(peft_type), "prefix", None)
    own = f"{peft_type.lower()}_"
    if isinstance(prefix, str) and prefix.startswith(own):
        return own
    # A prefix that is empty or no whole word would take names of the base model for an adapter's.
    return prefix if isinstance(prefix, str) and re.fullmatch("[a-z][a-z0-9_]+_", prefix) else None


def tensor_prefixes() -> tuple[str, ...]:
    """Return how the names of tensors of an adapter begin, for all types of the installed peft."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    # Counted, because a user may register a type of his own at any time.
    return _tensor_prefixes(len(PEFT_TYPE_TO_TUNER_MAPPING))


@functools.cache
def _tensor_prefixes(count: int) -> tuple[str, ...]:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    found = (tensor_prefix(str(getattr(kind, "value", kind))) for kind in PEFT_TYPE_TO_TUNER_MAPPING)
    return tuple(dict.fromkeys(prefix for prefix in found if prefix is not None))


def missing_tensor_names(peft_type: str) -> str | None:
    """Return why an adapter's tensors cannot be told from the base model's by their names; None if they can."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.config import PromptLearningConfig

    kind = dict[Any, Any](PEFT_TYPE_TO_CONFIG_MAPPING).get(peft_type)
    prompts = isinstance(kind, type) and issubclass(kind, PromptLearningConfig)
    if prompts or tensor_prefix(peft_type) is not None:
        return None
    return f"peft {version('peft')} does not say how the names of {peft_type}'s tensors begin"


# ---- behaviour that changed ----


def default_fsdp_version() -> int:
    """Which FSDP a run has that does not say it: 2 since the Trainer moves the words of `fsdp` into fsdp_config, else 1."""
    from transformers import TrainingArguments

    return 2 if hasattr(TrainingArguments, "_apply_legacy_fsdp_to_config") else 1


def adapts_in_compute_dtype() -> bool:
    """Whether adapters of a packed layer start in the dtype that it computes in: since peft 0.19; before, in float32."""
    return satisfies("peft>=0.19")


def dtype_argument(dtype: Any) -> dict[str, Any]:
    """Return the keyword of from_pretrained that sets the dtype: `dtype`, or `torch_dtype` before transformers 4.56."""
    return {"dtype" if satisfies("transformers>=4.56") else "torch_dtype": dtype}


def enable_activation_checkpointing(model: Any, options: dict[str, Any]) -> None:
    """Let a transformers model keep the inputs of its layers only: gradient_checkpointing_enable before 5.23."""
    enable: Callable[[dict[str, Any]], None] = (
        getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    )
    enable(options)


def compute_experts_eagerly(model: Any) -> None:
    """Make a mixture of experts compute with plain products: grouped_mm, used since transformers 5, has no float64."""
    if getattr(getattr(model, "config", None), "_experts_implementation", None) is not None:
        model.config._experts_implementation = "eager"


def clipping_functions(trainer: Any) -> list[tuple[Any, str]]:
    """Return (owner, name) of each function with which a Trainer clips gradients.

    Since transformers 5.17 the Trainer has its own for gradients of which some are DTensors and some are not.
    """
    functions = ((trainer.accelerator, "clip_grad_norm_"), (trainer, "_mixed_mesh_grad_norm"))
    return [(owner, name) for owner, name in functions if getattr(owner, name, None) is not None]


def best_step(state: Any) -> int | None:
    """Return TrainerState.best_global_step; None before transformers 4.50, which does not have it."""
    return getattr(state, "best_global_step", None)


def logged_digits() -> int | None:
    """Return how many digits the Trainer rounds a logged loss to: four before transformers 5.0, None (all) since."""
    return 4 if satisfies("transformers<5") else None


def logged_rounding(losses: Iterable[float]) -> float:
    """Return by how much logged losses are rounded: before transformers 5.0 the Trainer logs four digits.

    Told from the losses themselves, because a trace may come from another stack or from a subject that does not round.
    Float32 losses that all happen to have four digits do not occur.
    """
    return 0.5e-4 if all(loss == round(loss, 4) for loss in losses) else 0.0


def logs_unclipped_norm() -> bool:
    """Whether the Trainer logs grad_norm with max_grad_norm=0, too: since transformers 5.3."""
    return satisfies("transformers>=5.3")


def tokenizer_places() -> tuple[str, ...]:
    """Return where save_model finds a tokenizer: an attribute of the Trainer, and since 4.50 one of its data collator."""
    if satisfies("transformers<4.46"):
        return ("tokenizer",)
    return ("processing_class",) if satisfies("transformers<4.50") else ("processing_class", "data_collator.tokenizer")


def token_rates() -> tuple[str, ...]:
    """Return what a log entry has besides a count of tokens: since transformers 4.52 seconds and tokens a second."""
    return ("train_runtime", "train_tokens_per_second") if satisfies("transformers>=4.52") else ()


def reports_everywhere() -> bool:
    """Return whether a run without `report_to` reports to all that is installed: transformers before 5."""
    return satisfies("transformers<5")


def tensorboard_directory_from_environment() -> bool:
    """Whether TENSORBOARD_LOGGING_DIR is read: since transformers 5.0. Before, the argument logging_dir was."""
    return satisfies("transformers>=5")


def numpy_core() -> Any:
    """Return numpy's module of array functions: numpy._core since 2.0, numpy.core before."""
    import numpy as np

    return np._core if hasattr(np, "_core") else np.core


def forget_precision() -> None:
    """Let the next run decide on its precision, whatever an earlier run has left in this process.

    Before transformers 5.0, TrainingArguments write mixed precision into the environment, where the next ones find it
    again: a run in float32 after a run in bfloat16 would compute in bfloat16. tf32=True lets products of float32 be
    computed in TF32 from then on. So does accelerate if a model is compiled.
    """
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    backends: Any = sys.modules["torch"].backends if "torch" in sys.modules else None
    if backends is None:
        return
    # In this order: torch refuses to read the old switch while the new ones say otherwise.
    backends.cuda.matmul.allow_tf32 = False
    if hasattr(backends, "fp32_precision"):  # since torch 2.9
        backends.fp32_precision = backends.cuda.matmul.fp32_precision = "none"


# ---- optimizers ----


def adafactor() -> Any:
    """Return transformers' class of Adafactor."""
    from transformers.optimization import Adafactor

    return Adafactor


def packed_optimizer(name: str) -> Any:
    """Return a class of bitsandbytes.optim, such as "AdamW". Raises UsageError if it is not there."""
    if version("bitsandbytes") is None:
        raise UsageError("bitsandbytes is not installed, which has the 8-bit and paged optimizers")
    import bitsandbytes.optim

    if not hasattr(bitsandbytes.optim, name):
        raise UsageError(f"bitsandbytes {version('bitsandbytes')} has no optimizer {name}")
    return getattr(bitsandbytes.optim, name)
