"""What the suites said of a baseline is kept for later gates, as far as it could not have been the machine."""

import dataclasses
import json
import subprocess
import sys

import pytest

from harness import environment
from harness.gate import baseline_cache, compare
from harness.gate.environments import CURRENT, Environment
from harness.gate.scope import Scope
from harness.gate.side import Side
from harness.session.journal import read
from harness.verdict import Case

RELEASES = Environment("peft==0.18.1", sys.executable, {}, "peft==0.18.1 --hash=sha256:1\n", "key")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("stack", "judged"),
    [
        (dataclasses.replace(RELEASES, asked=CURRENT), Scope()),
        (dataclasses.replace(RELEASES, lock="peft @ file:///home/me/peft\n"), Scope()),
        (RELEASES, Scope(subject="my.trainer:Mine")),
        (RELEASES, Scope(preloads=("my.patch",))),
        (RELEASES, Scope(device="cuda")),
    ],
    ids=["this-environment", "from-a-folder", "own-subject", "own-preload", "gpu"],
)
def test_nothing_is_kept_where_more_than_releases_decides(stack, judged):
    assert baseline_cache.place(stack, judged) is None
    assert baseline_cache.place(RELEASES, Scope()).suffix == ".jsonl"


def test_another_stack_question_or_machine_has_another_file(monkeypatch):
    files = [baseline_cache.place(RELEASES, Scope()), baseline_cache.place(RELEASES, Scope(clauses=("ACC-01",)))]
    files.append(baseline_cache.place(dataclasses.replace(RELEASES, key="other"), Scope()))
    monkeypatch.setattr(environment, "cpu_flags", lambda: frozenset({"amx_bf16"}))
    files.append(baseline_cache.place(RELEASES, Scope()))
    assert len(set(files)) == 4


def case(nodeid, verdict, clause="ACC-01"):
    return Case(clause, nodeid, nodeid, "hf-trainer", verdict=verdict)


ENDED = [
    case("held", "pass"),
    case("skipped", "skipped"),
    case("known", "known_defect"),
    case("failed", "fail"),
    case("unclear", "ambiguous"),
    # A test that judges a drawn run by several laws: it is run again as a whole.
    case("drawn", "pass"),
    case("drawn", "fail", "RES-01"),
]


def written(file, cases):
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"run": ["a run"]}, *(dataclasses.asdict(one) for one in cases)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_what_failed_is_judged_anew(tmp_path):
    file = tmp_path / "cache" / "judged" / "x.jsonl"
    assert baseline_cache.since(file) == ""
    baseline_cache.keep(written(tmp_path / "journal.jsonl", ENDED), file)
    run, cases = read(file)
    assert run == ["a run"]
    assert [one.nodeid for one in cases] == ["held", "skipped", "known"]
    assert len(baseline_cache.since(file)) == len("2026-01-01")


#: Suites in a few lines: they add a case to the journal that they are given, whose name tells how many were there.
SUITES = """
import json, sys
file = sys.argv[sys.argv.index("--journal") + 1]
try:
    lines = open(file).read().splitlines()
except FileNotFoundError:
    lines = [json.dumps({"run": ["a run"]})]
name = f"after-{len(lines) - 1}"
case = {"clause": "ACC-01", "scenario": name, "nodeid": name, "subject": "s", "verdict": "pass"}
open(file, "w").write("\\n".join([*lines, json.dumps(case)]) + "\\n")
"""


@pytest.fixture
def fake_suites(monkeypatch):
    def start(self, *arguments, **options):
        return subprocess.Popen([sys.executable, "-c", SUITES, *arguments], text=True, **options)

    monkeypatch.setattr(Environment, "start", start)


@pytest.mark.parametrize(("known", "began_with"), [("", 0), ("2026-11-27", 2)], ids=["unknown", "known"])
def test_a_known_side_begins_with_what_is_kept(tmp_path, fake_suites, known, began_with):
    file = tmp_path / "kept.jsonl"
    before = written(file, ENDED[:2]).read_text()
    side = Side("baseline", RELEASES, tmp_path / "side", Scope(), file, known)
    assert [one.nodeid for one in side.suites(1, lambda *_: None)][began_with:] == [f"after-{began_with}"]
    # What is known stays as it was, and so does its day.
    assert (file.read_text() == before) == bool(known)
    assert len(read(file)[1]) == (2 if known else 1)


def test_a_part_of_the_suites_is_not_kept(tmp_path, fake_suites):
    side = Side("baseline", RELEASES, tmp_path / "side", Scope(), tmp_path / "kept.jsonl")
    side.suites(1, lambda *_: None, ["suites/test_acc.py::test_x"])
    assert not (tmp_path / "kept.jsonl").exists()


@pytest.mark.parametrize(
    ("known", "shares"), [("", {"baseline": 1, "candidate": 1}), ("2026-11-27", {"baseline": 1, "candidate": 2})]
)
def test_beside_a_known_baseline_the_candidate_has_all_cores(tmp_path, monkeypatch, known, shares):
    seen = {}
    monkeypatch.setattr(Side, "ask", lambda *_, **__: {"error": None, "data": None})
    monkeypatch.setattr(Side, "suites", lambda self, workers, *_: seen.update({self.name: workers}) or [])
    judged = Scope(clauses=("ACC-01",))
    sides = [
        Side(name, RELEASES, tmp_path / name, judged, known=known if name == "baseline" else "") for name in shares
    ]
    assert compare.gate(*sides, workers=1, told=lambda *_: None).verdict == "safe"
    assert seen == shares
