"""LOSS: what is minimised, and by how much it is divided."""

from __future__ import annotations

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import ACCELERATOR, TRAINER, replace

SMOOTHER = "transformers.trainer_pt_utils:LabelSmoother"


def a_third_of_it(original, accelerator, loss, **options):
    return original(accelerator, loss / 3, **options)


def with_first_labels(original, trainer, batches, device):
    return sum(batch["labels"].ne(-100).sum() for batch in batches)


def with_padding(original, trainer, batches, device):
    return sum(batch["labels"].numel() for batch in batches)


def shifted_again(original, trainer, batches, device):
    return sum(batch["shift_labels"][..., 1:].ne(-100).sum() if "shift_labels" in batch else 0 for batch in batches)


def unshifted(original, smoother, outputs, labels, shift_labels=False, **options):
    return original(smoother, outputs, labels, shift_labels=False, **options)


def doubled(original, self, *args, **options):
    return original(type(self)(epsilon=0.2), *args, **options)


def window_ignored(original, smoother, outputs, labels, num_items_in_batch=None, **options):
    return original(smoother, outputs, labels, **options)


def classifier_shifted(original, smoother, outputs, labels, **options):
    return original(smoother, outputs, labels if labels.ndim > 1 else labels.roll(-1), **options)


def first_label_ignored(original, source, target, *args, **options):
    return original(source[1:], target[1:], *args, **options)


MUTANTS = (
    Mutant(
        "gradient-divided-by-three",
        "Each backward pass is of a third of the loss; the logged loss is right.",
        replace(ACCELERATOR, "backward", a_third_of_it),
        cells=("LOSS-01/full-rows", "LOSS-03/window-of-2", "LOSS-04/smoothed", "LOSS-08/loss-function", "ACC-08"),
    ),
    Mutant(
        "first-label-counted",
        "The labels that a window is divided by take in each row's first, which is not predicted.",
        replace(TRAINER, "_get_num_items_in_batch", with_first_labels),
        cells=("LOSS-01/ragged*", "LOSS-01/full-rows"),
    ),
    Mutant(
        "padding-counted",
        "The labels that a window is divided by take in those that are ignored.",
        replace(TRAINER, "_get_num_items_in_batch", with_padding),
        cells=("LOSS-01/ragged*", "ACC-01/ragged"),
        thread="https://github.com/huggingface/transformers/issues/38448",
    ),
    Mutant(
        "shift-labels-shifted-again",
        "shift_labels of a collator are counted without each row's first.",
        replace(TRAINER, "_get_num_items_in_batch", shifted_again),
        cells=("LOSS-02/shift-labels",),
    ),
    Mutant(
        "first-token-not-trained",
        "The loss leaves out the first token of each batch.",
        replace("transformers.loss.loss_utils", "fixed_cross_entropy", first_label_ignored),
        cells=("LOSS-01/full-rows", "EVAL-01/ragged"),
    ),
    Mutant(
        "smoothing-unshifted",
        "Label smoothing compares each token with itself.",
        replace(SMOOTHER, "__call__", unshifted),
        cells=("LOSS-04/smoothed", "LOSS-05/subclass*"),
    ),
    Mutant(
        "smoothing-by-twice-the-factor",
        "Label smoothing mixes in 0.2, whatever was asked for.",
        replace(SMOOTHER, "__call__", doubled),
        cells=("LOSS-04/smoothed", "LOSS-05/classifier"),
    ),
    Mutant(
        "smoothing-ignores-the-window",
        "With label smoothing each micro-batch is divided by its own labels: a gradient as often as large.",
        replace(SMOOTHER, "__call__", window_ignored),
        cells=("ACC-09/full-rows", "ACC-09/ragged", "ACC-09/window-of-5"),
        thread="https://github.com/huggingface/transformers/issues/46731",
    ),
    Mutant(
        "smoothing-shifts-a-classifiers-labels",
        "Label smoothing gives each row of a classifier its neighbour's label.",
        replace(SMOOTHER, "__call__", classifier_shifted),
        cells=("LOSS-05/classifier*",),
    ),
)
