"""Which arguments the laws model. What is not modelled is "not judged: `argument`", and never a verdict.

Three tables, read by `why_not`:

1. `KNOWN`: the TrainingArguments that the harness has looked at, by what they are about. A release that adds a field to
   TrainingArguments adds none here. Until somebody has looked at it, only the laws of `WHATEVER_IS_SET` judge its runs.
2. `EXCEPTIONS`: known arguments (and keyword arguments of the Trainer) that some laws do not model, and why. All other laws
   judge runs with any value of a known argument.
3. The reference has its own, because it is a subject: `harness.subjects.reference` (CHOICES, WITHOUT_EFFECT, FAMILIES).

Only fields that are not at upstream's default count (`harness.defaults`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from harness import defaults, spec_fields
from harness.spec import RunSpec

#: What an argument is about -> the arguments, of all supported releases.
KNOWN: dict[str, tuple[str, ...]] = {
    "how long, and which rows": (
        *("max_steps", "num_train_epochs", "per_device_train_batch_size", "per_gpu_train_batch_size"),
        *("gradient_accumulation_steps", "dataloader_drop_last", "seed", "data_seed", "accelerator_config"),
        *("dispatch_batches", "split_batches", "train_sampling_strategy", "group_by_length", "length_column_name"),
        *("ignore_data_skip", "remove_unused_columns", "label_names", "full_determinism", "auto_find_batch_size"),
    ),
    "loss": (
        *("label_smoothing_factor", "neftune_noise_alpha", "average_tokens_across_devices", "use_liger_kernel"),
        *("liger_kernel_config", "past_index"),
    ),
    "optimizer and schedule": (
        *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "optim"),
        *("optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "adafactor"),
        "optim_target_modules",
    ),
    "precision and speed": (
        *("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32", "fp16_backend", "half_precision_backend"),
        *("fp16_opt_level", "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"),
        *("gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
        *("torchdynamo", "jit_mode_eval", "use_ipex", "use_cache", "torch_empty_cache_steps", "dataloader_num_workers"),
        *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
        *("dataloader_multiprocessing_context", "dataloader_in_order", "skip_memory_metrics"),
    ),
    "log": (
        *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "logging_dir"),
        *("include_num_input_tokens_seen", "include_tokens_per_second", "log_level", "log_level_replica"),
        *("log_on_each_node", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id"),
        *("trackio_bucket_id", "trackio_static_space_id"),
    ),
    "evaluation": (
        *("eval_strategy", "evaluation_strategy", "eval_steps", "eval_delay", "eval_on_start"),
        *("per_device_eval_batch_size", "per_gpu_eval_batch_size", "prediction_loss_only", "eval_accumulation_steps"),
        *("eval_do_concat_batches", "eval_use_gather_object", "batch_eval_metrics", "include_for_metrics"),
        *("include_inputs_for_metrics", "load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        "use_legacy_prediction_loop",
    ),
    "checkpoints": (
        *("output_dir", "overwrite_output_dir", "save_strategy", "save_steps", "save_total_limit", "save_only_model"),
        *("save_safetensors", "save_on_each_node", "enable_jit_checkpoint", "resume_from_checkpoint"),
        *("restore_callback_states_from_checkpoint", "push_to_hub", "push_to_hub_model_id"),
        *("push_to_hub_organization", "push_to_hub_token", "hub_token", "hub_private_repo", "hub_model_id"),
        *("hub_strategy", "hub_always_push", "hub_revision"),
    ),
    "processes": (
        *("use_cpu", "no_cuda", "use_mps_device", "local_rank", "_n_gpu", "ddp_find_unused_parameters"),
        *("ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp"),
        *("fsdp_config", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap", "deepspeed"),
        *("parallelism_config", "mp_parameters", "ray_scope", "tp_size", "tpu_metrics_debug", "tpu_num_cores", "debug"),
        *("do_train", "do_eval", "do_predict"),
    ),
}
_KNOWN = {name for names in KNOWN.values() for name in names}

#: Laws that hold whatever is set: no argument may train the base, save it, or make a run that cannot be repeated.
WHATEVER_IS_SET = ("API-02", "API-15", "CKPT-21", "CKPT-25", "FRZ-01", "FRZ-02", "FRZ-03", "GEN-02")

_NOISE = "the noise is drawn anew in each micro-batch"
_LENGTHS = "it decides by length which rows share a batch, so another batch size gives other batches"
_OWN_LOSS = "the loss is the user's own"
_OWN_OPTIMIZER = "the optimizer and its parameter groups are the user's own"
_CONTROL = "a callback may stop the run, or have it save and log at other steps"
_STATELESS = "no optimizer is saved, so a resumed run starts with a new one"
_OWN_ROWS = "the batches are put together by the user's own function"

#: Argument, "argument=value" with a glob, or "trainer.NAME" -> clause -> why the law does not model it.
EXCEPTIONS: dict[str, dict[str, str]] = {
    "neftune_noise_alpha": dict.fromkeys(("LOSS-01", "ACC-01", "ACC-10"), _NOISE),
    "train_sampling_strategy=group_by_length": dict.fromkeys(("ACC-01", "ACC-10"), _LENGTHS),
    "group_by_length": dict.fromkeys(("ACC-01", "ACC-10"), _LENGTHS),
    "auto_find_batch_size": dict.fromkeys(
        ("ACC-01", "ACC-02", "ACC-05", "LOOP-02", "LOOP-04", "LOOP-06", "RNG-02"),
        "the batch becomes smaller if memory runs out",
    ),
    "use_liger_kernel": dict.fromkeys(("LOSS-01",), "its kernels compute the loss in an order of their own"),
    "torch_compile": dict.fromkeys(("LOSS-01",), "compiled kernels compute the loss in an order of their own"),
    "max_grad_norm=None": {
        "LOOP-05": "null, which releases before 5.3 take, switches clipping off, and no norm is computed"
    },
    "ignore_data_skip": {"RES-01": "a resumed run starts its epoch anew, as documented"},
    "save_only_model": {"RES-01": _STATELESS, "CKPT-07": _STATELESS, "CKPT-27": _STATELESS},
    "load_best_model_at_end": {
        "CKPT-21": "the adapter at the end is the best checkpoint's, not the last one's (BEST-02)"
    },
    "optim_target_modules": dict.fromkeys(("CKPT-07", "CKPT-27"), "the optimizer keeps other state for these modules"),
    "trainer.compute_loss_func": dict.fromkeys(("LOSS-01", "LOOP-09", "ACC-01", "ACC-10"), _OWN_LOSS),
    # ACC-01 and ACC-10 train without callbacks, by an optimizer of their own (`comparisons.steady`).
    # LOOP-02 models groups with rates of their own (`rates.OWN_RATES`).
    "trainer.optimizers": dict.fromkeys(("CKPT-07", "CKPT-27"), _OWN_OPTIMIZER),
    "trainer.optimizer_cls_and_kwargs": dict.fromkeys(("CKPT-07", "CKPT-27"), _OWN_OPTIMIZER),
    "trainer.callbacks": dict.fromkeys(("LOOP-04", "LOOP-06", "CKPT-12", "EVAL-10", "FRZ-15", "API-05"), _CONTROL),
    "trainer.data_collator": dict.fromkeys(("LOSS-01", "ACC-01", "ACC-10", "RNG-02"), _OWN_ROWS),
}


def why_not(clause: str, spec: RunSpec) -> str | None:
    """Return why the law of a clause does not model something that a spec sets; None if it models all of it.

    - spec: any; a field at upstream's default counts as not set.
    """
    for name, value in _set(spec):
        if "." not in name and name not in _KNOWN:
            if clause not in WHATEVER_IS_SET:
                return f"`{name}`: this release of peft-harness does not know the argument"
            continue
        for key, clauses in EXCEPTIONS.items():
            what, _, glob = key.partition("=")
            if what == name and clause in clauses and (not glob or fnmatchcase(str(value), glob)):
                return f"`{name}`: {clauses[clause]}"
    return None


def _set(spec: RunSpec) -> Iterator[tuple[str, Any]]:
    yield from defaults.changed_arguments(spec).items()
    trainer: Mapping[str, Any] = spec.trainer
    for name, value in trainer.items():
        if value not in (None, [], {}) and not (name == "data_collator" and _keeps_rows(value, spec)):
            yield f"trainer.{name}", value


def _keeps_rows(collator: Any, spec: RunSpec) -> bool:
    """Return whether a collator is the harness's own, and leaves the tokens and labels of each row as they are."""
    name, _ = spec_fields.named(collator) or ("", {})
    if name == "harness.fixtures.collators:for_language_modeling":
        # It makes the labels from the tokens, which are the labels of rows that are made.
        return spec.data.path is None and not spec.data.ignored and not spec.data.inline
    return name.startswith("harness.fixtures.collators:")
