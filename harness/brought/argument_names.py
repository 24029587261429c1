"""Names of TrainingArguments of any release, as the newest release has them.

`newest` replaces names and values that older releases have. Which name the installed release takes is decided by
`harness.compat.training_arguments`, as for every spec. Fields that have no meaning for a judged run are dropped.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from harness import compat, spec_fields
from harness.brought.notes import Notes, listed
from harness.errors import UsageError
from harness.reading import shown

#: Fields that decide where a run writes, what it prints and whom it tells. The harness decides that itself. Some are
#: arguments of the Trainer or of the examples' scripts, which people keep in the same file.
NO_MEANING = frozenset(
    [
        *("output_dir", "overwrite_output_dir", "logging_dir", "run_name", "report_to", "disable_tqdm", "project"),
        *("push_to_hub", "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token"),
        *("hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        *(
            "log_level",
            "log_level_replica",
            "log_on_each_node",
            "save_on_each_node",
            "do_train",
            "do_eval",
            "do_predict",
        ),
        *("local_rank", "_n_gpu", "ddp_timeout", "ddp_backend", "tpu_num_cores", "tpu_metrics_debug", "mp_parameters"),
        *("ray_scope", "resume_from_checkpoint", "dataloader_pin_memory", "skip_memory_metrics", "debug"),
        *("use_legacy_prediction_loop", "past_index", "include_tokens_per_second", "fp16_opt_level", "use_mps_device"),
        *("enable_jit_checkpoint", "xpu_backend", "tokenizer", "processing_class", "per_gpu_eval_batch_size"),
    ]
)

#: Defaults of such fields, and what to_dict writes for a token. Nobody chose them.
_NOT_SAID = (
    *(True, -1, 1800, "passive", "warning", "every_save", "huggingface", "trackio", "last", "O1"),
    *("<HUB_TOKEN>", "<PUSH_TO_HUB_TOKEN>"),
)

#: Fields of subclasses of TrainingArguments: transformers' own for seq2seq, and TRL's SFTConfig. Those that concern the
#: run are read by `harness.brought.trl`.
_OF_SUBCLASSES = {
    **dict.fromkeys(
        (
            *("sortish_sampler", "predict_with_generate", "generation_max_length", "generation_num_beams"),
            "generation_config",
        ),
        "a field of Seq2SeqTrainingArguments, which concerns generation",
    ),
    **dict.fromkeys(
        (
            *("model_init_kwargs", "chat_template_path", "dataset_text_field", "dataset_kwargs", "dataset_num_proc"),
            *("dataset_batch_size", "eos_token", "pad_token", "truncation_mode", "shuffle_dataset", "packing_strategy"),
            *("padding_free", "pad_to_multiple_of", "eval_packing", "completion_only_loss", "assistant_only_loss"),
            *("loss_type", "activation_offloading", "num_of_sequences", "chars_per_token", "use_liger", "packing"),
        ),
        "a field of TRL's SFTConfig, and the Trainer has none like it",
    ),
}

#: Values that say no more than that a field is not used.
_UNUSED: tuple[Any, ...] = (None, False, "", "no", "none", "auto", [], {}, 0)


def unused(value: Any) -> bool:
    """Return whether a value says that a field is not used: null, false, 0, empty, "no", "none" or "auto"."""
    return any(value == item and type(value) is type(item) for item in _UNUSED)


def newest(given: Mapping[str, Any], where: str, notes: Notes) -> dict[str, Any]:
    """Return TrainingArguments under the names and values of the newest release.

    - given: fields of TrainingArguments of any supported release.
    - where: what messages call their source.

    Raises UsageError for a name that no release has, with the nearest one that a release has, and for a wrong value.
    """
    values = {str(name): value for name, value in given.items()}
    _strategies(values)
    _accelerator(values)
    for old, translate in _TRANSLATED.items():
        if old in values:
            value = values.pop(old)
            if not unused(value):
                sentence = translate(values, value, notes)
                if sentence:
                    notes.say(f"{old}={shown(value)}: {sentence}")
    dropped = [name for name in values if name in NO_MEANING]
    told = [name for name in dropped if not unused(values[name]) and values[name] not in _NOT_SAID]
    for name in dropped:
        del values[name]
    if told:
        notes.say(f"these change nothing here, because the harness decides them itself: {listed(told, 40)}")
    for name in [name for name in values if name in _OF_SUBCLASSES]:
        if not unused(values.pop(name)):
            notes.leave_out(name, _OF_SUBCLASSES[name])
    _check_known(values, where, notes)
    spec_fields.check(spec_fields.ARGUMENTS, values, where)
    return values


def _check_known(values: dict[str, Any], where: str, notes: Notes) -> None:
    known = {*compat.all_argument_names(), *spec_fields.ARGUMENTS, *spec_fields.OBJECTS}
    for name in [name for name in values if name not in known]:
        value = values.pop(name)
        if value in (None, False, "", [], {}):
            notes.leave_out(name, "no release that this peft-harness knows has it; it is at a default-like value")
            continue
        near = difflib.get_close_matches(name[:100], sorted({*known, *NO_MEANING, *_TRANSLATED}), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; take it out"
        raise UsageError(f"{where}: no release of transformers has the argument {shown(name)}{hint}")


#: Defaults that only other releases have.
_OTHER_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "save_safetensors": (True,),
    "fp16_backend": ("cuda_amp",),
    "half_precision_backend": ("cuda_amp",),
    "average_tokens_across_devices": (True,),
    "dataloader_in_order": (True,),
    "train_sampling_strategy": ("random",),
}

#: Arguments whose default has changed between releases. They are written down, so that two stacks train alike.
_WRITTEN_DOWN = ("optim",)


def installed(values: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    """Return what the installed release can take of arguments in newest names, without those at its defaults.

    Says what has another name there, and what there is no name for. transformers is imported for it.
    """
    defaults = compat.argument_defaults()
    kept = {}
    for name, value in values.items():
        if name not in _WRITTEN_DOWN and (value == defaults.get(name, ()) or value is None):
            continue
        if unused(value) and unused(defaults.get(name)):
            continue  # such as [] for null
        try:
            there = compat.training_arguments({name: value})
        except LookupError as missing:
            if not unused(value) and value not in _OTHER_DEFAULTS.get(name, ()):
                notes.leave_out(name, str(missing))
            continue
        kept[name] = value
        for other in there:
            if other != name:
                notes.say(f"{name} is called {other} in the transformers that is installed")
    return kept


def _strategies(values: dict[str, Any]) -> None:
    # YAML 1.1 reads a bare `no` as false, and TrainingArguments read false as "no".
    for name in ("eval_strategy", "evaluation_strategy", "save_strategy", "logging_strategy"):
        if values.get(name) is False:
            values[name] = "no"


#: Defaults of accelerate's AcceleratorConfig, which to_dict writes down.
_ACCELERATOR = {
    "split_batches": False,
    "dispatch_batches": None,
    "even_batches": True,
    "use_seedable_sampler": True,
    "non_blocking": False,
    "gradient_accumulation_kwargs": None,
    "use_configured_state": False,
}


def _accelerator(values: dict[str, Any]) -> None:
    """Leave defaults out of accelerator_config."""
    config = values.get("accelerator_config")
    if isinstance(config, Mapping):
        values["accelerator_config"] = {
            name: value for name, value in config.items() if name not in _ACCELERATOR or value != _ACCELERATOR[name]
        }


# ---- one function for each name that changed ----

_Translate = Callable[[dict[str, Any], Any, Notes], str]


def _renamed(new: str) -> _Translate:
    def translate(values: dict[str, Any], value: Any, notes: Notes) -> str:
        if new in values and not unused(values[new]) and values[new] != value:
            return f"{new} is set, too, and counts"
        values[new] = value
        return f"read as {new}"

    return translate


def _warmup_ratio(values: dict[str, Any], value: Any, notes: Notes) -> str:
    if not unused(values.get("warmup_steps")):
        return "warmup_steps is set, too, and counts"
    values["warmup_steps"] = value
    return "read as warmup_steps, which is a share of all steps below 1"


def _group_by_length(values: dict[str, Any], value: Any, notes: Notes) -> str:
    values["train_sampling_strategy"] = "group_by_length"
    return "read as train_sampling_strategy='group_by_length'"


def _no_cuda(values: dict[str, Any], value: Any, notes: Notes) -> str:
    values["use_cpu"] = True
    return "read as use_cpu"


def _in_accelerator_config(values: dict[str, Any], name: str, value: Any) -> str:
    config = values.get("accelerator_config")
    values["accelerator_config"] = {**(config if isinstance(config, dict) else {}), name: value}
    return f"read as accelerator_config.{name}"


def _inputs_for_metrics(values: dict[str, Any], value: Any, notes: Notes) -> str:
    others = values.get("include_for_metrics")
    values["include_for_metrics"] = sorted({*(others if isinstance(others, list) else []), "inputs"})
    return "read as include_for_metrics=['inputs']"


def _adafactor(values: dict[str, Any], value: Any, notes: Notes) -> str:
    values["optim"] = "adafactor"
    return "read as optim='adafactor'"


def _torchdynamo(values: dict[str, Any], value: Any, notes: Notes) -> str:
    values.update({"torch_compile": True, "torch_compile_backend": value})
    return "read as torch_compile_backend"


def _in_fsdp_config(name: str) -> _Translate:
    def translate(values: dict[str, Any], value: Any, notes: Notes) -> str:
        config = values.get("fsdp_config")
        if isinstance(config, str):
            return "fsdp_config names a file, and counts"
        values["fsdp_config"] = {**(config or {}), name: value}
        return f"read as fsdp_config.{name}"

    return translate


def _left_out(why: str, name: str) -> _Translate:
    def translate(values: dict[str, Any], value: Any, notes: Notes) -> str:
        notes.leave_out(name, why)
        return ""

    return translate


_TRANSLATED: dict[str, _Translate] = {
    "evaluation_strategy": _renamed("eval_strategy"),
    "per_gpu_train_batch_size": _renamed("per_device_train_batch_size"),
    "gradient_checkpointing": _renamed("activation_checkpointing"),
    "gradient_checkpointing_kwargs": _renamed("activation_checkpointing_kwargs"),
    "warmup_ratio": _warmup_ratio,
    "group_by_length": _group_by_length,
    "no_cuda": _no_cuda,
    "dispatch_batches": lambda values, value, _: _in_accelerator_config(values, "dispatch_batches", value),
    "split_batches": lambda values, value, _: _in_accelerator_config(values, "split_batches", value),
    "include_inputs_for_metrics": _inputs_for_metrics,
    "adafactor": _adafactor,
    "torchdynamo": _torchdynamo,
    "fsdp_min_num_params": _in_fsdp_config("min_num_params"),
    "fsdp_transformer_layer_cls_to_wrap": _in_fsdp_config("transformer_layer_cls_to_wrap"),
    "parallelism_config": _left_out("tensor, context and sequence parallelism are not modelled", "parallelism_config"),
}
