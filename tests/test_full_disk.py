"""A disk that gets full while a command writes: one sentence, exit 2, each file old or whole, the next call right."""

import errno
import json
import os

import pytest

from harness import files
from harness.session import failure
from harness.session.state import State
from harness.subjects import Traits
from harness.verdict import FAIL, Case, Verdict
from tests import made_up_reports
from tests.command_line import run

#: Command -> its words, and the files that it writes.
COMMANDS = {
    "report": ("report in/r.json --html h --markdown m --badge b", ("h", "m", "b")),
    "trend": ("trend in --html h --json j", ("h", "j")),
    "defects": ("defects --clause LOOP-* --html h --markdown m --json j", ("h", "m", "j")),
    "repro": ("repro in/spec.txt --clause LOOP-04 --script s", ("s",)),
}

OLD = "written by the call before\n"


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """Return a function that lets the disk be full from the write of a number on, and for good; 0: never.

    It returns how many files were written since it was called last.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "r.json").write_text(json.dumps(made_up_reports.failing()))
    (tmp_path / "in" / "spec.txt").write_text("{}")
    write, done, limit = files._write_new, [], [0]

    def limited(file, content):
        done.append(file)
        if limit[0] and len(done) >= limit[0]:
            # As a disk does it: the beginning of the file is there.
            file.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        write(file, content)

    def fill(full_from):
        before = len(done)
        done.clear()
        limit[0] = full_from
        return before

    monkeypatch.setattr(files, "_write_new", limited)
    return fill


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_written_is_old_or_whole_whenever_the_disk_gets_full(command, disk, tmp_path):
    line, outputs = COMMANDS[command]
    code, _, said = run(*line.split())
    assert code == 0, said
    new, writes = {name: (tmp_path / name).read_text() for name in outputs}, disk(0)
    assert writes == 2 * len(outputs)  # each is tried before the work
    before = {path.name for path in tmp_path.iterdir()}
    for full_from in range(1, writes + 1):
        for name in outputs:
            (tmp_path / name).write_text(OLD)
        disk(full_from)
        code, _, said = run(*line.split())
        assert code == 2 and said.count("peft-harness: ") == 1 and "no space left on" in said, said
        found = {name: (tmp_path / name).read_text() for name in outputs}
        assert sum(text != OLD for text in found.values()) == max(0, full_from - 1 - len(outputs))
        assert all(text in (OLD, new[name]) for name, text in found.items())
        assert {path.name for path in tmp_path.iterdir()} == before
    disk(0)
    assert run(*line.split())[0] == 0
    assert {name: (tmp_path / name).read_text() for name in outputs} == new


def test_no_half_of_a_case_file_is_left(disk, tmp_path):
    case = Case("LOOP-04", "plain", "suites/test_loop.py::test_x", "hf-trainer", "cpu")
    state = State.__new__(State)
    state.preload = []
    state.traits, state.in_theirs = Traits(), False
    disk(2)  # the first is .gitignore
    lines = failure.block(state, case, Verdict(FAIL, "expected", ("seen",)))
    assert lines[-1] == "  repeat    no case file could be written in .peft-harness (no space left on device)"
    assert list((tmp_path / ".peft-harness" / "cases").iterdir()) == []
    disk(0)
    failure.block(state, case, Verdict(FAIL, "expected", ("seen",)))
    (file,) = (tmp_path / ".peft-harness" / "cases").iterdir()
    assert json.loads(file.read_text())["clause"] == "LOOP-04"
