"""Put faults into upstream that make a step or a file cost more, under which the checks of suites/test_perf.py must fail."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from harness.suites import test_perf as perf
from harness.throughput import counters
from harness.throughput.pairs import Entrant
from tests.faults import assert_fails, assert_seen, each, mutant, proves, verdict_of
from tests.test_throughput_pairs import FAKE, subject_of

#: By clause: the check, its scenario, the fault, and words that the verdict must contain.
FAULTS = {
    "PERF-01/copy": (perf.test_a_step_costs_what_is_recorded, "plain", mutant("an-extra-copy"), "operations: "),
    "PERF-02/leak": (perf.test_steps_alike_cost_alike, "plain", mutant("a-loss-kept-per-step"), "held_bytes: "),
    "PERF-03/reads": (
        perf.test_a_step_costs_no_more_than_the_path_takes,
        "accumulation",
        mutant("an-extra-synchronization"),
        "reads: ",
    ),
    "PERF-03/forward": (
        perf.test_a_step_costs_no_more_than_the_path_takes,
        "checkpointing-bf16",
        mutant("forward-pass-twice"),
        "flops: ",
    ),
}


@pytest.fixture
def offered(runs, tmp_path):
    """Return a function that gives the fixtures which the checks take, by name, for a scenario."""

    def steps(spec, subject=None, run=0, brief=False):
        return counters.count(subject or runs.subject, spec, tmp_path / f"{subject}-{run}", brief)

    def request(scenario):
        config = SimpleNamespace(getoption=lambda name: "hf-trainer")
        return SimpleNamespace(node=SimpleNamespace(callspec=SimpleNamespace(id=scenario)), config=config)

    return lambda scenario: {"spec": perf.STEPS[scenario], "steps": steps, "request": request(scenario)}


@each(FAULTS)
def test_a_fault_that_costs_is_seen_and_named(name, runs, offered, tmp_path, monkeypatch):
    test, scenario, fault, words = FAULTS[name]
    given = offered(scenario)
    recorded = counters.count(runs.subject, given["spec"], tmp_path / "recorded").to_json()
    fault(monkeypatch)
    assert_fails(test, words, runs, tmp_path / "test", baseline=lambda *_, **__: recorded, **given)


@proves("PERF-04", says="A step takes 3 % longer than recorded, by a clock that is made up.")
def test_a_step_that_takes_longer_than_recorded_is_seen(runs, offered, tmp_path, monkeypatch):
    """The clock is made up, because a real one takes a minute."""

    def start(*arguments, **options):
        seconds = {"hf-trainer": 0.01236, "reference": 0.01}[subject_of(arguments)]
        return subprocess.Popen([sys.executable, "-c", FAKE, str(seconds)], text=True, **options)

    monkeypatch.setattr(perf, "BUDGET", 2.0)
    monkeypatch.setattr(perf.pairs, "Entrant", lambda *args: Entrant(*args, start=start))
    verdict = verdict_of(
        perf.test_a_step_takes_no_longer_than_recorded,
        runs,
        tmp_path,
        timed=SimpleNamespace(preloads=[]),
        baseline=lambda *_: {"ratio": 1.2, "low": 1.19, "high": 1.21},
        **{key: value for key, value in offered("plain").items() if key != "steps"},
    )
    assert verdict.outcome == "fail" and verdict.seen[0].startswith("a step is 3 % slower")


#: In place of pytest-benchmark: calls the function once.
ONCE = SimpleNamespace(pedantic=lambda call, **_: call(), extra_info={})
LARGE = {"spec": perf.LARGE, "benchmark": ONCE}
WRITTEN_TWICE, READ_TWICE = mutant("optimizer-file-written-twice"), mutant("optimizer-file-read-twice")


@proves("PERF-05", says=WRITTEN_TWICE.says)
def test_a_file_that_is_written_twice_is_seen(runs, tmp_path, monkeypatch):
    row = (perf.test_saving_writes_each_byte_once, LARGE, WRITTEN_TWICE, "bytes written for files of")
    assert_seen(row, runs, tmp_path, monkeypatch)


@proves("PERF-06", says=READ_TWICE.says)
def test_a_file_that_is_read_twice_is_seen(runs, tmp_path, monkeypatch):
    row = (perf.test_resuming_reads_each_byte_once, LARGE, READ_TWICE, "bytes read of files of")
    assert_seen(row, runs, tmp_path, monkeypatch)
