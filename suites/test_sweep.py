"""Every law that applies, on a small, fixed covering array of the fields that `peft-harness sweep` varies.

The sweep itself takes half an hour (`harness/runs/sweep.py`). This array has each value of each field of a LoRA run in one
process at least once, and most of the pairs of values.
"""

import pytest

from harness.laws.universal import LAWS_OF_ONE_RUN, LAWS_OF_SEVERAL_RUNS
from harness.runs import fields


@pytest.mark.clause(*LAWS_OF_ONE_RUN, *LAWS_OF_SEVERAL_RUNS)
@pytest.mark.parametrize("part", range(2), ids="drawn-array-{}".format)
def test_the_small_array(draw, part):
    draw.judge_each(fields.spec(row) for row in fields.small_array()[part::2])
