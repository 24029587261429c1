"""How a LaunchSpec becomes ranks: what the Trainer is told, and what each rank does and hands back."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import compat, ranks, slots
from harness.environment import gpus, version
from harness.errors import UsageError
from harness.observe import Observer
from harness.spec import LaunchSpec, RunSpec
from harness.trace import Trace

if TYPE_CHECKING:
    from harness.subjects.hf_trainer import HFTrainer

#: Ways to spread a run, and what each spreads.
STRATEGIES = {
    "single": "nothing: one process",
    "ddp": "the rows",
    "fsdp1": "rows, parameters, gradients and optimizer state, in flat parameters",
    "fsdp2": "rows, parameters, gradients and optimizer state, in DTensors",
    "loaded": "rows and the base's parameters, in DTensors, as it is loaded: from_pretrained(distributed_config=...)",
    "zero1": "rows and optimizer state",
    "zero2": "rows, gradients and optimizer state",
    "zero3": "rows, parameters, gradients and optimizer state, by DeepSpeed",
}

#: Seconds more for ranks on GPUs: of many groups at once each makes its CUDA contexts, and NCCL meets.
_CONTEXTS = 60.0

#: Seconds for ranks of DeepSpeed that may compile an extension first, which is then kept.
_COMPILING = 900.0


def unsupported(launch: LaunchSpec) -> str | None:
    """Why ranks of this launch cannot be started here, None where they can. UsageError for an unknown strategy."""
    if launch.strategy not in STRATEGIES:
        raise UsageError(f"launch strategy {launch.strategy!r} is none of {', '.join(STRATEGIES)}")
    if not launch.several:
        return None if launch.ranks == 1 else f"strategy 'single' is one process, not {launch.ranks} ranks"
    if launch.strategy.startswith("zero") and version("deepspeed") is None:
        return "deepspeed is not installed (pip install 'peft-harness[deepspeed]')"
    if launch.strategy == "loaded":
        import torch

        if (reason := compat.missing_sharded_loading()) is not None:
            return reason
        if launch.device == "cpu" and torch.cuda.is_available():
            return "a base that is sharded as it is loaded goes to the GPU that torch finds"
    if launch.strategy == "fsdp2" and (reason := compat.missing_fsdp2()) is not None:
        return reason
    if not hasattr(os, "fork"):
        return "ranks need a system that has fork"
    if launch.device == "cpu" and launch.strategy == "fsdp2" and launch.cpu_offload:
        return "cpu_offload of FSDP2 pins memory, which takes a GPU"
    if launch.device == "cuda" and (there := len(gpus())) < launch.ranks:
        return f"{launch.ranks} ranks need {launch.ranks} GPUs, there are {there}"
    return None


def arguments(launch: LaunchSpec) -> dict[str, Any]:
    """The TrainingArguments that a launch stands for."""
    if launch.strategy in ("fsdp1", "fsdp2"):
        config: dict[str, Any] = {"version": int(launch.strategy[-1])}
        if launch.state_dict_type is not None:
            config["state_dict_type"] = launch.state_dict_type
        if launch.activation_checkpointing:
            config["activation_checkpointing"] = True
        if launch.cpu_offload:
            config["cpu_offload"] = True
        if launch.shimmed and launch.strategy == "fsdp1":
            config["sync_module_states"] = False  # accelerate looks for a GPU to sync them on
        return {"fsdp": True, "fsdp_config": {**config, **launch.options}}
    if launch.strategy.startswith("zero"):
        return {"deepspeed": _deepspeed(launch)}
    return {}


def _deepspeed(launch: LaunchSpec) -> dict[str, Any]:
    stage = int(launch.strategy[-1])
    zero: dict[str, Any] = {"stage": stage}
    if launch.cpu_offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        # By default parameters of less than 100,000 elements are not partitioned: every one of an adapter's.
        zero["stage3_param_persistence_threshold"] = 0
    return {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        # The optimizer is the Trainer's, as under every other strategy.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **launch.options,
    }


def environment(launch: LaunchSpec) -> dict[str, str]:
    """Variables of the ranks' environment."""
    # accelerate otherwise gives each rank as many threads as there are cores for it, whatever the spec says.
    values = {"OMP_NUM_THREADS": str(launch.threads)} if launch.threads else {}
    if version("deepspeed") is not None and launch.device == "cpu":
        values |= {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"}
        # Extensions that a user's config asks for are built by ninja, which pip puts beside the interpreter.
        values["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return values


def train(subject: HFTrainer, spec: RunSpec, directory: Path) -> Trace:
    """Train a spec in as many processes as it asks for, and return rank 0's trace with the others' in it.

    Where the group fails, `Trace.error` says which rank and why, and the trace is that of the lowest rank that left one.
    """
    call = functools.partial(_rank, subject, spec, directory)
    try:
        pickle.dumps(call)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"subject {subject.name!r} cannot be handed to ranks ({error}): its trainer class and functions must be "
            "found by name in a module"
        ) from None
    launch, failure = spec.launch, None
    try:
        run(call, launch, directory / "ranks")
    except ranks.RanksFailed as failed:
        failure = str(failed)
    left = [_trace_directory(directory, rank) for rank in range(launch.ranks)]
    traces = [Trace.load(one) for one in left if (one / "trace.json").is_file()]
    if not traces:
        traces = [Observer(spec, subject.name, (), directory).finish()]
    trace, *others = traces
    trace.ranks = others
    if failure is not None:
        trace.error = failure
    return trace


def run(call: Callable[[], Any], launch: LaunchSpec, directory: Path) -> None:
    """Call it in each rank of a launch. RanksFailed says which rank failed, and why."""
    limit = (launch.limit or ranks.LIMIT) + (_CONTEXTS if launch.device == "cuda" else 0.0)
    partitioned = launch.strategy.startswith("zero")
    # Only what a user asks for by DeepSpeed's config takes an extension that it compiles.
    compiles = partitioned and (bool(launch.options) or launch.cpu_offload)
    # Where it is installed accelerate imports it in every process, to look whether a model is one of its engines (2 s).
    imports = ("deepspeed",) if version("deepspeed") is not None else ()
    group = ranks.Group(
        call,
        launch.ranks,
        directory,
        limit=max(limit, _COMPILING) if compiles else limit,
        backend="gloo" if launch.device == "cpu" else None,
        environment=environment(launch),
        imports=(*imports, *["harness.partitioned"] * (partitioned and launch.device == "cpu")),
    )
    with slots.extensions() if compiles else contextlib.nullcontext(), slots.gpus(launch):
        ranks.run(group)


def _trace_directory(directory: Path, rank: int) -> Path:
    return directory / "ranks" / f"trace-{rank}"


def settle(launch: LaunchSpec) -> None:
    """Set this rank's process up for what it is to train: threads, its GPU, shims."""
    import torch

    if launch.threads:
        torch.set_num_threads(launch.threads)
    if launch.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if launch.shimmed:
        from harness.shims import fsdp_on_cpu

        fsdp_on_cpu()
    if launch.device == "cpu" and launch.strategy.startswith("zero"):
        # A fork has it; one that torchrun started has not.
        importlib.import_module("harness.partitioned")


def _rank(subject: HFTrainer, spec: RunSpec, directory: Path) -> None:
    settle(spec.launch)
    if subject.in_each_rank is not None:
        subject.in_each_rank()
    trace = subject.train_here(spec, directory)
    trace.distributed["rank"] = int(os.environ["RANK"])
    trace.save(_trace_directory(directory, int(os.environ["RANK"])))
    if trace.error is not None:
        raise RuntimeError(trace.error)
