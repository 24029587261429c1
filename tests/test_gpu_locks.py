"""Locks between processes: who may go on, who waits, and what frees a lock."""

import functools
import os
import select
import subprocess
import sys
import tempfile
import time

import pytest

from harness import environment
from harness.errors import UsageError
from harness.processes import gpu_locks, guard
from harness.runs.scenarios import TOGETHER, spread

ON_A_CPU = spread(TOGETHER, "ddp", device="cpu").launch
ON_GPUS = spread(TOGETHER, "ddp", device="cuda").launch

HOLDER = """
import sys
from harness.processes import gpu_locks
from tests.test_gpu_locks import ON_GPUS

gpu_locks.GROUPS_PER_GPU = 1
print("here", flush=True)
with {hold}:
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """holder(hold): start another process that holds the context manager `hold` until its stdin is closed.

    It prints "here" before it tries, and "held" once it has the lock.
    """
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv(environment.GPUS, "0")
    monkeypatch.setattr(gpu_locks, "GROUPS_PER_GPU", 1)
    started = []

    def start(hold):
        command = [sys.executable, "-c", HOLDER.format(hold=hold)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "here\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("hold", "mine"),
    [
        pytest.param("gpu_locks.gpus(ON_GPUS)", functools.partial(gpu_locks.gpus, ON_GPUS), id="gpus"),
        pytest.param("gpu_locks.memory()", gpu_locks.memory, id="memory"),
        pytest.param("gpu_locks.extensions()", gpu_locks.extensions, id="extensions"),
    ],
)
def test_a_second_process_waits_until_the_lock_is_free(holder, hold, mine):
    with mine():
        other = holder(hold)
        assert not select.select([other.stdout], [], [], 0.3)[0]
    assert other.stdout.readline() == "held\n"


def test_a_killed_process_frees_its_lock(holder):
    other = holder("gpu_locks.gpus(ON_GPUS)")
    assert other.stdout.readline() == "held\n"
    other.kill()
    with gpu_locks.gpus(ON_GPUS):
        assert other.wait() < 0


def test_a_group_on_a_cpu_does_not_wait(holder):
    other = holder("gpu_locks.gpus(ON_GPUS)")
    assert other.stdout.readline() == "held\n"
    began = time.monotonic()
    with gpu_locks.gpus(ON_A_CPU):
        assert time.monotonic() - began < 0.5


def test_each_gpu_has_a_memory_lock_of_its_own(holder, monkeypatch):
    monkeypatch.setenv(environment.GPUS, "MIG-GPU-7af1/1/0,MIG-GPU-7af1/2/0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-7af1/1/0")
    other = holder("gpu_locks.memory()")
    assert other.stdout.readline() == "held\n"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-7af1/2/0")
    with gpu_locks.memory():
        assert other.poll() is None


def test_a_lock_file_that_torch_left_over_is_removed(holder, tmp_path):
    lock = tmp_path / "extensions" / "py311" / "deepspeed_x" / "lock"
    lock.parent.mkdir(parents=True)
    for _ in range(2):
        lock.touch()
        with gpu_locks.extensions():
            assert not lock.exists()


def test_a_lock_directory_that_somebody_else_made_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "common_directory", lambda: tmp_path)
    monkeypatch.setenv(environment.GPUS, "0")
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"peft-harness-{os.getuid()}-gpus-0").symlink_to(tmp_path / "theirs")
    with pytest.raises(UsageError, match="is not a directory of this user's"), gpu_locks.gpus(ON_GPUS):
        pass
    assert not list((tmp_path / "theirs").iterdir())
