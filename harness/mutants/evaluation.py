"""EVAL: evaluation."""

from __future__ import annotations

import torch

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import TRAINER, replace

STEP, LOOP = (TRAINER, "prediction_step"), (TRAINER, "evaluation_loop")


def without_the_adapter(original, trainer, model, *args, **options):
    with model.disable_adapter():
        return original(trainer, model, *args, **options)


def in_training_mode(original, trainer, model, *args, **options):
    model.train()
    result = original(trainer, model, *args, **options)
    model.eval()
    return result


def backwards(original, trainer, dataset):
    return list(reversed(range(len(dataset))))


def all_labels_alike(original, trainer, *args, **options):
    """The mean over all labels: each batch's loss counts by its labels, not by its rows."""
    loss, logits, labels = original(trainer, *args, **options)
    rows = args[1]["labels"]
    return loss * (rows[:, 1:] != -100).sum() / (len(rows) * 10), logits, labels


def batches_alike(original, trainer, *args, **options):
    """The mean over batches: a short last one counts as much as any other."""
    loss, logits, labels = original(trainer, *args, **options)
    return loss * trainer.args.per_device_eval_batch_size / len(args[1]["labels"]), logits, labels


def drawing(original, trainer, *args, **options):
    torch.rand(1)
    return original(trainer, *args, **options)


def moving_the_adapter(original, trainer, *args, **options):
    result = original(trainer, *args, **options)
    next(p for p in trainer.model.parameters() if p.requires_grad).data.add_(1e-3)
    return result


def rows_reversed(original, *args, **options):
    loss, logits, labels = original(*args, **options)
    return loss, logits if logits is None else logits.flip(0), labels


def labels_lost(original, *args, **options):
    return (*original(*args, **options)[:2], None)


def no_labels(original, model_class):
    return []


def one_prefix(original, trainer, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
    return original(trainer, eval_dataset, ignore_keys, "eval")


MUTANTS = (
    Mutant(
        "evaluated-without-the-adapter",
        "Evaluation is of the base.",
        replace(*STEP, without_the_adapter),
        cells=("EVAL-01/ragged", "EVAL-01/one-batch"),
    ),
    Mutant(
        "evaluated-with-dropout",
        "Evaluation is in training mode.",
        replace(*STEP, in_training_mode),
        cells=("EVAL-01/ragged", "EVAL-04/each-second-step"),
    ),
    Mutant(
        "evaluated-backwards",
        "Evaluation takes the rows from the last to the first.",
        replace(TRAINER, "_get_eval_sampler", backwards),
        cells=("EVAL-01/ragged", "EVAL-05/plain"),
    ),
    Mutant(
        "eval-loss-by-labels",
        "eval_loss is weighted by labels, and not by rows.",
        replace(*STEP, all_labels_alike),
        cells=("EVAL-01/ragged", "EVAL-01/ignored-labels"),
    ),
    Mutant(
        "eval-loss-by-batches",
        "eval_loss is the mean over batches, of which the last is short.",
        replace(*STEP, batches_alike),
        cells=("EVAL-01/ragged", "EVAL-01/one-batch"),
    ),
    Mutant(
        "evaluation-draws-a-number",
        "An evaluation draws from torch's generator.",
        replace(*LOOP, drawing),
        cells=("EVAL-04/each-second-step", "EVAL-04/before-the-first-step", "RNG-03/evaluated-every-2"),
    ),
    Mutant(
        "evaluation-moves-the-adapter",
        "An evaluation leaves another adapter.",
        replace(*LOOP, moving_the_adapter),
        cells=("EVAL-04/each-second-step",),
    ),
    Mutant(
        "predictions-out-of-order",
        "The predictions of a batch come in another order than its labels.",
        replace(*STEP, rows_reversed),
        cells=("EVAL-05/plain",),
    ),
    Mutant(
        "label-ids-missing",
        "Predictions come without label_ids.",
        replace(*STEP, labels_lost),
        cells=("EVAL-09/llama", "EVAL-05/plain", "EVAL-06/compute-metrics"),
        thread="https://github.com/huggingface/transformers/pull/32085",
    ),
    Mutant(
        "no-eval-loss",
        "No column is known to be labels, so evaluation has no loss.",
        replace("transformers.trainer", "find_labels", no_labels),
        cells=("EVAL-09/llama", "EVAL-01/ragged"),
        thread="https://github.com/huggingface/transformers/issues/38130",
    ),
    Mutant(
        "evaluation-sets-share-a-name",
        "The metrics of several evaluation sets overwrite each other.",
        replace(TRAINER, "evaluate", one_prefix),
        cells=("EVAL-06/each_of*",),
    ),
)
