"""`peft-harness cache` on a made-up cache directory: what it lists, what it removes, and what it leaves alone."""

import os
import re
import subprocess
import sys
import time

import pytest

from harness.cli import cache_entries
from harness.paths import mark_cache
from tests import command_line

KEY = "0123456789abcdef"
DAY = 24 * 60 * 60


def cache(*words):
    return command_line.run("cache", *words)


def put(path, size=4096):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A cache with one entry of each kind, and two files that the harness did not put there."""
    monkeypatch.setenv("PEFT_HARNESS_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "cache"
    mark_cache(directory)
    packages = directory / "environments" / KEY / "lib" / "python3.11" / "site-packages"
    put(packages / "peft-0.20.0.dist-info" / "RECORD")
    put(packages / "torch-2.13.0+cpu.dist-info" / "RECORD")
    put(directory / "judged" / f"{KEY}.jsonl")
    put(directory / "verdicts" / f"{KEY}-{KEY}-0123456789ab.json")
    (directory / "homes" / KEY / ".cache").mkdir(parents=True)
    (directory / "homes" / KEY / ".cache" / "hub").symlink_to(tmp_path / "harness")
    (directory / "path" / "0123456789ab").mkdir(parents=True)
    (directory / "path" / "0123456789ab" / "harness").symlink_to(tmp_path / "harness")
    put(tmp_path / "harness" / "precious.py")
    put(directory / "bytecode" / "usr" / "torch.cpython-311.pyc")
    put(directory / "inductor" / "ab" / "cabc.py")
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
    assert "9 entries" in output
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
    assert left == {"CACHEDIR.TAG", "thesis.tex", "environments/mine/notes.txt", "bytecode/notes.txt"}
    assert (tmp_path / "harness" / "precious.py").is_file()


def test_clean_takes_kinds_and_an_age(directory, nobody_else):
    old = time.time() - 10 * DAY
    os.utime(directory / "judged" / f"{KEY}.jsonl", (old, old))
    code, output, _ = cache("clean", "--older-than", "7", "--dry-run")
    assert code == 0 and f"would remove: {directory / 'judged'}" in output
    assert "1 entry would be removed" in output
    assert len(kinds(directory)) == 9
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
    assert len(kinds(directory)) == 9


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


# ---- odd things in a cache ----


def test_nothing_is_removed_from_a_directory_that_is_no_cache(directory, nobody_else):
    """PEFT_HARNESS_CACHE may name a home directory, in which a folder has one of the harness's names."""
    (directory / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# somebody else's\n")
    before = sorted(directory.rglob("*"))
    code, output, error = cache("clean")
    assert (code, output) == (2, "")
    assert error == (
        f"peft-harness: {directory}: not marked as the harness's cache, so nothing in it is removed; "
        "remove what you do not need by other means\n"
    )
    assert sorted(directory.rglob("*")) == before


def test_the_usual_place_needs_no_mark(tmp_path, monkeypatch, nobody_else):
    """Earlier releases did not mark it."""
    monkeypatch.delenv("PEFT_HARNESS_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / ".cache" / "peft-harness" / "judged" / f"{KEY}.jsonl")
    assert "1 entry removed" in cache("clean")[1]


@pytest.mark.parametrize(
    "name", ["bytecode", f"environments/{KEY}", f"judged/{KEY}.jsonl", f"homes/{KEY}", "smollm2-x"]
)
def test_a_link_is_removed_and_what_it_leads_to_stays(tmp_path, monkeypatch, nobody_else, name):
    monkeypatch.setenv("PEFT_HARNESS_CACHE", str(tmp_path / "cache"))
    mark_cache(tmp_path / "cache")
    kept = put(tmp_path / "mine" / "kept.pyc")
    link = tmp_path / "cache" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(kept.parent)
    assert "1 entry removed" in cache("clean")[1]
    assert kept.is_file() and not link.is_symlink()


def test_a_folder_that_is_a_link_has_no_entries(tmp_path, monkeypatch, nobody_else):
    monkeypatch.setenv("PEFT_HARNESS_CACHE", str(tmp_path / "cache"))
    mark_cache(tmp_path / "cache")
    kept = put(tmp_path / "mine" / KEY / "kept")
    (tmp_path / "cache" / "environments").symlink_to(tmp_path / "mine")
    assert "0 entries removed" in cache("clean")[1]
    assert kept.is_file()


def test_what_cannot_be_removed_is_said_and_the_rest_is_removed(directory, nobody_else, monkeypatch):
    remove = cache_entries.remove

    def refuse(entry):
        if entry.kind == "environments":
            raise PermissionError(13, "Permission denied")
        remove(entry)

    monkeypatch.setattr("harness.cli.cache_command.remove", refuse)
    code, output, error = cache("clean")
    assert (code, error) == (
        2,
        f"peft-harness: {directory / 'environments' / KEY}: cannot be removed (permission denied)\n",
    )
    assert "8 entries removed" in output and kinds(directory) == ["environments"]


def test_a_name_of_two_lines_is_listed_as_one(directory, nobody_else):
    put(directory / "one\ntwo")
    assert f"not the harness's, never removed: {directory}/one\\ntwo\n" in cache("list")[1]


@pytest.mark.parametrize("words", [(), ("list",), ("size",), ("clean",)])
def test_a_cache_that_is_a_file_is_wrong_usage(tmp_path, monkeypatch, words):
    monkeypatch.setenv("PEFT_HARNESS_CACHE", str(put(tmp_path / "file")))
    assert cache(*words) == (
        2,
        "",
        f"peft-harness: {tmp_path / 'file'}: the cache cannot be read (not a directory); set PEFT_HARNESS_CACHE\n",
    )


@pytest.mark.parametrize("age", ["nan", "inf", "1e300", "-1", "week"])
def test_an_age_is_a_number_of_days(directory, age):
    code, output, error = cache("clean", "--older-than", age)
    assert (code, output) == (2, "") and "--older-than" in error.splitlines()[-1]
    assert len(kinds(directory)) == 9


def test_an_entry_that_vanishes_meanwhile_is_no_error(directory, nobody_else, monkeypatch):
    listed = cache_entries._listed

    def with_one_that_is_gone(folder):
        return [*listed(folder), folder / ("f" * 16)]

    monkeypatch.setattr(cache_entries, "_listed", with_one_that_is_gone)
    assert cache("list")[0] == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", "[" * 5000, "\x00\xff", '[{"clause": 1' + "0" * 5000 + "}]"])
def test_a_verdict_that_cannot_be_read_is_listed_without_its_clause(directory, nobody_else, text):
    (directory / "verdicts" / f"{KEY}-{KEY}-0123456789ab.json").write_text(text)
    (entry,) = [entry for entry in cache_entries.entries(directory) if entry.kind == "verdicts"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", entry.text)
