"""MEM: memory."""

from __future__ import annotations

from typing import Any

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import TRAINER, nothing, replace

#: Objects that the faults below keep alive.
_LEAKED: list[Any] = []


def dataloader_leaked(original, state, loader):
    _LEAKED.append(loader)
    original(state, loader)


def tensor_leaked(original, *args, **kwargs):
    _LEAKED.append(original(*args, **kwargs).repeat(1000))
    return _LEAKED[-1][0]


def base_trained(original, trainer, *args):
    trainer.model.requires_grad_(True)
    return original(trainer, *args)


MUTANTS = (
    Mutant(
        "dataloader-kept",
        "A dataloader stays in memory after its Trainer is gone.",
        replace("accelerate.state:GradientState", "_add_dataloader", dataloader_leaked),
        cells=("MEM-01/mid-epoch", "MEM-01/end-of-epoch"),
    ),
    Mutant(
        "a-leak-per-step",
        "Each step leaves 1000 numbers in memory.",
        replace(TRAINER, "training_step", tensor_leaked),
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
        "The whole base is trained, so it has gradients and moments.",
        replace(TRAINER, "create_optimizer", base_trained),
        cells=("MEM-02/rank-1", "FRZ-03/plain"),
    ),
)
