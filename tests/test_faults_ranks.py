"""Put faults into the ranks of a run, under which the checks of suites/ on several processes must fail.

The negative controls exceed the tolerance of such runs at least tenfold.
"""

import functools
import os

import pytest
from hypothesis import strategies

from harness.laws import several
from harness.laws.equal import distance
from harness.processes.imports import import_upstream
from harness.runs.cache import Runs
from harness.runs.drawn import Draw, laws_of_ranks
from harness.runs.scenarios import LAUNCHES, continued, spread
from harness.subjects.hf_trainer import HFTrainer
from harness.suites import test_dist as dist
from harness.suites import test_ds as ds
from harness.suites import test_fsdp as fsdp
from harness.suites import test_loaded as loaded
from harness.suites import test_loaders as loaders
from harness.suites import test_tp as tp
from harness.tolerance import RANKS
from harness.verdict import Case
from tests.faults import assert_fails, assert_seen, each, in_this_process, mutant, replace, verdict_of

TWO = LAUNCHES["ddp-2"]
BRIEF = TWO.but(max_steps=2, gradient_accumulation_steps=None, save_strategy="no")
SHARDED_ALONE = fsdp.REFUSED.but(save_only_model=True, launch={"state_dict_type": "SHARDED_STATE_DICT"})


def runs_under(fault, tmp_path):
    """Return training runs with a fault in each of their ranks."""
    import_upstream()
    return Runs(HFTrainer(in_each_rank=functools.partial(in_this_process, fault.put)), tmp_path)


#: By clause; `tests.faults` describes a row.
FAULTS = {
    "DIST-01": (
        dist.test_all_ranks_end_with_the_same,
        {"trace": BRIEF},
        mutant("one-rank-steps-otherwise"),
        "rank 1: adapter at the end: model.layers.0.self_attn.q_proj.lora_A.weight differs",
    ),
    "DIST-04": (
        dist.test_generators_of_all_ranks_are_alike,
        {"trace": dist.DROPOUT},
        mutant("generators-of-their-own"),
        "the CPU generator's state in rng_state_1.pth differs from that in rng_state_0.pth",
    ),
    "DIST-07": (
        dist.test_each_rank_trains_its_share,
        {"trace": BRIEF},
        mutant("order-of-each-rank"),
        "rank 1, step 1: trained rows",
    ),
    "DIST-08": (
        dist.test_the_logged_loss_is_that_of_all_ranks,
        {"trace": BRIEF},
        mutant("logged-loss-doubled"),
        "step 1: logged loss 11.",
    ),
    "DIST-09": (
        dist.test_a_model_on_several_devices_is_refused,
        {"trace": BRIEF.but(model={"family": "harness.suites.test_dist:on_two_devices"})},
        mutant("model-on-several-devices-taken"),
        "no error: it trained steps 1 to 2",
    ),
    "DIST-10": (
        dist.test_unlike_numbers_of_labels_leave_the_mean_over_all,
        {"trace": BRIEF},
        mutant("labels-of-each-rank-alone"),
        "step 1: the gradient is",
    ),
    "DIST-02": (
        dist.test_ranks_together_train_as_one_process,
        {"spec": BRIEF},
        mutant("gradients-not-synchronised"),
        "step 1: gradients of",
    ),
    "DIST-03": (
        dist.test_the_first_ranks_adapter_is_trained,
        {"spec": BRIEF},
        mutant("adapters-of-their-own"),
        "rank 1: adapter at the end",
    ),
    "DIST-05": (
        dist.test_unused_parameters_are_looked_for,
        {"spec": BRIEF, "expected": True},
        mutant("unused-parameters-not-looked-for"),
        "False",
    ),
    "DIST-12": (
        dist.test_a_run_that_trains_nothing_is_refused,
        {"trace": BRIEF.but(lora={"inference_mode": True})},
        mutant("inference-mode-trained"),
        "no error: it trained steps 1 to 2",
    ),
    "DIST-13": (
        loaders.test_each_process_trains_its_rows,
        {"trace": loaders.named("")["dispatch-2/random/25-rows"].but(max_steps=2)},
        mutant("dispatched-to-rank-0-only"),
        "rank 1, step 1: trained rows",
    ),
    "DIST-13-shared": (
        loaders.test_each_process_trains_its_rows,
        {"trace": loaders.named("")["stream-split-2/sequential"].but(max_steps=2)},
        mutant("same-rows-on-all-ranks"),
        "rank 1, step 1: trained rows",
    ),
    "DIST-14": (
        loaders.test_all_ranks_are_in_the_same_epoch,
        {"trace": loaders.named("")["dealt-2/random/25-rows"].but(max_steps=2)},
        mutant("ranks-in-other-epochs"),
        "rank 1, step 1: epoch",
    ),
    "TP-03": (
        tp.test_a_checkpoint_has_the_whole_adapter,
        {"trace": tp.SPLIT.but(max_steps=2)},
        mutant("first-part-saved"),
        "save_model(): model.layers.0.self_attn.q_proj.lora_B.weight differs by",
    ),
    "TP-04": (
        tp.test_it_resumes_with_the_checkpoints_adapter,
        {"spec": continued(tp.SPLIT, 3, every=3)},
        mutant("split-adapter-not-resumed"),
        "before the first step: model.layers.1.self_attn.v_proj.lora_B.weight differs by",
    ),
    "TP-06": (
        tp.test_a_checkpoint_with_an_optimizer_is_refused,
        {"spec": tp.SPLIT.but(max_steps=2, save_only_model=None)},
        mutant("optimizer-of-parts-saved"),
        "no error: it trained steps 1 to 2",
    ),
    "FSDP-01": (
        fsdp.test_defaults_are_version_2_and_full,
        {"spec": fsdp.DEFAULTS},
        mutant("sharded-state-dict-by-default"),
        "state_dict_type: SHARDED_STATE_DICT, expected FULL_STATE_DICT",
    ),
    "FSDP-02": (
        fsdp.test_version_1_wraps_layers_and_adapters,
        {"trace": spread(BRIEF, "fsdp1")},
        mutant("adapters-not-wrapped"),
        "model.layers.0.self_attn.q_proj.lora_A is no unit",
    ),
    "FSDP-04": (
        fsdp.test_version_2_wraps_layers_embeddings_and_output,
        {"trace": fsdp.DEFAULTS},
        mutant("layers-not-sharded-apart"),
        "model.layers.0 is no unit",
    ),
    "FSDP-09": (
        fsdp.test_what_cannot_be_is_refused,
        {"spec": SHARDED_ALONE, "words": "SHARDED_STATE_DICT"},
        mutant("model-only-saves-not-checked"),
        "no error: it trained steps 1 to 2",
    ),
    "FSDP-11": (
        fsdp.test_a_half_precision_adapter_trains_in_float32,
        {"trace": spread(BRIEF.but(**fsdp.BF16, bf16=True), "fsdp2")},
        mutant("adapter-sharded-in-half-precision"),
        "lora_A.weight: bfloat16, expected float32",
    ),
    "FSDP-12": (
        fsdp.test_generate_runs_on_the_sharded_model,
        {"spec": fsdp.DEFAULTS},
        mutant("ranks-generate-differently"),
        "tokens [",
    ),
    "FSDP-16": (
        fsdp.test_the_base_keeps_its_dtype,
        {"trace": spread(BRIEF.but(model={"dtype": "bfloat16"}), "fsdp2")},
        mutant("base-cast-to-float32"),
        "model.embed_tokens.weight was bfloat16, after sharding it is float32",
    ),
    "FSDP-17": (
        fsdp.test_a_sharded_run_is_that_of_one_process,
        {"spec": fsdp.DEFAULTS},
        mutant("sharded-gradients-summed"),
        "step 1: clipped of",
    ),
    "FSDP-19": (
        fsdp.test_a_late_rank_changes_nothing,
        {"spec": fsdp.late(fsdp.V2, 0)},
        mutant("late-ranks-not-waited-for"),
        "step 1: gradients of",
    ),
    "FSDP-20": (
        loaded.test_adapters_are_whole_on_each_rank_and_the_base_in_shards,
        {"trace": loaded.LOADED.but(**loaded.BRIEF)},
        mutant("loaded-ranks-go-apart"),
        "rank 1: adapter at the end",
    ),
    "DS-01": (
        ds.test_a_checkpoint_without_the_engines_is_refused,
        {"spec": continued(ds.ZERO["zero2-2"], 3, every=3, launch={"strategy": "ddp"})},
        mutant("engines-checkpoint-not-loaded"),
        "the run ended with IndexError",
    ),
    "DS-02": (
        ds.test_the_engines_checkpoint_leaves_the_base_out,
        {"trace": ds.ZERO["zero2-2"].but(max_steps=3)},
        mutant("base-in-the-engines-file"),
        "model_states.pt has ",
    ),
    "DS-03": (
        ds.test_save_model_leaves_a_whole_adapter,
        {"spec": spread(ds.BRIEF, "zero3")},
        mutant("partitions-not-gathered"),
        "save_model():",
    ),
    "DS-04": (
        ds.test_loss_and_learning_rate_are_logged_as_of_all_ranks,
        {"trace": spread(ds.BRIEF, "zero2")},
        mutant("logged-loss-doubled"),
        "step 1: logged loss 11.",
    ),
    "DS-05": (
        ds.test_what_cannot_be_is_refused,
        {
            "spec": spread(ds.BRIEF.but(save_only_model=True, data={"eval_rows": 4}, **ds.BEST), "zero2"),
            "words": "save",
        },
        mutant("model-only-saves-not-checked"),
        "the error came after steps 1 to 2",
    ),
    "DS-06": (
        ds.test_an_export_of_partitions_warns,
        {"spec": spread(ds.BRIEF, "zero3")},
        mutant("empty-tensors-not-warned-of"),
        "8 empty tensors and no warning of it",
    ),
    "DS-07": (
        ds.test_a_checkpoint_has_the_engines_optimizer,
        {"trace": ds.ZERO["zero2-2"].but(max_steps=3)},
        mutant("optimizer-file-beside-the-engines"),
        "checkpoint-3 has optimizer.pt",
    ),
    "DS-08": (
        ds.test_partitioned_it_is_the_run_of_one_process,
        {"spec": ds.ZERO["zero2-2"].but(max_steps=3)},
        mutant("micro-steps-dropped"),
        "logged grad_norm",
    ),
    "FSDP-13": (
        fsdp.test_what_asked_for_fsdp_is_sharded,
        {"trace": spread(BRIEF, "fsdp2")},
        mutant("silent-ddp"),
        "no module is an FSDPModule",
    ),
    "FSDP-14": (
        fsdp.test_a_full_checkpoint_has_all_shards,
        {"trace": LAUNCHES["fsdp2-2"].but(max_steps=3)},
        mutant("first-ranks-shard-only"),
        "checkpoint-3: model.layers.0.self_attn.q_proj.lora_A.weight differs",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, tmp_path):
    if name.startswith("DS"):
        pytest.importorskip("deepspeed", reason="partitioned runs need deepspeed")
    test, parameters, fault, words = FAULTS[name]
    assert_fails(test, words, runs_under(fault, tmp_path / "runs"), tmp_path / "test", **parameters)


#: Faults that show in this process; the ranks need not have them.
HERE = {
    "FSDP-03": (
        fsdp.test_version_1_computes_in_the_storage_dtype,
        {"storage": "bfloat16", "expected": ("bfloat16", True)},
        mutant("storage-dtype-passed-over"),
        "None",
    ),
    "FSDP-08": (
        fsdp.test_without_fsdp_its_checkpoint_is_refused,
        {
            "spec": continued(
                several.one_process_spec(fsdp.V2),
                3,
                every=3,
                per_device_train_batch_size=2,
                launch={"strategy": "fsdp2", "ranks": 2},
            )
        },
        mutant("checkpoint-not-loaded"),
        "the run ended with FileNotFoundError",
    ),
}


@each(HERE)
def test_a_fault_of_upstream_in_this_process_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes", reason="quantized bases need bitsandbytes")
    assert_seen(HERE[name], runs, tmp_path, monkeypatch)


# ---- negative controls ----


def own_adapter(original, model, spec):
    import dataclasses

    return original(model, dataclasses.replace(spec, seed=spec.seed + int(os.environ["RANK"])))


CONTROLS = {
    "average_tokens_across_devices=False": (
        mutant("labels-of-each-rank-alone"),
        ("loss", "gradient", "adapter"),
    ),
    "unsynchronised-gradients": (
        mutant("gradients-not-synchronised"),
        ("gradient", "adapter"),
    ),
    "the-same-rows": (
        mutant("same-rows-on-all-ranks"),
        ("loss", "gradient", "adapter"),
    ),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_negative_control_exceeds_the_tolerance_tenfold(name, tmp_path):
    fault, bounds = CONTROLS[name]
    single = Runs(HFTrainer(), tmp_path / "single").train(several.one_process_spec(BRIEF))
    seen = runs_under(fault, tmp_path / "runs").train(BRIEF)
    assert not several.equals_single(seen, single).holds
    gaps = distance(several.whole_run(seen), single)
    assert {
        bound: gaps[f"largest_{bound}_difference"] >= 10 * getattr(RANKS, bound) for bound in bounds
    } == dict.fromkeys(bounds, True)


def test_a_gradient_of_one_rank_alone_exceeds_the_tolerance_tenfold(tmp_path):
    """Rank 1 steps with another gradient than rank 0 has."""
    seen = runs_under(mutant("one-rank-steps-otherwise"), tmp_path).train(BRIEF)
    assert not several.ranks_agree(seen).holds
    assert distance(seen.ranks[0], seen)["largest_adapter_difference"] >= 10 * RANKS.adapter


def test_a_rank_that_keeps_an_adapter_of_its_own_exceeds_the_tolerance_tenfold(tmp_path):
    """DDP does not broadcast rank 0's adapter, and rank 1 trains its own."""
    import_upstream()
    single = Runs(HFTrainer(), tmp_path / "single").train(several.one_process_spec(BRIEF))
    seen = Runs(HFTrainer(in_each_rank=keep_own_adapter), tmp_path / "runs").train(BRIEF)
    verdict = several.first_rank_wins(seen, single)
    assert not verdict.holds
    assert "rank 1: adapter at the end" in "\n".join(verdict.seen)
    assert distance(seen.ranks[0], seen)["largest_adapter_difference"] >= 10 * RANKS.adapter


def keep_own_adapter():
    in_this_process(mutant("adapters-of-their-own").put)
    in_this_process(replace("harness.subjects.hf_trainer", "inject", own_adapter).put)


def test_the_same_seed_without_the_fault_holds(tmp_path):
    """Without a fault the same checks hold on the same runs."""
    import_upstream()
    runs = Runs(HFTrainer(), tmp_path)
    assert verdict_of(dist.test_all_ranks_end_with_the_same, runs, tmp_path, trace=runs.train(BRIEF)).holds
    assert several.equals_single(runs.train(BRIEF), runs.train(several.one_process_spec(BRIEF))).holds


def test_a_fault_of_the_ranks_is_seen_in_a_drawn_run(tmp_path):
    runs, verdicts = runs_under(mutant("loaded-ranks-go-apart"), tmp_path), []
    draw = Draw([Case("FSDP-17", "drawn", "", "hf-trainer")], runs, lambda *failed: verdicts.append(failed), 0, [])
    draw.judge_all(strategies.just(loaded.LOADED.but(**loaded.BRIEF)), 0, laws_of_ranks)
    (verdict, failed), *_ = verdicts
    assert failed == "FSDP-17" and "step 1: gradients of" in "\n".join(verdict.seen)
