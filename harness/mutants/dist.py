"""DIST: several processes, each with a copy of the model. The faults are in every rank."""

from __future__ import annotations

import os

import torch

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import ACCELERATOR, ARGUMENTS, TRAINER, nothing, replace

DDP = "torch.nn.parallel:DistributedDataParallel"


def rank() -> int:
    """This process's rank, 0 where it is the only one."""
    return int(os.environ.get("RANK", 0))


def without_average(original, arguments):
    original(arguments)
    arguments.average_tokens_across_devices = False


def unsynchronised(original, wrapped, *inputs, **options):
    with wrapped.no_sync():
        return original(wrapped, *inputs, **options)


def one_tensor_of_its_own(original, accelerator, parameters, *args, **options):
    parameters = list(parameters)
    if rank() == 1:
        trained = [parameter for parameter in parameters if parameter.grad is not None]
        trained[0].grad.mul_(1.5)
    return original(accelerator, parameters, *args, **options)


def the_same_rows(original, dataset, *args, **options):
    return original(dataset, *args, **{**options, "process_index": 0})


def own_generator(original, trainer, output_dir):
    torch.manual_seed(rank())
    return original(trainer, output_dir)


def own_order(original, sampler):
    sampler.initial_seed = sampler.initial_seed + 100 * rank()
    return original(sampler)


def twice_the_loss(original, trainer, logs, *args, **options):
    return original(trainer, {**logs, "loss": 2 * logs["loss"]} if "loss" in logs else logs, *args, **options)


def never(original, accelerator, model):
    return False


def not_looked_for(original, wrapped, *args, **options):
    original(wrapped, *args, **{**options, "find_unused_parameters": False})


MUTANTS = (
    Mutant(
        "gradients-not-synchronised",
        "Ranks step with gradients of their own.",
        replace(DDP, "forward", unsynchronised),
        cells=("DIST-02/ddp-2", "DIST-01/ddp-2", "DIST-10/ddp-2"),
    ),
    Mutant(
        "one-rank-steps-otherwise",
        "Rank 1 steps with another gradient of one tensor.",
        replace(ACCELERATOR, "clip_grad_norm_", one_tensor_of_its_own),
        cells=("DIST-01/ddp-2",),
    ),
    Mutant(
        "labels-of-each-rank-alone",
        "A rank divides by its own labels, and the mean over ranks is one of means.",
        replace(ARGUMENTS, "__post_init__", without_average),
        cells=("DIST-10/not-accumulated", "DIST-02/ddp-2"),
    ),
    Mutant(
        "same-rows-on-all-ranks",
        "Every rank trains rank 0's rows.",
        replace("accelerate.accelerator", "prepare_data_loader", the_same_rows),
        cells=("DIST-07/n40", "DIST-02/ddp-2"),
    ),
    Mutant(
        "order-of-each-rank",
        "Every rank shuffles on its own, so that rows are trained twice and others never.",
        replace("accelerate.data_loader:SeedableRandomSampler", "__iter__", own_order),
        cells=("DIST-07/n40", "DIST-02/ddp-2"),
    ),
    Mutant(
        "adapters-of-their-own",
        "Rank 0's adapter is not sent to the others.",
        replace("torch.nn.parallel.distributed", "_sync_module_states", nothing),
        cells=("DIST-03",),
    ),
    Mutant(
        "generators-of-their-own",
        "Ranks save generators that are in other states.",
        replace(TRAINER, "_save_rng_state", own_generator),
        cells=("DIST-04",),
    ),
    Mutant(
        "unused-parameters-not-looked-for",
        "find_unused_parameters is off, whatever the model is.",
        replace(DDP, "__init__", not_looked_for),
        cells=("DIST-05/plain*",),
    ),
    Mutant(
        "logged-loss-doubled",
        "The logged loss is twice what it must be, as the sum over two ranks would be.",
        replace(TRAINER, "log", twice_the_loss),
        cells=("DIST-08/ddp-2", "DS-04/zero2-2"),
    ),
    Mutant(
        "model-on-several-devices-taken",
        "A model with a device_map of several devices is not refused.",
        replace(ACCELERATOR, "verify_device_map", never),
        cells=("DIST-09",),
    ),
)
