"""PERF: what a step costs."""

from __future__ import annotations

from typing import Any

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import TRAINER, replace, twice

_LEAKED: list[Any] = []


def loss_read_four_times(original, trainer, *args, **options):
    loss = original(trainer, *args, **options)
    for _ in range(4):
        loss.item()
    return loss


def forward_twice(original, trainer, model, inputs, *args, **options):
    if model.training:
        original(trainer, model, dict(inputs), *args, **options)
    return original(trainer, model, inputs, *args, **options)


def parameters_copied(original, trainer, model, *args, **options):
    for parameter in model.parameters():
        parameter.detach().clone()
    return original(trainer, model, *args, **options)


def losses_leaked(original, trainer, *args, **options):
    _LEAKED.append(original(trainer, *args, **options).detach().repeat(1000))
    return _LEAKED[-1][0]


MUTANTS = (
    Mutant(
        "an-extra-synchronization",
        "Each step reads the loss from the device four more times, and waits for it each time.",
        replace(TRAINER, "training_step", loss_read_four_times),
        cells=("PERF-03/plain",),
    ),
    Mutant(
        "forward-pass-twice",
        "Each micro-batch has two forward passes, one of which is not used.",
        replace(TRAINER, "compute_loss", forward_twice),
        cells=("PERF-03/plain",),
    ),
    Mutant(
        "an-extra-copy",
        "Each step copies every parameter and does not use the copy.",
        replace(TRAINER, "training_step", parameters_copied),
        cells=("PERF-01/plain",),
    ),
    Mutant(
        "a-loss-kept-per-step",
        "Each step leaves 1000 copies of its loss in memory.",
        replace(TRAINER, "training_step", losses_leaked),
        cells=("PERF-02/plain", "MEM-02/rank-1"),
    ),
    Mutant(
        "optimizer-file-written-twice",
        "The optimizer's file is written twice.",
        replace(TRAINER, "_save_optimizer_and_scheduler", twice),
        cells=("PERF-05/adapter",),
    ),
    Mutant(
        "optimizer-file-read-twice",
        "The optimizer's file is read twice.",
        replace(TRAINER, "_load_optimizer_and_scheduler", twice),
        cells=("PERF-06/adapter",),
    ),
)
