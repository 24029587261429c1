"""How a run is launched: --launch, and what deepspeed and fsdp in TrainingArguments ask for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.brought.files import read_object
from harness.brought.names import unused
from harness.brought.notes import Notes
from harness.errors import UsageError
from harness.reading import shown, shown_path
from harness.spec import LaunchSpec
from harness.subjects.launch_arguments import STRATEGIES

#: Ranks of a run of several. Two show whatever is wrong between ranks, and any machine has room for them.
RANKS = 2

#: Fields of fsdp_config that a LaunchSpec has of its own.
_OWN = ("version", "state_dict_type", "activation_checkpointing", "cpu_offload", "offload_params")

#: Fields of fsdp_config that are for TPUs, or for a model that is loaded in ranks.
_NOT_HERE = ("xla", "xla_fsdp_v2", "xla_fsdp_settings", "xla_fsdp_grad_ckpt", "min_num_params")

#: Fields of a DeepSpeed config that follow from TrainingArguments. "auto" lets transformers fill them in.
_AUTO = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("steps_per_print", "wall_clock_breakdown"),
)


def read_launch(
    name: str | None, arguments: dict[str, Any], where: str, notes: Notes, device: str = "cpu"
) -> LaunchSpec:
    """Return the launch of a run, and take what asks for it out of `arguments`.

    - name: what --launch names: a strategy, or "STRATEGY:RANKS"; None leaves it to the arguments.
    - arguments: TrainingArguments in newest names; deepspeed, fsdp and fsdp_config are removed.
    - where: what messages call the arguments' source. Files that they name are looked for beside it, too.

    Raises UsageError for an unknown strategy, and for a file that cannot be read.
    """
    deepspeed, fsdp, config = (arguments.pop(field, None) for field in ("deepspeed", "fsdp", "fsdp_config"))
    if name is not None:
        strategy, ranks = _named(name)
        if not unused(deepspeed) or not unused(fsdp):
            notes.say(f"--launch {name} counts, and not what the arguments say about deepspeed and fsdp")
        return LaunchSpec(device=device, strategy=strategy, ranks=ranks)
    if not unused(deepspeed):
        return _deepspeed(_object(deepspeed, "deepspeed", where), device, notes)
    if not unused(fsdp):
        given = {} if unused(config) else _object(config, "fsdp_config", where)
        return _fsdp(fsdp, given, device, notes)
    return LaunchSpec(device=device)


def _named(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\w{1,20})(?::([0-9]{1,3}))?", name)
    if match is None or match[1] not in STRATEGIES or match[2] == "0":
        raise UsageError(
            f"--launch {shown(name)}: expected one of {', '.join(STRATEGIES)}, or such a name with ranks as ddp:2"
        )
    return match[1], int(match[2] or (1 if match[1] == "single" else RANKS))


def _object(value: Any, field: str, where: str) -> dict[str, Any]:
    """Return the options that a field holds or names: an object, or the path of a JSON or YAML file."""
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, str):
        raise UsageError(f"{where}, {field}: expected an object or a file, found {shown(value)}")
    beside = Path(where).parent / value
    return read_object(value if Path(value).exists() or not beside.exists() else beside, field)


# ---- FSDP ----


def _fsdp(fsdp: Any, given: Mapping[str, Any], device: str, notes: Notes) -> LaunchSpec:
    words = (
        [str(word) for word in fsdp] if isinstance(fsdp, list) else str(fsdp).split() if isinstance(fsdp, str) else []
    )
    config = {str(name).removeprefix("fsdp_"): value for name, value in given.items()}
    version = config.get("version", 1 if words else 2)
    if version not in (1, 2, "1", "2"):
        raise UsageError(f"fsdp_config, version: expected 1 or 2, found {shown(version)}")
    strategy = f"fsdp{version}"
    options = {
        name: value
        for name, value in config.items()
        if name not in (*_OWN, *_NOT_HERE) and value is not None and value != ""
    }
    options.pop("sharding_strategy", None)
    sharding = config.get("sharding_strategy") or next((word for word in words if "shard" in word), None)
    if "reshard_after_forward" not in options and sharding is not None:
        options["reshard_after_forward"] = _resharding(str(sharding), strategy)
    if strategy == "fsdp1":
        # transformers reads a Boolean or a word there; True is its own default.
        options = {
            name: value for name, value in options.items() if name != "reshard_after_forward" or value != "full_shard"
        }
    for name in [name for name in _NOT_HERE if not unused(config.get(name))]:
        notes.leave_out(
            f"fsdp_config.{name}", "it is for TPUs, or chooses layers by a size that a small model does not have"
        )
    kinds = options.pop("transformer_layer_cls_to_wrap", None)
    if kinds is not None:
        options["transformer_layer_cls_to_wrap"] = kinds if isinstance(kinds, list) else str(kinds).split(",")
    offload = bool(config.get("cpu_offload") or _true(config.get("offload_params")) or "offload" in words)
    state = config.get("state_dict_type")
    notes.say(f"fsdp: launched as {strategy} with {RANKS} ranks")
    return LaunchSpec(
        device=device,
        strategy=strategy,
        ranks=RANKS,
        state_dict_type=state if state in ("FULL_STATE_DICT", "SHARDED_STATE_DICT") else None,
        activation_checkpointing=_true(config.get("activation_checkpointing")),
        cpu_offload=offload,
        options=options,
    )


def _resharding(word: str, strategy: str) -> Any:
    """Return reshard_after_forward for the name of a sharding strategy, as each version of FSDP has it."""
    known = {"1": "full_shard", "2": "shard_grad_op", "3": "no_shard", "4": "hybrid_shard"}
    name = known.get(word, word.lower())
    return name if strategy == "fsdp1" else name in ("full_shard", "hybrid_shard")


def _true(value: Any) -> bool:
    return value is True or str(value).lower() == "true"


# ---- DeepSpeed ----


def _deepspeed(given: Mapping[str, Any], device: str, notes: Notes) -> LaunchSpec:
    zero = given.get("zero_optimization")
    zero = dict(zero) if isinstance(zero, Mapping) else {}
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UsageError(f"deepspeed, zero_optimization, stage: expected 0 to 3, found {shown(stage)}")
    offload = any(_offloads(zero, part, notes) for part in ("offload_optimizer", "offload_param"))
    if stage == 0:
        notes.leave_out("deepspeed", "stage 0 is plain data parallelism by DeepSpeed; the run is launched as ddp")
        return LaunchSpec(device=device, strategy="ddp", ranks=RANKS)
    options = {name: value for name, value in given.items() if name not in (*_AUTO, "zero_optimization")}
    for part in ("fp16", "bf16"):
        if device == "cpu" and part == "fp16" and isinstance(options.get(part), Mapping):
            del options[part]
            notes.leave_out("deepspeed.fp16", "float16 needs a GPU")
    extra = {name: value for name, value in zero.items() if name not in ("stage", "offload_optimizer", "offload_param")}
    if extra:
        notes.leave_out(
            f"deepspeed.zero_optimization ({', '.join(shown_path(str(name))[:60] for name in extra)})",
            "sizes of buckets and overlaps, which are made for a large model",
        )
    notes.say(f"deepspeed: launched as zero{stage} with {RANKS} ranks")
    return LaunchSpec(device=device, strategy=f"zero{stage}", ranks=RANKS, cpu_offload=offload, options=options)


def _offloads(zero: Mapping[str, Any], part: str, notes: Notes) -> bool:
    given = zero.get(part)
    where = given.get("device", "none") if isinstance(given, Mapping) else "none"
    if where == "nvme":
        notes.leave_out(f"deepspeed.{part}", "what is swapped to a disk is kept on the CPU instead")
    return where in ("cpu", "nvme")
