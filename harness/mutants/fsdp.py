"""FSDP: parameters sharded over ranks. Every rank has the fault."""

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


def half_of_each_tensor(original, accelerator, model, **options):
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


def without_the_storage_dtype(original, model, accelerator):
    from peft.utils.other import fsdp_auto_wrap_policy

    accelerator.state.fsdp_plugin.auto_wrap_policy = fsdp_auto_wrap_policy(model)


def checks_skipped(original, trainer):
    """Set save_only_model after the checks of what it cannot be combined with."""
    asked, trainer.args.save_only_model = trainer.args.save_only_model, False
    original(trainer)
    trainer.args.save_only_model = asked


def not_upcast(original, accelerator, model):
    asked, accelerator.state._mixed_precision = accelerator.state._mixed_precision, "no"
    prepared = original(accelerator, model)
    accelerator.state._mixed_precision = asked
    return prepared


def all_upcast(original, accelerator, model):
    return original(accelerator, model.float())


def other_tokens_on_each_rank(original, model, *args, **options):
    tokens = original(model, *args, **options)
    tokens[:, -1] += rank()
    return tokens


def gradients_summed(original, accelerator, parameters, *args, **options):
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(int(os.environ.get("WORLD_SIZE", 1)))
    return original(accelerator, parameters, *args, **options)


#: Seconds. Ranks of one machine gather in a hundredth of it; a late rank takes far longer.
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
        "A run that asks for FSDP is trained with DDP, without a warning.",
        replace(ACCELERATOR, "_prepare_fsdp2", as_ddp),
        cells=("FSDP-13/nothing-saved",),
    ),
    Mutant(
        "first-ranks-shard-only",
        "A full state dict holds only rank 0's shard of each adapter tensor, and zeros.",
        replace(ACCELERATOR, "get_state_dict", half_of_each_tensor),
        cells=("FSDP-14/fsdp2-2",),
        thread="https://github.com/huggingface/accelerate/pull/4206",
    ),
    Mutant(
        "sharded-state-dict-by-default",
        "If fsdp_config does not say otherwise, checkpoints are sharded.",
        replace(ARGUMENTS, "_process_fsdp_args", sharded_by_default),
        cells=("FSDP-01/defaults",),
    ),
    Mutant(
        "adapters-not-wrapped",
        "FSDP1 does not wrap adapters on their own, so its flat parameters mix trained and frozen weights.",
        replace("transformers.trainer", "update_fsdp_plugin_peft", nothing),
        cells=("FSDP-02/fsdp1-2",),
    ),
    Mutant(
        "storage-dtype-passed-over",
        "FSDP1 ignores the storage dtype of a 4-bit base.",
        replace("transformers.distributed.fsdp", "update_fsdp_plugin_peft", without_the_storage_dtype),
        cells=("FSDP-03",),
    ),
    Mutant(
        "layers-not-sharded-apart",
        "FSDP2 shards the model as a whole, not layer by layer.",
        replace("accelerate.utils.fsdp_utils", "fsdp2_prepare_auto_wrap_policy", nothing),
        cells=("FSDP-04/fsdp2-2",),
    ),
    Mutant(
        "checkpoint-not-loaded",
        "Resuming loads and checks no checkpoint, so one that cannot be used is no error.",
        replace(TRAINER, "_load_from_checkpoint", nothing),
        cells=("FSDP-08/full-to-one-process", "FSDP-18/fsdp2-2", "RES-04/no-adapter-file"),
    ),
    Mutant(
        "model-only-saves-not-checked",
        "save_only_model is accepted with load_best_model_at_end and with a sharded state dict.",
        replace(TRAINER, "create_accelerator_and_postprocess", checks_skipped),
        cells=("FSDP-09/best", "FSDP-09/sharded", "DS-05/best"),
    ),
    Mutant(
        "adapter-sharded-in-half-precision",
        "FSDP2 does not cast a half-precision adapter to float32 under mixed precision.",
        replace(*PREPARE, not_upcast),
        cells=("FSDP-11",),
    ),
    Mutant(
        "base-cast-to-float32",
        "FSDP2 casts the frozen base to float32.",
        replace(*PREPARE, all_upcast),
        cells=("FSDP-16/bfloat16",),
    ),
    Mutant(
        "ranks-generate-differently",
        "generate() of a sharded model returns other tokens on each rank.",
        replace(LLAMA, "generate", other_tokens_on_each_rank),
        cells=("FSDP-12",),
    ),
    Mutant(
        "late-ranks-not-waited-for",
        "FSDP2 waits at most 50 ms for gathered weights, and then computes with what has arrived.",
        replace(
            "torch.distributed.fsdp._fully_shard._fsdp_collectives:DefaultAllGather",
            "__call__",
            no_wait_for_a_late_rank,
        ),
        cells=("FSDP-19/fsdp2-2/rank-0-late",),
    ),
    Mutant(
        "loaded-ranks-go-apart",
        "If the base was sharded as it was loaded, ranks share neither the adapter nor its gradients.",
        replace(TRAINER, "_sync_replicated_trainable_parameters", nothing),
        cells=("FSDP-20/loaded-2", "FSDP-20/loaded-2/own-adapters", "FSDP-17/loaded-2"),
    ),
    Mutant(
        "sharded-gradients-summed",
        "Gradients are the sum over ranks, not the mean.",
        replace(ACCELERATOR, "clip_grad_norm_", gradients_summed),
        cells=("FSDP-17/fsdp2-2", "DIST-02/ddp-2"),
    ),
)
