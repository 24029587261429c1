"""How commands end when they are interrupted. The slow tests interrupt whole commands at random moments."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.processes import guard, imports
from harness.processes.guard import RUN, guarded
from tests.interrupted import COMMANDS, SECONDS, interrupted, undisturbed
from tests.processes import alive, until

linux = pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="looks for processes in /proc")

#: A command that starts a process in another session, forks one, fills TMPDIR, and swallows every exception.
COMMAND = """
import os, signal, subprocess, sys, tempfile, time
from pathlib import Path
from harness.processes import guard, interrupts

with interrupts.ending_at(*interrupts.ALL), guard.guarded():
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True).pid
    forked = os.fork()
    if not forked:
        os.setsid()
        time.sleep(60)
    Path(tempfile.mkdtemp(), "large").write_bytes(bytes(2**21))
    print(started, forked, tempfile.gettempdir(), flush=True)
    if sys.argv[1:]:
        sys.exit()
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
"""


def start(tmp_path, *words, **options):
    """Start the command. Returns it, the processes that it started, and its TMPDIR."""
    environment = {name: value for name, value in os.environ.items() if name != RUN}
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        env=environment | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    started, forked, directory = command.stdout.readline().split()
    return command, [int(started), int(forked)], Path(directory)


@linux
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda one: one.name
)
def test_nothing_is_left_of_a_command_that_a_signal_ends(number, tmp_path):
    command, pids, directory = start(tmp_path)
    assert directory.parent == tmp_path and directory.is_dir() and all(map(alive, pids))
    command.send_signal(number)
    _, said = command.communicate(timeout=SECONDS)
    assert until(lambda: not any(map(alive, pids)) and not directory.exists(), SECONDS)
    assert list(tmp_path.iterdir()) == []
    if number == signal.SIGKILL:
        assert (command.returncode, said) == (-number, "")
    else:
        sentence = f"peft-harness: interrupted by {number.name}; if it was a gate, the same command continues it\n"
        assert (command.returncode, said) == (128 + number, sentence)


@linux
def test_nothing_is_left_of_a_command_that_comes_to_its_end(tmp_path):
    command, pids, directory = start(tmp_path, "end")
    command.communicate(timeout=SECONDS)
    # It has waited for that, so nothing is left at the moment at which it ends.
    assert not any(map(alive, pids)) and not directory.exists() and command.returncode == 0


def test_a_signal_that_the_caller_ignores_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        command, _, _ = start(tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    command.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert command.poll() is None
    command.kill()
    command.communicate()


def test_the_next_command_deletes_what_a_killed_watcher_left(tmp_path, monkeypatch):
    monkeypatch.delenv(RUN, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    users, new, locked, left = (tmp_path / f"peft-harness-run-{name}" for name in ("users", "new", "locked", "left"))
    for directory in (users, new, locked, left):
        directory.mkdir()
        (directory / "file").touch()
        if directory != users:
            (directory / guard._MARK).touch()
        if directory != new:
            os.utime(directory, (0, 0))
    (tmp_path / "peft-harness-run-link").symlink_to(users)
    lock = guard._locked(locked)
    with guarded():
        assert guard.common_directory() == tmp_path
        with guarded():  # within another one it does nothing
            assert guard.common_directory() == tmp_path
        assert os.environ["TMPDIR"] == os.environ[RUN]
    os.close(lock)
    assert os.environ["TMPDIR"] == str(tmp_path) and RUN not in os.environ
    assert not left.exists()
    assert all((directory / "file").exists() for directory in (users, new, locked))


@linux
def test_without_proc_nothing_is_judged_if_deepspeed_is_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(imports, "version", lambda name: None)
    imports.require_proc(str(tmp_path))
    monkeypatch.setattr(imports, "version", lambda name: "0.19.0")
    imports.require_proc()
    with pytest.raises(UsageError, match="is not mounted, and the installed DeepSpeed reads it"):
        imports.require_proc(str(tmp_path))


@pytest.mark.slow
@linux
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.network if name == "bisect" else ()) for name in COMMANDS]
)
def test_commands_leave_nothing_and_go_on(name, tmp_path):
    place = undisturbed(name, tmp_path)
    seed = time.time_ns() % 1000
    wrong = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        row = interrupted(place, number, 2, seed)
        assert row.asked == 1 or name == "gate"
        wrong += row.wrong
    assert wrong == [], f"seed {seed}"
