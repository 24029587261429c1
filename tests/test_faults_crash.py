"""Put faults into upstream, or take it as it is, where the checks of suites/test_crash.py must fail."""

import json
import os

import pytest

from harness import subjects
from harness.crash.enumeration import MACHINE, PROCESS
from harness.crash.exploration import Exploration
from harness.crash.judged_run import explore_states
from harness.crash.outcomes import SILENT, Judged
from harness.crash.saves import SAVES
from harness.crash.trainer_ways import RESUME, WAYS, record_run
from harness.processes.imports import import_upstream
from harness.runs.cache import Runs
from harness.suites import test_crash as crash
from tests.faults import assert_fails, mutant, proves, replace, verdict_of

IN_SILENCE = "end with another result, and nothing names the damaged file"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Return a function that records a save, each once."""
    import_upstream()
    made = {}

    def record(name):
        if name not in made:
            made[name] = record_run(SAVES[name], tmp_path_factory.mktemp("recorded"))
        return made[name]

    return record


@pytest.fixture
def runs(tmp_path):
    return Runs(subjects.load("hf-trainer"), tmp_path / "runs")


def explored(recorded, name, count, crashes=(PROCESS,), ways=(RESUME,), at_end=False):
    return explore_states(name, SAVES[name], recorded(name), crashes=crashes, at_most=count, ways=ways, at_end=at_end)


@proves(
    "CRASH-01",
    "CRASH-03",
    says="Resuming reads a missing or torn trainer_state.json as that of a run that has not begun.",
)
def test_a_torn_state_that_begins_anew(recorded, runs, tmp_path, monkeypatch):
    recorded("plain")
    mutant("torn-state-begins-anew")(monkeypatch)
    found = explored(recorded, "plain", 12, ways=WAYS[:2])
    for check in (
        crash.test_resuming_is_never_another_run_in_silence,
        crash.test_a_torn_checkpoint_that_is_named_is_never_another_run_in_silence,
    ):
        assert_fails(check, IN_SILENCE, runs, tmp_path, explored=found)


@proves("CRASH-02", says="The newest directory is used without a check, and the error names no checkpoint to use.")
def test_a_refusal_without_help(recorded, runs, tmp_path):
    found = explored(recorded, "plain", 12)
    check = crash.test_what_is_not_resumed_is_refused_with_the_checkpoint_to_use
    assert_fails(check, "are refused without naming a damaged file", runs, tmp_path, explored=found)


def last_with_a_state(original, folder):
    """Take the newest checkpoint whose trainer_state.json, which is written last, is whole."""
    for name in sorted(os.listdir(folder), key=lambda name: int(name.rpartition("-")[2]), reverse=True):
        try:
            with open(os.path.join(folder, name, "trainer_state.json")) as file:
                json.load(file)
        except (OSError, ValueError):
            continue
        return os.path.join(folder, name)
    return None


def test_a_trainer_that_takes_the_newest_whole_one_passes(recorded, runs, tmp_path, monkeypatch):
    recorded("plain")
    replace("transformers.trainer", "get_last_checkpoint", last_with_a_state)(monkeypatch)
    found = explored(recorded, "plain", 12)
    check = crash.test_what_is_not_resumed_is_refused_with_the_checkpoint_to_use
    assert verdict_of(check, runs, tmp_path, explored=found).holds


@proves("CRASH-04", says="If the best checkpoint lacks its adapter, the weights of the last step are kept.")
@proves("CRASH-05", says="The last whole checkpoint is deleted before the new one is synced to the disk.")
def test_a_machine_that_stops_after_a_rotation(recorded, runs, tmp_path):
    found = explored(recorded, "limit-1", 12, crashes=(MACHINE,), ways=WAYS[2:], at_end=True)
    assert_fails(
        crash.test_a_torn_checkpoint_loads_as_it_was_saved_or_is_refused, IN_SILENCE, runs, tmp_path, explored=found
    )
    assert_fails(crash.test_a_whole_checkpoint_is_left, "have no whole checkpoint left", runs, tmp_path, explored=found)


@proves("CRASH-06", says="Training goes on if a checkpoint cannot be written.")
def test_a_full_disk_that_is_passed_over(recorded, runs, tmp_path, monkeypatch):
    mutant("unwritten-checkpoint-passed-over")(monkeypatch)
    check = crash.test_a_save_that_cannot_write_is_an_error_and_harms_no_older_checkpoint
    assert_fails(
        check, "ended without an error", runs, tmp_path, disk="full", points=[4], upstream=subjects.load("hf-trainer")
    )


@proves("CRASH-07", says="A rank goes on without its random state.")
def test_a_rank_that_goes_on_in_silence(runs, tmp_path):
    silent = Judged("0", PROCESS, "rank 0: killed", RESUME, "", SILENT, "another run", 1)
    check = crash.test_ranks_that_stopped_at_different_points_never_go_on_as_another_run
    assert_fails(check, IN_SILENCE, runs, tmp_path, explored_ranks=Exploration("ddp-2", 1, 1, [silent]))
