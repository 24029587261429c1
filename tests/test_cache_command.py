"""`peft-harness cache` on a made-up cache directory: what it lists, what it removes, and what it leaves alone."""

import os
import subprocess
import sys
import time

import pytest

from harness.cli import cache_entries

KEY = "0123456789abcdef"
DAY = 24 * 60 * 60


def cache(*words):
    done = subprocess.run([sys.executable, "-m", "harness.cli", "cache", *words], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def put(path, size=4096):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A cache with one entry of each kind, and two files that the harness did not put there."""
    monkeypatch.setenv("PEFT_HARNESS_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "cache"
    packages = directory / "environments" / KEY / "lib" / "python3.11" / "site-packages"
    put(packages / "peft-0.20.0.dist-info" / "RECORD")
    put(packages / "torch-2.13.0+cpu.dist-info" / "RECORD")
    put(directory / "judged" / f"{KEY}.jsonl")
    put(directory / "verdicts" / f"{KEY}-{KEY}-0123456789ab.json")
    (directory / "path" / "0123456789ab").mkdir(parents=True)
    (directory / "path" / "0123456789ab" / "harness").symlink_to(tmp_path / "harness")
    put(tmp_path / "harness" / "precious.py")
    put(directory / "bytecode" / "usr" / "torch.cpython-311.pyc")
    put(directory / "smollm2-135m-instruct" / "config.json")
    put(directory / "environments" / f".{KEY}-99999999-1" / "half")
    put(directory / "thesis.tex")
    put(directory / "environments" / "mine" / "notes.txt")
    return directory


@pytest.fixture
def nobody_else(monkeypatch):
    """No other process of this machine counts."""
    monkeypatch.setattr(cache_entries, "_processes", lambda cache: iter(()))


def kinds(directory):
    return [entry.kind for entry in cache_entries.entries(directory)]


def test_each_kind_is_listed_with_its_size(directory, nobody_else):
    found = cache_entries.entries(directory)
    assert [entry.kind for entry in found] == [kind.name for kind in cache_entries.KINDS]
    assert found[0].text == "torch==2.13.0+cpu peft==0.20.0"
    assert (found[0].size, found[0].freed) == (8192, 8192)
    assert not any(entry.user for entry in found)


def test_the_list_says_what_is_not_its_own(directory):
    code, output, _ = cache()
    assert code == 0
    for name in ("thesis.tex", "environments/mine"):
        assert f"not the harness's, never removed: {directory / name}" in output
    assert "7 entries" in output
    assert cache("list")[1] == output
    assert cache("size")[1] in output


def test_shared_files_are_counted_once_and_free_nothing(directory, nobody_else, tmp_path):
    file = put(directory / "environments" / KEY / "shared.so", 65536)
    os.link(file, file.with_name("again.so"))
    (entry,) = [entry for entry in cache_entries.entries(directory) if entry.kind == "environments"]
    assert (entry.size, entry.freed) == (8192 + 65536, 8192 + 65536)
    os.link(file, tmp_path / "elsewhere.so")
    (entry,) = [entry for entry in cache_entries.entries(directory) if entry.kind == "environments"]
    assert (entry.size, entry.freed) == (8192 + 65536, 8192)


def test_removing_all_leaves_what_is_not_the_harness(directory, nobody_else, tmp_path):
    put(directory / "bytecode" / "notes.txt")
    for entry in cache_entries.entries(directory):
        cache_entries.remove(entry)
    left = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert left == {"thesis.tex", "environments/mine/notes.txt", "bytecode/notes.txt"}
    assert (tmp_path / "harness" / "precious.py").is_file()


def test_clean_takes_kinds_and_an_age(directory, nobody_else):
    old = time.time() - 10 * DAY
    os.utime(directory / "judged" / f"{KEY}.jsonl", (old, old))
    code, output, _ = cache("clean", "--older-than", "7", "--dry-run")
    assert code == 0 and f"would remove: {directory / 'judged'}" in output
    assert "1 entry would be removed" in output
    assert len(kinds(directory)) == 7
    assert "1 entry removed" in cache("clean", "--older-than", "7")[1]
    assert "judged" not in kinds(directory)
    assert "1 entry removed" in cache("clean", "unfinished")[1]
    assert "unfinished" not in kinds(directory)
    assert "environments" in kinds(directory)


def test_what_a_process_uses_stays(directory):
    environment = directory / "environments" / KEY
    code = "import time; print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code]
    variables = os.environ | {"PYTHONPATH": str(directory / "path" / "0123456789ab")}
    with subprocess.Popen(command, cwd=environment, env=variables, stdout=subprocess.PIPE) as user:
        user.stdout.readline()
        code, output, _ = cache("clean", "environments", "path")
        user.kill()
    assert code == 0
    assert f"left: {environment} (process {user.pid} uses it)" in output
    assert f"left: {directory / 'path' / '0123456789ab'} (process {user.pid} uses it)" in output
    assert "0 entries removed" in output
    assert environment.is_dir()


def test_nothing_is_removed_while_a_gate_runs(directory):
    # A process that looks like a gate: what counts is its command line.
    code = "import time; print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, "peft-harness", "gate"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as gate:
        gate.stdout.readline()
        output = cache("clean")[1]
        gate.kill()
    assert "0 entries removed" in output
    assert len(kinds(directory)) == 7


def test_what_another_process_is_writing_stays(directory, nobody_else):
    for name in (f"environments/.{KEY}-{os.getpid()}-7", f"judged/.{KEY}.jsonl.{os.getpid()}"):
        put(directory / name)
        (entry,) = [one for one in cache_entries.entries(directory) if one.path == directory / name]
        assert entry.user == f"process {os.getpid()} writes it"


def test_a_missing_cache_is_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_HARNESS_CACHE", str(tmp_path / "none"))
    assert cache()[1] == f"{tmp_path / 'none'}: 0 entries, 0.0 kB\n"
    assert cache("clean")[:2] == (0, "0 entries removed, 0.0 kB freed\n")


def test_an_unknown_kind_is_wrong_usage(directory):
    code, output, error = cache("clean", "everything")
    assert (code, output) == (2, "")
    assert error.startswith("peft-harness: cache clean everything: no such kind; there are environments, judged")
