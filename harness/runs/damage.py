"""Damage done to a checkpoint between the two legs of a run: deleted, truncated or half-written files."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.errors import UsageError
from harness.files import inside
from harness.subjects.observer import checkpoint_step

#: The files of an adapter checkpoint, in the order in which the Trainer writes them
#: (transformers/trainer.py:Trainer._save_checkpoint; the first three: peft/peft_model.py:PeftModel.save_pretrained).
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

_FORMS = "delete PATH, truncate PATH BYTES, empty, remove, torn after PATH, torn in PATH, or newest before any of them"


def apply(damage: str, directory: Path) -> None:
    """Damage every checkpoint-* below `directory`. If `damage` begins with "newest ", only that of the highest step.

    What `damage` can be (PATH is relative to the checkpoint):
    - "delete PATH": delete the file.
    - "truncate PATH BYTES": keep its first BYTES bytes.
    - "empty": delete all that the checkpoint's directory holds.
    - "remove": delete the directory, too.
    - "torn after PATH": as if the process was killed when it had written PATH. Files written later are deleted.
    - "torn in PATH": as if it was killed half way through PATH. Half of PATH is kept, later files are deleted.

    Raises UsageError for anything else, if there is no file PATH, and if PATH is or leads outside of the checkpoint: the
    spec may be somebody else's.
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
            case ["torn", "after" | "in" as moment, name] if name in WRITTEN:
                target = _existing(checkpoint, name, damage)
                for later in WRITTEN[WRITTEN.index(name) + 1 :]:
                    (checkpoint / later).unlink(missing_ok=True)
                if moment == "in":
                    _cut(target, target.stat().st_size // 2)
            case _:
                raise UsageError(f"unknown damage {damage!r}; expected {_FORMS}")


def _cut(target: Path, size: int) -> None:
    target.write_bytes(target.read_bytes()[:size])


def _existing(checkpoint: Path, name: str, damage: str) -> Path:
    target = inside(checkpoint, name, f"damage {damage!r}")
    if not target.is_file():
        raise UsageError(f"damage {damage!r}: {checkpoint.name} has no file {name}")
    return target
