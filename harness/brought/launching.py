"""How a run is launched: --launch, and what deepspeed and fsdp in TrainingArguments ask for.

--launch is a strategy, or a file of `accelerate launch` (`accelerate_config`).

`harness.subjects.from_file` makes a launch of them, for every spec. Here is what a run that is made small needs besides.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.brought import accelerate_config
from harness.brought.argument_names import unused
from harness.brought.notes import Notes, listed
from harness.brought.settings_files import read_object
from harness.errors import UsageError
from harness.reading import shown, shown_path
from harness.spec import LaunchSpec, RunSpec
from harness.subjects import from_file
from harness.subjects.launch_arguments import STRATEGIES, flat

#: Ranks of a run of several. Two show whatever is wrong between ranks, and any machine has room for them.
RANKS = from_file.RANKS

_FIELDS = ("deepspeed", "fsdp", "fsdp_config")

#: Fields of a DeepSpeed config that transformers fills in from TrainingArguments, or that only print.
_FROM_ARGUMENTS = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
)

#: Fields of fsdp_config that are for TPUs, or choose layers by a size that a small model does not have.
_NOT_HERE = ("xla", "xla_fsdp_v2", "xla_fsdp_settings", "xla_fsdp_grad_ckpt", "min_num_params")


def named(name: str, device: str) -> LaunchSpec:
    """Return the launch that --launch names: a strategy, or "STRATEGY:RANKS". UsageError for another name."""
    match = re.fullmatch(r"(\w{1,20})(?::([0-9]{1,3}))?", name)
    if match is None or match[1] not in STRATEGIES or match[2] in ("0", "00", "000"):
        raise UsageError(
            f"--launch {shown(name)}: expected one of {', '.join(STRATEGIES)}, or one with a number of ranks, such as ddp:2"
        )
    ranks = int(match[2] or (1 if match[1] == "single" else RANKS))
    return LaunchSpec(device=device, strategy=match[1], ranks=ranks)


def take(arguments: dict[str, Any], name: str | None, where: str, device: str, notes: Notes) -> LaunchSpec:
    """Return the launch of a run, and take what asks for one out of `arguments`.

    - arguments: TrainingArguments in newest names; deepspeed, fsdp and fsdp_config are removed.
    - name: what --launch names; None leaves it to the arguments. A file of accelerate's may also set bf16 or fp16.
    - where: what messages call the arguments' file. Files that they name are looked for beside it, too.

    Raises UsageError for an unknown strategy, for a file that cannot be read, and for what cannot be run here.
    """
    given = {field: arguments.pop(field) for field in _FIELDS if not unused(arguments.get(field))}
    for field in _FIELDS:
        arguments.pop(field, None)
    if name is not None and accelerate_config.is_file(name):
        return _accelerate(name, arguments, given, where, device, notes)
    if name is not None:
        if given.keys() - {"fsdp_config"}:
            notes.say(f"--launch {name} counts, and not what the arguments say about deepspeed and fsdp")
        return named(name, device)
    if "deepspeed" in given:
        return _deepspeed(given["deepspeed"], where, device, notes)
    if "fsdp" in given:
        return _fsdp(given, where, device, notes)
    return LaunchSpec(device=device)


def _accelerate(
    file: str, arguments: dict[str, Any], given: Mapping[str, Any], where: str, device: str, notes: Notes
) -> LaunchSpec:
    """Return the launch that a file of `accelerate launch` asks for. given: what the arguments say of a launch."""
    asked = accelerate_config.read(file, RANKS, notes)
    if asked.precision in ("bf16", "fp16") and not (arguments.get("bf16") or arguments.get("fp16")):
        arguments[asked.precision] = True
        notes.say(f"mixed_precision: {asked.precision} of {shown_path(file)} is read as {asked.precision}")
        if asked.precision == "fp16" and device == "cpu":
            arguments.pop("fp16")
            notes.leave_out("fp16", "float16 needs a GPU, and the run is on the CPU, in float32")
    elif asked.precision not in ("no", "bf16", "fp16"):
        notes.leave_out("launch.mixed_precision", f"{shown(asked.precision)} is not trained here")
    # The Trainer's own arguments count before what accelerate's file says (training_args.py).
    if "deepspeed" in given:
        return _deepspeed(given["deepspeed"], where, device, notes)
    if "fsdp" in given:
        return _fsdp(given, where, device, notes)
    if asked.strategy == "deepspeed":
        return _deepspeed(asked.options, file, device, notes)
    if asked.strategy == "fsdp":
        return _fsdp({"fsdp": True, "fsdp_config": asked.options}, file, device, notes)
    notes.say(f"trained by {asked.strategy}, as {shown_path(file)} says")
    ranks = 1 if asked.strategy == "single" else RANKS
    return LaunchSpec(device=device, strategy=asked.strategy, ranks=ranks)


def _launched(arguments: Mapping[str, Any], where: str, device: str, notes: Notes) -> LaunchSpec:
    spec = RunSpec(arguments={"report_to": "none", **arguments}, launch=LaunchSpec(device=device))
    made, sentences = from_file.as_run(spec, where)
    for sentence in sentences:
        notes.say(sentence)
    return made.launch


def _object(value: Any, field: str, where: str) -> dict[str, Any]:
    """Return the options that a field holds or names: an object, or a JSON or YAML file."""
    if isinstance(value, Mapping):
        return {str(name): item for name, item in value.items()}
    if not isinstance(value, str):
        raise UsageError(f"{where}, {field}: expected an object or a file, found {shown(value)}")
    beside = Path(where).parent / value
    return read_object(beside if beside.exists() and not Path(value).exists() else value, field)


def _fsdp(given: Mapping[str, Any], where: str, device: str, notes: Notes) -> LaunchSpec:
    config = _object(given["fsdp_config"], "fsdp_config", where) if "fsdp_config" in given else {}
    config = {name.removeprefix("fsdp_"): value for name, value in config.items() if value is not None and value != ""}
    for name in _NOT_HERE:
        if not unused(config.pop(name, None)):
            notes.leave_out(
                f"fsdp_config.{name}", "for TPUs, or chooses layers by a size that a small model does not have"
            )
    sharding = config.pop("sharding_strategy", None)  # as accelerate's own file has it
    words = given["fsdp"]
    if sharding is not None and words is True:
        numbers = {"1": "FULL_SHARD", "2": "SHARD_GRAD_OP"}
        words = numbers.get(str(sharding), str(sharding)).lower()
    launch = _launched({"fsdp": words, "fsdp_config": config}, where, device, notes)
    if launch.cpu_offload and launch.strategy == "fsdp2" and device == "cpu":
        notes.leave_out("fsdp_config.offload_params", "it pins memory, which needs a GPU")
        launch = dataclasses.replace(launch, cpu_offload=False)
    if launch.strategy == "fsdp1" and flat(launch):
        notes.leave_out(
            "fsdp_config.use_orig_params", "torch shows nobody the gradients of flat parameters; it is true"
        )
        launch = dataclasses.replace(launch, options={**launch.options, "use_orig_params": True})
    return launch


def _deepspeed(given: Any, where: str, device: str, notes: Notes) -> LaunchSpec:
    options = _object(given, "deepspeed", where)
    zero = options.get("zero_optimization")
    zero = dict(zero) if isinstance(zero, Mapping) else {}
    if zero.get("stage", 0) == 0:
        notes.leave_out("deepspeed", "stage 0 is plain data parallelism by DeepSpeed; the run is launched as ddp")
        return LaunchSpec(device=device, strategy="ddp", ranks=RANKS)
    for part in ("offload_optimizer", "offload_param"):
        if isinstance(zero.get(part), Mapping) and zero[part].get("device") == "nvme":
            zero[part] = {"device": "cpu"}
            notes.leave_out(f"deepspeed.{part}", "what is swapped to a disk stays on the CPU instead")
    kept = {name: value for name, value in options.items() if name not in _FROM_ARGUMENTS}
    if device == "cpu" and kept.pop("fp16", None) is not None:
        notes.leave_out("deepspeed.fp16", "float16 needs a GPU")
    launch = _launched({"deepspeed": {**kept, "zero_optimization": zero}}, where, device, notes)
    sizes = [name for name in zero if name not in ("stage", "offload_optimizer", "offload_param")]
    if sizes:
        notes.leave_out("deepspeed.zero_optimization", f"sizes for a large model are not used: {listed(sizes)}")
    # The launch has the stage and where the state lies; the rest of zero_optimization is the harness's own.
    kept = {name: value for name, value in launch.options.items() if name != "zero_optimization"}
    return dataclasses.replace(launch, options=kept)
