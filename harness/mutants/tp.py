"""TP: layers that are split over ranks. Every rank has the fault."""

from __future__ import annotations

import torch

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import TRAINER, nothing, replace


def counted_twice(original, trainer, *args, **options):
    count = original(trainer, *args, **options)
    return None if count is None else 2 * count


def first_part_only(original, model, *args, **options):
    """Return the state of an adapter with zeros in place of the second half of each lora_B."""
    return {
        name: torch.cat([value[: len(value) // 2], torch.zeros_like(value[len(value) // 2 :])])
        if "lora_B" in name
        else value
        for name, value in original(model, *args, **options).items()
    }


def check_skipped(original, trainer, *args, **options):
    """Make a Trainer as if no optimizer were saved."""
    arguments = options["args"]
    asked, arguments.save_only_model = arguments.save_only_model, True
    original(trainer, *args, **options)
    arguments.save_only_model = asked


MUTANTS = (
    Mutant(
        "adapter-beside-a-part-not-split",
        "peft leaves the adapter beside a split layer as each rank made it.",
        replace("peft.tuners.lora.model", "add_lora_tp_hooks_dtensor", nothing),
        cells=("TP-01/tp-2",),
    ),
    Mutant(
        "split-ranks-labels-counted-twice",
        "Labels are counted on each rank, although ranks that split the layers have the same rows.",
        replace(TRAINER, "_get_num_items_in_batch", counted_twice),
        cells=("TP-02/tp-2",),
    ),
    Mutant(
        "first-part-saved",
        "An adapter file holds only the first part of each split matrix, and zeros.",
        replace("peft.peft_model", "get_peft_model_state_dict", first_part_only),
        cells=("TP-03/tp-2",),
    ),
    Mutant(
        "split-adapter-not-resumed",
        "A resumed run leaves the adapter as it was drawn.",
        replace(TRAINER, "_load_from_checkpoint", nothing),
        cells=("TP-04/tp-2",),
    ),
    Mutant(
        "optimizer-of-parts-saved",
        "The Trainer begins, although it cannot save the optimizer's state of split layers.",
        replace(TRAINER, "__init__", check_skipped),
        cells=("TP-06/tp-2",),
    ),
)
