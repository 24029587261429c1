"""Locks between processes on one machine: which groups of ranks may use a GPU, and who may compile torch's extensions.

Each lock is a file held by filelock, which uses flock: if a process dies, the kernel frees what it held.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from harness import environment
from harness.errors import UsageError
from harness.processes import guard

if TYPE_CHECKING:
    from harness.spec import LaunchSpec

#: Groups of ranks that may use one GPU at the same time. Ranks wait for each other in kernels that spin, and a spinning
#: kernel uses up the time that the GPU gives its process. On four H200s (2026-11-27), 12 groups took 5 s each, and 56
#: groups a minute and more each.
GROUPS_PER_GPU = 3

_TICK = 0.05


@contextlib.contextmanager
def gpus(launch: LaunchSpec) -> Iterator[None]:
    """Hold a place on the GPUs for one group of ranks. On a CPU nothing is held.

    There are GROUPS_PER_GPU places for each GPU, shared by all workers of this user. Further groups wait.
    """
    if launch.device != "cuda":
        yield
        return
    with _first_free([_directory() / str(place) for place in range(GROUPS_PER_GPU * len(environment.gpus()))]):
        yield


@contextlib.contextmanager
def memory() -> Iterator[None]:
    """Hold an exclusive lock on the visible GPU, for cases that need all of its memory."""
    with _first_free([_directory() / f"memory-{_file_name(os.environ.get('CUDA_VISIBLE_DEVICES', 'the-only-one'))}"]):
        yield


def _directory() -> Path:
    """Return the directory of this user's lock files for the GPUs that are visible.

    Its name has the GPUs in it, so that runs in another container, which sees other GPUs, do not wait for these.

    Raises UsageError if it belongs to somebody else, who may have made it first in a shared directory.
    """
    names = _file_name("-".join(environment.gpus()))
    directory = guard.common_directory() / f"peft-harness-{os.getuid()}-gpus-{names}"
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    # In a directory of somebody else's, a lock's name may be a link to a file of this user's, which locking would empty.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UsageError(f"{directory}: is not a directory of this user's; remove it, or set TMPDIR to one that is")
    return directory


def _file_name(gpu: str) -> str:
    return gpu.replace("/", "_")  # a part of a GPU is named MIG-GPU-.../1/0


@contextlib.contextmanager
def _first_free(files: list[Path]) -> Iterator[None]:
    """Lock the first of these files that nobody holds. If all are held, try again until one is free."""
    while True:
        for file in files:
            try:
                lock = FileLock(file).acquire(timeout=0)
            except Timeout:
                continue
            with lock:
                yield
            return
        time.sleep(_TICK)


@contextlib.contextmanager
def extensions() -> Iterator[None]:
    """Hold the cache of torch's compiled extensions, so that one run of the harness at a time compiles.

    While torch compiles in a directory, or checks whether it must, it keeps a file named lock there. If that process is
    killed, the file stays, and every later process waits for it for ever. No other run compiles now, so such files are
    left over, and they are removed.
    """
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(chosen) if chosen else Path.home() / ".cache" / "torch_extensions"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "peft-harness.lock"):
        for left_over in [*root.glob("*/deepspeed_*/lock"), *root.glob("deepspeed_*/lock")]:
            left_over.unlink(missing_ok=True)
        yield
