"""A configuration of `accelerate launch`, as `accelerate config` writes it: how a run is spread, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.brought.argument_names import unused
from harness.brought.notes import Notes
from harness.brought.settings_files import YAML, read_object
from harness.errors import UsageError
from harness.reading import shown, shown_path

#: A field that every such file has, and no other file that is read.
MARK = "distributed_type"

#: Kinds of processes that average their gradients, by how their names begin (MULTI_GPU, MULTI_CPU, MULTI_XPU ...).
_PLAIN = "MULTI_"

#: Fields that say where processes run and how they find each other. The harness starts two on this machine.
_PLACES = (
    *("compute_environment", "debug", "machine_rank", "main_process_ip", "main_process_port", "main_training_function"),
    *("rdzv_backend", "same_network", "gpu_ids", "use_cpu", "enable_cpu_affinity", "num_machines", "num_processes"),
    *("tpu_env", "tpu_use_cluster", "tpu_use_sudo", "tpu_name", "tpu_zone", "commands", "command_file"),
)

#: Keys of deepspeed_config, as accelerate asks for them -> where DeepSpeed's own file has them.
_ZERO = {"offload_optimizer_device": "offload_optimizer", "offload_param_device": "offload_param"}


@dataclass
class Launch:
    """What such a file asks for.

    - strategy: "single", "ddp", "fsdp" or "deepspeed".
    - options: fsdp_config, or the content of a DeepSpeed file; a text names a DeepSpeed file.
    - precision: "no", "bf16", "fp16" or another word of accelerate's.
    """

    strategy: str
    options: dict[str, Any] | str = field(default_factory=dict)
    precision: str = "no"


def is_file(name: str) -> bool:
    """Return whether what --launch names is a file, and no strategy."""
    return name.lower().endswith((*YAML, ".json")) or "/" in name


def read(path: str, ranks: int, notes: Notes) -> Launch:
    """Return what the file asks for. ranks: how many processes are started, if there are several.

    Raises UsageError for a file that is none of `accelerate launch`, and for processes that cannot be started here.
    """
    given = read_object(path, "accelerate launch")
    where = shown_path(path)
    if MARK not in given:
        raise UsageError(
            f"{where}: no configuration of `accelerate launch`, because it has no {MARK}; make one with it"
        )
    kind = str(given.pop(MARK)).upper()
    precision = given.pop("mixed_precision", "no")
    precision = "no" if unused(precision) else str(precision)
    fsdp, deepspeed = (_object(given.pop(name, {}), name, where) for name in ("fsdp_config", "deepspeed_config"))
    asked = given.get("num_processes")
    for name, value in given.items():
        if name not in _PLACES and not unused(value):
            notes.leave_out(
                f"launch.{name}", "a field of `accelerate launch` that has no part in this path, or is not known"
            )
    if kind == "NO":
        return Launch("single", precision=precision)
    if asked != ranks:
        notes.say(f"num_processes {shown(asked)}: {ranks} processes are started on this machine")
    if kind.startswith(_PLAIN):
        return Launch("ddp", precision=precision)
    if kind == "FSDP":
        # accelerate's own default is FSDP1, whatever the Trainer's is.
        return Launch("fsdp", {"fsdp_version": 1, **fsdp}, precision)
    if kind == "DEEPSPEED":
        return Launch("deepspeed", _deepspeed(deepspeed, notes), precision)
    raise UsageError(f"{where}, {MARK}: {shown(kind)} is not launched here; expected NO, MULTI_GPU, FSDP or DEEPSPEED")


def _object(value: Any, name: str, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}, {name}: expected `field: value` lines, found {shown(value)}")
    return {str(key): item for key, item in value.items()}


def _deepspeed(given: dict[str, Any], notes: Notes) -> dict[str, Any] | str:
    """Return what accelerate makes of its own fields: the content of a DeepSpeed file, or the name of one."""
    file = given.pop("deepspeed_config_file", None)
    if isinstance(file, str) and file:
        return file
    zero: dict[str, Any] = {"stage": given.pop("zero_stage", 2)}
    for name, part in _ZERO.items():
        device = given.pop(name, "none")
        if not unused(device):
            zero[part] = {"device": device}
    for name in ("gradient_accumulation_steps", "gradient_clipping"):
        if not unused(given.pop(name, None)):
            notes.say(f"deepspeed_config.{name} is that of the TrainingArguments")
    for name, value in given.items():
        if not unused(value):
            notes.leave_out(f"launch.deepspeed_config.{name}", "it does not change what is trained")
    return {"zero_optimization": zero}
