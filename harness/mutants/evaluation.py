"""EVAL: evaluation."""

from __future__ import annotations

import torch

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import ARGUMENTS, TRAINER, nothing, replace

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


def weighted_by_labels(original, trainer, *args, **options):
    """Weight the loss of each batch by its labels, not by its rows."""
    loss, logits, labels = original(trainer, *args, **options)
    rows = args[1]["labels"]
    return loss * (rows[:, 1:] != -100).sum() / (len(rows) * 10), logits, labels


def mean_over_batches(original, trainer, *args, **options):
    """Weight all batches alike, so a short last batch counts as much as a full one."""
    loss, logits, labels = original(trainer, *args, **options)
    return loss * trainer.args.per_device_eval_batch_size / len(args[1]["labels"]), logits, labels


def drawing(original, trainer, *args, **options):
    torch.rand(1)
    return original(trainer, *args, **options)


def adapter_changed(original, trainer, *args, **options):
    result = original(trainer, *args, **options)
    next(p for p in trainer.model.parameters() if p.requires_grad).data.add_(1e-3)
    return result


def rows_reversed(original, *args, **options):
    loss, logits, labels = original(*args, **options)
    return loss, logits if logits is None else logits.flip(0), labels


def without_label_ids(original, *args, **options):
    return (*original(*args, **options)[:2], None)


def no_labels(original, model_class):
    return []


def always_the_default_prefix(original, trainer, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
    return original(trainer, eval_dataset, ignore_keys, "eval")


def no_delay(original, arguments):
    original(arguments)
    arguments.eval_delay = 0


def generated_by_the_base(original, trainer, model, inputs, *args, **options):
    layers = [module for module in trainer.model.modules() if hasattr(module, "_disable_adapters")]
    for layer in layers:
        layer._disable_adapters = True
    try:
        return original(trainer, model, inputs, *args, **options)
    finally:
        for layer in layers:
            layer._disable_adapters = False


def a_token_early(original, trainer, model, inputs, prediction_loss_only, ignore_keys=None, **options):
    loss, tokens, labels = original(trainer, model, inputs, prediction_loss_only, ignore_keys, **options)
    if tokens is not None:
        tokens = tokens.clone()
        tokens[:, 5:] = trainer.model.config.pad_token_id
    return loss, tokens, labels


def prepared_once(original, trainer, *args, **options):
    result = original(trainer, *args, **options)
    vars(trainer).pop("model_preparation_time", None)
    return result


MUTANTS = (
    Mutant(
        "evaluated-without-the-adapter",
        "Evaluation switches the adapter off and evaluates the base.",
        replace(*STEP, without_the_adapter),
        cells=("EVAL-01/ragged", "EVAL-01/one-batch"),
    ),
    Mutant(
        "evaluated-with-dropout",
        "The model is in training mode during an evaluation.",
        replace(*STEP, in_training_mode),
        cells=("EVAL-01/ragged", "EVAL-04/each-second-step"),
    ),
    Mutant(
        "evaluated-backwards",
        "Evaluation reads the rows from the last to the first.",
        replace(TRAINER, "_get_eval_sampler", backwards),
        cells=("EVAL-01/ragged", "EVAL-05/plain"),
    ),
    Mutant(
        "eval-loss-by-labels",
        "eval_loss weights batches by their labels, not by their rows.",
        replace(*STEP, weighted_by_labels),
        cells=("EVAL-01/ragged", "EVAL-01/ignored-labels"),
    ),
    Mutant(
        "eval-loss-by-batches",
        "eval_loss is the mean over batches, although the last batch is short.",
        replace(*STEP, mean_over_batches),
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
        "An evaluation changes the adapter.",
        replace(*LOOP, adapter_changed),
        cells=("EVAL-04/each-second-step",),
    ),
    Mutant(
        "predictions-out-of-order",
        "The predictions of a batch are in another order than its labels.",
        replace(*STEP, rows_reversed),
        cells=("EVAL-05/plain",),
    ),
    Mutant(
        "label-ids-missing",
        "Predictions have no label_ids.",
        replace(*STEP, without_label_ids),
        cells=("EVAL-09/llama", "EVAL-05/plain", "EVAL-06/compute-metrics"),
        thread="https://github.com/huggingface/transformers/pull/32085",
    ),
    Mutant(
        "no-eval-loss",
        "The Trainer finds no label column, so evaluation has no loss.",
        replace("transformers.trainer", "find_labels", no_labels),
        cells=("EVAL-09/llama", "EVAL-01/ragged"),
        thread="https://github.com/huggingface/transformers/issues/38130",
    ),
    Mutant(
        "evaluation-sets-share-a-name",
        "The metrics of several evaluation sets have one prefix and overwrite each other.",
        replace(TRAINER, "evaluate", always_the_default_prefix),
        cells=("EVAL-06/each_of*",),
    ),
    Mutant(
        "eval-delay-ignored",
        "Evaluations begin at once, whatever eval_delay is.",
        replace(ARGUMENTS, "__post_init__", no_delay),
        cells=("EVAL-10/delayed-steps", "EVAL-10/delayed-epochs"),
    ),
    Mutant(
        "generated-by-the-base",
        "Seq2SeqTrainer generates with the adapter disabled.",
        replace("transformers:Seq2SeqTrainer", "prediction_step", generated_by_the_base),
        cells=("EVAL-11/plain", "EVAL-11/plain/add_adapter"),
    ),
    Mutant(
        "generation-ends-a-token-early",
        "Seq2SeqTrainer leaves out the last token of generation_max_length.",
        replace("transformers:Seq2SeqTrainer", "prediction_step", a_token_early),
        cells=("EVAL-11/plain",),
    ),
    Mutant(
        "preparation-time-once",
        "The preparation time of the model is reported once only.",
        replace(TRAINER, "evaluation_loop", prepared_once),
        cells=("EVAL-07/*",),
    ),
    Mutant(
        "unreported-metric-passed-over",
        "A metric_for_best_model that is not reported is no error.",
        replace(TRAINER, "_determine_best_metric", nothing),
        cells=("EVAL-08/*",),
    ),
)
