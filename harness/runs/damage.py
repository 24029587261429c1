"""Things that happen to a checkpoint between two legs of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.errors import UsageError
from harness.subjects.observer import checkpoint_step

#: The files of an adapter checkpoint, in the order in which the Trainer writes them (transformers/trainer.py,
#: Trainer._save_checkpoint; the first three: peft/peft_model.py, PeftModel.save_pretrained).
WRITTEN = (
    "README.md",
    "adapter_model.safetensors",
    "adapter_config.json",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)

_KNOWN = "delete PATH, truncate PATH BYTES, empty, remove, torn after PATH, torn in PATH, or newest before any of them"


def apply(damage: str, directory: Path) -> None:
    """Do one thing to every checkpoint-* below `directory`, or after "newest " to the one of the highest step.

    "delete PATH", "truncate PATH BYTES", "empty" (the directory stays, its content goes), "remove" (it goes too),
    "torn after PATH" (as a process leaves it that is killed once PATH is written: what is written later is not there),
    "torn in PATH" (killed half way through PATH). PATH is relative to the checkpoint. UsageError for anything else,
    and for a PATH that is not there.
    """
    checkpoints = sorted(directory.glob("checkpoint-*"), key=checkpoint_step)
    words = damage.split()
    if words[:1] == ["newest"]:
        checkpoints, words = checkpoints[-1:], words[1:]
    for checkpoint in checkpoints:
        match words:
            case ["delete", name]:
                _existing(checkpoint, name, damage).unlink()
            case ["truncate", name, size] if size.isdigit():
                _cut(_existing(checkpoint, name, damage), int(size))
            case ["empty"]:
                shutil.rmtree(checkpoint)
                checkpoint.mkdir()
            case ["remove"]:
                shutil.rmtree(checkpoint)
            case ["torn", "after" | "in" as where, name] if name in WRITTEN:
                target = _existing(checkpoint, name, damage)
                for later in WRITTEN[WRITTEN.index(name) + 1 :]:
                    (checkpoint / later).unlink(missing_ok=True)
                if where == "in":
                    _cut(target, target.stat().st_size // 2)
            case _:
                raise UsageError(f"unknown damage {damage!r}; known are {_KNOWN}")


def _cut(target: Path, size: int) -> None:
    target.write_bytes(target.read_bytes()[:size])


def _existing(checkpoint: Path, name: str, damage: str) -> Path:
    target = checkpoint / name
    if not target.is_file():
        raise UsageError(f"damage {damage!r}: {checkpoint.name} holds no {name}")
    return target
