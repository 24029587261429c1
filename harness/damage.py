"""Things that happen to a checkpoint between two legs of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.errors import UsageError


def apply(damage: str, directory: Path) -> None:
    """Do one thing to every checkpoint-* below `directory`.

    "delete PATH", "truncate PATH BYTES", "empty" (the directory stays, its content goes), "remove" (it goes too).
    PATH is relative to the checkpoint. UsageError for anything else, and for a PATH that is not there.
    """
    words = damage.split()
    for checkpoint in sorted(directory.glob("checkpoint-*")):
        match words:
            case ["delete", name]:
                _existing(checkpoint, name, damage).unlink()
            case ["truncate", name, size] if size.isdigit():
                target = _existing(checkpoint, name, damage)
                target.write_bytes(target.read_bytes()[: int(size)])
            case ["empty"]:
                shutil.rmtree(checkpoint)
                checkpoint.mkdir()
            case ["remove"]:
                shutil.rmtree(checkpoint)
            case _:
                raise UsageError(
                    f"unknown damage {damage!r}; known are delete PATH, truncate PATH BYTES, empty, remove"
                )


def _existing(checkpoint: Path, name: str, damage: str) -> Path:
    target = checkpoint / name
    if not target.is_file():
        raise UsageError(f"damage {damage!r}: {checkpoint.name} holds no {name}")
    return target
