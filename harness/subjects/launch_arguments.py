"""What a LaunchSpec means to the Trainer: strategies, their TrainingArguments, and which of them cannot run here."""

from __future__ import annotations

import os
from typing import Any

from harness import lacking
from harness.environment import gpus, version
from harness.errors import UsageError
from harness.spec import LaunchSpec

#: Name of each strategy -> what it spreads over the ranks.
STRATEGIES = {
    "single": "nothing: one process",
    "ddp": "the rows",
    "fsdp1": "rows, parameters, gradients and optimizer state, in flat parameters",
    "fsdp2": "rows, parameters, gradients and optimizer state, in DTensors",
    "loaded": "rows and the base's parameters, in DTensors, as it is loaded: from_pretrained(distributed_config=...)",
    "tp": "the base's layers, each split over the ranks as it is loaded: from_pretrained(distributed_config=...)",
    "zero1": "rows and optimizer state",
    "zero2": "rows, gradients and optimizer state",
    "zero3": "rows, parameters, gradients and optimizer state, by DeepSpeed",
}


def unsupported(launch: LaunchSpec) -> str | None:
    """Return why ranks of this launch cannot be started here, None if they can. UsageError for an unknown strategy."""
    if launch.strategy not in STRATEGIES:
        raise UsageError(f"launch strategy {launch.strategy!r} is none of {', '.join(STRATEGIES)}")
    if not launch.several:
        return None if launch.ranks == 1 else f"strategy 'single' is one process, not {launch.ranks} ranks"
    if launch.deepspeed and version("deepspeed") is None:
        return "deepspeed is not installed (pip install 'peft-harness[deepspeed]')"
    if launch.strategy == "tp" and (reason := lacking.tensor_parallelism() or _not_divided(launch)) is not None:
        return reason
    if launch.strategy in ("loaded", "tp"):
        import torch

        if (reason := lacking.sharded_loading()) is not None:
            return reason
        if launch.device == "cpu" and torch.cuda.is_available():
            return "a base that is sharded or split while it loads goes to the GPU that torch finds"
    if launch.strategy == "fsdp2" and (reason := lacking.fsdp2()) is not None:
        return reason
    if not hasattr(os, "fork"):
        return "ranks need a system that has fork"
    if launch.device == "cpu" and launch.strategy == "fsdp2" and launch.cpu_offload:
        return "cpu_offload of FSDP2 pins memory, which needs a GPU"
    if launch.strategy == "fsdp1" and flat(launch):
        return "torch shows nobody the gradients of FSDP1's flat parameters (use_orig_params: false)"
    if launch.device == "cuda" and (there := len(gpus())) < launch.ranks:
        return f"{launch.ranks} ranks need {launch.ranks} GPUs, there are {there}"
    return too_many(launch.ranks, "ranks") if launch.device == "cpu" else None


def flat(launch: LaunchSpec) -> bool:
    """Return whether FSDP1 is asked to keep its flat parameters to itself, of which gradients cannot be read."""
    return str(launch.options.get("use_orig_params", True)).lower() == "false"


def _not_divided(launch: LaunchSpec) -> str | None:
    groups = launch.row_ranks
    given = launch.options.get("fsdp_size", 1)
    if given != groups or launch.ranks % groups or launch.ranks == groups:
        return f"tensor parallelism cannot split layers over {launch.ranks} ranks with fsdp_size {given!r}"
    return None


def distributed_config(launch: LaunchSpec) -> dict[str, Any]:
    """Return the fields of transformers' DistributedConfig for a base that is split while it is loaded."""
    if launch.strategy == "loaded":
        return {"fsdp_size": launch.ranks}
    return {"tp_size": launch.ranks // launch.row_ranks, **launch.options}


def too_many(processes: int, what: str) -> str | None:
    """Return why so many processes cannot run here at once, None if they can: four for each core, and 16 anywhere."""
    cores = os.cpu_count() or 1
    most = max(16, 4 * cores)
    return f"{processes} {what} are too many for {cores} cores, which take {most}" if processes > most else None


def arguments(launch: LaunchSpec) -> dict[str, Any]:
    """Return the TrainingArguments of a launch, by field name. Empty for "single", "ddp", "loaded" and "tp"."""
    if launch.strategy in ("fsdp1", "fsdp2"):
        config: dict[str, Any] = {"version": int(launch.strategy[-1])}
        if launch.state_dict_type is not None:
            config["state_dict_type"] = launch.state_dict_type
        if launch.activation_checkpointing:
            config["activation_checkpointing"] = True
        if launch.cpu_offload:
            config["cpu_offload"] = True
        config |= launch.options
        if launch.shimmed and launch.strategy == "fsdp1":
            # accelerate would look for a GPU to sync them on. Without that each rank needs the weights.
            config["sync_module_states"] = config["cpu_ram_efficient_loading"] = False
        return {"fsdp": True, "fsdp_config": config}
    if launch.deepspeed:
        return {"deepspeed": _deepspeed(launch)}
    return {}


def _deepspeed(launch: LaunchSpec) -> dict[str, Any]:
    """Return the DeepSpeed config of a launch."""
    stage = int(launch.strategy[-1])
    zero: dict[str, Any] = {"stage": stage}
    if launch.cpu_offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        # By default parameters of fewer than 100,000 elements are not partitioned, which is all of a small adapter.
        zero["stage3_param_persistence_threshold"] = 0
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        # The optimizer is the Trainer's, as under every other strategy.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **launch.options,
        "zero_optimization": zero | launch.options.get("zero_optimization", {}),
    }
