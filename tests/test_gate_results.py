"""What a judged stack writes is data: answers, traces and journals that are odd become errors, and no link is followed."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from harness.errors import UsageError
from harness.gate import results, side, stored
from harness.gate.environments import Environment
from harness.gate.scope import Scope
from harness.gate.side import Side
from harness.processes import interrupts, replies
from harness.processes.replies import Answers, BadAnswer
from tests.traces import made_up, with_checkpoint

#: A worker that says it is ready, and writes what it is told to as its answer.
WORKER = """
import json, os, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    sys.stdout.write(task["writes"] * task.get("times", 1))
    sys.stdout.flush()
    if task["do"] == "close":
        os.close(1)
    if task["do"] != "go on":
        time.sleep(60)
"""


@pytest.fixture
def baseline(tmp_path, monkeypatch):
    """baseline(code): a side whose worker runs that code."""
    made = []

    def make(code=WORKER):
        def start(self, *arguments, **options):
            return subprocess.Popen([sys.executable, "-S", "-c", code], text=True, **options)

        monkeypatch.setattr(Environment, "start", start)
        made.append(Side("baseline", Environment("x", sys.executable, {}, "", "k"), tmp_path / "side", Scope()))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"writes": "hello\n"}, "wrote 'hello' where its answer should be"),
        ({"writes": "[1]\n"}, "wrote '[1]' where its answer should be"),
        ({"writes": '{"error": \n'}, "where its answer should be"),
        ({"writes": "[" * 9000 + "\n"}, "where its answer should be"),
        ({"writes": '{"error": 7}\n', "do": "go on"}, "answered 7"),
        ({"writes": "x", "times": 300_000}, "wrote more than 200,000 bytes where its answer should be"),
        ({"writes": "no line feed"}, "did not answer within 1 s"),
        ({"writes": "", "do": "close"}, "ended its process with status -9"),
    ],
    ids=["words", "a-list", "half-of-it", "deep", "a-number", "a-flood", "nothing", "closed"],
)
def test_an_answer_that_is_none_is_an_error_and_the_worker_is_replaced(baseline, monkeypatch, task, words):
    monkeypatch.setattr(side, "_GRACE", 0)
    monkeypatch.setattr(replies, "_LIMIT", 200_000)
    monkeypatch.setattr(side, "end", lambda process: replies.end(process, 0.2))
    monkeypatch.setattr(interrupts, "ALL", ())
    one = baseline()
    assert words in one.ask("odd", **{"do": "odd", "limit": 1, **task})["error"]
    assert one.ask("next", "go on", writes='{"data": 1}\n', limit=30) == {"error": None, "data": 1}


@pytest.mark.parametrize("greeting", ["'Welcome!'", "'[]'", "'{\"ready\": false}'"])
def test_a_greeting_that_is_none_is_a_sentence(baseline, greeting):
    with pytest.raises(UsageError, match=r"baseline, 'x': (wrote|answered) "):
        baseline(f"print({greeting}, flush=True)\nimport time; time.sleep(60)").ask("a", "go on")


def test_a_process_that_closed_its_output_has_no_answer():
    with subprocess.Popen([sys.executable, "-S", "-c", "print('{\"a\": 1}')"], stdout=-1, text=True) as process:
        read = Answers(process)
        assert read.read(60) == {"a": 1} and read.read(60) is None
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=-1, stdout=-1, text=True) as process:
        with pytest.raises(BadAnswer, match=r"did not answer within 0\.1 s"):
            Answers(process).read(0.1)
        process.kill()


@pytest.mark.parametrize(
    ("do", "data"),
    [
        ("inventory", None),
        ("inventory", {"environment": "x", "interface": {}}),
        ("inventory", {"environment": {}, "interface": {"LoraConfig": {"r": 8}}}),
        ("count", {"values": {"calls": "many"}, "by_operation": {}}),
        ("count", {"values": {"calls": [1.5]}, "by_operation": {}}),
        ("count", []),
        ("train", {"unsupported": 7}),
        ("train", "x"),
    ],
)
def test_an_answer_to_another_question_is_an_error(tmp_path, do, data):
    assert "answered something else than was asked for" in results.wrong(do, data, tmp_path, {"into": "x"})


@pytest.fixture
def trained(tmp_path):
    """A side's directory with the trace of one task."""
    directory = tmp_path / "side"
    made_up().save(directory / "cells/x" / "trace")
    assert results.wrong("train", {}, directory, {"into": "cells/x"}) is None
    return directory


def outside(directory):
    return shutil.copytree(directory / "cells/x", directory.parent / "secret")


def link_the_trace(directory):
    target = outside(directory)
    (directory / "cells/x/trace/trace.json").unlink()
    (directory / "cells/x/trace/trace.json").symlink_to(target / "trace" / "trace.json")


def link_the_task(directory):
    target = outside(directory)
    (directory / "cells/x").rename(directory / "aside")
    (directory / "cells/x").symlink_to(target)


def name_a_checkpoint_outside(directory):
    shutil.rmtree(directory / "cells/x/trace")
    with_checkpoint(made_up(), directory.parent / "elsewhere", 2).save(directory / "cells/x/trace")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (link_the_trace, "left a link out of its results"),
        (link_the_task, "left a link"),
        (name_a_checkpoint_outside, "left a trace with a checkpoint outside of its results"),
        (lambda directory: os.mkfifo(directory / "cells/x/pipe"), "left something that is no file in its results"),
        (lambda directory: (directory / "cells/x/trace/trace.json").write_text("{"), ""),
        (lambda directory: (directory / "cells/x/trace/trace.json").write_bytes(b"\x80"), ""),
    ],
    ids=["trace-is-a-link", "task-is-a-link", "checkpoint-outside", "pipe", "half", "binary"],
)
def test_a_trace_that_is_damaged_or_elsewhere_is_not_read(trained, damage, words):
    damage(trained)
    said = results.wrong("train", {}, trained, {"into": "cells/x"})
    assert said and words in said
    one = Side("baseline", Environment("x", sys.executable, {}, "", "k"), trained, Scope())
    assert one.trace("cells/x") is None and one.done["cells/x"]["error"] == said


def test_logits_that_are_damaged_or_elsewhere_are_not_read(tmp_path):
    (tmp_path / "side" / "own").mkdir(parents=True)
    (tmp_path / "side" / "own" / "logits.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(UsageError, match="left logits that cannot be read"):
        results.logits(tmp_path / "side", "own")
    (tmp_path / "side" / "own" / "logits.safetensors").unlink()
    (tmp_path / "side" / "own" / "logits.safetensors").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="left a link out of its results"):
        results.logits(tmp_path / "side", "own")


CASE = {"clause": "ACC-01", "scenario": "plain", "nodeid": "n", "subject": "s", "verdict": "pass"}


@pytest.mark.parametrize(
    "line",
    [{**CASE, "verdict": "splendid"}, {**CASE, "clause": "NO-99"}, {**CASE, "scenario": 7}, {**CASE, "evidence": []}],
)
def test_a_journal_with_cases_that_no_suite_has_is_not_believed(tmp_path, line):
    journal = tmp_path / "journal.jsonl"
    journal.write_text("".join(json.dumps(body) + "\n" for body in ({"run": []}, CASE)))
    assert [case.scenario for case in results.cases(journal)] == ["plain"]
    journal.write_text(json.dumps({"run": []}) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(UsageError, match=r"journal\.jsonl"):
        results.cases(journal)


def test_a_journal_that_is_a_link_is_not_read(tmp_path):
    (tmp_path / "journal.jsonl").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="is a link or too large"):
        results.cases(tmp_path / "journal.jsonl")


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda lines: [lines[0], lines[1].replace('"data": 1', '"data": 2')], ["a"]),
        (lambda lines: [lines[0][:-9], lines[1]], ["b"]),
        (lambda lines: ["\0", *lines], ["a", "b"]),
        (lambda lines: ['{"a": {"error": null, "data": 9}}', lines[1]], ["b"]),
    ],
    ids=["edited", "cut-off", "binary-line", "of-an-earlier-release"],
)
def test_stored_answers_that_are_damaged_are_asked_again(tmp_path, damage, left):
    (tmp_path / "done.jsonl").write_text("".join(stored.line({name: {"error": None, "data": 1}}) for name in "ab"))
    lines = (tmp_path / "done.jsonl").read_text().splitlines()
    (tmp_path / "done.jsonl").write_text("\n".join(damage(lines)) + "\n")
    one = Side("baseline", Environment("x", sys.executable, {}, "", "k"), tmp_path, Scope())
    assert sorted(one.done) == left


def test_stored_answers_that_are_no_text_are_asked_again(tmp_path, capsys):
    (tmp_path / "done.jsonl").write_bytes(b"\xff\xfe" * 9)
    one = Side("baseline", Environment("x", sys.executable, {}, "", "k"), tmp_path, Scope())
    assert one.done == {} and capsys.readouterr().err.count("its tasks are done again") == 1


def test_the_end_of_a_flood_is_read(tmp_path):
    (tmp_path / "out.txt").write_bytes(b"x" * 3_000_000 + b"\nthe last word\n")
    assert results.tail(tmp_path / "out.txt").endswith("\nthe last word\n")
    assert len(results.tail(tmp_path / "out.txt")) == 2**20
    (tmp_path / "link.txt").symlink_to("/dev/zero")
    assert results.tail(tmp_path / "link.txt") == results.tail(tmp_path / "none") == ""
