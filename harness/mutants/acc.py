"""ACC: accumulation of gradients over micro-batches."""

from __future__ import annotations

import torch

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import HANDLER, TRAINER, nothing, replace


def divided_by_accelerate_too(original, trainer, *args, **options):
    """Divide a loss that is normalised already, as accelerate did with transformers 5.2 to 5.4."""
    backward = trainer.accelerator.backward
    trainer.accelerator.backward = lambda loss, **more: backward(
        loss / trainer.args.gradient_accumulation_steps, **more
    )
    try:
        return original(trainer, *args, **options)
    finally:
        trainer.accelerator.backward = backward


def last_micro_batch_lost(original, trainer, iterator, count, device):
    batches, items = original(trainer, iterator, count, device)
    return batches[: max(1, len(batches) - 1)], items


def window_one_short(original, self, iterator, count, device):
    return original(self, iterator, max(1, count - 1), device)


def accelerate_accumulates(original, trainer):
    original(trainer)
    trainer.accelerator.gradient_accumulation_steps = trainer.args.gradient_accumulation_steps


def zeroed_not_freed(original, self, set_to_none=True):
    original(self, set_to_none=False)


def event_not_sent(original, handler, args, state, control):
    return control


def counted_by_the_first(original, trainer, batches, device):
    """Count the labels of the first micro-batch, and assume that the others have as many."""
    return original(trainer, batches[:1], device) * len(batches)


def clipped_each_time(original, trainer, *args, **options):
    loss = original(trainer, *args, **options)
    parameters = [p for p in trainer.model.parameters() if p.grad is not None]
    torch.nn.utils.clip_grad_norm_(parameters, trainer.args.max_grad_norm)
    return loss


MUTANTS = (
    Mutant(
        "accumulation-divided-twice",
        "The gradient is divided by the number of micro-batches twice; the logged loss is right.",
        replace(TRAINER, "training_step", divided_by_accelerate_too),
        cells=("ACC-01/full-rows", "ACC-01/ragged", "ACC-08/large-batch", "ACC-09/full-rows", "LOSS-03/window-of-2"),
    ),
    Mutant(
        "mean-of-means",
        "A window's loss is the mean of its micro-batches' means, not the mean over its labels.",
        replace(TRAINER, "_get_num_items_in_batch", nothing),
        cells=("ACC-01/ragged", "ACC-01/ragged-5", "LOSS-01/ragged", "API-06/loss-keywords"),
        thread="https://github.com/huggingface/transformers/issues/37766",
    ),
    Mutant(
        "last-micro-batch-lost",
        "The last micro-batch of each window is read and counted, but not trained.",
        replace(TRAINER, "get_batch_samples", last_micro_batch_lost),
        cells=("ACC-01/full-rows", "ACC-02/accumulation", "ACC-05/accumulation", "RNG-02/accumulation"),
    ),
    Mutant(
        "window-a-micro-batch-short",
        "A window has one micro-batch less than gradient_accumulation_steps.",
        replace(TRAINER, "get_batch_samples", window_one_short),
        cells=("ACC-02/accumulation", "ACC-02/short*", "ACC-01/full-rows"),
    ),
    Mutant(
        "accelerate-accumulates-too",
        "accelerate accumulates over gradient_accumulation_steps, in addition to the Trainer.",
        replace(TRAINER, "create_accelerator_and_postprocess", accelerate_accumulates),
        cells=("ACC-03", "ACC-01/full-rows"),
    ),
    Mutant(
        "gradients-outlive-the-window",
        "After a step gradients are set to zero, and not freed.",
        replace("torch.nn:Module", "zero_grad", zeroed_not_freed),
        cells=("ACC-05/gradients_live*", "MEM-02/rank-16"),
    ),
    Mutant(
        "substep-not-told",
        "No event is sent at the end of a micro-batch.",
        replace(HANDLER, "on_substep_end", event_not_sent),
        cells=("ACC-05/accumulation", "CB-01/accumulation"),
    ),
    Mutant(
        "window-counted-by-its-first-micro-batch",
        "Every micro-batch of a window is assumed to have as many labels as the first.",
        replace(TRAINER, "_get_num_items_in_batch", counted_by_the_first),
        cells=("ACC-10/ragged-window-of-4", "ACC-01/ragged"),
    ),
    Mutant(
        "clip-per-micro-batch",
        "Gradients are clipped after each micro-batch, not once per window.",
        replace(TRAINER, "training_step", clipped_each_time),
        cells=("ACC-01/clipped", "ACC-01/full-rows", "LOOP-05/accumulation"),
    ),
)
