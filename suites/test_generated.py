"""Every universal law, on training runs and lives that hypothesis draws (harness/runs/strategies.py).

A failure is shrunk. --hypothesis-profile chooses how much is drawn: `quick`, the default, always draws the same runs; `deep`
draws about 30 times as many and `soak` 1,000 times, different ones each time. hypothesis stores failures in .hypothesis and
tries them first. --hypothesis-seed repeats a draw.
"""

import pytest

from harness.laws.universal import LAWS_OF_ONE_RUN, LAWS_OF_SEVERAL_RUNS
from harness.runs import lifecycle, strategies
from harness.spec import ADD, GET

PARTS = pytest.mark.parametrize("part", range(4), ids="drawn-{}".format)


@pytest.mark.clause(*LAWS_OF_ONE_RUN, *LAWS_OF_SEVERAL_RUNS)
@PARTS
def test_any_run(draw, part):
    draw.judge_all(strategies.run_specs(), part)


@pytest.mark.clause(*LAWS_OF_ONE_RUN, *LAWS_OF_SEVERAL_RUNS)
@pytest.mark.parametrize("part", range(4), ids="drawn-any-model-and-method-{}".format)
def test_any_model_and_method(draw, part):
    draw.judge_all(strategies.any_specs(), part)


@pytest.mark.clause(*lifecycle.CLAUSES)
@pytest.mark.parametrize("route", [GET, ADD], ids="drawn-life-{}".format)
def test_any_life(draw, upstream, route):
    draw.live(route)
