"""The engine and the lease that its tasks watch."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.processes import engine, lease


@pytest.mark.parametrize(
    ("on", "words"),
    [
        ("slurn", "--on slurn: is neither local, slurm, kubernetes nor a FILE.py"),
        ("none.py", "--on none.py: no such file"),
        ("slurm", "sbatch is not on PATH"),
        ("kubernetes", "the package kubernetes is not installed"),
    ],
)
def test_an_engine_that_cannot_be_had_is_one_sentence(monkeypatch, on, words):
    monkeypatch.setattr(engine, "has_parsl", lambda: True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=words.replace(".", "\\.")):
        engine.check(on)


def test_without_parsl_one_task_runs_at_a_time_and_that_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(engine, "has_parsl", lambda: False)
    with engine.opened("local", 4, tmp_path) as at:
        assert at.width == 1 and at.executor.submit(abs, -3).result() == 3
    assert "without Parsl one task runs at a time" in capsys.readouterr().err
    with pytest.raises(UsageError, match="pip install 'peft-harness\\[scale\\]'"):
        engine.check("slurm")


def test_a_file_that_has_no_config_is_one_sentence(tmp_path):
    pytest.importorskip("parsl")
    for text, words in (("x = 1", "has no parsl.Config named config"), ("1/0", "ZeroDivisionError")):
        (tmp_path / "site.py").write_text(text)
        with pytest.raises(UsageError, match=words):
            with engine.opened(str(tmp_path / "site.py"), None, tmp_path / "d"):
                pass


def test_a_lease_is_lost_if_it_is_gone_taken_or_not_renewed(monkeypatch, tmp_path):
    monkeypatch.setattr(lease, "PERIOD", 0.1)
    file = tmp_path / "lease"
    with lease.held(file) as owner:
        watch = lease.Watch(file, owner)
        watch.check()
        with pytest.raises(UsageError, match="another command is at work there"):
            with lease.held(file):
                pass
        with pytest.raises(lease.Lost):
            lease.Watch(file, "other").check()
    with pytest.raises(lease.Lost):
        watch.check()
    monkeypatch.setattr(lease, "LIMIT", 0.2)
    file.write_text("killed 7\n")
    watch = lease.Watch(file, "killed")
    watch.check()
    time.sleep(0.3)
    with pytest.raises(lease.Lost, match="has not renewed it"):
        watch.check()
    with lease.held(file) as owner:  # of a command that was killed
        assert owner != "killed"


def test_the_fence_ends_a_shell_and_what_it_started(tmp_path):
    file = tmp_path / "lease"
    file.write_text("me 1\n")
    script = f"{lease.fence(file, 'me')}\nsleep 300 &\necho $!\nsleep 300"
    shell = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    child = int(shell.stdout.readline())
    file.unlink()
    assert shell.wait(60) == -9
    end = time.monotonic() + 10
    while os.path.exists(f"/proc/{child}") and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}")
    assert sys.executable in script


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("parsl") is None, reason="needs Parsl")
def test_no_interchange_outlives_a_command_that_was_killed(tmp_path):
    """Parsl's own goes on for ever."""
    code = """
import sys, time
from pathlib import Path
from harness.processes import engine
with engine.opened("local", 2, Path(sys.argv[1])):
    print("opened", flush=True)
    time.sleep(600)
"""
    command = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    try:
        assert command.stdout.readline() == "opened\n"
        started = children(command.pid)
        assert started
    finally:
        command.kill()
        command.wait()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < end, started
        time.sleep(0.2)


def children(pid):
    """Return the ids of the processes that a process has started and that run an interchange."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, parent = (
                (folder / "cmdline").read_bytes(),
                (folder / "stat").read_text().rpartition(")")[2].split()[1],
            )
        except OSError:
            continue
        if int(parent) == pid and b"interchange" in words:
            found.append(int(folder.name))
    return found
