"""A side of a gate: each task is asked once, and a worker that dies or hangs is an error in words."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import files
from harness.errors import OutOfSpace, UsageError
from harness.gate import environments, side, worker
from harness.gate.environments import Environment
from harness.gate.scope import Scope
from harness.gate.side import Side
from harness.runs.scenarios import PLAIN
from harness.session import supervisor
from tests.processes import alive, until

#: A worker in a few lines: it answers, dies or hangs, as the task says.
FAKE = """
import json, os, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if task["do"] == "die":
        print("the last word", file=sys.stderr, flush=True)
        os._exit(7)
    if task["do"] == "hang":
        time.sleep(1)
        os._exit(1)
    print(json.dumps({"error": None, "data": task["do"]}), flush=True)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """fake(code): a side whose worker runs that code. fake.started: the arguments of each start."""
    started = []

    def make(code=FAKE):
        environment = Environment("made up", sys.executable, {}, "", "key")

        def start(self, *arguments, **options):
            started.append(arguments)
            return subprocess.Popen([sys.executable, "-c", code], text=True, **options)

        monkeypatch.setattr(Environment, "start", start)
        return Side("baseline", environment, tmp_path / "side", Scope())

    make.started = started  # type: ignore[attr-defined]
    return make


def test_a_task_is_asked_once_even_if_the_gate_is_started_again(fake):
    interrupted = fake()
    assert interrupted.ask("a", "answer") == interrupted.ask("a", "other") == {"error": None, "data": "answer"}
    interrupted.end()
    again = fake()
    assert again.ask("a", "die") == {"error": None, "data": "answer"}
    assert len(fake.started) == 1


def test_a_worker_that_is_dismissed_is_started_again_when_it_is_needed(fake):
    baseline = fake()
    baseline.ask("a", "answer")
    baseline.dismiss()
    assert baseline.ask("b", "answer")["data"] == "answer"
    assert len(fake.started) == 2
    baseline.end()


@pytest.mark.parametrize(
    "error",
    [
        "OSError: [Errno 28] No space left on device: '/there/x'",
        "OutOfSpace: no space left on /there; free some, or set TMPDIR to a directory on another disk",
        "ended its process with status 1: RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0",
    ],
    ids=["system", "harness", "torch"],
)
def test_a_full_disk_is_no_answer_of_the_stack(fake, monkeypatch, error):
    """The gate could not run. It must not find that the candidate broke, nor store that for the next gate."""
    full = fake()
    monkeypatch.setattr(full, "_ask_worker", lambda task: {"error": error, "data": None})
    with pytest.raises(OutOfSpace, match=r"^no space left on .*; free some, or set TMPDIR to .* disk$"):
        full.ask("a", "answer")
    assert full.done == {} and not full._answers_file.exists()
    assert fake().ask("a", "answer")["data"] == "answer"


def test_a_worker_that_ends_where_the_disk_is_full_says_nothing_about_the_stack(fake, monkeypatch):
    monkeypatch.setattr(files, "_free", lambda place: 0)
    with pytest.raises(OutOfSpace, match=r"no space left on .*/side;"):
        fake().ask("a", "die")


def test_answers_that_were_cut_off_are_read_up_to_there(fake):
    baseline = fake()
    baseline.ask("a", "answer")
    baseline.end()
    with baseline._answers_file.open("a") as stream:
        stream.write('{"b": {"error"')
    assert list(fake().done) == ["a"]


def test_a_worker_that_dies_is_an_error_and_is_replaced(fake):
    baseline = fake()
    assert baseline.ask("a", "die")["error"] == "ended its process with status 7: the last word"
    assert baseline.ask("b", "answer")["data"] == "answer"
    assert len(fake.started) == 2
    baseline.end()


def test_a_task_that_takes_too_long_is_an_error(fake):
    baseline = fake()
    assert baseline.ask("a", "hang", limit=1)["error"] == "had not ended after 1 s"
    baseline.end()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import json; print(json.dumps({'refused': 'cannot be imported (ImportError: x)'}))", "ImportError: x"),
        ("raise SystemExit('broken beyond words')", "ends with status 1 when it imports upstream: broken beyond words"),
    ],
)
def test_an_environment_that_cannot_be_imported_is_an_error(fake, code, words):
    with pytest.raises(UsageError, match="baseline, 'made up': ") as raised:
        fake(code).ask("a", "answer")
    assert words in str(raised.value)


def test_a_worker_that_is_ended_while_it_starts_is_not_a_broken_environment(fake):
    baseline = fake("import time; time.sleep(60)")
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(baseline.ask, "a", "answer")
        assert until(lambda: baseline._worker is not None, 10)
        baseline.end()
        assert isinstance(asked.exception(10), KeyboardInterrupt)


def test_the_real_worker_trains_resumes_loads_and_reports_errors(tmp_path):
    baseline = Side("baseline", environments.running(), tmp_path, Scope())
    spec = PLAIN.but(max_steps=4, save_strategy="steps", save_steps=2)
    try:
        baseline.ask("cells/x", "train", spec=spec.to_json(), into="cells/x", subject="hf-trainer")
        assert len(baseline.trace("cells/x").steps) == 4
        resumed = spec.resumed(2).to_json()
        run = str(tmp_path / "cells" / "x" / "run")
        baseline.ask("resumed/x", "train", spec=resumed, into="resumed/x", subject="hf-trainer", checkpoints=run)
        assert [step.number for step in baseline.trace("resumed/x").steps] == [3, 4]
        assert (
            baseline.ask("own/x", "infer", trace=str(tmp_path / "cells" / "x" / "trace"), into="own/x")["error"] is None
        )
        assert (tmp_path / "own" / "x" / "logits.safetensors").stat().st_size > 0
        odd = baseline.ask("odd", "train", spec={"model": {"famly": "x"}}, into="odd", subject="hf-trainer")
        assert "unknown field 'famly'" in odd["error"]
        assert baseline.ask("inventory", "inventory")["data"]["interface"]["LoraConfig"]["r"] == "8"
    finally:
        baseline.end()


#: A preload that makes two processes hang in their third training.
HANGS = """
import os, pathlib, time
import transformers

train, count = transformers.Trainer.train, 0

def hang(*args, **options):
    global count
    count += 1
    hung = list(pathlib.Path(__file__).parent.glob("hung-*"))
    if count == 3 and len(hung) < 1:
        pathlib.Path(__file__).with_name(f"hung-{os.getpid()}").touch()
        time.sleep(60)
    return train(*args, **options)

transformers.Trainer.train = hang
"""


@pytest.fixture
def runs(monkeypatch):
    """Gives the number of workers of each run of the suites, as runs are started."""
    numbers, run = [], Side._run_suites

    def run_and_record(self, file, workers, *rest):
        numbers.append(workers)
        return run(self, file, workers, *rest)

    monkeypatch.setattr(Side, "_run_suites", run_and_record)
    return numbers


@pytest.mark.slow
def test_a_case_that_does_not_end_is_a_failed_case_and_the_others_are_judged(tmp_path, monkeypatch, runs):
    (tmp_path / "hangs.py").write_text(HANGS)
    monkeypatch.chdir(tmp_path)
    # The slowest of these cases takes 1.5 s. Other work on the machine may make it several times slower.
    monkeypatch.setattr(side, "CASE_LIMIT", 8)
    baseline = Side(
        "baseline", environments.running(), tmp_path / "side", Scope(clauses=("RNG-0[12]",), preloads=("hangs",))
    )
    cases = baseline.suites(1, lambda *_: None)
    failed = [case for case in cases if case.verdict == "fail"]
    assert runs == [0] and len({case.nodeid for case in cases}) == len(cases) > 4
    assert len(failed) == 1 and "had not ended after 8 s (--case-limit)" in failed[0].evidence["seen"][0]
    assert "in hang" in failed[0].evidence["seen"][0]


@pytest.mark.slow
def test_the_suites_of_one_worker_take_one_process(tmp_path, runs):
    baseline = Side("baseline", environments.running(), tmp_path / "side", Scope(clauses=("RNG-01",)))
    assert {case.verdict for case in baseline.suites(1, lambda *_: None)} == {"pass"}
    assert runs == [0]


@pytest.mark.parametrize(
    ("scope", "error"),
    [
        (Scope(clauses=("NO-99",)), "NO-99"),
        (Scope(preloads=("no_such_module",)), "no_such_module"),
    ],
    ids=["wrong-clause", "missing-preload"],
)
def test_suites_that_cannot_start_are_asked_once(tmp_path, runs, scope, error):
    baseline = Side("baseline", environments.running(), tmp_path / "side", scope)
    with pytest.raises(UsageError, match=rf"the suites cannot run \(exit status \d\): .*{error}"):
        baseline.suites(1, lambda *_: None)
    assert runs == [0]


def test_test_files_that_cannot_be_imported_are_asked_once(tmp_path, runs, monkeypatch):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["harness.session.plugin"]\n')
    (tmp_path / "test_broken.py").write_text("import no_such_module\n")
    monkeypatch.setattr(side, "SUITES", tmp_path)
    baseline = Side("baseline", environments.running(), tmp_path / "side", Scope())
    with pytest.raises(UsageError, match=r"the suites cannot run \(exit status 2\): ERROR .*test_broken.py"):
        baseline.suites(1, lambda *_: None)
    assert runs == [0]


def test_the_worker_is_ended_if_a_task_takes_too_long(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text(
        "import time\nfrom harness.subjects.hf_trainer import HFTrainer\n"
        "class Slow(HFTrainer):\n    def train(self, *args):\n        time.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)
    baseline = Side("baseline", environments.running(), tmp_path / "side", Scope())
    answer = baseline.ask("a", "train", spec=PLAIN.to_json(), into="a", subject="slow:Slow", limit=1)
    baseline.end()
    assert answer["error"] == "had not ended after 1 s"
    assert (
        "time.sleep" in (tmp_path / "side" / "worker.txt").read_text()
        or "slow.py" in (tmp_path / "side" / "worker.txt").read_text()
    )


def test_a_case_may_take_longer_than_a_task_of_the_worker():
    assert side.CASE_LIMIT is None  # the suites' own limit
    assert supervisor.LIMIT > worker.LIMIT > 0
    assert json.dumps(Scope().options()) == '["--subject", "hf-trainer", "--device", "cpu"]'


#: A gate in a few lines: it starts the suites of a side, prints their process id, and waits.
GATE = """
import sys
from harness.gate.environments import Environment
started = Environment("current", sys.executable, {}, "", "key").start(
    "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "harness.session.plugin", "--noconftest", sys.argv[1]
)
print(started.pid, flush=True)
started.wait()
"""

SLEEPS = """
import time
import pytest

@pytest.mark.clause("FRZ-01")
def test_sleeps():
    time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes in /proc")
def test_suites_end_with_a_gate_that_is_killed(tmp_path):
    (tmp_path / "test_sleeps.py").write_text(SLEEPS)
    gate = subprocess.Popen(
        [sys.executable, "-c", GATE, str(tmp_path / "test_sleeps.py")], stdout=subprocess.PIPE, text=True
    )
    suites = int(gate.stdout.readline())
    time.sleep(3)  # until the plugin watches its owner, which takes 1 s on an idle machine
    assert alive(suites)
    gate.kill()
    gate.wait()
    until(lambda: not alive(suites), 20)
    assert not alive(suites)
