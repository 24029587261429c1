"""Where many tasks run: here, or on a cluster. Parsl queues, places and retries them; nothing of that is ours.

`opened` returns a `concurrent.futures.Executor`. A task is a function of an importable module with arguments that can be
pickled. It must be safe to run again: Parsl does so if its worker was lost.

| --on | tasks run |
|---|---|
| `local` | here, one a core, or one a GPU. Without Parsl: one at a time, in a thread of this process |
| `slurm` | in jobs of Slurm, of one node each |
| `kubernetes` | in pods |
| `FILE.py` | where the `config` of that file says, a `parsl.Config` |
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import runpy
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.paths import ROOT
from harness.processes import lease
from harness.user_code import guarded

LOCAL, SLURM, KUBERNETES = "local", "slurm", "kubernetes"

#: How often a task is run again whose worker was lost.
RETRIES = 3

#: Seconds between signs of life of a worker, and without one until it counts as lost.
_PERIOD, _LOST = 3, 20

#: Environment variable -> the option of Parsl's provider that it sets. What else a site needs goes into a FILE.py.
_SLURM = {
    "PEFT_HARNESS_SLURM_PARTITION": "partition",
    "PEFT_HARNESS_SLURM_ACCOUNT": "account",
    "PEFT_HARNESS_SLURM_QOS": "qos",
    "PEFT_HARNESS_SLURM_CONSTRAINT": "constraint",
    "PEFT_HARNESS_SLURM_WALLTIME": "walltime",
}

#: The image of the pods, which has the harness installed.
_IMAGE = "PEFT_HARNESS_IMAGE"


@dataclass(frozen=True)
class Engine:
    """A running engine.

    - executor: takes tasks.
    - width: how many tasks run at a time.
    - lease, owner: what tasks watch (`harness.processes.lease`).
    - words: what a progress line calls it.
    """

    executor: Executor
    width: int
    lease: Path
    owner: str
    words: str


def check(on: str) -> None:
    """Raise UsageError if an engine of this name cannot be had here."""
    if on not in (LOCAL, SLURM, KUBERNETES) and not on.endswith(".py"):
        raise UsageError(f"--on {on}: is neither local, slurm, kubernetes nor a FILE.py with a parsl.Config")
    if on.endswith(".py") and not Path(on).is_file():
        raise UsageError(f"--on {on}: no such file")
    if on != LOCAL and not has_parsl():
        raise UsageError(f"--on {on}: Parsl is not installed; pip install 'peft-harness[scale]'")
    if on.endswith(".py"):
        _own(on)  # before anything else works
    if on == SLURM and (missing := [name for name in ("sbatch", "scancel") if shutil.which(name) is None]):
        raise UsageError(f"--on slurm: {missing[0]} is not on PATH; run it on a login node of the cluster")
    if on == KUBERNETES and importlib.util.find_spec("kubernetes") is None:
        raise UsageError("--on kubernetes: the package kubernetes is not installed; pip install kubernetes")
    if on == KUBERNETES and not os.environ.get(_IMAGE):
        raise UsageError(f"--on kubernetes: set {_IMAGE} to an image that has peft-harness installed")


def has_parsl() -> bool:
    return importlib.util.find_spec("parsl") is not None


@contextlib.contextmanager
def opened(on: str, workers: int | None, directory: Path, device: str = "cpu") -> Iterator[Engine]:
    """Start an engine, and end it with all its tasks when the block ends.

    - on: where tasks run, as the table above says.
    - workers: how many run at a time; None for one a core (one a GPU), on Slurm and Kubernetes for 4 jobs.
    - directory: for the lease and the engine's log. Workers on other machines must see it at the same path.
    - device: "cuda" pins each task to one GPU.

    Raises UsageError if it cannot be started.
    """
    check(on)
    directory.mkdir(parents=True, exist_ok=True)
    for folder in directory.parents:
        if folder.name == ".peft-harness":  # in the user's repository
            with contextlib.suppress(FileExistsError), (folder / ".gitignore").open("x") as ignored:
                ignored.write("*\n")
    file = (directory / "lease").absolute()
    with lease.held(file) as owner:
        count = workers or _cores(device)
        if on == LOCAL and (count == 1 or not has_parsl()):
            if count > 1:
                print(
                    "peft-harness: without Parsl one task runs at a time; pip install 'peft-harness[scale]'",
                    file=sys.stderr,
                )
            with ThreadPoolExecutor(1) as pool:
                yield Engine(pool, 1, file, owner, "one at a time")
            return
        with _parsl(on, workers, count, directory, device, lease.fence(file, owner)) as (pool, width):
            yield Engine(pool, width, file, owner, f"{width} at a time, by Parsl ({on})")


def _cores(device: str) -> int:
    if device == "cuda":
        from harness.environment import gpus

        return max(1, len(gpus()))
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def _parsl(
    on: str, workers: int | None, count: int, directory: Path, device: str, fence: str
) -> Iterator[tuple[Any, int]]:
    import parsl
    from parsl.concurrent import ParslPoolExecutor

    logs = tempfile.mkdtemp(prefix="engine-", dir=directory)
    try:
        if on == LOCAL:
            config, width = _local(count, logs, device, fence), count
        elif on == SLURM:
            width = workers or 4
            config = _slurm(width, logs, device, fence)
        elif on == KUBERNETES:
            width = workers or 4
            config = _kubernetes(width, logs)
        else:
            config, width = _own(on), workers or 64
        pool = ParslPoolExecutor(config)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"--on {on}: Parsl could not start ({type(error).__name__}: {error}); its log is in {logs}"
        ) from None
    try:
        yield pool, width
    finally:
        # Tasks that still run are not waited for: the results that they have published stay.
        dfk = pool._dfk
        if dfk is not None:
            with contextlib.suppress(Exception):
                dfk.config.exit_mode = "skip"
                dfk.cleanup()
        with contextlib.suppress(Exception):
            parsl.clear()
        shutil.rmtree(logs, ignore_errors=True)


def _worker_init(fence: str) -> str:
    """Return the shell that prepares a pilot: it finds this harness and this Python, and ends with the command."""
    path = os.pathsep.join(
        dict.fromkeys([str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    )
    return "\n".join(
        [
            f"export PYTHONPATH={shlex.quote(path)}",
            f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
            fence,
        ]
    )


def _config(executor: Any, logs: str) -> Any:
    from parsl.config import Config

    return Config(
        executors=[executor], retries=RETRIES, run_dir=logs, strategy="simple", usage_tracking=0, exit_mode="skip",
        initialize_logging=True,
    )  # fmt: skip


def _executor(provider: Any, label: str, per_node: int, device: str, address: str | None, logs: str) -> Any:
    from parsl.executors import HighThroughputExecutor

    names: list[str] = []
    if device == "cuda":
        from harness.environment import gpus

        names = gpus() if label == LOCAL else [str(number) for number in range(per_node)]
    return HighThroughputExecutor(
        label=label, provider=provider, max_workers_per_node=per_node, cores_per_worker=0.01, address=address,
        available_accelerators=names, heartbeat_period=_PERIOD, heartbeat_threshold=_LOST, worker_logdir_root=logs,
        # Keys of an encrypted channel; only processes of this user can read them.
        encrypted=True,
        # By this Python, which need not be on PATH. It must not outlive this command.
        interchange_launch_cmd=[sys.executable, "-m", "harness.processes.interchange", str(os.getpid())],
    )  # fmt: skip


def _local(count: int, logs: str, device: str, fence: str) -> Any:
    from parsl.providers import LocalProvider

    provider = LocalProvider(init_blocks=1, max_blocks=1, worker_init=_worker_init(fence))
    return _config(_executor(provider, LOCAL, count, device, "127.0.0.1", logs), logs)


def _slurm(blocks: int, logs: str, device: str, fence: str) -> Any:
    from parsl.launchers import SrunLauncher
    from parsl.providers import SlurmProvider

    options: dict[str, Any] = {"walltime": "04:00:00"}
    options |= {option: os.environ[name] for name, option in _SLURM.items() if os.environ.get(name)}
    provider = SlurmProvider(
        nodes_per_block=1, init_blocks=blocks, max_blocks=blocks, exclusive=False, launcher=SrunLauncher(),
        worker_init=_worker_init(fence), gpus_per_node=1 if device == "cuda" else None, **options,
    )  # fmt: skip
    return _config(_executor(provider, SLURM, 1, device, os.environ.get("PEFT_HARNESS_ADDRESS"), logs), logs)


def _kubernetes(pods: int, logs: str) -> Any:
    from parsl.providers import KubernetesProvider

    provider = KubernetesProvider(
        image=os.environ[_IMAGE], nodes_per_block=1, init_blocks=pods, max_blocks=pods,
        namespace=os.environ.get("PEFT_HARNESS_NAMESPACE", "default"),
    )  # fmt: skip
    return _config(_executor(provider, KUBERNETES, 1, "cpu", os.environ.get("PEFT_HARNESS_ADDRESS"), logs), logs)


def _own(file: str) -> Any:
    """Return the `config` of a user's file. It is run: the command line named it."""
    from parsl.config import Config

    with guarded(f"--on {file}: cannot be run"):
        found = runpy.run_path(file).get("config")
    if not isinstance(found, Config):
        raise UsageError(f"--on {file}: has no parsl.Config named config")
    return found
