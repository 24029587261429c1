"""RNG: random numbers and the order of the rows."""

from __future__ import annotations

import torch

from harness.mutants.api import drawing
from harness.mutants.catalogue import Mutant
from harness.mutants.patch import TRAINER, nothing, replace


def drawing_with_workers(original, trainer):
    torch.rand(min(1, trainer.args.dataloader_num_workers))
    return original(trainer)


def seeded_again(original, trainer, *args, **options):
    from transformers import set_seed

    set_seed(42)
    return original(trainer, *args, **options)


def seeded_only(original, seed, **options):
    from transformers import set_seed

    set_seed(seed)


def in_order(original, trainer, *args, **options):
    from torch.utils.data import SequentialSampler

    return SequentialSampler(trainer.train_dataset)


def data_seed_ignored(original, sampler, *args, **options):
    original(sampler, *args, **options)
    sampler.initial_seed = 42


def drawing_before_the_seed(original, trainer, *args):
    """Draw some numbers first, as earlier runs in the process would."""
    torch.rand(7)
    return original(trainer, *args)


_CALLS: list[int] = []


def seeded_by_call(original, trainer, *args, **options):
    _CALLS.append(1)
    torch.manual_seed(len(_CALLS))
    return original(trainer, *args, **options)


MUTANTS = (
    Mutant(
        "seed-not-set",
        "Trainer() sets no seed.",
        replace("transformers.trainer", "set_seed", nothing),
        cells=("RNG-01", "RNG-02/plain"),
    ),
    Mutant(
        "seed-set-at-train",
        "train() sets the seed again.",
        replace(TRAINER, "_inner_training_loop", seeded_again),
        cells=("RNG-01",),
    ),
    Mutant(
        "adapter-drawn-before-the-seed",
        "model_init initialises the adapter after other numbers were drawn since the seed was set.",
        replace(TRAINER, "call_model_init", drawing_before_the_seed),
        cells=("HPO-03/learning_rate", "RNG-01/train_seeds*"),
        thread="https://github.com/huggingface/trl/issues/6688",
    ),
    Mutant(
        "log-draws-a-number",
        "Each log entry draws from torch's generator.",
        replace(TRAINER, "log", drawing),
        cells=("RNG-03/plain", "RNG-03/logged-never"),
    ),
    Mutant(
        "workers-draw-a-number",
        "A dataloader with workers draws from torch's generator.",
        replace(TRAINER, "get_train_dataloader", drawing_with_workers),
        cells=("RNG-04/workers_do_not_change_a_run",),
    ),
    Mutant(
        "full-determinism-left-out",
        "full_determinism sets the seed and nothing else.",
        replace("transformers.trainer", "enable_full_determinism", seeded_only),
        cells=("RNG-05",),
    ),
    Mutant(
        "rows-not-shuffled",
        "Rows are trained in the order of the data set, without shuffling.",
        replace(TRAINER, "_get_train_sampler", in_order),
        cells=("RNG-02/plain", "RNG-02/n37"),
    ),
    Mutant(
        "data-seed-passed-over",
        "data_seed is ignored: seed gives the order of the rows.",
        replace("accelerate.data_loader:SeedableRandomSampler", "__init__", data_seed_ignored),
        cells=("RNG-02/data-seed", "RNG-02/plain"),
    ),
    Mutant(
        "dropout-of-the-process",
        "Dropout masks depend on how many steps the process has made before, not on the seed.",
        replace(TRAINER, "training_step", seeded_by_call),
        cells=("RES-01/step-6", "RNG-03/plain", "DIST-01/repeated"),
    ),
)
