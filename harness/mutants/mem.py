"""MEM: memory."""

from __future__ import annotations

from typing import Any

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import TRAINER, nothing, replace

#: What a fault below holds on to.
KEPT: list[Any] = []


def holding(original, state, loader):
    KEPT.append(loader)
    original(state, loader)


def hoarding(original, *args, **kwargs):
    KEPT.append(original(*args, **kwargs).repeat(1000))
    return KEPT[-1][0]


def unfreezing(original, trainer, *args):
    trainer.model.requires_grad_(True)
    return original(trainer, *args)


MUTANTS = (
    Mutant(
        "dataloader-kept",
        "A dataloader is held on to when its Trainer is gone.",
        replace("accelerate.state:GradientState", "_add_dataloader", holding),
        cells=("MEM-01/mid-epoch", "MEM-01/end-of-epoch"),
    ),
    Mutant(
        "a-leak-per-step",
        "Each step keeps a thousand numbers.",
        replace(TRAINER, "training_step", hoarding),
        cells=("MEM-02/rank-1", "MEM-02/rank-16"),
    ),
    Mutant(
        "gradients-never-freed",
        "Gradients are never zeroed.",
        replace("torch.nn:Module", "zero_grad", nothing),
        cells=("MEM-02/rank-1", "ACC-05/gradients_live*", "LOSS-01/full-rows"),
    ),
    Mutant(
        "base-in-the-optimizer",
        "The whole base is trained, with gradients and moments of its own.",
        replace(TRAINER, "create_optimizer", unfreezing),
        cells=("MEM-02/rank-1", "FRZ-03/plain"),
    ),
)
