"""Every bad input gets one sentence, the right exit code, in a moment, and changes no file. See `tests.bad_inputs`."""

import pytest

from harness.processes.imports import import_upstream
from tests.bad_inputs import ROWS, SLOW, driver


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Import upstream, so that its imports are not counted for the first row."""
    import_upstream()


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.id, marks=[pytest.mark.slow] * (row.own_child or row.id in SLOW)) for row in ROWS]
)
def test_a_bad_input_is_answered(row, tmp_path):
    outcome = driver.run(row, tmp_path / "row")
    assert outcome.faults(row) == [], outcome.errors + outcome.output


def test_no_row_stands_twice():
    names = [row.id for row in ROWS]
    assert len(set(names)) == len(names)
