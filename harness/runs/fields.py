"""The fields that `peft-harness sweep` varies, and their values: TrainingArguments, adapter, base model, data, launch.

`FIELDS` is the table; add a field, or a value to a field. The first value of each field is the default run's. A value is a
name and what it changes in a spec. A row (field -> the name of a value) becomes a RunSpec by `spec`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from harness import defaults, subjects
from harness.fixtures.methods import METHODS
from harness.fixtures.models import FAMILIES, Family
from harness.runs.pairs import Pairs, Row
from harness.spec import ADD, GET, RunSpec

#: Values, by field name: the name of a value -> what upstream's field holds. OMITTED leaves the field out.
Values = dict[str, Any]
OMITTED = object()

#: The default run: four AdamW steps of two short rows, with a checkpoint in the middle. A run takes 0.15 s.
DEFAULT = RunSpec().but(
    model={"config": {}},
    data={"rows": 12, "length": 8, "eval_rows": 4},
    max_steps=4,
    per_device_train_batch_size=2,
    per_device_eval_batch_size=2,
    save_strategy="steps",
    save_steps=2,
)


def _plain(*values: Any) -> Values:
    """Return values by their own names. The first is left to `DEFAULT`, or to upstream."""
    first, *others = values
    return {str(first): OMITTED, **{str(value): value for value in others}}


#: Fields of TrainingArguments that have one value each.
ARGUMENTS: dict[str, Values] = {
    "lr_scheduler_type": _plain(
        *("linear", "cosine", "constant", "constant_with_warmup", "polynomial", "cosine_with_restarts", "inverse_sqrt"),
        "reduce_lr_on_plateau",
    )
    | {
        "cosine_with_min_lr": {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr": 1e-3},
        },
        "warmup_stable_decay": {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"num_decay_steps": 2},
        },
    },
    "warmup_steps": _plain(0, 2),
    "optim": {
        "upstream's": OMITTED,
        **{
            name: name
            for name in ("adamw_torch", "sgd", "adafactor", "rmsprop", "adagrad", "adamw_bnb_8bit", "lion_8bit")
        },
    },
    "learning_rate": _plain(1e-2, 1e-3),
    "weight_decay": _plain(0.0, 0.1),
    "adam_beta1": _plain(0.9, 0.5),
    "adam_beta2": _plain(0.999, 0.9),
    "adam_epsilon": _plain(1e-8, 1e-4),
    "max_grad_norm": {"1.0": OMITTED, "0.0": 0.0, "0.1": 0.1, "null": None},
    "gradient_accumulation_steps": _plain(1, 2, 3),
    "per_device_train_batch_size": _plain(2, 1, 3),
    "length of the run": {
        "4 steps": OMITTED,
        "1 epoch": {"max_steps": OMITTED, "num_train_epochs": 1},
        "1.5 epochs": {"max_steps": OMITTED, "num_train_epochs": 1.5},
    },
    "label_smoothing_factor": _plain(0.0, 0.1),
    "neftune_noise_alpha": _plain(None, 5),
    "logging_strategy": _plain("steps", "epoch", "no"),
    "logging_steps": _plain(1, 2),
    "logging_first_step": _plain(False, True),
    "logging_nan_inf_filter": _plain(True, False),
    "include_num_input_tokens_seen": _plain("no", "all", "non_padding"),
    "include_tokens_per_second": _plain(False, True),
    "eval_strategy": _plain("no", "steps", "epoch"),
    "eval_steps": _plain(None, 1, 2),
    "eval_delay": _plain(0, 2),
    "eval_on_start": _plain(False, True),
    "per_device_eval_batch_size": _plain(2, 3),
    "eval_accumulation_steps": _plain(None, 1),
    "batch_eval_metrics": _plain(False, True),
    "prediction_loss_only": _plain(False, True),
    "eval_do_concat_batches": _plain(True, False),
    "save_strategy": _plain("steps", "epoch", "no", "best"),
    "save_steps": _plain(2, 1),
    "save_total_limit": _plain(None, 1),
    "save_only_model": _plain(False, True),
    "load_best_model_at_end": _plain(False, True),
    "restore_callback_states_from_checkpoint": _plain(False, True),
    "seed": _plain(42, 7),
    "data_seed": _plain(None, 3),
    "dataloader_drop_last": _plain(False, True),
    "dataloader_num_workers": _plain(0, 1),
    "dataloader_pin_memory": _plain(True, False),
    "train_sampling_strategy": _plain("random", "sequential", "group_by_length"),
    "ignore_data_skip": _plain(False, True),
    "remove_unused_columns": _plain(True, False),
    "bf16": _plain(False, True),
    "bf16_full_eval": _plain(False, True),
    "activation_checkpointing": _plain(False, True),
    "use_reentrant": {
        "upstream's": OMITTED,
        "True": {"activation_checkpointing_kwargs": {"use_reentrant": True}},
        "False": {"activation_checkpointing_kwargs": {"use_reentrant": False}},
    },
    "use_cache": _plain(False, True),
    "average_tokens_across_devices": _plain(True, False),
    "torch_empty_cache_steps": _plain(None, 1),
    "full_determinism": _plain(False, True),
    "auto_find_batch_size": _plain(False, True),
    "ddp_find_unused_parameters": _plain(None, False, True),
    "ddp_broadcast_buffers": _plain(None, False),
}

#: Keys of TrainingArguments.accelerator_config.
ACCELERATOR: dict[str, Values] = {
    "split_batches": _plain(False, True),
    "dispatch_batches": _plain(None, False, True),
    "even_batches": _plain(True, False),
    "use_seedable_sampler": _plain(True, False),
    "non_blocking": _plain(False, True),
}

#: Fields of the adapter's config. A method that does not have one is refused together with it.
ADAPTER: dict[str, Values] = {
    "r": {"the method's": OMITTED, "1": 1, "2": 2},
    "lora_alpha": _plain(16, 1),
    "lora_dropout": _plain(0.0, 0.1),
    "use_rslora": _plain(False, True),
    "use_dora": _plain(False, True),
    "bias": _plain("none", "all", "lora_only"),
    "lora_bias": _plain(False, True),
    "init_lora_weights": _plain(True, False, "gaussian", "pissa", "olora", "orthogonal"),
    "fan_in_fan_out": _plain(False, True),
    "layers_to_transform": {"all": OMITTED, "the first": [0]},
    "exclude_modules": {"none": OMITTED, "the first target": lambda family: [family.targets[0]]},
    "rank_pattern": {"none": OMITTED, "the first target": lambda family: {family.targets[0]: 3}},
    "alpha_pattern": {"none": OMITTED, "the first target": lambda family: {family.targets[0]: 5}},
    "target_modules": {
        "attention": OMITTED,
        "all-linear": "all-linear",
        "feed-forward, too": lambda family: [*family.targets, family.feedforward],
        "embeddings, too": lambda family: [*family.targets, _embeddings(family)],
    },
    "modules_to_save": {
        "the task's head": OMITTED,
        "embeddings": lambda family: [_embeddings(family), *([family.head] if family.head else [])],
        "lm_head": lambda family: [family.head or "lm_head"],
    },
    "trainable_token_indices": {"none": OMITTED, "two": [3, 5]},
}

#: Fields of the ModelSpec.
MODEL: dict[str, Values] = {
    "family": {name: name for name in FAMILIES},
    "layers": _plain(2, 1),
    "dtype": _plain("float32", "bfloat16"),
    "quantization": _plain(None, "nf4", "int8"),
    "prepare_for_kbit": _plain(False, True),
    "attention dropout": _plain(0.0, 0.1),
}

#: Fields of the AdapterSpec and of the DataSpec.
OTHERS: dict[str, Values] = {
    # The config fields use_dora and use_rslora are two methods' whole difference from LoRA.
    "method": {name: name for name in METHODS if name not in ("dora", "rslora")},
    "route": _plain(GET, ADD),
    "autocast_adapter_dtype": _plain(True, False),
    "other adapters": {"none": OMITTED, "one": {"second": {}}},
    "rows": _plain(12, 11),
    "eval_rows": _plain(4, 3),
    "lengths": {"equal": OMITTED, "ragged": {"min_length": 3}},
    "ignored labels": {"none": OMITTED, "30 %": {"ignored": 0.3}},
    "iterable": _plain(False, True),
    "augment": _plain(False, True),
    "compute_metrics": {"none": OMITTED, "counts": "harness.fixtures.metrics:counts"},
}

#: How a run is spread over processes. "single" is none of them.
SINGLE = "single"
LAUNCHES: Values = {
    SINGLE: OMITTED,
    **{strategy: {"strategy": strategy, "ranks": 2} for strategy in ("ddp", "fsdp2", "fsdp1", "zero2")},
}

#: All fields -> their values.
FIELDS: dict[str, Values] = {**MODEL, **OTHERS, **ADAPTER, **ARGUMENTS, **ACCELERATOR, "launch": LAUNCHES}

#: Fields that are about the same thing: whether upstream refuses some of them may depend on the others.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("method", "family", "route", "target_modules", "modules_to_save", "layers_to_transform", "quantization", "dtype"),
    (
        "method",
        "r",
        "use_dora",
        "use_rslora",
        "bias",
        "lora_bias",
        "init_lora_weights",
        "lora_dropout",
        "fan_in_fan_out",
    ),
    (
        "launch",
        "method",
        "quantization",
        "dtype",
        "bf16",
        "target_modules",
        "modules_to_save",
        "activation_checkpointing",
    ),
    (
        *("eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps", "save_only_model", "launch"),
        *("load_best_model_at_end", "logging_strategy", "logging_steps", "length of the run", "lr_scheduler_type"),
    ),
    ("batch_eval_metrics", "compute_metrics", "prediction_loss_only", "eval_strategy", "eval_on_start", "family"),
    (
        *(
            "iterable",
            "dataloader_num_workers",
            "dataloader_drop_last",
            "train_sampling_strategy",
            "launch",
            "data_seed",
        ),
        *("length of the run", "per_device_train_batch_size", "gradient_accumulation_steps", *ACCELERATOR),
    ),
    ("activation_checkpointing", "use_reentrant", "family", "method", "use_cache", "label_smoothing_factor", "launch"),
)

#: Pairs of fields whose values are often refused together. All of them are tried before the first row.
SUSPECTS: tuple[tuple[str, str], ...] = (
    *(("method", name) for name in ADAPTER),  # most methods lack most of LoRA's fields
    *(("method", name) for name in ("family", "route", "quantization")),
    *(("family", name) for name in ("target_modules", "modules_to_save", "trainable_token_indices", "quantization")),
    *(("family", name) for name in ("label_smoothing_factor", "activation_checkpointing", "fan_in_fan_out", "route")),
    *(("route", name) for name in ("modules_to_save", "trainable_token_indices", "autocast_adapter_dtype")),
)


#: What the small array of the suites leaves out: values that need a GPU's time or another test, and fields of which upstream
#: refuses most of what they meet.
_NOT_IN_THE_SMALL_ARRAY: dict[str, tuple[str, ...]] = {
    "method": tuple(name for name in OTHERS["method"] if name != "lora"),
    "launch": tuple(name for name in LAUNCHES if name != SINGLE),
    "quantization": ("int8",),
    "init_lora_weights": ("pissa", "olora", "orthogonal"),
    "fan_in_fan_out": ("True",),
    "dataloader_num_workers": ("1",),
    "save_strategy": ("no", "best"),
    "batch_eval_metrics": ("True",),
    "optim": ("adamw_bnb_8bit", "lion_8bit"),
    "include_tokens_per_second": ("True",),
    "max_grad_norm": ("null",),
    "lora_bias": ("True",),
    "trainable_token_indices": ("two",),
    "autocast_adapter_dtype": ("False",),
    "layers_to_transform": ("the first",),
    "exclude_modules": ("the first target",),
}

#: Values that upstream refuses together, and that the small array must not have.
_REFUSED_TOGETHER: tuple[Row, ...] = (
    {"load_best_model_at_end": "True", "eval_strategy": "no"},
    {"load_best_model_at_end": "True", "eval_strategy": "epoch", "save_strategy": "steps"},
    {"load_best_model_at_end": "True", "eval_strategy": "steps", "save_strategy": "epoch"},
    {"load_best_model_at_end": "True", "eval_steps": "2", "save_steps": "1"},
    {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "no"},
    {"iterable": "True", "length of the run": "1 epoch"},
    {"iterable": "True", "length of the run": "1.5 epochs"},
    {"iterable": "True", "train_sampling_strategy": "group_by_length"},
    {"iterable": "True", "augment": "True"},
    {"family": "qwen3-moe", "lora_dropout": "0.1"},
    {"family": "qwen3-moe", "use_dora": "True"},
    {"family": "bert-classifier", "quantization": "nf4"},
    {"load_best_model_at_end": "True", "route": ADD},
    {"other adapters": "one", "bias": "all"},
    {"other adapters": "one", "bias": "lora_only"},
)


#: Long runs, for which the suites have no time.
_LONG: tuple[Row, ...] = (
    {"length of the run": "1 epoch", "per_device_train_batch_size": "1"},
    {"length of the run": "1.5 epochs", "per_device_train_batch_size": "1"},
    {"length of the run": "1.5 epochs", "family": "t5"},
)


def small_array() -> list[Row]:
    """Return the rows that the suites judge. Each value of the fields of a LoRA run is in one of them at least.

    The first six can be trained by the independent reference, too.
    """
    left = {
        name: [value for value in values if value not in _NOT_IN_THE_SMALL_ARRAY.get(name, ())]
        for name, values in FIELDS.items()
    }
    pairs = Pairs(left)
    for together in (*_REFUSED_TOGETHER, *_LONG):
        pairs.forbid(together)
    kept = {name: [value for value in values if value in left[name]] for name, values in modelled().items()}
    made = (pairs.next(kept if number < 6 else None) for number in range(13))
    return [row for row in made if row is not None]


def modelled() -> dict[str, list[str]]:
    """Return field -> the values that the independent reference can train, each by itself in the default run."""
    reference = subjects.load("reference")
    return {
        name: [value for value in values if reference.unsupported(defaults.plain(spec({name: value}))) is None]
        for name, values in FIELDS.items()
    }


def names(fields: Mapping[str, Values] = FIELDS) -> dict[str, tuple[str, ...]]:
    """Return field -> the names of its values, the default first."""
    return {name: tuple(values) for name, values in fields.items()}


def default() -> Row:
    """Return the row of the default run."""
    return {name: next(iter(values)) for name, values in FIELDS.items()}


def changed(row: Mapping[str, str]) -> Row:
    """Return the fields of a row that are not the default run's."""
    return {name: value for name, value in row.items() if value != next(iter(FIELDS[name]))}


def spec(row: Mapping[str, str]) -> RunSpec:
    """Return the spec of a row. A field that the row leaves out has its default."""
    chosen = {name: FIELDS[name][value] for name, value in changed(row).items()}
    family = FAMILIES[row.get("family", next(iter(FAMILIES)))]
    values = {
        name: value(family) if callable(value) else value for name, value in chosen.items() if value is not OMITTED
    }
    method = METHODS[values.get("method", "lora")]
    config = {**method.fields(family), **{name: values[name] for name in ADAPTER if name in values}}
    return dataclasses.replace(
        DEFAULT.but(
            model=_model(values, family),
            adapter={
                "route": values.get("route", GET),
                "peft_type": method.peft_type,
                "config": config,
                "others": values.get("other adapters", {}),
                "options": {"autocast_adapter_dtype": False} if "autocast_adapter_dtype" in values else {},
            },
            data=_data(values, family),
            trainer={"compute_metrics": values["compute_metrics"]} if "compute_metrics" in values else {},
            launch=values.get("launch"),
        ),
        arguments=_arguments(values),
    )


def _arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(DEFAULT.arguments)
    for name in ARGUMENTS:
        if name in values:
            value = values[name]
            made |= value if isinstance(value, dict) else {name: value}
    accelerator = {name: values[name] for name in ACCELERATOR if name in values}
    if accelerator:
        made["accelerator_config"] = accelerator
    return {name: value for name, value in made.items() if value is not OMITTED}


def _model(values: Mapping[str, Any], family: Family) -> dict[str, Any]:
    config: dict[str, Any] = {family.layers: values["layers"]} if "layers" in values else {}
    if "attention dropout" in values:
        config[_DROPOUT.get(family.config_class, "attention_dropout")] = values["attention dropout"]
    plain = ("family", "dtype", "quantization", "prepare_for_kbit")
    return {"config": config, **{name: values[name] for name in plain if name in values}}


def _data(values: Mapping[str, Any], family: Family) -> dict[str, Any]:
    made: dict[str, Any] = {"task": family.task}
    for name in ("rows", "eval_rows", "iterable", "augment"):
        if name in values:
            made[name] = values[name]
    return {**made, **values.get("lengths", {}), **values.get("ignored labels", {})}


#: Config class -> the field of the dropout in its attention, where it is not attention_dropout.
_DROPOUT = {"GPT2Config": "attn_pdrop", "BertConfig": "attention_probs_dropout_prob", "T5Config": "dropout_rate"}

#: Config class -> the module of its input embeddings, where it is not embed_tokens.
_EMBEDDINGS = {"GPT2Config": "wte", "BertConfig": "word_embeddings", "T5Config": "shared"}


def _embeddings(family: Family) -> str:
    return _EMBEDDINGS.get(family.config_class, "embed_tokens")
