"""The configuration file of a tool that trains adapters: TRL, LLaMA-Factory or axolotl. Which one, its fields say.

A tool is a table of its fields (`Tool.fields`), and a function for those that need more than another name. What neither
takes is listed as not looked at.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import compat
from harness.brought.accelerate_config import MARK
from harness.brought.argument_names import unused
from harness.brought.notes import Notes
from harness.brought.settings_files import read_object
from harness.errors import UsageError
from harness.reading import shown, shown_path

#: Fields that concern none of what is judged, by how their names begin -> why.
_ELSEWHERE = {
    "wandb": "reports to somebody else",
    "mlflow": "reports to somebody else",
    "comet": "reports to somebody else",
    "swanlab": "reports to somebody else",
    "trackio": "reports to somebody else",
    "use_wandb": "reports to somebody else",
    "hub": "a run sends nothing to the hub",
    "push": "a run sends nothing to the hub",
    "dataset": "the rows are made, or those of --data",
    "test_dataset": "the rows are made, or those of --data",
    "eval_dataset": "the rows are made, or those of --data",
    "chat_template": "no tokenizer is used",
    "template": "no tokenizer is used",
    "tokenizer": "no tokenizer is used",
    "special_tokens": "no tokenizer is used",
    "tokens": "no tokenizer is used",
    "preprocessing": "the rows are made, or those of --data",
    **dict.fromkeys(
        (
            *("packing_strategy", "eval_packing", "eval_sample_packing", "pad_to_", "max_samples", "overwrite_cache"),
            *("truncation_mode", "shuffle_dataset", "val_", "roles_to_train", "sample_packing_", "streaming"),
        ),
        "the rows are made, or those of --data",
    ),
    **dict.fromkeys(
        ("assistant_only_loss", "completion_only_loss", "train_on_", "mask_history"),
        "which labels count is decided by the rows",
    ),
    **dict.fromkeys(("loss_type", "use_dft_loss", "dft_", "use_asft"), "a loss of the tool's own, which is not judged"),
    **dict.fromkeys(
        (
            *("use_unsloth", "unsloth", "shift_attn", "plugins", "liger_", "activation_offloading", "xformers", "s2_"),
            *("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "upcast_", "embeddings_skip", "cut_cross_"),
        ),
        "the tool changes the model's code for it, which is not judged",
    ),
    "cosine_": "a schedule of the tool's own, which is not judged",
    "plot_loss": "reports to somebody else",
    "eos_token": "no tokenizer is used",
    "pad_token": "no tokenizer is used",
    "trust_remote_code": "no code of a model is run",
    **dict.fromkeys(
        ("model_type", "model_revision", "revision_of_model", "type_of_model", "is_llama", "is_mistral", "is_falcon"),
        "the base is that of --model, or made",
    ),
}


@dataclass
class Parts:
    """What a tool's file says, in the words of peft and transformers.

    - adapter: fields of an adapter_config.json; None if the file trains no adapter.
    - arguments: fields of TrainingArguments, of any release.
    - model: the base model that it names.
    - dtype: of the base's weights; None leaves it to the model's config.
    - quantization: a quantization_config; None for none.
    - attention: attn_implementation; None leaves it to transformers.
    - length: tokens to which rows are cut; None if the file says none.
    - collator: a collator of `harness.fixtures.collators`.
    - trainer: other entries of RunSpec.trainer.
    - prompts_left_out: whether the labels of prompts do not count.
    - prepares: whether the tool calls peft's prepare_model_for_kbit_training.
    """

    adapter: dict[str, Any] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    dtype: str | None = None
    quantization: dict[str, Any] | None = None
    attention: str | None = None
    length: int | None = None
    collator: str | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    prompts_left_out: bool = False
    prepares: bool = False


@dataclass(frozen=True)
class Tool:
    """A tool's file.

    - title: what messages call the tool.
    - marks: fields by which its files are known. No other tool has them.
    - fields: field -> "arguments.NAME" or "adapter.NAME".
    - read: takes the other fields that it knows out of the first argument, and adds to the parts.
    """

    title: str
    marks: tuple[str, ...]
    fields: Mapping[str, str]
    read: Callable[[dict[str, Any], Parts, str, Notes], None]


def read_configuration(path: str | Path, kind: str | None, tools: Mapping[str, Tool], notes: Notes) -> Parts:
    """Return what the configuration file of a tool says.

    - kind: the name of a tool; None: its fields tell.
    - tools: those that are known, by name.

    Raises UsageError for a file that cannot be read, that is of no known tool, or that trains no adapter.
    """
    given = read_object(path, "a configuration of TRL, LLaMA-Factory or axolotl")
    where = shown_path(path)
    tool = tools.get(kind or "") or _recognised(given, kind, tools, where, notes)
    values = {name: value for name, value in given.items() if value is not None and value != ""}
    parts = Parts()
    tool.read(values, parts, where, notes)
    for name, target in tool.fields.items():
        if name in values:
            _put(parts, target, values.pop(name))
    known = compat.all_argument_names()
    for name in list(values):
        if name in known:
            parts.arguments.setdefault(name, values.pop(name))
    for name, value in values.items():
        if unused(value):
            continue
        start = next((why for start, why in _ELSEWHERE.items() if name.startswith(start)), None)
        notes.leave_out(name, start or _unknown(name, tool, known))
    return parts


def _unknown(name: str, tool: Tool, arguments: Collection[str]) -> str:
    """Return why a field that no table has is not looked at, with the field that may have been meant."""
    near = difflib.get_close_matches(name[:100], sorted({*tool.fields, *tool.marks, *arguments}), n=1, cutoff=0.85)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"a field of {tool.title} that has no part in this path, or is not known{hint}"


def _recognised(
    given: Mapping[str, Any], kind: str | None, known: Mapping[str, Tool], where: str, notes: Notes
) -> Tool:
    if MARK in given:
        raise UsageError(f"{where}: a configuration of `accelerate launch`; name it with --launch")
    if kind is not None:
        raise UsageError(f"--config-kind {shown(kind)}: expected one of {', '.join(known)}")
    counts = {name: sum(mark in given for mark in tool.marks) for name, tool in known.items()}
    best = max(counts, key=lambda name: counts[name])
    if not counts[best] or sum(count == counts[best] for count in counts.values()) > 1:
        raise UsageError(
            f"{where}: its fields do not say whether it is of TRL, LLaMA-Factory or axolotl; say it with --config-kind "
            f"{'|'.join(known)}, or name TrainingArguments with --arguments"
        )
    notes.say(f"{where} is read as a configuration of {known[best].title}")
    return known[best]


def _put(parts: Parts, target: str, value: Any) -> None:
    part, _, name = target.partition(".")
    if part == "arguments":
        parts.arguments[name] = value
    elif parts.adapter is not None:
        parts.adapter[name] = value


# ---- what the tools' readers share ----


def names(value: Any, where: str, field_name: str) -> list[str]:
    """Return a list of names, which some tools write with commas. UsageError if it is none."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise UsageError(f"{where}, {field_name}: expected a list of names, found {shown(value)}")


def pack(parts: Parts, notes: Notes, without_padding: bool = False) -> None:
    """Let rows be packed: several in one sequence, or all of a batch in one sequence without padding."""
    parts.collator = f"harness.fixtures.collators:{'padding_free' if without_padding else 'packed'}"
    notes.say("rows are packed batch by batch, not over the whole data set as the tool does")


def loraplus(values: dict[str, Any], parts: Parts) -> None:
    """Take LoRA+'s ratio of learning rates, if it is there."""
    ratio = values.pop("loraplus_lr_ratio", None)
    if isinstance(ratio, (int, float)) and not isinstance(ratio, bool):
        parts.trainer["optimizers"] = ["harness.fixtures.optimizers:loraplus", {"loraplus_lr_ratio": float(ratio)}]


def bits(values: Mapping[str, Any], compute: str | None) -> dict[str, Any] | None:
    """Return the quantization_config of load_in_4bit and load_in_8bit; None if neither is set."""
    if values.get("load_in_4bit"):
        made = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": values.get("bnb_4bit_quant_type", "nf4"),
            "bnb_4bit_use_double_quant": bool(values.get("bnb_4bit_use_double_quant", False)),
        }
        storage = values.get("bnb_4bit_quant_storage")
        return {
            **made,
            **({"bnb_4bit_compute_dtype": compute} if compute else {}),
            **({"bnb_4bit_quant_storage": storage} if storage else {}),
        }
    return {"load_in_8bit": True} if values.get("load_in_8bit") else None
