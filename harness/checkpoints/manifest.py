"""The manifest of a checkpoint that `SafeCheckpoints` saved: the size and the SHA-256 digest of each file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness.checkpoints.adapter_directory import TORN, WHOLE
from harness.checkpoints.found import MISSING, NOT_READ, Checkpoint
from harness.checkpoints.links import readable
from harness.errors import UsageError
from harness.reading import opened, read_json, shown

MANIFEST = "checkpoint_manifest.json"
SCHEMA_VERSION = 1

_PIECE = 2**22
_FILE_LIMIT = 2**44


def files_of(directory: Path) -> list[Path]:
    """Return the regular files of a checkpoint and of its directories, but for the manifest."""
    found = [Path(root) / name for root, _, names in os.walk(directory) for name in names]
    return sorted(one for one in found if one.is_file() and not one.is_symlink() and one != directory / MANIFEST)


def digest(file: Path) -> str:
    """Return the SHA-256 of a file. Raises UsageError if it cannot be read."""
    sum_ = hashlib.sha256()
    with opened(file, _FILE_LIMIT) as stream:
        while piece := stream.read(_PIECE):
            sum_.update(piece)
    return sum_.hexdigest()


def digests(files: Iterable[Path]) -> list[str]:
    """Return the digest of each file. Several are read at once: hashlib lets other threads run."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(digest, files))


def content(directory: Path) -> str:
    """Return the manifest of the files that a directory holds now."""
    files = files_of(directory)
    entries = {
        str(file.relative_to(directory)): {"bytes": file.stat().st_size, "sha256": sum_}
        for file, sum_ in zip(files, digests(files), strict=True)
    }
    return json.dumps({"schema_version": SCHEMA_VERSION, "files": entries, "sha256": _sum(entries)}, indent=1) + "\n"


def _sum(entries: Any) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def wrong(directory: Path) -> list[tuple[str, str, str]]:
    """Return (file, state, why) of each file that is not as the manifest of a directory has it."""
    try:
        value = read_json(directory / MANIFEST)
        if value["schema_version"] != SCHEMA_VERSION:
            return [
                (MANIFEST, NOT_READ, f"is of schema {shown(value['schema_version'])}, and {SCHEMA_VERSION} is read")
            ]
        entries = {name: (entry["bytes"], entry["sha256"]) for name, entry in value["files"].items()}
        if value["sha256"] != _sum(value["files"]):
            return [(MANIFEST, TORN, "is not as it was saved: its own digest is another")]
    except (UsageError, TypeError, KeyError, AttributeError):
        return [(MANIFEST, TORN, "is no whole manifest")]
    found, same = [], []
    for name, (size, sum_) in entries.items():
        try:
            file = readable(directory, name, MANIFEST)
            here = file.stat().st_size
        except FileNotFoundError:
            found.append((name, MISSING, f"{MANIFEST} has it"))
        except (UsageError, OSError) as error:
            found.append((name, NOT_READ, str(error)))
        else:
            if here != size:
                found.append((name, TORN, f"has {here:,} bytes, and {size:,} were saved"))
            else:
                same.append((name, file, sum_))
    try:
        sums = digests(file for _, file, _ in same)
    except UsageError as error:
        return [*found, (MANIFEST, NOT_READ, str(error))]
    for (name, _, wanted), seen in zip(same, sums, strict=True):
        if seen != wanted:
            found.append((name, TORN, "is not as it was saved: its SHA-256 is another"))
    return found


def check(checkpoint: Checkpoint, names: set[str]) -> None:
    """Note what is not as the manifest has it. Notes that there is none, if there is none."""
    if MANIFEST not in names:
        checkpoint.not_judged.append(
            "whether a number in safetensors changed, and whether the generators are of this step: there is no "
            f"{MANIFEST}, which SafeCheckpoints writes"
        )
        return
    for file, state, why in wrong(checkpoint.path):
        checkpoint.say(file, state, why)
    checkpoint.say(MANIFEST, WHOLE)
