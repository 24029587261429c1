"""How a checkpoint gets its name: written beside, synced, with a manifest, renamed; and older ones removed after that."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.checkpoints import manifest

#: The directory in output_dir in which checkpoints are written, and into which old ones go before they are deleted.
SAVING = ".saving"

#: Seconds for which ranks wait for each other, as long as torch's collectives do.
_LIMIT = 1800.0


class CheckpointError(RuntimeError):
    """A checkpoint that was not saved, or that cannot be resumed from. The message says which one to use."""


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin


def sync(path: str | Path) -> None:
    """Have the system write a file, or a directory's entries, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(partial: Path, final: Path, seconds: dict[str, float]) -> None:
    """Give a written checkpoint its name, once all of it is on the disk. Raises OSError; it has no name then."""
    with timed(seconds, "digest"):
        text = manifest.content(partial)
    with timed(seconds, "fsync"):
        (partial / manifest.MANIFEST).write_text(text, encoding="utf-8")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(sync, [*manifest.files_of(partial), partial / manifest.MANIFEST]))
        for root, _, _ in os.walk(partial):
            sync(root)
        sync(partial.parent)
    with timed(seconds, "rename"):
        replaced = partial.parent / f"replaced-{final.name}"
        if final.exists():
            os.rename(final, replaced)
        os.rename(partial, final)
    with timed(seconds, "fsync"):
        sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def finish(run: Path) -> None:
    """Complete what a crash interrupted: give a checkpoint its name that was complete, or back its name to a replaced one."""
    for prefix in ("", "replaced-"):
        for partial in sorted((run / SAVING).glob(f"{prefix}checkpoint-*")):
            final = run / partial.name.removeprefix("replaced-")
            complete = (partial / manifest.MANIFEST).is_file() and not manifest.wrong(partial)
            if not final.exists() and (complete or prefix):
                with suppress(OSError):
                    os.rename(partial, final)
                    sync(run)


def rotate(run: Path, limit: int | None, keep: set[str]) -> list[Path]:
    """Take the oldest checkpoints' names away until `limit` are left, and return them: `delete` does the rest.

    None is deleted under its name, so that no half of one has it.

    - keep: names of those that stay: the newest, and the best.
    """
    if limit is None or limit <= 0:
        return []
    found = sorted(
        (each for each in run.glob("checkpoint-*") if each.is_dir()), key=lambda each: each.stat().st_mtime_ns
    )
    goes = [each for each in found if each.name not in keep][: max(0, len(found) - max(limit, len(keep)))]
    doomed = [run / SAVING / f"old-{each.name}" for each in goes]
    for each, gone in zip(goes, doomed, strict=True):
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(each, gone)
    return doomed


def delete(run: Path, doomed: list[Path]) -> None:
    """Delete checkpoints without a name, and the directory of checkpoints that are being written if it is empty then."""
    for each in doomed:
        shutil.rmtree(each, ignore_errors=True)
    with suppress(OSError):
        (run / SAVING).rmdir()


def agree(key: str, error: str = "", value: str = "") -> str:
    """Wait until every rank has come here, and return rank 0's value. If one brings an error, raise it in all of them.

    - key: the same in all ranks, and another at each call.

    A rank that failed may have left others inside of a collective, so no collective is used, but the group's store.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        if error:
            raise CheckpointError(error)
        return value
    store, rank, ranks = dist.distributed_c10d._get_default_store(), dist.get_rank(), range(dist.get_world_size())
    if error:
        raise CheckpointError(store.compare_set(f"{key}/failed", "", f"rank {rank}: {error}").decode())
    store.set(f"{key}/{rank}", value)
    end = time.monotonic() + _LIMIT
    while not store.check([f"{key}/{each}" for each in ranks]):
        if store.check([f"{key}/failed"]):
            raise CheckpointError(store.get(f"{key}/failed").decode())
        if time.monotonic() > end:
            raise CheckpointError(f"{key}: another rank did not come within {_LIMIT:.0f} s")
        time.sleep(0.002)
    return store.get(f"{key}/0").decode()
