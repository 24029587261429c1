"""FRZ: what is trained, what stays frozen."""

import pytest

from harness.laws import frozen
from harness.scenarios import SCENARIOS, by_route, over


@pytest.mark.clause("FRZ-01")
@over(by_route(SCENARIOS))
def test_base_is_bit_identical(trace, judge):
    judge(frozen.base_frozen(trace))
