"""Throughput and memory of two stacks, on made-up counters and times."""

import math
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest

from harness.errors import UsageError
from harness.gate import compare, throughput
from harness.gate.environments import Environment
from harness.gate.findings import BROKEN, FIXED, LOST, NOTE
from harness.gate.scope import Scope
from harness.gate.side import Side
from harness.paths import ROOT
from harness.throughput import pairs
from harness.throughput.counters import Counters
from harness.throughput.judgement import SPREAD, Interval, judge
from harness.throughput.pairs import Pairs

COSTS = {"operations": [500], "reads": [3], "saved_bytes": [1000], "peak_bytes": [4000], "held_bytes": [2000]}


@pytest.fixture
def sides(tmp_path):
    environment = Environment("made up", "python", {}, "", "key")
    return [Side(name, environment, tmp_path / name, Scope()) for name in ("baseline", "candidate")]


def counted(side, **changes):
    values = {**COSTS, **{name: [value] for name, value in changes.items()}}
    for name in throughput.counted_runs("cpu"):
        side.done[f"counters/{name}"] = {"error": None, "data": Counters(values, {}).to_json()}


@pytest.mark.parametrize(
    ("changes", "means", "words"),
    [
        ({"peak_bytes": 4100}, BROKEN, "larger: peak_bytes; peak_bytes 4000 -> 4100 (+2.5%)"),
        ({"saved_bytes": 500}, FIXED, "saved_bytes 1000 -> 500 (-50.0%)"),
        (
            {"operations": 520, "peak_bytes": 4001},
            NOTE,
            "operations 500 -> 520 (+4.0%); peak_bytes 4000 -> 4001 (+0.0%)",
        ),
    ],
)
def test_changed_counters_are_findings(sides, changes, means, words):
    counted(sides[0])
    counted(sides[1], **changes)
    found = list(throughput.counters(*sides))
    assert [finding.where for finding in found] == list(throughput.counted_runs("cpu"))
    assert (found[0].means, found[0].sentence) == (means, words)


def test_equal_counters_are_no_finding(sides):
    counted(sides[0])
    counted(sides[1])
    assert list(throughput.counters(*sides)) == []


@pytest.fixture
def no_starts(monkeypatch):
    """Starts no processes to be timed. Gives what was asked for: (side, brief)."""
    asked = []
    monkeypatch.setattr(throughput, "start_processes", lambda side, shapes, brief: asked.append((side.name, brief)))
    return asked


def test_a_side_that_ends_while_it_is_timed_is_a_finding(sides, no_starts, monkeypatch):
    def ends(*_):
        raise UsageError("candidate: ended while it was timed (Killed)")

    monkeypatch.setattr(throughput, "time", ends)
    for side in sides:
        counted(side)
    (found,) = compare.time_steps(*sides, lambda *_: None, unsafe=False)
    assert (found.means, found.sentence) == (
        LOST,
        "a step of tiny cannot be timed: candidate: ended while it was timed (Killed)",
    )


def test_a_side_that_cannot_be_started_is_a_finding_and_leaves_no_process(tmp_path, monkeypatch):
    # As many start at once as there are cores, before the first is found to have ended.
    monkeypatch.setattr(pairs, "at_once", lambda spec: 2)
    environment = Environment("made up", "/bin/true", {}, "", "key")
    sides = [Side(name, environment, tmp_path / name, Scope()) for name in ("baseline", "candidate")]
    for side in sides:
        counted(side)
    (found,) = compare.time_steps(*sides, lambda *_: None, unsafe=False)
    sentence = "a step of tiny cannot be timed: baseline: ended while it was timed (no message)"
    assert (found.means, found.sentence) == (LOST, sentence)
    started = [runner.process for side in sides for runner in side.runners["tiny"]]
    for side in sides:
        side.end()
    assert len(started) == 4 and all(process.poll() == 0 for process in started)


@pytest.mark.parametrize(("brief", "count"), [(False, 4), (True, 1)])
def test_one_process_of_a_side_is_started_if_the_clock_decides_nothing(sides, brief, count, monkeypatch):
    monkeypatch.setattr("harness.throughput.pairs.stand", lambda entrants, runners: runners.extend(entrants))
    throughput.start_processes(sides[0], ["tiny"], brief)
    assert [runner.name for runner in sides[0].runners.pop("tiny")] == ["baseline"] * count


@pytest.mark.parametrize("module", ["harness.gate.worker", "harness.throughput.worker", "harness.processes.torchrun"])
def test_a_process_of_another_stack_needs_only_the_harness_on_the_path(module, tmp_path):
    environment = Environment("another", sys.executable, {}, "", "key")
    code = f"import sys; sys.path = [one for one in sys.path if one not in ('', {str(ROOT)!r})]; import {module}"
    done = environment.start("-c", code, cwd=tmp_path, stderr=subprocess.PIPE)
    _, words = done.communicate()
    assert done.returncode == 0, words


def test_a_side_that_cannot_be_counted_is_a_finding_and_not_timed(sides, monkeypatch):
    monkeypatch.setattr(throughput, "time", lambda *_: pytest.fail("timed"))
    for name in throughput.counted_runs("cpu"):
        sides[1].done[f"counters/{name}"] = {"error": "UsageError: no steps", "data": None}
    assert {finding.means for finding in compare.time_steps(*sides, lambda *_: None, unsafe=False)} == {NOTE}
    counted(sides[0])
    found = compare.time_steps(*sides, lambda *_: None, unsafe=False)
    assert {finding.means for finding in found} == {BROKEN}
    assert found[0].sentence == "cannot be counted: candidate: UsageError: no steps"


def timed(share, spread=0.05, count=200):
    draw = random.Random(0)

    def pair():
        return [math.log1p(share) + draw.gauss(0, spread) for _ in range(count)]

    return Pairs(ratios={metric: [pair() for _ in range(4)] for metric in ("wall", "cpu")}, seconds=60.0)


def judged(pairs):
    return judge(pairs.ratios, throughput.MARGIN[True], 0.5, SPREAD[True])


@pytest.mark.parametrize(("huge", "margin"), [([True] * 4, 0.01), ([True, True, True, False], 0.02)])
def test_the_margin_is_half_as_large_if_all_memory_lies_in_huge_pages(sides, huge, margin, monkeypatch):
    runners = [SimpleNamespace(first={"huge_pages": pages}) for pages in huge]
    for shape in ("tiny", "long"):
        sides[0].runners[shape], sides[1].runners[shape] = runners[:2], runners[2:]
    monkeypatch.setattr("harness.throughput.pairs.race", lambda before, after, asked, *_: asked)
    assert throughput.time(*sides, "tiny", lambda *_: None, 60.0) == margin
    assert throughput.time(*sides, "long", lambda *_: None, 60.0) == throughput.DEVICE_MARGIN


@pytest.mark.parametrize(
    ("share", "spread", "means"),
    [(0.0, 0.02, None), (0.03, 0.05, BROKEN), (0.0, 1.0, LOST), (0.005, 0.02, NOTE)],
    ids=str,
)
def test_the_clock_says_slower_equal_or_nothing(sides, share, spread, means):
    counted(sides[0])
    counted(sides[1], reads=7)
    pairs = timed(share, spread)
    judgement = judged(pairs)
    found = list(throughput.slower(judgement, pairs, list(throughput.counters(*sides))))
    assert [finding.means for finding in found] == ([] if means is None else [means])
    if means == BROKEN:
        assert " slower (99 % interval: " in found[0].sentence
        assert found[0].sentence.endswith("; more reads 3 -> 7")
    if means == LOST:
        assert "undecided after 60 s, because the machine is too noisy" in found[0].sentence
    if means == NOTE:
        assert "perhaps more than the margin of 1 %, surely less than 2 %" in found[0].sentence


def test_half_a_percent_of_a_step_of_device_work_is_found():
    pairs = timed(0.006, 0.01)
    judgement = judge(pairs.ratios, throughput.DEVICE_MARGIN, 0.5, 0.001)
    (found,) = throughput.slower(judgement, pairs, [], shape="long")
    assert (found.where, found.means) == ("time/long", BROKEN)
    assert found.sentence.endswith("; it does the same operations, so the device takes longer over them")
    assert found.details["shape"] == "long"


@pytest.mark.parametrize(("gigabytes", "shapes"), [(80, ["tiny", "long"]), (24, ["tiny"])])
def test_a_shape_that_does_not_fit_the_device_is_a_note_and_not_timed(gigabytes, shapes, monkeypatch):
    monkeypatch.setattr(throughput, "memory_bytes", lambda device: gigabytes << 30)
    names, findings = throughput.timed_shapes("cuda")
    assert names == shapes
    notes = [(finding.where, finding.means, finding.sentence) for finding in findings]
    assert notes == [("time/long", NOTE, "not timed: it needs 16 GiB, and cuda has 24 GiB")] * (2 - len(shapes))
    assert throughput.timed_shapes("cpu") == (["tiny"], [])


def test_a_slowdown_without_more_operations_lies_between_them(sides):
    pairs = timed(0.05)
    (found,) = throughput.slower(judged(pairs), pairs, [])
    assert "so the time is spent between them" in found.sentence


def test_a_gate_times_after_it_has_counted(sides, no_starts, monkeypatch):
    counted(sides[0])
    counted(sides[1], peak_bytes=5000)
    pairs = timed(0.05)
    for side in sides:
        side.runners["tiny"] = [SimpleNamespace(first={"huge_pages": True})]
    monkeypatch.setattr("harness.throughput.pairs.race", lambda *_: (judged(pairs), pairs))
    found = compare.time_steps(*sides, lambda *_: None, unsafe=False)
    assert [(finding.where, finding.means) for finding in found] == [
        (name, BROKEN) for name in (*throughput.counted_runs("cpu"), "time")
    ]


@pytest.mark.parametrize(("unsafe", "seconds"), [(False, throughput.BUDGET), (True, throughput.BRIEF)])
def test_an_unsafe_gate_cuts_timing_short(sides, no_starts, monkeypatch, unsafe, seconds):
    for side in sides:
        counted(side)
    pairs, given = timed(0.0, spread=1.0), []
    monkeypatch.setattr(throughput, "time", lambda *asked: given.append(asked[-1]) or (judged(pairs), pairs))
    (found,) = compare.time_steps(*sides, lambda *_: None, unsafe)
    assert given == [seconds] and sorted(no_starts) == [("baseline", unsafe), ("candidate", unsafe)]
    # An undecided clock then is a note only.
    assert found.means == (NOTE if unsafe else LOST)
    assert ("because the gate is already unsafe" in found.sentence) == unsafe


@pytest.mark.parametrize(
    ("estimate", "low", "high", "metric", "sentence"),
    [
        (-0.0092, -0.021, 0.0026, "wall", "a step is 0.92 % faster (99 % interval: 2.1 % faster to 0.26 % slower)"),
        (0.0118, 0.0031, 0.0205, "wall", "a step is 1.18 % slower (99 % interval: 0.31 % to 2.05 %)"),
        (-0.05, -0.06, -0.04, "wall", "a step is 5 % faster (99 % interval: 4 % to 6 %)"),
        (0.0118, 0.0031, 0.0205, "cpu", "a step takes 1.18 % more processor time (99 % interval: 0.31 % to 2.05 %)"),
        (math.nan, -math.inf, math.inf, "wall", "the change of a step's time is unknown after 4 rounds"),
    ],
    ids=["faster", "slower", "surely-faster", "processor", "unknown"],
)
def test_a_change_of_time_is_said_in_its_direction(estimate, low, high, metric, sentence):
    assert throughput._step_is(Interval(estimate, 0.01, low, high, 4), metric) == sentence
