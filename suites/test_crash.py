"""CRASH: a save is stopped at every point, and what is left is resumed, loaded for inference and loaded as the best model.

harness/crash/README.md says how the states are made. Each case is a save and a kind of stop:

- killed: the process is killed; every state that this may leave.
- stopped: the machine stops right after the save; every state within the bound.
- stopped-anywhere: the machine stops at any point (slow).

Saves of several ranks are slow: for each state a group of ranks is started.
"""

import pytest

from harness.crash import verdicts
from harness.crash.failing import FULL, READ_ONLY, fail
from harness.crash.rank_saves import RANK_SAVES
from harness.crash.saves import SAVES
from harness.crash.trainer_ways import BEST, INFERENCE, PATH, RESUME
from harness.verdict import both

#: What is judged in each session. A state costs 0.15 s of a CPU, so these cost 22 s.
SAMPLE = ("plain/killed", "limit-1/stopped")
ALL = [f"{save}/{stop}" for save in SAVES for stop in ("killed", "stopped", "stopped-anywhere")]


def exploring(names):
    """Decorate a test that runs once for each of these saves and stops."""
    params = [pytest.param(name, id=name, marks=[] if name in SAMPLE else pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("explored", params, indirect=True)


explored = exploring(ALL)
#: There was no whole checkpoint before a first save.
with_an_older_one = exploring(name for name in ALL if not name.startswith("first-save/"))


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


#: After how many operations of the save nothing can be written. The save of "plain" has 30.
POINTS = (1, 4, 11, 25)


@pytest.mark.clause("CRASH-06")
@pytest.mark.parametrize("disk", [FULL, READ_ONLY])
@pytest.mark.parametrize(
    "points",
    [pytest.param(POINTS, id="some-points"), pytest.param(range(28), id="all-points", marks=pytest.mark.slow)],
)
def test_a_save_that_cannot_write_is_an_error_and_harms_no_older_checkpoint(disk, points, upstream, judge, tmp_path):
    judge(both(*[fail(SAVES["plain"], number, disk, tmp_path, upstream) for number in points]))


@pytest.mark.slow
@pytest.mark.clause("CRASH-07")
@pytest.mark.parametrize(
    "explored_ranks",
    [
        pytest.param(name, id=f"{name}/shimmed" if saved.spec.launch.shimmed else name)
        for name, saved in RANK_SAVES.items()
    ],
    indirect=True,
)
def test_ranks_that_stopped_at_different_points_never_go_on_as_another_run(explored_ranks, judge):
    judge(verdicts.never_silent(explored_ranks, RESUME))
