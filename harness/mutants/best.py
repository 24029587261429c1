"""BEST: load the best checkpoint at the end of training."""

from __future__ import annotations

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import PEFT, TRAINER, nothing, replace


def compared_the_wrong_way(original, trainer, *args, **options):
    trainer.args.greater_is_better ^= True
    new = original(trainer, *args, **options)
    trainer.args.greater_is_better ^= True
    return new


def left_in_training_mode(original, model, *args, **options):
    original(model, *args, **options)
    model.train()


def left_frozen(original, model, *args, **options):
    original(model, *args, **options)
    model.requires_grad_(False)


def only_the_first(original, trainer, metrics, trial):
    return False if trainer.state.best_metric is not None else original(trainer, metrics, trial)


def unchecked(original, arguments):
    arguments.load_best_model_at_end = False
    original(arguments)
    arguments.load_best_model_at_end = True


MUTANTS = (
    Mutant(
        "last-instead-of-best",
        "load_best_model_at_end loads nothing, so the last adapter stays.",
        replace(TRAINER, "_load_best_model", nothing),
        cells=("BEST-01/lowest-loss", "BEST-01/highest-loss", "BEST-03"),
    ),
    Mutant(
        "worst-for-best",
        "The worse of two metrics is taken for the better.",
        replace(TRAINER, "_determine_best_metric", compared_the_wrong_way),
        cells=("BEST-01/lowest-loss", "BEST-01/highest-loss"),
    ),
    Mutant(
        "first-for-best",
        "The first evaluation stays the best, whatever follows.",
        replace(TRAINER, "_determine_best_metric", only_the_first),
        cells=("BEST-01/lowest-loss", "BEST-01/highest-loss"),
    ),
    Mutant(
        "best-left-in-training-mode",
        "Loading the best adapter leaves the model in training mode.",
        replace(PEFT, "load_adapter", left_in_training_mode),
        cells=("BEST-04/plain", "BEST-01/lowest-loss"),
    ),
    Mutant(
        "best-left-frozen",
        "Loading the best adapter freezes it.",
        replace(PEFT, "load_adapter", left_frozen),
        cells=("BEST-04/plain", "BEST-01/lowest-loss"),
    ),
    Mutant(
        "best-model-unchecked",
        "load_best_model_at_end has no defaults and no checks.",
        replace("transformers:TrainingArguments", "__post_init__", unchecked),
        cells=("BEST-06/*",),
    ),
    Mutant(
        "best-of-two-unsaid",
        "That only the first of two active adapters is loaded is not said.",
        replace("transformers.trainer:logger", "warning", nothing),
        cells=("BEST-05/*",),
    ),
)
