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
)
