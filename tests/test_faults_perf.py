"""Faults that cost, put into upstream, under which the checks of suites/test_perf.py must fail."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from harness.suites import test_perf as perf

from harness.throughput import counters
from harness.throughput.pairs import Entrant
from tests.faults import each, mutant, proves, verdict_of
from tests.test_throughput_pairs import FAKE

#: The check, its scenario, the fault, and words of the sentence that names what it did.
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
    """What the checks take besides a spec."""

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
    seen = verdict_of(test, runs, tmp_path, baseline=lambda *_, **__: recorded, **given)
    assert any(words in sentence for sentence in seen.seen), seen.seen


@proves("PERF-04")
def test_a_step_that_takes_longer_than_recorded_is_seen(runs, offered, tmp_path, monkeypatch):
    """Three percent, by a clock that is made up: a real one takes a minute."""

    def start(*arguments, **options):
        seconds = {"hf-trainer": 0.01236, "reference": 0.01}[arguments[2]]
        return subprocess.Popen([sys.executable, "-c", FAKE, str(seconds)], text=True, **options)

    monkeypatch.setattr(perf, "BUDGET", 2.0)
    monkeypatch.setattr(perf.pairs, "Entrant", lambda *args: Entrant(*args, start=start))
    seen = verdict_of(
        perf.test_a_step_takes_no_longer_than_recorded,
        runs,
        tmp_path,
        timed=SimpleNamespace(preloads=[]),
        baseline=lambda *_: {"ratio": 1.2, "low": 1.19, "high": 1.21},
        **{key: value for key, value in offered("plain").items() if key != "steps"},
    )
    assert seen.outcome == "fail" and seen.seen[0].startswith("a step takes +3.00%")


ONCE = SimpleNamespace(pedantic=lambda call, **_: call(), extra_info={})


@proves("PERF-05")
def test_a_file_that_is_written_twice_is_seen(runs, tmp_path, monkeypatch):
    mutant("optimizer-file-written-twice")(monkeypatch)
    seen = verdict_of(perf.test_saving_writes_each_byte_once, runs, tmp_path, spec=perf.LARGE, benchmark=ONCE)
    assert "bytes written for files of" in seen.seen[0]


@proves("PERF-06")
def test_a_file_that_is_read_twice_is_seen(runs, tmp_path, monkeypatch):
    mutant("optimizer-file-read-twice")(monkeypatch)
    seen = verdict_of(perf.test_resuming_reads_each_byte_once, runs, tmp_path, spec=perf.LARGE, benchmark=ONCE)
    assert "bytes read of files of" in seen.seen[0]
