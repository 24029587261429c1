"""DIST: several processes, each with a copy of the model. Every rank has the fault."""

from __future__ import annotations

import os

import torch

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import ACCELERATOR, ARGUMENTS, TRAINER, nothing, replace

DDP = "torch.nn.parallel:DistributedDataParallel"


def rank() -> int:
    """Return this process's rank, 0 if it is the only process."""
    return int(os.environ.get("RANK", 0))


def without_average(original, arguments):
    original(arguments)
    arguments.average_tokens_across_devices = False


def unsynchronised(original, wrapped, *inputs, **options):
    with wrapped.no_sync():
        return original(wrapped, *inputs, **options)


def another_gradient_on_rank_1(original, accelerator, parameters, *args, **options):
    parameters = list(parameters)
    if rank() == 1:
        trained = [parameter for parameter in parameters if parameter.grad is not None]
        trained[0].grad.mul_(1.5)
    return original(accelerator, parameters, *args, **options)


def rows_of_rank_0(original, dataset, *args, **options):
    return original(dataset, *args, **{**options, "process_index": 0})


def own_generator(original, trainer, output_dir):
    torch.manual_seed(rank())
    return original(trainer, output_dir)


def own_order(original, sampler):
    sampler.initial_seed = sampler.initial_seed + 100 * rank()
    return original(sampler)


def loss_logged_twice_as_large(original, trainer, logs, *args, **options):
    return original(trainer, {**logs, "loss": 2 * logs["loss"]} if "loss" in logs else logs, *args, **options)


def never_spread(original, accelerator, model):
    return False


def unused_parameters_ignored(original, wrapped, *args, **options):
    original(wrapped, *args, **{**options, "find_unused_parameters": False})


def slice_of_rank_0(original, data, tensor_slice, *args, **options):
    return original(data, slice(0, tensor_slice.stop - tensor_slice.start), *args, **options)


def half_an_epoch_ahead(original, trainer, logs, *args, **options):
    if rank() == 1:
        trainer.state.epoch += 0.5
    return original(trainer, logs, *args, **options)


MUTANTS = (
    Mutant(
        "gradients-not-synchronised",
        "Each rank steps with its own gradients.",
        replace(DDP, "forward", unsynchronised),
        cells=("DIST-02/ddp-2", "DIST-01/ddp-2", "DIST-10/ddp-2"),
    ),
    Mutant(
        "one-rank-steps-otherwise",
        "Rank 1 steps with a gradient of one tensor that differs from rank 0's.",
        replace(ACCELERATOR, "clip_grad_norm_", another_gradient_on_rank_1),
        cells=("DIST-01/ddp-2",),
    ),
    Mutant(
        "labels-of-each-rank-alone",
        "Each rank divides by the number of its own labels, so the result is a mean of means.",
        replace(ARGUMENTS, "__post_init__", without_average),
        cells=("DIST-10/not-accumulated", "DIST-02/ddp-2"),
    ),
    Mutant(
        "same-rows-on-all-ranks",
        "Every rank trains the rows of rank 0.",
        replace("accelerate.accelerator", "prepare_data_loader", rows_of_rank_0),
        cells=("DIST-07/n40", "DIST-02/ddp-2", "DIST-13/dealt-2/*"),
    ),
    Mutant(
        "order-of-each-rank",
        "Each rank shuffles on its own, so some rows are trained twice and others never.",
        replace("accelerate.data_loader:SeedableRandomSampler", "__iter__", own_order),
        cells=("DIST-07/n40", "DIST-02/ddp-2"),
    ),
    Mutant(
        "dispatched-to-rank-0-only",
        "If batches are dispatched, every rank gets the slice of rank 0.",
        replace("accelerate.data_loader", "slice_tensors", slice_of_rank_0),
        cells=("DIST-13/dispatch-2/random/25-rows", "DIST-13/stream-2/*", "DIST-02/dispatch-2*"),
    ),
    Mutant(
        "ranks-in-other-epochs",
        "Rank 1 counts its epochs otherwise than rank 0.",
        replace(TRAINER, "log", half_an_epoch_ahead),
        cells=("DIST-14/dealt-2/random/25-rows",),
    ),
    Mutant(
        "adapters-of-their-own",
        "The adapter of rank 0 is not sent to the other ranks.",
        replace("torch.nn.parallel.distributed", "_sync_module_states", nothing),
        cells=("DIST-03",),
    ),
    Mutant(
        "generators-of-their-own",
        "Each rank saves a random number generator in another state.",
        replace(TRAINER, "_save_rng_state", own_generator),
        cells=("DIST-04",),
    ),
    Mutant(
        "unused-parameters-not-looked-for",
        "find_unused_parameters is always off.",
        replace(DDP, "__init__", unused_parameters_ignored),
        cells=("DIST-05/plain*",),
    ),
    Mutant(
        "logged-loss-doubled",
        "The logged loss is twice what it must be, as if it were the sum over two ranks.",
        replace(TRAINER, "log", loss_logged_twice_as_large),
        cells=("DIST-08/ddp-2", "DS-04/zero2-2"),
    ),
    Mutant(
        "model-on-several-devices-taken",
        "A model whose device_map spreads it over several devices is not refused.",
        replace(ACCELERATOR, "verify_device_map", never_spread),
        cells=("DIST-09",),
    ),
)
