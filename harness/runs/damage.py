"""Damage done to a checkpoint between the two legs of a run: deleted, truncated or half-written files."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.errors import UsageError
from harness.files import inside, leads_out
from harness.reading import shown, shown_path
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


#: Bytes that "truncate" may leave: more than any file has.
_LARGEST = 10**15


def check(damage: str) -> list[str]:
    """Return the words of a damage. Raises UsageError if it is none of those that `apply` describes, or leads out."""
    words = damage.split()
    if any(leads_out(word) for word in words):
        raise UsageError(f"damage {shown(damage)} leads out of the checkpoint; name a file in it")
    match words[words[:1] == ["newest"] :]:
        case ["delete", _] | ["empty"] | ["remove"]:
            pass
        case ["truncate", _, size] if size.isascii() and size.isdigit() and len(size) < 16 and int(size) <= _LARGEST:
            pass
        case ["torn", "after" | "in", name] if name in WRITTEN:
            pass
        case _:
            raise UsageError(f"unknown damage {shown(damage)}; expected {_FORMS}")
    return words


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
    words = check(damage)
    checkpoints = sorted(directory.glob("checkpoint-*"), key=checkpoint_step)
    if words[0] == "newest":
        checkpoints, words = checkpoints[-1:], words[1:]
    for checkpoint in checkpoints:
        match words:
            case ["delete", name]:
                _existing(checkpoint, name, damage).unlink()
            case ["truncate", name, size]:
                _cut(_existing(checkpoint, name, damage), int(size))
            case ["empty"]:
                shutil.rmtree(checkpoint)
                checkpoint.mkdir()
            case ["remove"]:
                shutil.rmtree(checkpoint)
            case ["torn", moment, name]:
                target = _existing(checkpoint, name, damage)
                for later in WRITTEN[WRITTEN.index(name) + 1 :]:
                    (checkpoint / later).unlink(missing_ok=True)
                if moment == "in":
                    _cut(target, target.stat().st_size // 2)


def _cut(target: Path, size: int) -> None:
    target.write_bytes(target.read_bytes()[:size])


def _existing(checkpoint: Path, name: str, damage: str) -> Path:
    try:
        target = inside(checkpoint, name, f"damage {shown(damage)}")
        found = target.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        found = False
    if not found:
        raise UsageError(f"damage {shown(damage)}: {checkpoint.name} has no file {shown_path(name)}")
    return target
