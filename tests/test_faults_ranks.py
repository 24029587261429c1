"""Faults put into upstream in the ranks of a run, under which the checks of suites/ on several processes must fail.

The negative controls exceed the tolerance of runs in several processes tenfold, and more.
"""

import functools
import os

import pytest
import torch

from harness.laws import several
from harness.laws.equal import distance
from harness.runs import Runs
from harness.scenarios import LAUNCHES, spread
from harness.subjects.hf_trainer import HFTrainer
from harness.tolerance import RANKS
from harness.warm import warm
from suites import test_dist as dist
from suites import test_fsdp as fsdp
from tests.faults import each, in_this_process, replace, verdict_of

TWO = LAUNCHES["ddp-2"]
BRIEF = TWO.but(max_steps=2, gradient_accumulation_steps=None, save_strategy="no")


def runs_under(fault, tmp_path):
    """Training runs in whose ranks this fault of `replace` has been put."""
    warm()
    return Runs(HFTrainer(in_each_rank=functools.partial(in_this_process, fault)), tmp_path)


# ---- faults: what upstream does instead ----


def without_average(original, arguments):
    original(arguments)
    arguments.average_tokens_across_devices = False


def rank():
    return int(os.environ["RANK"])


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


def unsent(original, *args, **options):
    return None


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


TRAINER = "transformers.trainer:Trainer"
ACCELERATOR = "accelerate:Accelerator"
#: Clause: the test of suites/, its parameters, the fault, and words of the sentence that names what it did.
FAULTS = {
    "DIST-01": (
        dist.test_all_ranks_end_with_the_same,
        {"trace": BRIEF},
        replace(ACCELERATOR, "clip_grad_norm_", one_tensor_of_its_own),
        "rank 1: adapter at the end: model.layers.0.self_attn.q_proj.lora_A.weight differs",
    ),
    "DIST-04": (
        dist.test_generators_of_all_ranks_are_alike,
        {"trace": dist.DROPOUT},
        replace(TRAINER, "_save_rng_state", own_generator),
        "the generator in rng_state_1.pth is not where that in rng_state_0.pth is",
    ),
    "DIST-07": (
        dist.test_each_rank_trains_its_share,
        {"trace": BRIEF},
        replace("accelerate.data_loader:SeedableRandomSampler", "__iter__", own_order),
        "rank 1, step 1: trained rows",
    ),
    "DIST-08": (
        dist.test_the_logged_loss_is_that_of_all_ranks,
        {"trace": BRIEF},
        replace(TRAINER, "log", twice_the_loss),
        "step 1: logged loss 11.",
    ),
    "DIST-09": (
        dist.test_a_model_on_several_devices_is_refused,
        {"trace": BRIEF.but(model={"family": "suites.test_dist:on_two_devices"})},
        replace(ACCELERATOR, "verify_device_map", never),
        "no error: it trained steps 1 to 2",
    ),
    "DIST-10": (
        dist.test_unlike_numbers_of_labels_leave_the_mean_over_all,
        {"trace": BRIEF},
        replace("transformers:TrainingArguments", "__post_init__", without_average),
        "step 1: the gradient is",
    ),
    "FSDP-13": (
        fsdp.test_what_asked_for_fsdp_is_sharded,
        {"trace": spread(BRIEF, "fsdp2")},
        replace(ACCELERATOR, "_prepare_fsdp2", as_ddp),
        "no module is an FSDPModule",
    ),
    "FSDP-14": (
        fsdp.test_a_full_checkpoint_has_all_shards,
        {"trace": LAUNCHES["fsdp2-2"].but(max_steps=3)},
        replace(ACCELERATOR, "get_state_dict", first_shard_only),
        "checkpoint-3: model.layers.0.self_attn.q_proj.lora_A.weight differs",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, tmp_path):
    test, arguments, fault, words = FAULTS[name]
    runs = runs_under(fault, tmp_path / "runs")
    if "trace" in arguments:
        arguments = {"trace": runs.train(arguments["trace"])}
    verdict = verdict_of(test, runs, tmp_path / "test", **arguments)
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


# ---- negative controls ----


def own_adapter(original, model, spec):
    import dataclasses

    return original(model, dataclasses.replace(spec, seed=spec.seed + rank()))


CONTROLS = {
    "average_tokens_across_devices=False": (
        replace("transformers:TrainingArguments", "__post_init__", without_average),
        ("loss", "gradient", "adapter"),
    ),
    "unsynchronised-gradients": (
        replace("torch.nn.parallel:DistributedDataParallel", "forward", unsynchronised),
        ("gradient", "adapter"),
    ),
    "the-same-rows": (
        replace("accelerate.accelerator", "prepare_data_loader", the_same_rows),
        ("loss", "gradient", "adapter"),
    ),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_negative_control_exceeds_the_tolerance_tenfold(name, tmp_path):
    fault, bounds = CONTROLS[name]
    single = Runs(HFTrainer(), tmp_path / "single").train(several.alone(BRIEF))
    seen = runs_under(fault, tmp_path / "runs").train(BRIEF)
    assert not several.equals_single(seen, single).holds
    gaps = distance(several.as_one(seen), single)
    assert {
        bound: gaps[f"largest_{bound}_difference"] >= 10 * getattr(RANKS, bound) for bound in bounds
    } == dict.fromkeys(bounds, True)


def test_a_gradient_of_one_rank_alone_exceeds_the_tolerance_tenfold(tmp_path):
    """Rank 1 steps with another gradient than rank 0 has."""
    seen = runs_under(replace(ACCELERATOR, "clip_grad_norm_", one_tensor_of_its_own), tmp_path).train(BRIEF)
    assert not several.ranks_agree(seen).holds
    assert distance(seen.ranks[0], seen)["largest_adapter_difference"] >= 10 * RANKS.adapter


def test_a_rank_that_keeps_an_adapter_of_its_own_exceeds_the_tolerance_tenfold(tmp_path):
    """DDP does not broadcast rank 0's adapter, and rank 1 goes on from its own."""
    warm()
    single = Runs(HFTrainer(), tmp_path / "single").train(several.alone(BRIEF))
    seen = Runs(HFTrainer(in_each_rank=keep_own_adapter), tmp_path / "runs").train(BRIEF)
    verdict = several.first_rank_wins(seen, single)
    assert not verdict.holds
    assert "rank 1: adapter at the end" in "\n".join(verdict.seen)
    assert distance(seen.ranks[0], seen)["largest_adapter_difference"] >= 10 * RANKS.adapter


def keep_own_adapter():
    in_this_process(replace("torch.nn.parallel.distributed", "_sync_module_states", unsent))
    in_this_process(replace("harness.subjects.hf_trainer", "inject", own_adapter))


def test_the_same_seed_without_the_fault_holds(tmp_path):
    """What the faults are measured against: nothing is put in, and the same checks hold."""
    warm()
    runs = Runs(HFTrainer(), tmp_path)
    assert verdict_of(dist.test_all_ranks_end_with_the_same, runs, tmp_path, trace=runs.train(BRIEF)).holds
    assert several.equals_single(runs.train(BRIEF), runs.train(several.alone(BRIEF))).holds
