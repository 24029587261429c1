"""DIST: several processes, each with a copy of the model (DistributedDataParallel)."""

import dataclasses
import os
from typing import Any

import pytest

from harness.fixtures import models
from harness.laws import frozen, loss, resume, several, state_files
from harness.laws.equal import equal_runs
from harness.runs.scenarios import LAUNCHES, PLAIN, TOGETHER_SGD, cases, continued, over, saving, spec_for, spread
from harness.verdict import both, same

DDP = {name: spec for name, spec in LAUNCHES.items() if spec.launch.strategy == "ddp"}
TWO_AND_FOUR = {name: DDP[name] for name in ("ddp-2", "ddp-4")}
TWO = DDP["ddp-2"]


@pytest.mark.clause("DIST-01")
@over(TWO_AND_FOUR)
def test_all_ranks_end_with_the_same(trace, judge):
    judge(both(several.ranks_agree(trace), *(frozen.base_frozen(one) for one in (trace, *trace.ranks))))


@pytest.mark.clause("DIST-01")
@cases({"repeated": TWO})
def test_the_same_run_twice_is_the_same_run(spec, train, judge):
    judge(equal_runs(train(spec, again=True), train(spec)))


@pytest.mark.clause("DIST-02")
@cases(
    DDP
    | {"sgd": spread(TOGETHER_SGD, "ddp"), "nf4": spread(TOGETHER_SGD.but(model={"quantization": "nf4"}), "ddp")}
    # Rows of equal lengths, since DIST-10 judges the mean over unequal ones. SGD, since AdamW makes whole steps of gradients
    # that are nearly zero.
    | {
        f"family/{name.removeprefix('harness.')}": spread(spec_for(name).but(optim="sgd", learning_rate=0.1), "ddp")
        for name in models.FAMILIES
    }
)
def test_ranks_together_train_as_one_process(spec, train, judge):
    judge(several.equals_single(train(spec), train(several.one_process_spec(spec))))


def start_from_own_adapter():
    """Draw the adapters from a seed of the rank's own. Called in each rank."""
    from harness.subjects import hf_trainer

    inject, rank = hf_trainer.inject, int(os.environ["RANK"])
    hf_trainer.inject = lambda model, spec: inject(model, dataclasses.replace(spec, seed=spec.seed + rank))


@pytest.mark.clause("DIST-03")
@cases({"own-adapters": TWO})
def test_the_first_ranks_adapter_is_trained(spec, train, upstream, judge):
    single = train(several.one_process_spec(spec))
    started = train(spec, subject=upstream.in_ranks("own-adapters", start_from_own_adapter))
    judge(several.first_rank_wins(started, single))


SHORT = spread(PLAIN.but(max_steps=4), "ddp")
DROPOUT = saving(SHORT, every=2)


@pytest.mark.clause("DIST-04")
@over({"dropout": DROPOUT})
def test_generators_of_all_ranks_are_alike(trace, judge):
    judge(state_files.generators_alike(trace))


REENTRANT: dict[str, Any] = {
    "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {"use_reentrant": True},
}
BY_ADD = DDP["ddp-2-add_adapter"]
CHECKPOINTED: dict[str, Any] = {
    "reentrant": TWO.but(**REENTRANT),
    "reentrant-find-unused-off": TWO.but(**REENTRANT, ddp_find_unused_parameters=False),
    "reentrant/add_adapter": BY_ADD.but(**REENTRANT),
}


@pytest.mark.clause("DIST-05")
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param(TWO, True, id="plain"),
        pytest.param(DDP["ddp-2-checkpointing"], True, id="checkpointing"),
        pytest.param(BY_ADD, True, id="plain/add_adapter"),
        pytest.param(CHECKPOINTED["reentrant/add_adapter"], False, id="checkpointing/add_adapter"),
        pytest.param(CHECKPOINTED["reentrant-find-unused-off"], False, id="overruled"),
    ],
)
def test_unused_parameters_are_looked_for(spec, expected, train, judge):
    judge(same("find_unused_parameters", train(spec).distributed.get("find_unused_parameters"), expected))


@pytest.mark.clause("DIST-06")
@cases(CHECKPOINTED | {"non-reentrant": DDP["ddp-2-checkpointing"]})
def test_checkpointing_trains_as_in_one_process(spec, train, judge):
    judge(several.equals_single(train(spec), train(several.one_process_spec(spec))))


WRAPPING = spread(PLAIN.but(data={"rows": 37}, max_steps=12), "ddp")


@pytest.mark.clause("DIST-07")
@over({"n40": TWO, "n37": continued(WRAPPING, 6, every=6).first_leg(), "n40/4-ranks": DDP["ddp-4"]})
def test_each_rank_trains_its_share(trace, judge):
    judge(several.trains_its_share(trace))


@pytest.mark.clause("DIST-07")
@cases({"n37/resumed": continued(WRAPPING, 6, every=6)})
def test_a_run_in_several_processes_resumes(spec, train, judge):
    judge(resume.continues(train(spec), train(spec.first_leg()), after=6))


@pytest.mark.clause("DIST-08")
@over(TWO_AND_FOUR)
def test_the_logged_loss_is_that_of_all_ranks(trace, judge):
    judge(several.logged_mean(trace))


def on_two_devices(spec):
    """Return the base model of a spec, with a device map that places its layers on two devices."""
    model = models.build(dataclasses.replace(spec, family="llama"))
    model.hf_device_map = {"model": 0, "lm_head": 1}
    return model


@pytest.mark.clause("DIST-09")
@over({"two-devices": TWO.but(model={"family": f"{__name__}:on_two_devices"})})
def test_a_model_on_several_devices_is_refused(trace, judge):
    judge(resume.refused(trace, "ValueError", words="device_map"))


@pytest.mark.clause("DIST-10")
@over(TWO_AND_FOUR | {"not-accumulated": TWO.but(gradient_accumulation_steps=None, max_steps=2, save_strategy="no")})
def test_unlike_numbers_of_labels_leave_the_mean_over_all(trace, judge):
    judge(both(loss.window_mean(several.whole_run(trace)), several.ranks_agree(trace)))


#: Sixteen rows: four steps of two ranks with two rows each, or eight of one.
SIXTEEN = PLAIN.but(data={"rows": 16}, lora={"lora_dropout": 0.0}, per_device_train_batch_size=2, max_steps=4)
ON_TWO: dict[str, Any] = {"launch": {"strategy": "ddp", "ranks": 2}}
ON_ONE: dict[str, Any] = {"launch": {"strategy": "single", "ranks": 1}}


@pytest.mark.clause("DIST-11")
@cases(
    {
        "2-to-1": continued(SIXTEEN.but(max_steps=6), 2, **ON_TWO),
        "1-to-2": continued(SIXTEEN.but(max_steps=6, **ON_TWO), 2, **ON_ONE),
    }
)
def test_another_number_of_ranks_trains_each_row_once(spec, train, judge):
    judge(several.no_row_twice(train(spec), train(spec.first_leg()), after=2))


@pytest.mark.clause("DIST-11")
@cases(
    {
        "2-to-1/same-rows": continued(
            SIXTEEN.but(per_device_train_batch_size=4), 2, per_device_train_batch_size=2, **ON_TWO
        ),
        "1-to-2/same-rows": continued(SIXTEEN.but(**ON_TWO), 2, per_device_train_batch_size=4, **ON_ONE),
        "2-to-4/same-rows": continued(
            spread(SIXTEEN.but(per_device_train_batch_size=4), "ddp", 4), 2, per_device_train_batch_size=2, **ON_TWO
        ),
    }
)
def test_the_same_rows_a_step_are_the_same_run(spec, train, judge):
    judge(several.continues_with_other_ranks(train(spec), train(spec.first_leg()), after=2))


@pytest.mark.clause("DIST-12")
@over({name: LAUNCHES[name].but(lora={"inference_mode": True}) for name in ("ddp-2", "fsdp2-2")})
def test_a_run_that_trains_nothing_is_refused(trace, judge):
    judge(resume.refused(trace, "RuntimeError", words=("require a gradient", "requires a gradient", "require grad")))


# ---- clauses of other chapters, in several processes ----

EVALUATED = saving(
    PLAIN.but(
        data={"eval_rows": 16, "min_length": 6},
        lora={"lora_dropout": 0.0},
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=4,
        max_steps=2,
    ),
    every=2,
)


@pytest.mark.clause("EVAL-03")
@over(
    {
        "divisible": spread(EVALUATED, "ddp"),
        "ragged": spread(EVALUATED.but(data={"eval_rows": 10}), "ddp"),
        "ragged/unpadded": spread(
            EVALUATED.but(data={"eval_rows": 10, "min_length": None}, per_device_eval_batch_size=8), "ddp"
        ),
    }
)
def test_eval_loss_counts_each_row_once(trace, judge):
    judge(several.evaluated_loss(trace))


@pytest.mark.clause("RES-26")
@cases(
    {
        "rank-without-rng_state_1.pth": continued(
            spread(PLAIN.but(max_steps=4), "ddp"), 2, damage=("delete rng_state_1.pth",)
        )
    }
)
def test_a_ranks_missing_generators_are_not_passed_over(spec, train, judge):
    judge(resume.loud(train(spec), "no rng_state_1.pth", ("rng", "random")))
