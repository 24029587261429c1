"""The cache of baseline results: what is cached, for which stacks, and how a later gate uses it."""

import dataclasses
import json
import subprocess
import sys

import pytest

from harness import environment
from harness.gate import baseline_cache, compare
from harness.gate.environments import Environment
from harness.gate.requirements import CURRENT
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
def test_nothing_is_cached_if_more_than_releases_decides(stack, judged):
    assert baseline_cache.file_for(stack, judged) is None
    assert baseline_cache.file_for(RELEASES, Scope()).suffix == ".jsonl"


def test_another_stack_scope_or_machine_has_another_file(monkeypatch):
    files = [baseline_cache.file_for(RELEASES, Scope()), baseline_cache.file_for(RELEASES, Scope(clauses=("ACC-01",)))]
    files.append(baseline_cache.file_for(dataclasses.replace(RELEASES, key="other"), Scope()))
    files.append(baseline_cache.file_for(RELEASES, Scope(added=(("OMP_NUM_THREADS", "2"),))))
    monkeypatch.setattr(environment, "cpu_flags", lambda: frozenset({"amx_bf16"}))
    files.append(baseline_cache.file_for(RELEASES, Scope()))
    assert len(set(files)) == 5


def case(nodeid, verdict, clause="ACC-01"):
    return Case(clause, nodeid, nodeid, "hf-trainer", verdict=verdict)


ENDED = [
    case("held", "pass"),
    case("skipped", "skipped"),
    case("known", "known_defect"),
    case("failed", "fail"),
    case("unclear", "ambiguous"),
    # A test that judges a drawn run by several laws is run again as a whole.
    case("drawn", "pass"),
    case("drawn", "fail", "RES-01"),
]


def written(file, cases):
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"run": ["a run"]}, *(dataclasses.asdict(case) for case in cases)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_failed_cases_are_not_cached(tmp_path):
    file = tmp_path / "cache" / "judged" / "x.jsonl"
    assert baseline_cache.cached_since(file) == ""
    baseline_cache.store(written(tmp_path / "journal.jsonl", ENDED), file)
    assert baseline_cache.copy(file, tmp_path / "again.jsonl")
    run, cases = read(tmp_path / "again.jsonl")
    assert run == ["a run"]
    assert [case.nodeid for case in cases] == ["held", "skipped", "known"]
    assert len(baseline_cache.cached_since(file)) == len("2026-01-01")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"skipped"', '"pass"'),
        lambda text: text.replace("1:", "2:", 1),
        lambda text: "\udcff\x00" * 9,
        lambda text: "",
        lambda text: json.dumps({"run": ["a run"]}) + "\n" + json.dumps(dataclasses.asdict(case("held", "pass"))),
    ],
    ids=["cut-off", "edited", "newer-schema", "binary", "empty", "without-a-checksum"],
)
def test_a_cached_result_that_is_damaged_is_not_believed(tmp_path, capsys, damage):
    file = tmp_path / "cached.jsonl"
    baseline_cache.store(written(tmp_path / "journal.jsonl", ENDED), file)
    assert baseline_cache.cached_since(file)
    file.write_bytes(damage(file.read_text()).encode(errors="surrogateescape"))
    assert baseline_cache.cached_since(file) == ""
    assert capsys.readouterr().err.count("cached.jsonl is not used") == 1
    assert not baseline_cache.copy(file, tmp_path / "again.jsonl") and not (tmp_path / "again.jsonl").exists()


#: Suites in a few lines: they add one case to the journal. Its name says how many cases were there before.
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


@pytest.mark.parametrize(("since", "began_with"), [("", 0), ("2026-11-27", 2)], ids=["not-cached", "cached"])
def test_a_cached_side_begins_with_the_cached_cases(tmp_path, fake_suites, since, began_with):
    file = tmp_path / "cached.jsonl"
    baseline_cache.store(written(tmp_path / "journal.jsonl", ENDED[:2]), file)
    before = file.read_text()
    side = Side("baseline", RELEASES, tmp_path / "side", Scope(), file, since)
    assert [case.nodeid for case in side.suites(1, lambda *_: None)][began_with:] == [f"after-{began_with}"]
    # A cache file that is reused is not written again, so that its date stays.
    assert (file.read_text() == before) == bool(since)
    assert len(baseline_cache.load(file)) == 1 + (2 if since else 1)


def test_a_part_of_the_suites_is_not_cached(tmp_path, fake_suites):
    side = Side("baseline", RELEASES, tmp_path / "side", Scope(), tmp_path / "cached.jsonl")
    side.suites(1, lambda *_: None, ["suites/test_acc.py::test_x"])
    assert not (tmp_path / "cached.jsonl").exists()


@pytest.mark.parametrize(
    ("since", "shares"), [("", {"baseline": 1, "candidate": 1}), ("2026-11-27", {"baseline": 1, "candidate": 2})]
)
def test_beside_a_cached_baseline_the_candidate_has_all_cores(tmp_path, monkeypatch, since, shares):
    seen = {}
    monkeypatch.setattr(Side, "ask", lambda *_, **__: {"error": None, "data": None})
    monkeypatch.setattr(Side, "suites", lambda self, workers, *_: seen.update({self.name: workers}) or [])
    judged = Scope(clauses=("ACC-01",))
    sides = [
        Side(name, RELEASES, tmp_path / name, judged, cached_since=since if name == "baseline" else "")
        for name in shares
    ]
    assert compare.gate(*sides, workers=1, report=lambda *_: None).verdict == "safe"
    assert seen == shares
