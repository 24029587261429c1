"""Tests of harness/laws/universal.py: a law that does not apply to a run in several processes says why."""

import pytest

from harness.laws.universal import LAWS_OF_ONE_RUN, why_not_judged
from harness.runs.scenarios import LAUNCHES


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
