"""CRASH: what a stopped save leaves, and what becomes of it."""

from __future__ import annotations

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import TRAINER, replace


def beginning_anew(original, path):
    """Read a missing or torn trainer_state.json as that of a run that has not begun."""
    from transformers import TrainerState

    try:
        return original(path)
    except (OSError, ValueError):
        return TrainerState()


def unheeded(original, trainer, *args, **options):
    """Go on training if a checkpoint cannot be written."""
    try:
        return original(trainer, *args, **options)
    except Exception:
        return None


def older_first(original, trainer, *args, **options):
    """Delete all older checkpoints before a new one is written."""
    import shutil
    from pathlib import Path

    for older in Path(trainer.args.output_dir).glob("checkpoint-*"):
        shutil.rmtree(older)
    return original(trainer, *args, **options)


MUTANTS = (
    Mutant(
        "torn-state-begins-anew",
        "Resuming reads a missing or torn trainer_state.json as that of a run that has not begun.",
        replace("transformers.trainer_callback:TrainerState", "load_from_json", beginning_anew),
        cells=("CRASH-01/plain/killed", "CRASH-03/plain/killed"),
    ),
    Mutant(
        "unwritten-checkpoint-passed-over",
        "Training goes on if a checkpoint cannot be written.",
        replace(TRAINER, "_save_checkpoint", unheeded),
        cells=("CRASH-06/*some-points*",),
    ),
    Mutant(
        "older-checkpoints-deleted-first",
        "A save deletes all older checkpoints before it writes the new one.",
        replace(TRAINER, "_save_checkpoint", older_first),
        cells=("CRASH-05/plain/killed", "CRASH-06/*some-points*"),
    ),
)
