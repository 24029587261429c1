"""What workers, and the groups of ranks that they start, share on a machine: GPUs, and the cache of torch's extensions."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness import environment

if TYPE_CHECKING:
    from harness.spec import LaunchSpec

#: Groups that may use a GPU at once. Ranks wait for each other in kernels that spin, each through all of the time that
#: the GPU gives its process: of 12 groups on four H200s each took 5 s, of 56 a minute and more.
A_GPU = 3

_TICK = 0.05


@contextlib.contextmanager
def gpus(launch: LaunchSpec) -> Iterator[None]:
    """Within it a group may use GPUs: so many groups of all workers do as there are GPUs for, and the others wait."""
    if launch.device != "cuda":
        yield
        return
    with _any_of([_directory() / str(slot) for slot in range(A_GPU * len(environment.gpus()))]):
        yield


@contextlib.contextmanager
def memory() -> Iterator[None]:
    """Within it this process may fill the GPU that it sees: of all workers there is only one on each GPU that may."""
    with _any_of([_directory() / f"memory-{_file_name(os.environ.get('CUDA_VISIBLE_DEVICES', 'the-only-one'))}"]):
        yield


def _directory() -> Path:
    """For files to lock: of this user, and of runs that see the same GPUs. Those of another container wait for nobody."""
    names = _file_name("-".join(environment.gpus()))
    directory = Path(tempfile.gettempdir()) / f"peft-harness-{os.getuid()}-gpus-{names}"
    directory.mkdir(exist_ok=True)
    return directory


def _file_name(gpu: str) -> str:
    return gpu.replace("/", "_")  # a part of a GPU is named MIG-GPU-.../1/0


@contextlib.contextmanager
def _any_of(files: list[Path]) -> Iterator[None]:
    """Hold the first of these files that no one else does. The kernel gives up what a process held when it dies."""
    import fcntl

    while True:
        for file in files:
            with file.open("w") as mine:
                try:
                    fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield
                return
        time.sleep(_TICK)


@contextlib.contextmanager
def extensions() -> Iterator[None]:
    """Have the cache of torch's extensions for oneself among all runs of the harness.

    torch marks a directory in which it compiles, or looks whether it must, by a file named lock. One left by a process
    that was killed would be waited for without end, so it goes: no other run compiles just now.
    """
    import fcntl

    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(chosen) if chosen else Path.home() / ".cache" / "torch_extensions"
    root.mkdir(parents=True, exist_ok=True)
    with (root / "peft-harness.lock").open("w") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        for left in [*root.glob("*/deepspeed_*/lock"), *root.glob("deepspeed_*/lock")]:
            left.unlink(missing_ok=True)
        yield
