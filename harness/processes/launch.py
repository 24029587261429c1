"""Train a spec in the processes that its LaunchSpec asks for: what each rank does, and how their traces become one."""

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

from harness import patches
from harness.environment import version
from harness.errors import UsageError
from harness.files import require_space
from harness.processes import gpu_locks, ranks
from harness.processes.group import LIMIT, Group, RanksFailed
from harness.spec import LaunchSpec, RunSpec
from harness.subjects import Subject, WrongSubject, trained
from harness.subjects.observer import Observer
from harness.trace import Trace

#: Seconds that ranks on GPUs have in addition. Each makes a CUDA context and connects through NCCL, many at the same time.
_CONTEXTS = 60.0

#: Seconds for ranks of DeepSpeed that may have to compile an extension. torch keeps it for later runs.
_COMPILING = 900.0


def environment(launch: LaunchSpec) -> dict[str, str]:
    """Return the environment variables of a launch's ranks."""
    # Otherwise accelerate gives each rank as many threads as there are cores for it, whatever the spec says.
    values = {"OMP_NUM_THREADS": str(launch.threads)} if launch.threads else {}
    if version("deepspeed") is not None and launch.device == "cpu":
        values |= {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"}
        # DeepSpeed builds extensions with ninja, which pip installs beside the interpreter.
        values["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return values


def train(subject: Subject, spec: RunSpec, directory: Path) -> Trace:
    """Train a spec in as many processes as it asks for, and return rank 0's trace with the others' in `Trace.ranks`.

    In a run of several ranks, each rank calls `subject.train`, so the subject is pickled. If the group fails, `Trace.error`
    says which rank failed and why, and the trace is that of the lowest rank that wrote one.

    Raises WrongSubject if the subject cannot be pickled, and UsageError if a rank raises one.
    """
    if not spec.launch.several:
        return trained(subject, spec, directory)
    call = functools.partial(_rank, subject, spec, directory)
    try:
        pickle.dumps(call)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise WrongSubject(
            f"subject {subject.name!r} cannot be handed to ranks ({error}): its trainer class and functions must be "
            "found by name in a module"
        ) from None
    launch, failure = spec.launch, None
    raised: dict[str, Any] = {}
    try:
        run(call, launch, directory / "ranks")
    except RanksFailed as failed:
        require_space(failed)
        failure, raised = str(failed), failed.raised
    except UsageError as error:
        # A rank sends words only.
        raise WrongSubject(str(error)) if str(error).startswith(f"subject {subject.name!r}:") else error from None
    directories = [_trace_directory(directory, rank) for rank in range(launch.ranks)]
    traces = [Trace.load(each) for each in directories if (each / "trace.json").is_file()]
    if not traces:
        traces = [Observer(spec, subject.name, (), directory).finish()]
    trace, *others = traces
    trace.ranks = others
    if failure is not None:
        trace.error = failure
        # The rank's own trace knows where upstream raised the error; the rank then raised it once more.
        own = (one.raised for one in traces if one.raised and (one.error or failure) in failure)
        trace.raised = next(own, raised)
    return trace


def run(call: Callable[[], Any], launch: LaunchSpec, directory: Path) -> None:
    """Start the ranks of a launch, and call `call` in each.

    Groups that use GPUs take turns, and so do groups that may compile (`harness.processes.gpu_locks`). Raises RanksFailed,
    which says which rank failed and why.

    - directory: where the ranks write their output.
    """
    limit = (launch.limit or LIMIT) + (_CONTEXTS if launch.device == "cuda" else 0.0)
    # DeepSpeed compiles an extension if the user's config asks for one. Unpatched, it compiles one on each CPU, too.
    unpatched = launch.device == "cpu" and not patches.enabled()
    compiles = launch.deepspeed and (bool(launch.options) or launch.cpu_offload or unpatched)
    # If DeepSpeed is installed, accelerate imports it in every process, to see whether a model is one of its engines (2 s).
    imports = ("deepspeed",) if version("deepspeed") is not None else ()
    group = Group(
        call,
        launch.ranks,
        directory,
        limit=max(limit, _COMPILING) if compiles else limit,
        backend="gloo" if launch.device == "cpu" else None,
        environment=environment(launch),
        imports=(*imports, *["harness.processes.deepspeed_ranks"] * (launch.deepspeed and launch.device == "cpu")),
    )
    with gpu_locks.extensions() if compiles else contextlib.nullcontext(), gpu_locks.gpus(launch):
        ranks.run(group)


def _trace_directory(directory: Path, rank: int) -> Path:
    return directory / "ranks" / f"trace-{rank}"


def settle(launch: LaunchSpec) -> None:
    """Prepare this rank's process: torch's threads, its GPU, shims, and what DeepSpeed needs."""
    import torch

    if launch.threads:
        torch.set_num_threads(launch.threads)
    if launch.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if launch.shimmed:
        from harness.processes import shims

        if launch.strategy == "tp":
            shims.tensor_parallelism_on_cpu()
        else:
            shims.fsdp_on_cpu()
    if launch.device == "cpu" and launch.deepspeed:
        # The fork server has imported it, but a rank that torchrun started has not.
        importlib.import_module("harness.processes.deepspeed_ranks")


def _rank(subject: Subject, spec: RunSpec, directory: Path) -> None:
    settle(spec.launch)
    trace = trained(subject, spec, directory)
    trace.distributed["rank"] = int(os.environ["RANK"])
    trace.save(_trace_directory(directory, int(os.environ["RANK"])))
    if trace.error is not None:
        raise RuntimeError(trace.error)
