"""BEST: the best checkpoint at the end of training."""

from __future__ import annotations

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import PEFT, TRAINER, nothing, replace


def upside_down(original, trainer, *args, **options):
    trainer.args.greater_is_better ^= True
    new = original(trainer, *args, **options)
    trainer.args.greater_is_better ^= True
    return new


def left_in_training_mode(original, model, *args, **options):
    original(model, *args, **options)
    model.train()


def frozen(original, model, *args, **options):
    original(model, *args, **options)
    model.requires_grad_(False)


def first_taken(original, trainer, metrics, trial):
    return False if trainer.state.best_metric is not None else original(trainer, metrics, trial)


MUTANTS = (
    Mutant(
        "last-instead-of-best",
        "load_best_model_at_end loads nothing, and the last adapter stays.",
        replace(TRAINER, "_load_best_model", nothing),
        cells=("BEST-01/lowest-loss", "BEST-01/highest-loss", "BEST-03"),
    ),
    Mutant(
        "worst-for-best",
        "Of two metrics the worse one is taken for the better.",
        replace(TRAINER, "_determine_best_metric", upside_down),
        cells=("BEST-01/lowest-loss", "BEST-01/highest-loss"),
    ),
    Mutant(
        "first-for-best",
        "The first evaluation is the best for good.",
        replace(TRAINER, "_determine_best_metric", first_taken),
        cells=("BEST-01/lowest-loss", "BEST-01/highest-loss"),
    ),
    Mutant(
        "best-left-in-training-mode",
        "The model is in training mode when the best adapter has been loaded.",
        replace(PEFT, "load_adapter", left_in_training_mode),
        cells=("BEST-04/plain", "BEST-01/lowest-loss"),
    ),
    Mutant(
        "best-left-frozen",
        "Nothing requires gradients when the best adapter has been loaded.",
        replace(PEFT, "load_adapter", frozen),
        cells=("BEST-04/plain", "BEST-01/lowest-loss"),
    ),
)
