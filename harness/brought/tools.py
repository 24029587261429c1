"""The tools whose configuration files are read, by the name that --config-kind takes.

Read from their sources and documentation: TRL's ModelConfig and SFTConfig, LLaMA-Factory's hparams, axolotl's schemas.
"""

from __future__ import annotations

from typing import Any

from harness.brought import configurations as shared
from harness.brought.configurations import Parts, Tool
from harness.brought.notes import Notes
from harness.errors import UsageError
from harness.reading import shown

#: Names of attention of LLaMA-Factory and of older axolotl -> attn_implementation.
_ATTENTION = {"fa2": "flash_attention_2", "fa3": "flash_attention_3", "sdpa": "sdpa", "disabled": "eager"}

_DTYPES = {"float32", "float16", "bfloat16"}


def _dtype(value: Any) -> str | None:
    name = str(value).removeprefix("torch.")
    return name if name in _DTYPES else None


#: Fields of the adapter that TRL and axolotl call alike.
_LORA = {
    "lora_r": "adapter.r",
    "lora_alpha": "adapter.lora_alpha",
    "lora_dropout": "adapter.lora_dropout",
    "lora_target_modules": "adapter.target_modules",
    "lora_target_parameters": "adapter.target_parameters",
    "lora_modules_to_save": "adapter.modules_to_save",
}


# ---- TRL: trl sft --config FILE (trl/trainer/model_config.py, sft_config.py) ----

#: Fields that SFTConfig gives another default than TrainingArguments.
_SFT_DEFAULTS = {"learning_rate": 2e-5, "gradient_checkpointing": True}


def _trl(values: dict[str, Any], parts: Parts, where: str, notes: Notes) -> None:
    # The command line of TRL reads words, too.
    if str(values.pop("use_peft", False)).lower() in ("true", "yes", "1", "t", "y"):
        parts.adapter = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "task_type": "CAUSAL_LM"}
    parts.model = values.pop("model_name_or_path", None)
    parts.dtype = _dtype(values.pop("dtype", values.pop("torch_dtype", None)))
    parts.attention = values.pop("attn_implementation", None)
    if values.pop("use_flash_attention_2", False):
        parts.attention = "flash_attention_2"
    values["bnb_4bit_use_double_quant"] = values.pop("use_bnb_nested_quant", False)
    parts.quantization = shared.bits(values, parts.dtype)
    for name in ("load_in_4bit", "load_in_8bit", "bnb_4bit_use_double_quant", "bnb_4bit_quant_type"):
        values.pop(name, None)
    values.pop("bnb_4bit_quant_storage", None)
    parts.prepares = parts.quantization is not None
    targets = values.get("lora_target_modules")
    if isinstance(targets, list) and len(targets) == 1:
        values["lora_target_modules"] = targets[0]  # a list of one is a pattern or "all-linear" to TRL
    init = values.pop("model_init_kwargs", None)
    if isinstance(init, dict):
        parts.dtype = parts.dtype or _dtype(init.pop("dtype", init.pop("torch_dtype", None)))
        parts.attention = parts.attention or init.pop("attn_implementation", None)
        for name, value in init.items():
            notes.leave_out(f"model_init_kwargs.{name}", f"{shown(value)}: the base is made by the harness")
    parts.prompts_left_out = bool(values.get("completion_only_loss") or values.get("assistant_only_loss"))
    parts.length = values.pop("max_length", values.pop("max_seq_length", 1024))
    padding_free, packing = values.pop("padding_free", False), values.pop("packing", False)
    if padding_free or packing:
        shared.pack(parts, notes, bool(padding_free))
    absent = {name: value for name, value in _SFT_DEFAULTS.items() if name not in values}
    if "activation_checkpointing" in values:
        absent.pop("gradient_checkpointing", None)
    if "bf16" not in values and not values.get("fp16"):
        absent["bf16"] = True
    parts.arguments.update(absent)
    if absent:
        notes.say(f"defaults of TRL's SFTConfig: {', '.join(f'{name}={value}' for name, value in absent.items())}")


TRL = Tool(
    "TRL",
    (
        "use_peft",
        "lora_r",
        "dataset_text_field",
        "dataset_train_split",
        "max_seq_length",
        "model_revision",
        "dataset_name",
        "max_length",
        "packing_strategy",
        "assistant_only_loss",
        "completion_only_loss",
    ),
    {
        **_LORA,
        "lora_task_type": "adapter.task_type",
        "use_rslora": "adapter.use_rslora",
        "use_dora": "adapter.use_dora",
    },
    _trl,
)


# ---- LLaMA-Factory: llamafactory-cli train FILE (src/llamafactory/hparams/) ----


def _llama_factory(values: dict[str, Any], parts: Parts, where: str, notes: Notes) -> None:
    stage, kind = values.pop("stage", "sft"), values.pop("finetuning_type", "lora")
    if stage not in ("sft", "pt"):
        raise UsageError(f"{where}, stage: {shown(stage)} has a loss of its own; only sft and pt can be judged")
    if kind == "lora":
        rank = values.get("lora_rank", 8)
        parts.adapter = {"peft_type": "LORA", "r": rank, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
        parts.adapter["lora_alpha"] = 2 * rank if isinstance(rank, int) else 16
        target = values.pop("lora_target", "all")
        every = target in ("all", ["all"])
        parts.adapter["target_modules"] = "all-linear" if every else shared.names(target, where, "lora_target")
        if "additional_target" in values:
            saved = shared.names(values.pop("additional_target"), where, "additional_target")
            parts.adapter["modules_to_save"] = saved
        if values.pop("pissa_init", False):
            parts.adapter["init_lora_weights"] = f"pissa_niter_{values.pop('pissa_iter', 16)}"
    shared.loraplus(values, parts)
    parts.model = values.pop("model_name_or_path", None)
    pure = values.pop("pure_bf16", False)
    if pure or values.get("bf16"):
        parts.dtype = "bfloat16"
    elif values.get("fp16"):
        parts.dtype = "float16"
    bit = values.pop("quantization_bit", None)
    method = values.pop("quantization_method", "bnb")
    if bit is not None and (bit not in (4, 8) or method not in ("bnb", "bitsandbytes")):
        notes.leave_out(
            "quantization_bit", f"{shown(bit)} bits by {shown(method)} are not made here; the base stays as it is"
        )
    elif bit is not None:
        double, quant = values.pop("double_quantization", True), values.pop("quantization_type", "nf4")
        options = {"bnb_4bit_use_double_quant": double, "bnb_4bit_quant_type": quant}
        parts.quantization = shared.bits({f"load_in_{bit}bit": True, **options}, parts.dtype)
    attention = values.pop("flash_attn", "auto")
    parts.attention = _ATTENTION.get(str(attention))
    if not values.pop("disable_gradient_checkpointing", False) and "gradient_checkpointing" not in values:
        values["gradient_checkpointing"] = True
        values.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": values.pop("use_reentrant_gc", True)})
        notes.say("LLaMA-Factory checkpoints activations unless disable_gradient_checkpointing is set")
    if values.pop("enable_liger_kernel", False):
        values["use_liger_kernel"] = True
    parts.length = values.pop("cutoff_len", 2048)
    neat, packing = values.pop("neat_packing", False), values.pop("packing", False)
    if neat or packing:
        shared.pack(parts, notes)
    if values.get("val_size", 0) and "eval_strategy" not in values:
        notes.say("val_size sets rows aside; without eval_strategy nothing is evaluated")
    parts.prompts_left_out = stage == "sft" and not values.get("train_on_prompt")


LLAMA_FACTORY = Tool(
    "LLaMA-Factory",
    ("stage", "finetuning_type", "lora_rank", "lora_target", "cutoff_len", "template", "quantization_bit", "plot_loss"),
    {
        "lora_rank": "adapter.r",
        "lora_alpha": "adapter.lora_alpha",
        "lora_dropout": "adapter.lora_dropout",
        "use_rslora": "adapter.use_rslora",
        "use_dora": "adapter.use_dora",
    },
    _llama_factory,
)


# ---- axolotl: axolotl train FILE (src/axolotl/utils/schemas/) ----

_AXOLOTL_SCHEDULES = ("one_cycle", "rex")


def _axolotl(values: dict[str, Any], parts: Parts, where: str, notes: Notes) -> None:
    if values.pop("rl", None):
        raise UsageError(
            f"{where}, rl: preference training has a loss of its own; only supervised training can be judged"
        )
    kind = values.pop("adapter", None)
    if kind in ("lora", "qlora"):
        parts.adapter = {"peft_type": "LORA", "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
        if values.pop("lora_target_linear", False):
            parts.adapter["target_modules"] = "all-linear"
            if values.pop("lora_target_modules", None):
                notes.say("lora_target_linear is set, too: all linear layers are adapted")
    elif kind is not None:
        raise UsageError(f"{where}, adapter: {shown(kind)} is no adapter of peft; expected lora or qlora")
    shared.loraplus(values, parts)
    parts.model = values.pop("base_model", None)
    _axolotl_precision(values, parts)
    options = values.pop("bnb_config_kwargs", {})
    asked = {name: values.pop(name, False) for name in ("load_in_4bit", "load_in_8bit")}
    if kind == "qlora" and not any(asked.values()):
        asked["load_in_4bit"] = True
    double = {"bnb_4bit_use_double_quant": True, **(options if isinstance(options, dict) else {})}
    parts.quantization = shared.bits({**asked, **double}, parts.dtype)
    parts.prepares = parts.quantization is not None
    _axolotl_attention(values, parts, notes)
    parts.prompts_left_out = not values.get("train_on_inputs")
    parts.length = values.pop("sequence_len", None)
    if values.pop("sample_packing", False):
        shared.pack(parts, notes)
    if values.get("gradient_checkpointing") not in (None, True, False):
        notes.leave_out(
            "gradient_checkpointing", f"{shown(values['gradient_checkpointing'])} is axolotl's own; it is torch's"
        )
        values["gradient_checkpointing"] = True
    if values.get("lr_scheduler") in _AXOLOTL_SCHEDULES:
        notes.leave_out("lr_scheduler", f"{shown(values.pop('lr_scheduler'))} is axolotl's own; the schedule is cosine")
    values.setdefault("lr_scheduler", "cosine")
    values.setdefault("optimizer", "adamw_torch_fused")
    values.setdefault("num_epochs", 1.0)
    _axolotl_intervals(values, where)
    if isinstance(values.get("fsdp_config"), dict) and "fsdp" not in values:
        values["fsdp"] = True
    version = values.pop("fsdp_version", None)
    if version is not None and isinstance(values.get("fsdp_config", {}), dict):
        values["fsdp_config"] = {**values.get("fsdp_config", {}), "version": version}


def _axolotl_precision(values: dict[str, Any], parts: Parts) -> None:
    """bf16: auto takes what the GPU has, and "full" trains in it without mixed precision."""
    half, sixteen = values.pop("bf16", None), values.pop("fp16", None)
    if half in ("auto", True, "full"):
        parts.dtype = "bfloat16"
        values["bf16"] = half != "full"
    elif sixteen:
        parts.dtype = "float16"
        values["fp16"] = True


def _axolotl_attention(values: dict[str, Any], parts: Parts, notes: Notes) -> None:
    parts.attention = values.pop("attn_implementation", None)
    for name, implementation in (
        ("flash_attention", "flash_attention_2"),
        ("sdp_attention", "sdpa"),
        ("eager_attention", "eager"),
        ("flex_attention", "flex_attention"),
    ):
        if values.pop(name, False) and parts.attention is None:
            parts.attention = implementation


def _axolotl_intervals(values: dict[str, Any], where: str) -> None:
    """evals_per_epoch and saves_per_epoch are shares of all steps (axolotl/utils/trainer.py)."""
    held_out = values.pop("val_set_size", 0)
    epochs = values["num_epochs"]
    for each, interval, strategy in (
        ("evals_per_epoch", "eval_steps", "eval_strategy"),
        ("saves_per_epoch", "save_steps", "save_strategy"),
    ):
        count = values.pop(each, None)
        if count is None:
            continue
        numbers = all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in (count, epochs))
        if not numbers or count < 0 or epochs <= 0:
            raise UsageError(
                f"{where}, {each}: expected a number, found {shown(count)}, with num_epochs {shown(epochs)}"
            )
        values[strategy] = "steps" if count else "no"
        if count:
            values[interval] = min(1.0 / (count * epochs), 0.999)
    if not held_out and not values.get("test_datasets"):
        values.pop("eval_steps", None)
        values["eval_strategy"] = "no"
    elif "eval_steps" in values:
        values.setdefault("eval_strategy", "steps")


AXOLOTL = Tool(
    "axolotl",
    (
        "base_model",
        "micro_batch_size",
        "num_epochs",
        "sequence_len",
        "sample_packing",
        "lora_target_linear",
    ),
    {
        **_LORA,
        "lora_fan_in_fan_out": "adapter.fan_in_fan_out",
        "peft_layers_to_transform": "adapter.layers_to_transform",
        "peft_layers_pattern": "adapter.layers_pattern",
        "peft_use_dora": "adapter.use_dora",
        "peft_use_rslora": "adapter.use_rslora",
        "peft_layer_replication": "adapter.layer_replication",
        "peft_init_lora_weights": "adapter.init_lora_weights",
        "peft_trainable_token_indices": "adapter.trainable_token_indices",
        "peft_ensure_weight_tying": "adapter.ensure_weight_tying",
        "micro_batch_size": "arguments.per_device_train_batch_size",
        "eval_batch_size": "arguments.per_device_eval_batch_size",
        "num_epochs": "arguments.num_train_epochs",
        "optimizer": "arguments.optim",
        "lr_scheduler": "arguments.lr_scheduler_type",
    },
    _axolotl,
)


TOOLS = {"trl": TRL, "llama-factory": LLAMA_FACTORY, "axolotl": AXOLOTL}
