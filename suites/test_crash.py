"""CRASH: a save is stopped at every point, and what is left is resumed, loaded for inference and loaded as the best model.

harness/crash/README.md says how the states are made. Each case is a save and a kind of stop:

- killed: the process is killed; every state that this may leave.
- stopped: the machine stops right after the save; every state within the bound.
- stopped-anywhere: the machine stops at any point (slow).
"""

import pytest

from harness.crash import verdicts
from harness.crash.saves import SAVES
from harness.crash.trainer_ways import BEST, INFERENCE, PATH, RESUME

#: What is judged in each session: 20 s.
SAMPLE = ("plain/killed", "limit-1/stopped", "overwritten/killed")
ALL = [f"{save}/{stop}" for save in SAVES for stop in ("killed", "stopped", "stopped-anywhere")]

explored = pytest.mark.parametrize(
    "explored",
    [pytest.param(name, id=name, marks=[] if name in SAMPLE else pytest.mark.slow) for name in ALL],
    indirect=True,
)
#: There was no whole checkpoint before a first save.
with_an_older_one = pytest.mark.parametrize(
    "explored",
    [
        pytest.param(name, id=name, marks=[] if name in SAMPLE else pytest.mark.slow)
        for name in ALL
        if not name.startswith("first-save/")
    ],
    indirect=True,
)


@pytest.mark.clause("CRASH-01")
@explored
def test_resuming_is_never_another_run_in_silence(explored, judge):
    judge(verdicts.never_silent(explored, RESUME))


@pytest.mark.clause("CRASH-02")
@explored
def test_what_is_not_resumed_is_refused_with_the_checkpoint_to_use(explored, judge):
    judge(verdicts.helpful(explored, RESUME))


@pytest.mark.clause("CRASH-03")
@explored
def test_a_torn_checkpoint_that_is_named_is_never_another_run_in_silence(explored, judge):
    judge(verdicts.never_silent(explored, PATH))


@pytest.mark.clause("CRASH-04")
@explored
def test_a_torn_checkpoint_loads_as_it_was_saved_or_is_refused(explored, judge):
    judge(verdicts.never_silent(explored, INFERENCE, BEST))


@pytest.mark.clause("CRASH-05")
@with_an_older_one
def test_a_whole_checkpoint_is_left(explored, judge):
    judge(verdicts.something_left(explored))
