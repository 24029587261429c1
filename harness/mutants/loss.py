"""LOSS: what is minimised, and by what it is divided."""

from __future__ import annotations

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import ACCELERATOR, TRAINER, replace

SMOOTHER = "transformers.trainer_pt_utils:LabelSmoother"


def divided_by_three(original, accelerator, loss, **options):
    return original(accelerator, loss / 3, **options)


def first_labels_counted(original, trainer, batches, device):
    return sum(batch["labels"].ne(-100).sum() for batch in batches)


def ignored_labels_counted(original, trainer, batches, device):
    return sum(batch["labels"].numel() for batch in batches)


def shifted_again(original, trainer, batches, device):
    return sum(batch["shift_labels"][..., 1:].ne(-100).sum() if "shift_labels" in batch else 0 for batch in batches)


def unshifted(original, smoother, outputs, labels, shift_labels=False, **options):
    return original(smoother, outputs, labels, shift_labels=False, **options)


def twice_the_factor(original, self, *args, **options):
    return original(type(self)(epsilon=0.2), *args, **options)


def window_ignored(original, smoother, outputs, labels, num_items_in_batch=None, **options):
    return original(smoother, outputs, labels, **options)


def classifier_shifted(original, smoother, outputs, labels, **options):
    return original(smoother, outputs, labels if labels.ndim > 1 else labels.roll(-1), **options)


def first_label_ignored(original, source, target, *args, **options):
    return original(source[1:], target[1:], *args, **options)


def ignored_tokens_learned(original, model, *args, labels=None, **options):
    return original(model, *args, labels=None if labels is None else labels.clamp(min=0), **options)


def answers_summed(original, *args, **options):
    output = original(*args, **options)
    if output.get("loss") is not None:
        output["loss"] = 2 * output["loss"]
    return output


def mask_shifted(original, model, *args, labels=None, **options):
    return original(model, *args, labels=None if labels is None else labels.roll(1, dims=1), **options)


def classes_swapped(original, model, *args, labels=None, **options):
    return original(model, *args, labels=None if labels is None else 1 - labels, **options)


def fed_its_own_label(original, labels, pad, start):
    return labels.masked_fill(labels == -100, pad)


def answers_twice(original, *args):
    return 2 * original(*args)


MUTANTS = (
    Mutant(
        "gradient-divided-by-three",
        "The gradient is a third of what it must be; the logged loss is right.",
        replace(ACCELERATOR, "backward", divided_by_three),
        cells=("LOSS-01/full-rows", "LOSS-03/window-of-2", "LOSS-04/smoothed", "LOSS-08/loss-function", "ACC-08"),
    ),
    Mutant(
        "first-label-counted",
        "The label count of a window includes the first label of each row, which is not predicted.",
        replace(TRAINER, "_get_num_items_in_batch", first_labels_counted),
        cells=("LOSS-01/ragged*", "LOSS-01/full-rows"),
    ),
    Mutant(
        "padding-counted",
        "The label count of a window includes labels that are ignored (-100).",
        replace(TRAINER, "_get_num_items_in_batch", ignored_labels_counted),
        cells=("LOSS-01/ragged*", "ACC-01/ragged"),
        thread="https://github.com/huggingface/transformers/issues/38448",
    ),
    Mutant(
        "shift-labels-shifted-again",
        "The labels that a collator has shifted already are shifted once more before they are counted.",
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
        "The label smoothing factor is always 0.2.",
        replace(SMOOTHER, "__call__", twice_the_factor),
        cells=("LOSS-04/smoothed", "LOSS-05/classifier"),
    ),
    Mutant(
        "smoothing-ignores-the-window",
        "With label smoothing a window of n micro-batches has n times the gradient.",
        replace(SMOOTHER, "__call__", window_ignored),
        cells=("ACC-09/full-rows", "ACC-09/ragged", "ACC-09/window-of-5"),
        thread="https://github.com/huggingface/transformers/issues/46731",
    ),
    Mutant(
        "smoothing-shifts-a-classifiers-labels",
        "Label smoothing shifts a classifier's labels to the neighbouring rows.",
        replace(SMOOTHER, "__call__", classifier_shifted),
        cells=("LOSS-05/classifier*",),
    ),
    Mutant(
        "ignored-tokens-classified",
        "A token classifier learns the tokens that are to be ignored (-100), as class 0.",
        replace("transformers:BertForTokenClassification", "forward", ignored_tokens_learned),
        cells=("LOSS-01/task/token-classification",),
    ),
    Mutant(
        "answers-summed",
        "The loss of an answer is the sum of the losses of its start and its end, not their mean.",
        replace("transformers:BertForQuestionAnswering", "forward", answers_summed),
        cells=("LOSS-01/task/question-answering",),
    ),
    Mutant(
        "masked-labels-shifted",
        "A masked model predicts the token before the mask.",
        replace("transformers:BertForMaskedLM", "forward", mask_shifted),
        cells=("LOSS-01/task/masked",),
    ),
    Mutant(
        "image-classes-swapped",
        "An image classifier learns class 1 where the label is 0, and 0 where it is 1.",
        replace("transformers:ViTForImageClassification", "forward", classes_swapped),
        cells=("LOSS-01/task/image-classification",),
    ),
    Mutant(
        "speech-decoder-sees-its-label",
        "The decoder of a speech model is fed the token that it is to predict.",
        replace("transformers.models.whisper.modeling_whisper", "shift_tokens_right", fed_its_own_label),
        cells=("LOSS-01/task/speech",),
    ),
    Mutant(
        "multi-label-loss-doubled",
        "Multi-label classification trains with twice its loss.",
        replace("torch.nn:BCEWithLogitsLoss", "forward", answers_twice),
        cells=("LOSS-07/*",),
    ),
)
