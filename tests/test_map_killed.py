"""A campaign whose driver, workers and tasks are killed: nothing judged is lost, and nothing is judged twice."""

import contextlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.map import campaign, cell, clause_sources
from harness.map.matrix_file import Matrix
from harness.paths import ROOT
from tests import pretended_slurm
from tests.made_up_tables import result, table

STACKS = 24


def start(directory, on="local", workers=1, stacks=STACKS, seconds="0.2", **more):
    words = [
        sys.executable,
        "-m",
        "tests.sleeping_cells",
        "campaign",
        directory,
        on,
        str(workers),
        str(stacks),
        seconds,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PEFT_HARNESS_LEASE": "6", **more}
    output = (directory.parent / "output.txt").open("a")
    return subprocess.Popen(
        list(map(str, words)), cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
    )


def processes(directory, *words):
    """Return the processes whose command has one of the words, and which belong to this campaign."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            mine = str(directory) in command or str(directory) in (entry / "environ").read_bytes().decode(
                errors="replace"
            )
            if mine and any(word in command for word in words):
                found.append(int(entry.name))
    return found


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def verdicts(directory):
    found = campaign.load(directory)
    return sorted(
        (one["requirements"], sorted((id, entry["verdict"]) for id, entry in one["clauses"].items())) for one in found
    )


def log(directory):
    return [line.split() for line in (directory / "log").read_text().splitlines()]


def disturbed(directory, kinds, kills, draw, **options):
    """Run a campaign, and kill one of its processes again and again. Whenever the driver has ended, it is started again."""
    # Each process of the campaign has its directory in its environment.
    options["PEFT_HARNESS_TEST"] = str(directory)
    driver, left, end = start(directory, **options), kills, time.monotonic() + 60 + 40 * kills
    try:
        while time.monotonic() < end:
            if driver.poll() is not None:
                if driver.returncode == 0 and len(verdicts(directory)) == options.get("stacks", STACKS):
                    return left
                driver = start(directory, **options)
            time.sleep(draw.uniform(0.2, 1.5))
            if left and (found := processes(directory, *kinds[draw.choice(list(kinds))])):
                kill(draw.choice(found))
                left -= 1
    finally:
        kill(driver.pid)
        for pid in processes(directory, ""):
            kill(pid)
    raise TimeoutError((directory.parent / "output.txt").read_text()[-3000:])


def check(directory, stacks=STACKS):
    found = verdicts(directory)
    assert len(found) == stacks, "something that was judged is lost, or was judged twice"
    expected = [["ACC-01", "fail" if "3" in one.split()[0].partition("==")[2] else "pass"] for one, _ in found]
    assert [[list(entry) for entry in clauses if entry[0] == "ACC-01"] for _, clauses in found] == [
        [one] for one in expected
    ]
    again = [line for line in log(directory) if line[0] == "again"]
    assert not again, "a task was started whose result was there"


DRIVER, TASK = ("sleeping_cells campaign",), ("sleeping_cells /",)
WORKER = ("process_worker_pool", "parsl: HTEX", "interchange")


@pytest.mark.parametrize(("kills", "stacks"), [(2, 3), pytest.param(3, 6, marks=pytest.mark.slow)])
def test_nothing_is_lost_and_nothing_is_judged_twice(kills, stacks, tmp_path):
    folder = tmp_path / "campaign"
    left = disturbed(folder, {"driver": DRIVER, "task": TASK}, kills, random.Random(1), stacks=stacks, seconds="0.5")
    assert left == 0
    check(folder, stacks)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("parsl") is None, reason="needs Parsl")
def test_nothing_is_lost_or_judged_twice_by_parsl(tmp_path):
    folder = tmp_path / "campaign"
    kinds = {"driver": DRIVER, "worker": WORKER, "task": TASK}
    left = disturbed(folder, kinds, 25, random.Random(2), workers=4, stacks=60, seconds="3")
    assert left == 0
    check(folder, 60)


def test_a_damaged_result_is_put_aside_and_judged_again(tmp_path, capfd):
    folder = tmp_path / "campaign"
    assert start(folder, stacks=2, seconds="0").wait() == 0
    file, other = sorted((folder / "results").glob("*.json"))
    file.write_text(file.read_text()[:-40])
    assert len(campaign.load(folder)) == 1
    assert "is damaged, or of another release; it is now" in capfd.readouterr().err
    before = other.stat().st_mtime_ns
    assert start(folder, stacks=2, seconds="0").wait() == 0
    assert len(verdicts(folder)) == 2 and other.stat().st_mtime_ns == before
    assert len([line for line in log(folder) if line[0] == "end"]) == 3


# ---- Slurm, pretended ----


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("parsl") is None, reason="needs Parsl")
def test_a_campaign_runs_in_jobs_of_slurm_one_of_which_fails(tmp_path):
    folder = tmp_path / "campaign"
    driver = start(folder, "slurm", 2, 8, "2", **pretended_slurm.install(tmp_path), PEFT_HARNESS_TEST=str(folder))
    try:
        wait_for(lambda: len(pretended_slurm.jobs(tmp_path)) == 2 and (folder / "log").exists())
        pretended_slurm.fail(tmp_path, "100")
        assert driver.wait(240) == 0, (tmp_path / "output.txt").read_text()[-2000:]
    finally:
        kill(driver.pid)
    check(folder, 8)
    script = (tmp_path / "jobs" / "101" / "script").read_text()
    assert "srun bash" in script
    wait_for(lambda: not processes(folder, "process_worker_pool", "sleeping_cells"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("parsl") is None, reason="needs Parsl")
def test_jobs_end_when_their_driver_was_killed(tmp_path):
    folder = tmp_path / "campaign"
    driver = start(folder, "slurm", 2, 8, "60", **pretended_slurm.install(tmp_path), PEFT_HARNESS_TEST=str(folder))
    wait_for(lambda: (folder / "log").exists())
    kill(driver.pid)
    wait_for(lambda: not processes(folder, "process_worker_pool", "sleeping_cells /"))
    assert not list((folder / "results").iterdir())


def wait_for(holds, seconds=180):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.2)


def test_what_a_table_has_is_not_judged_again(tmp_path, monkeypatch):
    monkeypatch.setattr(clause_sources, "sources", lambda clause, tests: "1")
    matrix = Matrix("made up", {"transformers": ("5.2.0", "5.3.0")}, ("all",), 2, ("ACC-01",))
    at = campaign.Campaign(matrix, tmp_path / "campaign")
    new, old = at.plan()
    assert at.todo(old, "cpu") == at.todo(new, "cpu") == {"ACC-01": "1"}
    here = {"requirements": "transformers==5.2.0", "machine": cell.machine(), "python": sys.version.split()[0]}
    at.known = table(result("5.2.0", **here))["cells"]
    assert at.todo(old, "cpu") == {} and at.todo(new, "cpu") == {"ACC-01": "1"}
    at.known[0]["clauses"]["ACC-01"]["key"] = "of other tests"
    assert at.todo(old, "cpu") == {"ACC-01": "1"}
