"""Two sides timed in turn: real processes, and fake ones that refuse, die, or are slower."""

import ctypes
import functools
import io
import json
import math
import os
import sys
from types import SimpleNamespace

import pytest

from harness import subjects
from harness.cli import app
from harness.errors import UsageError
from harness.paths import SAFE_PATH
from harness.runs.scenarios import PLAIN
from harness.subjects.reference import build
from harness.throughput import compiled, judgement, pairs, rates, speed, worker
from harness.throughput.ceiling import Ceiling
from harness.throughput.pairs import Entrant
from harness.throughput.shapes import SHAPES, chosen
from harness.throughput.stepping import train
from harness.throughput.worker import COUNTED, FIRST, SETTLED, SHARED, Clock

#: A fake worker: its steps take the seconds that it is given, by a clock that it makes up.
FAKE = """
import json, sys
task = json.loads(sys.stdin.readline())
seconds = float(sys.argv[1])
costs = {"flops": 9, "saved_bytes": 4} if task["cost"] else {}
print(json.dumps({"loss": 1.0, "huge_pages": True, "host": 1.0, **costs}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    times = [seconds * (1 + asked.get("slower", 0))] * asked["steps"]
    print(json.dumps({"wall": times, "cpu": times, "peak_bytes": 7}), flush=True)
"""

SPEC = SHAPES["tiny"].spec("cpu")


def subject_of(arguments):
    """Return the subject in the arguments with which a worker is started."""
    return arguments[arguments.index("harness.throughput.worker") + 1]


def entrant(name, seconds, code=FAKE):
    def start(*arguments, **options):
        import subprocess

        return subprocess.Popen([sys.executable, "-c", code, str(seconds)], text=True, **options)

    return Entrant(name, "hf-trainer", SPEC, start=start)


@pytest.mark.parametrize(("cost", "first"), [(False, SETTLED), (True, FIRST)])
def test_the_peak_of_memory_is_that_of_steps(cost, first, monkeypatch):
    reset, shared = [], []
    clock = Clock("cuda", io.StringIO(), cost)
    monkeypatch.setattr(clock, "_work", SimpleNamespace(begin=lambda: shared.append("begins"), end=lambda: 0.25))
    for number in range(1, FIRST + 1):
        monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda number=number: reset.append(number))
        assert not clock.step(number, [])
    assert reset == [first] and COUNTED + 1 < FIRST
    assert shared == ["begins"] and clock._host == 0.25
    assert SHARED.start > COUNTED + 1 and SHARED.stop <= FIRST


def test_a_process_is_started_again_once_with_a_fixed_memory_layout(monkeypatch):
    begun = []
    monkeypatch.setattr(os, "execv", lambda file, words: begun.append(words))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(os, "environ", {"GLIBC_TUNABLES": "glibc.malloc.check=0"})
    worker.fix_layout()
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"
    assert os.environ["PYTHONMALLOC"] == "malloc" and os.environ["PYTHONHASHSEED"] == "0"
    worker.fix_layout()
    command = [sys.executable, *SAFE_PATH, "-m", "harness.throughput.worker"]
    assert [words[: len(command)] for words in begun] == [command]


def test_memory_in_huge_pages_is_recognized(tmp_path):
    file = tmp_path / "smaps_rollup"
    words = "7f00-7fff ---p 00000000 00:00 0 [rollup]\nRss: {} kB\nAnonymous: 900 kB\nAnonHugePages: {} kB\n"
    file.write_text(words.format(1000, 800))
    assert worker.in_huge_pages(file)
    file.write_text(words.format(1000, 400))
    assert not worker.in_huge_pages(file)
    assert not worker.in_huge_pages(tmp_path / "nowhere")


@pytest.mark.parametrize(("seconds", "word"), [(0.01, "holds"), (0.0103, "slower")])
def test_the_judgement_is_made_as_soon_as_it_is_clear(seconds, word):
    verdict, timed = pairs.compare(entrant("a", 0.01), entrant("b", seconds), margin=0.02, budget=5, processes=2)
    assert verdict.word == word and timed.seconds < 5
    assert timed.step("b") == pytest.approx(seconds) and timed.peak_bytes == {"a": 7, "b": 7}
    assert timed.first["a"] == {"loss": 1.0, "huge_pages": True, "host": 1.0}
    assert timed.strays == judgement.SPREAD[True]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('the last word')", "b: ended while it was timed (the last word)"),
        ('print(\'{"refused": "not this one"}\')', "b: not this one"),
    ],
)
def test_a_side_that_cannot_be_timed_is_named(code, words):
    with pytest.raises(UsageError) as failed:
        pairs.compare(entrant("a", 0.01), entrant("b", 0.01, code), margin=0.02, budget=5, processes=1)
    assert str(failed.value) == words


@pytest.mark.slow
def test_a_real_side_is_timed():
    a, b = (Entrant(name, name, SPEC, cost=name == "hf-trainer") for name in ("reference", "hf-trainer"))
    judgement, timed = pairs.compare(a, b, margin=0.5, budget=2, processes=1, decide=False)
    assert timed.step("hf-trainer") > 1e-4 and judgement.intervals["wall"].count >= 5
    assert timed.first["hf-trainer"]["flops"] > 0
    assert timed.first["hf-trainer"]["loss"] == pytest.approx(timed.first["reference"]["loss"], abs=1e-6)


@pytest.mark.parametrize("subject", ["hf-trainer", "reference"])
def test_a_run_calls_back_at_each_step_and_ends_on_request(subject, runs, tmp_path):
    seen = []
    train(subjects.load(subject), PLAIN, tmp_path / "whole", lambda number, log: seen.append(number))
    assert seen == list(range(1, 12))
    seen.clear()
    train(subjects.load(subject), PLAIN, tmp_path / "ended", lambda number, log: seen.append(number) or number == 3)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_compiled_step_computes_what_the_reference_computes(checkpointing, monkeypatch, tmp_path):
    """torch.compile with its eager backend, because inductor takes half a minute."""
    import torch

    eager = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, options=None: eager(function, backend="eager"))
    spec = SPEC.but(max_steps=13, gradient_accumulation_steps=2, activation_checkpointing=checkpointing)
    logs = {}
    for name in ("reference", "harness.throughput.compiled:compiled"):

        def on_step(number, log, name=name):
            logs[name] = [entry["loss"] for entry in log if "loss" in entry][:1]
            return number > 13

        train(subjects.load(name), spec, tmp_path / name.replace(":", "-"), on_step)
    first, second = logs.values()
    assert len(first) == 1 and first == pytest.approx(second, abs=2e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_captured_step_reads_nothing_from_the_device(checkpointing, monkeypatch, tmp_path):
    """Reading while a graph is captured is an error, but only a GPU would raise it."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen = []
    monkeypatch.setattr(torch, "compile", lambda function, options=None: function)
    spec = SPEC.but(activation_checkpointing=checkpointing)
    steps = compiled.Steps(build(spec, tmp_path, lambda event, trainer: None), capture=False)
    steps.run()
    with Reads():
        steps._step(next(steps.windows))
        assert seen == []
        torch.zeros(()).item()
    assert len(seen) == 1
    padded = build(spec.but(data={"min_length": 3}), tmp_path, lambda event, trainer: None)
    with pytest.raises(UsageError, match="rows without padding"):
        compiled.Steps(padded, capture=True)


def test_the_same_processes_are_timed_under_each_slowdown(monkeypatch):
    started = []

    def start(*arguments, **options):
        import subprocess

        started.append(arguments)
        return subprocess.Popen([sys.executable, "-c", FAKE, "0.01"], text=True, **options)

    monkeypatch.setattr(rates, "Entrant", functools.partial(Entrant, start=start))
    monkeypatch.setitem(rates.SHARES, "cpu", (0.0, 0.05))
    monkeypatch.setitem(rates.PAIRS, "cpu", 2)
    equal, slower = rates.pools(SHAPES["tiny"], "cpu", 0.2)
    assert len(started) == 4 and all("harness.throughput.slowed" in words for words in started)
    for pool, ratio in ((equal, 1.0), (slower, 1.05)):
        assert pool.strays == judgement.SPREAD[True] and len(pool.series) == 2 and all(pool.series)
        assert all(math.exp(one["ratios"]["wall"]) == pytest.approx(ratio) for pair in pool.series for one in pair)


def test_what_cannot_be_compiled_is_refused():
    assert "only CUDA has graphs" in compiled.captured().unsupported(SPEC)
    anew = SPEC.on_device("cuda").but(activation_checkpointing=True)
    assert compiled.captured().unsupported(anew) is None
    assert "cannot repeat its dropout" in compiled.captured().unsupported(anew.but(lora={"lora_dropout": 0.1}))
    assert "label smoothing" in compiled.compiled().unsupported(SPEC.but(label_smoothing_factor=0.1))
    with pytest.raises(UsageError, match="is timed only"):
        compiled.compiled().train(SPEC, None)


def test_a_yardstick_that_computes_something_else_is_reported():
    measured = speed.Measured(SHAPES["tiny"], [speed.Row("trainer", 1.0, 0, 5.0), speed.Row("reference", 1.0, 0, 5.2)])
    assert speed.differing_losses(measured) == ["tiny: reference has loss 5.200000, the trainer 5.000000"]


def test_shapes_are_chosen_by_name_or_device():
    assert {shape.name for shape in chosen([], "cpu")} >= {"tiny"}
    with pytest.raises(UsageError, match="--shape 2b: known are tiny, "):
        chosen(["2b"], "cpu")


def test_a_side_that_was_timed_too_briefly_has_no_interval():
    too_little = judgement.interval([[0.1]])
    row = speed.Row("reference", 1.0, 0, 5.0, too_little)
    assert str(too_little) == "unknown from 1 A B B A"
    measured = speed.Measured(SHAPES["tiny"], [row], ceiling=Ceiling("float32", 1e12, 1e10))
    (reported,) = measured.to_json()["rows"]
    assert reported["trainer_overhead"] == {"estimate": None, "low": None, "high": None}


def test_a_trainer_that_dies_beside_one_yardstick_is_started_again_for_the_next(monkeypatch):
    """This happens if both together do not fit into the GPU's memory."""
    started = []

    def start(*arguments, **options):
        import subprocess

        started.append(subject_of(arguments))
        dies = started.count("hf-trainer") == 1 and subject_of(arguments) == "hf-trainer"
        code = FAKE.replace("for line in sys.stdin:", "for line in ():") if dies else FAKE
        return subprocess.Popen([sys.executable, "-c", code, "0.01"], text=True, **options)

    monkeypatch.setattr(speed, "Entrant", functools.partial(Entrant, start=start))
    monkeypatch.setattr(speed, "measure_ceiling", lambda *_: Ceiling("float32", 1e12, 1e10))
    *_, measured = speed.measure(SHAPES["tiny"], "cpu", "hf-trainer", 1.0)
    assert started.count("hf-trainer") == 2
    reasons = {row.name: row.refused for row in measured.rows}
    reason = "trainer: ended while it was timed (no message)"
    assert reasons == {"trainer": "", "reference": reason, "reference-compiled": ""}
    assert [round(row.seconds, 6) for row in measured.rows] == [0.01, pytest.approx(float("nan"), nan_ok=True), 0.01]


def test_speed_reports_each_side(tmp_path, monkeypatch):
    """The command, with fake workers."""
    from typer.testing import CliRunner

    def start(*arguments, **options):
        import subprocess

        seconds = {"hf-trainer": 0.02, "reference": 0.01}.get(subject_of(arguments), 0.005)
        return subprocess.Popen([sys.executable, "-c", FAKE, str(seconds)], text=True, **options)

    monkeypatch.setattr(speed, "Entrant", functools.partial(Entrant, start=start))
    monkeypatch.setattr(speed, "measure_ceiling", lambda *_: Ceiling("float32", 1e12, 1e10))
    files = ["--json", str(tmp_path / "s.json"), "--plot", str(tmp_path / "s.png")]
    done = CliRunner().invoke(app, ["speed", "--shape", "tiny", "--seconds", "1", *files])
    assert done.exit_code == 0, done.output
    rows = {row["name"]: row for row in json.loads((tmp_path / "s.json").read_text())["shapes"][0]["rows"]}
    assert rows["trainer"]["tokens_per_second"] == pytest.approx(64 / 0.02)
    assert rows["reference"]["trainer_overhead"]["estimate"] == pytest.approx(1.0, abs=1e-6)
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("shape", "device", "steps"), [("long", "cuda", 1), ("7b", "cuda", 3), ("tiny", "cpu", 1)])
def test_a_block_is_one_step_if_the_device_does_not_wait_for_the_host(shape, device, steps):
    spec = SHAPES[shape].spec(device)
    runner = SimpleNamespace(entrant=SimpleNamespace(spec=spec), block=lambda count: {"wall": [0.2] * count})
    assert pairs._steps([(runner, runner)], device) == steps


@pytest.mark.parametrize(
    ("shape", "host", "counts"),
    [("long", 0.6, 0.0), ("long", 0.97, 0.97), ("7b", 0.6, 0.6)],
    ids=["ahead", "too slow to stay ahead", "waits at each step"],
)
def test_the_hosts_work_does_not_count_if_the_device_does_not_wait_for_it(shape, host, counts):
    runner = SimpleNamespace(entrant=SimpleNamespace(spec=SHAPES[shape].spec("cuda")), first={"host": host})
    assert pairs.host_share(runner) == counts
