"""Every universal law, on training runs and lives that hypothesis draws (harness/runs/strategies.py). A failure is shrunk.

--hypothesis-profile: quick is the default and always draws the same runs; deep draws some thirty times as many and soak a
thousand times, both anew each time. What failed once is kept in .hypothesis and tried first. --hypothesis-seed repeats.
"""

import pytest

from harness.laws.universal import OF_MORE, OF_ONE
from harness.runs import lifecycle, strategies
from harness.spec import ADD, GET

PARTS = pytest.mark.parametrize("part", range(4), ids="drawn-{}".format)


@pytest.mark.clause(*OF_ONE, *OF_MORE)
@PARTS
def test_any_run(draw, part):
    draw.judge_all(strategies.run_specs(), part)


@pytest.mark.clause(*OF_ONE, *OF_MORE)
@pytest.mark.parametrize("part", range(4), ids="drawn-any-model-and-method-{}".format)
def test_any_model_and_method(draw, part):
    draw.judge_all(strategies.any_specs(), part)


@pytest.mark.clause(*lifecycle.CLAUSES)
@pytest.mark.parametrize("route", [GET, ADD], ids="drawn-life-{}".format)
def test_any_life(draw, upstream, route):
    draw.live(route)
