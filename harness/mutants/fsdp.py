"""FSDP: parameters sharded over ranks. The faults are in every rank."""

from __future__ import annotations

import os
import time

import torch

from harness.mutants.catalogue import Mutant
from harness.mutants.dist import rank
from harness.mutants.patch import ACCELERATOR, ARGUMENTS, LLAMA, TRAINER, nothing, replace


def as_ddp(original, accelerator, *args, **options):
    from accelerate.utils import DistributedType

    accelerator.state.distributed_type = DistributedType.MULTI_CPU
    return original(accelerator, *args, **options)


def first_shard_only(original, accelerator, model, **options):
    full = original(accelerator, model, **options)
    return {
        name: torch.cat([part[: part.shape[0] // 2], torch.zeros_like(part[part.shape[0] // 2 :])])
        if "lora_" in name
        else part
        for name, part in full.items()
    }


def sharded_by_default(original, arguments):
    if isinstance(arguments.fsdp_config, dict):
        arguments.fsdp_config.setdefault("state_dict_type", "SHARDED_STATE_DICT")
    return original(arguments)


def policy_alone(original, model, accelerator):
    from peft.utils.other import fsdp_auto_wrap_policy

    accelerator.state.fsdp_plugin.auto_wrap_policy = fsdp_auto_wrap_policy(model)


def unchecked(original, trainer):
    """save_only_model is told after everything that it cannot go together with has been looked at."""
    kept, trainer.args.save_only_model = trainer.args.save_only_model, False
    original(trainer)
    trainer.args.save_only_model = kept


def not_upcast(original, accelerator, model):
    kept, accelerator.state._mixed_precision = accelerator.state._mixed_precision, "no"
    prepared = original(accelerator, model)
    accelerator.state._mixed_precision = kept
    return prepared


def all_upcast(original, accelerator, model):
    return original(accelerator, model.float())


def otherwise_on_each_rank(original, model, *args, **options):
    tokens = original(model, *args, **options)
    tokens[:, -1] += rank()
    return tokens


def summed(original, accelerator, parameters, *args, **options):
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(int(os.environ.get("WORLD_SIZE", 1)))
    return original(accelerator, parameters, *args, **options)


#: Seconds: ranks on one machine need a hundredth of it, and one that is late far more.
PATIENCE = 0.05


def no_wait_for_a_late_rank(original, gather, **options):
    work = original(gather, **{**options, "async_op": True})
    until = time.monotonic() + PATIENCE
    while not work.is_completed() and time.monotonic() < until:
        time.sleep(0.0005)


PREPARE = ("accelerate.accelerator", "fsdp2_prepare_model")

MUTANTS = (
    Mutant(
        "silent-ddp",
        "What asked for FSDP is a run of DDP.",
        replace(ACCELERATOR, "_prepare_fsdp2", as_ddp),
        cells=("FSDP-13/nothing-saved",),
    ),
    Mutant(
        "first-ranks-shard-only",
        "A full state dict holds rank 0's half of each adapter tensor.",
        replace(ACCELERATOR, "get_state_dict", first_shard_only),
        cells=("FSDP-14/fsdp2-2",),
        thread="https://github.com/huggingface/accelerate/pull/4206",
    ),
    Mutant(
        "sharded-state-dict-by-default",
        "Where fsdp_config says nothing, checkpoints are sharded.",
        replace(ARGUMENTS, "_process_fsdp_args", sharded_by_default),
        cells=("FSDP-01/defaults",),
    ),
    Mutant(
        "adapters-not-wrapped",
        "Version 1 has no policy for adapters, so that flat parameters mix trained and frozen weights.",
        replace("transformers.trainer", "update_fsdp_plugin_peft", nothing),
        cells=("FSDP-02/fsdp1-2",),
    ),
    Mutant(
        "storage-dtype-passed-over",
        "Version 1 does not take the dtype in which a 4-bit base is stored.",
        replace("transformers.distributed.fsdp", "update_fsdp_plugin_peft", policy_alone),
        cells=("FSDP-03",),
    ),
    Mutant(
        "layers-not-sharded-apart",
        "Version 2 shards the model as a whole, and not layer by layer.",
        replace("accelerate.utils.fsdp_utils", "fsdp2_prepare_auto_wrap_policy", nothing),
        cells=("FSDP-04/fsdp2-2",),
    ),
    Mutant(
        "checkpoint-not-loaded",
        "Resuming looks at no checkpoint, whether it is FSDP's, another's or none.",
        replace(TRAINER, "_load_from_checkpoint", nothing),
        cells=("FSDP-08/full-to-one-process", "FSDP-18/fsdp2-2", "RES-04/no-adapter-file"),
    ),
    Mutant(
        "model-only-saves-not-checked",
        "save_only_model is not refused with load_best_model_at_end or a sharded state dict.",
        replace(TRAINER, "create_accelerator_and_postprocess", unchecked),
        cells=("FSDP-09/best", "FSDP-09/sharded", "DS-05/best"),
    ),
    Mutant(
        "adapter-sharded-in-half-precision",
        "Version 2 does not cast a half-precision adapter to float32 under mixed precision.",
        replace(*PREPARE, not_upcast),
        cells=("FSDP-11",),
    ),
    Mutant(
        "base-cast-to-float32",
        "Sharding casts the frozen base to float32.",
        replace(*PREPARE, all_upcast),
        cells=("FSDP-16/bfloat16",),
    ),
    Mutant(
        "ranks-generate-differently",
        "generate() of a sharded model gives each rank tokens of its own.",
        replace(LLAMA, "generate", otherwise_on_each_rank),
        cells=("FSDP-12",),
    ),
    Mutant(
        "late-ranks-not-waited-for",
        "Version 2 computes with what it has gathered after 50 ms, whether that is whole or not.",
        replace(
            "torch.distributed.fsdp._fully_shard._fsdp_collectives:DefaultAllGather",
            "__call__",
            no_wait_for_a_late_rank,
        ),
        cells=("FSDP-19/fsdp2-2/rank-0-late",),
    ),
    Mutant(
        "loaded-ranks-go-apart",
        "Adapters on a base that was sharded as it was loaded are each rank's own: not handed out, gradients not averaged.",
        replace(TRAINER, "_sync_replicated_trainable_parameters", nothing),
        cells=("FSDP-20/loaded-2", "FSDP-20/loaded-2/own-adapters", "FSDP-17/loaded-2"),
    ),
    Mutant(
        "sharded-gradients-summed",
        "Gradients are the sum over ranks, and not their mean.",
        replace(ACCELERATOR, "clip_grad_norm_", summed),
        cells=("FSDP-17/fsdp2-2", "DIST-02/ddp-2"),
    ),
)
