"""Tests of harness/laws/universal.py: a law that does not apply to a run in several processes says why."""

import pytest

from harness.laws.universal import LAWS_OF_ONE_RUN, both_routes, bystander, why_not_judged
from harness.runs.scenarios import LAUNCHES
from tests.traces import made_up


@pytest.mark.parametrize(
    ("launch", "clause", "words"),
    [
        ("fsdp2-2", "CKPT-07", "optimizer's state"),
        ("fsdp2-2-sharded", "CKPT-25", "no adapter file"),
        ("fsdp1-1", "CKPT-12", "nothing is saved"),
        ("zero2-2", "LOSS-01", "keeps gradients"),
    ],
)
def test_a_law_that_does_not_apply_to_a_launch_says_why(launch, clause, words):
    assert words in why_not_judged(clause, LAUNCHES[launch])


def test_ddp_is_judged_by_every_law():
    assert {why_not_judged(clause, LAUNCHES["ddp-2"]) for clause in LAWS_OF_ONE_RUN} == {None}


@pytest.mark.parametrize(
    ("launch", "off", "holds"), [("fsdp1-1", 6e-8, True), ("fsdp1-1", 1e-5, False), ("ddp-2", 6e-8, False)]
)
@pytest.mark.parametrize("law", [both_routes, bystander])
def test_only_fsdp1_sums_the_norm_of_other_units_in_another_order(launch, off, holds, law):
    def train(spec):
        trace = made_up(spec)
        if spec.adapter.route == "add_adapter" or spec.adapter.others:
            trace.log_history = [
                {**entry, "grad_norm": entry["grad_norm"] + off} if "grad_norm" in entry else entry
                for entry in trace.log_history
            ]
        return trace

    assert law(train, LAUNCHES[launch]).holds == holds
