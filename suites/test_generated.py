"""Every universal law, on training runs that hypothesis draws (harness/strategies.py). A failing run is shrunk.

--hypothesis-profile: quick is the default and always draws the same runs; deep takes about ten minutes and soak some
hours, both drawing anew each time. What failed once is kept in .hypothesis and tried first. --hypothesis-seed repeats.
"""

import pytest

from harness.laws.universal import OF_MORE, OF_ONE
from harness.strategies import run_specs


@pytest.mark.clause(*OF_ONE, *OF_MORE)
@pytest.mark.parametrize("part", range(4), ids="drawn-{}".format)
def test_any_run(draw, part):
    draw.judge_all(run_specs(), part)
