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
from typing import Any

from harness.environment import version
from harness.errors import UsageError
from harness.processes import gpu_locks, ranks
from harness.processes.group import LIMIT, Group, RanksFailed
from harness.spec import LaunchSpec, RunSpec
from harness.subjects import Subject
from harness.subjects.observer import Observer
from harness.trace import Trace

#: Seconds more for ranks on GPUs: of many groups at once each makes its CUDA contexts, and NCCL meets.
_CONTEXTS = 60.0

#: Seconds for ranks of DeepSpeed that may compile an extension first, which is then kept.
_COMPILING = 900.0


def environment(launch: LaunchSpec) -> dict[str, str]:
    """Variables of the ranks' environment."""
    # accelerate otherwise gives each rank as many threads as there are cores for it, whatever the spec says.
    values = {"OMP_NUM_THREADS": str(launch.threads)} if launch.threads else {}
    if version("deepspeed") is not None and launch.device == "cpu":
        values |= {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"}
        # Extensions that a user's config asks for are built by ninja, which pip puts beside the interpreter.
        values["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return values


def train(subject: Subject, spec: RunSpec, directory: Path) -> Trace:
    """Train a spec in as many processes as it asks for, and return rank 0's trace with the others' in it.

    In a run of several ranks each rank calls `subject.train`, so the subject is pickled. If the group fails,
    `Trace.error` says which rank failed and why, and the trace is that of the lowest rank that left one.
    """
    if not spec.launch.several:
        return subject.train(spec, directory)
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
    except RanksFailed as failed:
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
    limit = (launch.limit or LIMIT) + (_CONTEXTS if launch.device == "cuda" else 0.0)
    partitioned = launch.strategy.startswith("zero")
    # Only what a user asks for by DeepSpeed's config takes an extension that it compiles.
    compiles = partitioned and (bool(launch.options) or launch.cpu_offload)
    # Where it is installed accelerate imports it in every process, to look whether a model is one of its engines (2 s).
    imports = ("deepspeed",) if version("deepspeed") is not None else ()
    group = Group(
        call,
        launch.ranks,
        directory,
        limit=max(limit, _COMPILING) if compiles else limit,
        backend="gloo" if launch.device == "cpu" else None,
        environment=environment(launch),
        imports=(*imports, *["harness.processes.deepspeed_ranks"] * (partitioned and launch.device == "cpu")),
    )
    with gpu_locks.extensions() if compiles else contextlib.nullcontext(), gpu_locks.gpus(launch):
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
        from harness.processes.shims import fsdp_on_cpu

        fsdp_on_cpu()
    if launch.device == "cpu" and launch.strategy.startswith("zero"):
        # A fork has it; one that torchrun started has not.
        importlib.import_module("harness.processes.deepspeed_ranks")


def _rank(subject: Subject, spec: RunSpec, directory: Path) -> None:
    settle(spec.launch)
    trace = subject.train(spec, directory)
    trace.distributed["rank"] = int(os.environ["RANK"])
    trace.save(_trace_directory(directory, int(os.environ["RANK"])))
    if trace.error is not None:
        raise RuntimeError(trace.error)
