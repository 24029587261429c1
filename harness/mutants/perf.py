"""PERF: what a step costs."""

from __future__ import annotations

from typing import Any

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import TRAINER, replace, twice

_KEPT: list[Any] = []


def reading(original, trainer, *args, **options):
    loss = original(trainer, *args, **options)
    for _ in range(4):
        loss.item()
    return loss


def forward_twice(original, trainer, model, inputs, *args, **options):
    if model.training:
        original(trainer, model, dict(inputs), *args, **options)
    return original(trainer, model, inputs, *args, **options)


def copying(original, trainer, model, *args, **options):
    for parameter in model.parameters():
        parameter.detach().clone()
    return original(trainer, model, *args, **options)


def longer_each_time(original, trainer, *args, **options):
    _KEPT.append(original(trainer, *args, **options).detach().repeat(1000))
    return _KEPT[-1][0]


MUTANTS = (
    Mutant(
        "an-extra-synchronization",
        "The loss is read from the device four times more, each of which waits for it.",
        replace(TRAINER, "training_step", reading),
        cells=("PERF-03/plain",),
    ),
    Mutant(
        "forward-pass-twice",
        "Each micro-batch goes forward twice, and one loss is thrown away.",
        replace(TRAINER, "compute_loss", forward_twice),
        cells=("PERF-03/plain",),
    ),
    Mutant(
        "an-extra-copy",
        "Every parameter is copied at each step, for nothing.",
        replace(TRAINER, "training_step", copying),
        cells=("PERF-01/plain",),
    ),
    Mutant(
        "a-loss-kept-per-step",
        "Each step's loss is kept, a thousand times over.",
        replace(TRAINER, "training_step", longer_each_time),
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
