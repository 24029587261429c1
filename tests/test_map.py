"""Many stacks: the matrix, which of its stacks are judged in which order, and the table with the questions to it."""

import csv
import io
import json
from datetime import date
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.map import ask, bounds, clause_sources, command, matrix_file, propose, results_table, since, stacks, texts
from tests.made_up_tables import line, result, table

DAYS = {
    "a": {"1.0": date(2026, 1, 1), "1.1": date(2026, 3, 1), "1.1.1": date(2026, 3, 9), "1.2": date(2026, 6, 1)},
    "b": {"2.0": date(2026, 2, 1), "2.1": date(2026, 5, 1)},
    "c": {"3.0": date(2026, 9, 1)},
}


@pytest.fixture
def index(monkeypatch):
    def dated(package):
        if package not in DAYS:
            raise UsageError(f"{package}: the package index cannot be read (NoSuchProjectError: no details)")
        return DAYS[package]

    monkeypatch.setattr(matrix_file, "dated", dated)
    monkeypatch.setattr(stacks, "dated", dated)


def read(folder, text):
    (folder / "m.toml").write_text(text)
    return matrix_file.read(folder / "m.toml")


# ---- the matrix ----


def test_of_each_minor_release_the_newest_is_taken(tmp_path, index):
    assert read(tmp_path, "[packages]\na = '>=1.0'").releases == {"a": ("1.0", "1.1.1", "1.2")}
    assert read(tmp_path, "[packages]\na = {releases = '>1.0', every = 'release'}").releases["a"] == (
        "1.1",
        "1.1.1",
        "1.2",
    )
    assert read(tmp_path, "[packages]\na = ['1.2', '1.0']").releases == {"a": ("1.0", "1.2")}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[packages]\nnobody = '>=1'", "packages.nobody: nobody: the package index cannot be read"),
        ("[packages]\na = '>=9'", "packages.a: no release is in >=9; the index has 1.0 to 1.2"),
        ("[packages]\na = ['1.7']", "the index has no release 1.7; the newest is 1.2"),
        ("[packages]\na = 'newest'", "'newest' is no range"),
        ("[packages]\na = 3", "expected a range"),
        ("[packages]\na = {releases = '>=1', every = 'week'}", "every = 'week' is none of major, minor, release"),
        ("[packages]\nc = 'installed'", "c is not installed here"),
        ("pairing = 'pairs'\n[packages]\na = '>=1'", "pairing 'pairs' is none of contemporaries, covering, all"),
        ("clause = ['ACC-01']\n[packages]\na = '>=1'", "'clause' is unknown; the nearest known name is 'clauses'"),
        ("clauses = ['ABC-*']\n[packages]\na = '>=1'", "matches no clause"),
        ("clauses = 'ACC-01'\n[packages]\na = '>=1'", "expected a list of texts"),
        ("methods = ['lorra']\n[packages]\na = '>=1'", "the nearest known name is 'lora'"),
        ("tests = ['suites/../x.py']\n[packages]\na = '>=1'", "is no test of the suites"),
        ("first = ['a>=1']\n[packages]\na = '>=1'", "first: 'a>=1': is no release"),
        ("stacks = 0\n[packages]\na = '>=1'", "expected a number from 1"),
        ("devices = ['tpu']\n[packages]\na = '>=1'", "expected cpu, cuda or both"),
        ("pairing = 'all'", "names no releases"),
        ("[packages", "not TOML"),
    ],
)
def test_a_wrong_matrix_is_one_sentence(tmp_path, index, text, words):
    with pytest.raises(UsageError) as error:
        read(tmp_path, text)
    assert words in str(error.value) and "m.toml" in str(error.value) and "\n" not in str(error.value)


def test_the_default_matrix_is_whole(monkeypatch):
    monkeypatch.setattr(
        matrix_file, "dated", lambda package: {"4.45.2": None, "5.0": None, "0.13.2": None, "1.0.1": None}
    )
    found = matrix_file.read()
    assert found.stacks == 400 and len(found.clauses) == 10 and len(found.tests) == 7


# ---- stacks and their order ----


def test_contemporaries_are_the_newest_of_each_day(tmp_path, index):
    matrix = read(tmp_path, "[packages]\na = '>=1.0'\nb = '>=2.0'\nc = '>=3.0'")
    found = [" ".join(version for _, version in stack) for stack in stacks.planned(matrix)]
    assert found == ["1.2 2.1 3.0", "1.1.1 2.1 3.0", "1.1.1 2.0 3.0", "1.0 2.0 3.0"]


def test_a_covering_array_has_each_pair_but_those_that_do_not_resolve():
    releases = {"a": ("1", "2", "3"), "b": ("1", "2", "3"), "c": ("1", "2"), "d": ("7",)}
    found = [dict(stack) for stack in stacks.covering(releases, [{"a": "1", "b": "3"}])]
    pairs = {(a, x, b, y) for a in "abc" for b in "abc" if a < b for x in releases[a] for y in releases[b]}
    covered = {(a, row[a], b, row[b]) for row in found for a, _, b, _ in pairs}
    assert pairs - covered == {("a", "1", "b", "3")}
    assert len(found) < 18 and all(row["d"] == "7" for row in found)


def test_pairing_stops_at_the_number_of_stacks():
    matrix = matrix_file.Matrix("m", {"a": tuple(map(str, range(99))), "b": tuple(map(str, range(99)))}, ("all",), 7)
    assert len(stacks.planned(matrix)) == 7


def judged_until_the_break_is_found(count, breaks):
    plan = [(("a", f"1.{minor}"),) for minor in reversed(range(count))]
    judged = {}
    while len(judged) < count:
        (stack,) = stacks.following(plan, judged, 1)
        judged[stack] = int(stack[0][1].split(".")[1]) >= breaks
        minors = {int(one[0][1].split(".")[1]) for one in judged}
        if {breaks - 1, breaks} <= minors:
            break
    return len(judged)


@pytest.mark.parametrize("breaks", [1, 7, 20, 38])
def test_a_break_is_located_without_judging_all_between(breaks):
    assert judged_until_the_break_is_found(40, breaks) <= 9


def test_every_stack_is_judged_once_in_the_end_and_the_newest_first():
    plan = [(("a", f"1.{minor}"), ("b", str(other))) for minor in range(5, 0, -1) for other in (2, 1)]
    judged, order = {}, []
    while chosen := stacks.following(plan, judged, 3):
        order += chosen
        judged |= dict.fromkeys(chosen, ("same",))
    assert order[0] == plan[0] and sorted(order) == sorted(plan)


def test_stacks_that_are_named_go_first():
    named = ((("a", "0.7"),),)
    plan = stacks.planned(matrix_file.Matrix("m", {"a": ("1.0", "1.1")}, ("all",), first=named))
    assert plan == [*named, (("a", "1.1"),), (("a", "1.0"),)]
    assert stacks.following(plan, {}, 2, named) == [*named, (("a", "1.1"),)]


def test_nothing_is_chosen_in_a_gap_where_a_stack_is_being_judged():
    plan = [(("a", f"1.{minor}"),) for minor in range(8, -1, -1)]
    judged = {plan[0]: True, plan[-1]: False, plan[4]: None}
    assert stacks.following(plan, judged, 1) == [plan[1]]


# ---- what a verdict depends on ----


def test_the_sources_of_a_clause_change_with_its_tests_and_laws_only(monkeypatch):
    files = {"ACC-01": "suites/test_acc.py", "QLORA-14": "suites/test_qlora.py"}

    def fresh():
        for cached in (clause_sources.sources, clause_sources._read, clause_sources._imports):
            cached.cache_clear()
        return {clause: clause_sources.sources(clause, (file,)) for clause, file in files.items()}

    before, reads = fresh(), Path.read_bytes

    def changed(name):
        monkeypatch.setattr(Path, "read_bytes", lambda self: reads(self) + b"#" * (self.name == name))
        return {clause for clause, key in fresh().items() if key != before[clause]}

    assert changed("accumulation.py") == {"ACC-01"}
    assert changed("nf4.py") == {"QLORA-14"}
    assert changed("models.py") == set()
    monkeypatch.undo()
    assert fresh() == before
    assert clause_sources.sources("ACC-01", ("suites/test_acc.py::test_no",)) != before["ACC-01"]


# ---- the table ----


def test_tables_are_merged_and_the_newest_verdict_counts_if_the_tests_changed():
    old = table(result("5.3.0", fails=["ACC-01"], date="2026-11-01T00:00:00Z"))
    new = result("5.3.0", keys={"ACC-01": "2", "LOSS-01": "1", "RES-01": "1"})
    (cell,) = table(new, tables=[old])["cells"]
    assert cell["clauses"]["ACC-01"]["verdict"] == "pass" and cell["causes"] == []
    assert table(tables=[old, old])["cells"] == old["cells"]
    assert table(tables=[old, old])["conflicts"] == []


def test_conflicts_are_shown_and_do_not_count():
    mine, theirs = table(result("5.3.0", fails=["ACC-01"])), table(result("5.3.0", date="2026-11-30T00:00:00Z"))
    for both in (table(tables=[mine, theirs]), table(tables=[theirs, mine])):
        (cell,) = both["cells"]
        assert cell["clauses"]["ACC-01"]["verdict"] == "conflict"
        assert (
            results_table.of_cell(cell, ["ACC-01"]) == "undecided"
            and results_table.of_cell(cell, ["RES-01"]) == "holds"
        )
        (conflict,) = both["conflicts"]
        assert conflict["clause"] == "ACC-01" and {one["verdict"] for one in conflict["verdicts"]} == {"pass", "fail"}
        again = table(tables=[both, mine])
        assert again["cells"] == both["cells"]
    other_lock = table(result("5.3.0", lock_key="other"), tables=[mine])
    assert len(other_lock["cells"]) == 2 and len(other_lock["conflicts"]) == 1


def test_what_was_judged_once_is_not_unjudged_by_a_failing_resolver():
    (cell,) = table(result("5.3.0"), result("5.3.0", state="unresolvable", date="2026-12-01T00:00:00Z"))["cells"]
    assert cell["state"] == "judged" and cell["clauses"]["ACC-01"]["verdict"] == "pass"


def test_a_table_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "t.json"
    file.write_text(results_table.write(line()))
    assert results_table.load(file) == line()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: body.update(schema_version=2), "written by a newer release of peft-harness (schema_version 2"),
        (lambda body: body.update(kind="gate"), "is no table of stacks"),
        (lambda body: body["cells"][0].pop("state"), "is damaged (cells[0]: 'state' is a required property"),
        (lambda body: body["cells"][1]["clauses"]["ACC-01"].update(verdict="good"), "has the verdict 'good'"),
        (lambda body: body["cells"][1]["clauses"]["ACC-01"].update(cases=[["a", 1]]), "is damaged"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_sentence(tmp_path, change, words):
    body = line()
    change(body)
    (tmp_path / "t.json").write_text(json.dumps(body))
    with pytest.raises(UsageError) as error:
        results_table.load(tmp_path / "t.json")
    assert words in str(error.value) and "t.json" in str(error.value)


def test_markdown_and_csv_have_every_stack_and_no_formula():
    body = table(result("5.3.0", fails=["ACC-01"]), result("5.4.0", state="unresolvable"))
    body["cells"][1]["clauses"]["ACC-01"]["seen"] = "=1+1 | <b>"
    text = texts.markdown(body)
    assert "| 5.3.0 | ✗ | ✓ | ✓ | 1 | 2026-11-29 |" in text and "| 5.4.0 | – | – | – | unresolvable |" in text
    rows = list(csv.DictReader(io.StringIO(texts.comma_separated(body))))
    assert len(rows) == 4 and rows[0]["seen"] == "no release fits"
    assert next(row["seen"] for row in rows if row["clause"] == "ACC-01") == "'=1+1 | <b>"


def test_a_defect_has_the_releases_with_it():
    cells = line()["cells"]
    (acc, *_) = since.defects(cells, ["transformers", "peft"])
    assert (acc.clause, acc.stacks, acc.judged) == ("ACC-01", 2, 6)
    assert acc.where == ("transformers 5.3.0 (holds in 5.2.0 and in 5.4.0), 5.24.0 (holds in 5.23.0)",)


# ---- bounds, propose, ask ----


def test_bounds_have_a_reason_at_each_end():
    cells = line()["cells"]
    found = {one.package: one for one in bounds.bounds(cells, ["ACC-01"], ["transformers", "peft"])}
    assert found["transformers"].line() == "transformers>=5.1.0,<=5.23.0,!=5.3.0,!=5.9.0"
    assert found["transformers"].above.startswith("5.24.0: transformers 5.24.0 wants peft >= 0.22.0")
    assert found["transformers"].below == "no older release was judged"
    assert found["peft"].line() == "peft>=0.18.1,<=0.21.2"
    assert found["peft"].below == "0.10.0: unresolvable: no release fits"
    assert bounds.bounds([one for one in cells if one["stack"]["transformers"] == "5.24.0"], ["ACC-01"], ["peft"]) == []


def test_a_stack_with_known_defects_alone_is_told_apart():
    body = table(result("5.3.0", fails=["ACC-01", "RES-01"]))
    (cell,) = body["cells"]
    cell["clauses"]["ACC-01"]["verdict"] = "known_defect"
    assert results_table.of_cell(cell) == "fails" and results_table.reason(cell) == "RES-01: the cause of RES-01"
    cell["clauses"]["RES-01"]["verdict"] = "known_defect"
    assert results_table.of_cell(cell) == "known defects" and results_table.of_cell(cell, ["ACC-01"]) == "fails"
    assert [one.line() for one in bounds.bounds([cell], [], ["peft"])] == ["peft>=0.18.1,<=0.18.1"]
    assert bounds.bounds([cell], ["ACC-01"], ["peft"]) == []
    assert since.defects([cell], ["peft"])[0].stacks == 1


PINS = {"transformers": "5.1.0", "peft": "0.18.1", "accelerate": "1.13.0"}


def test_the_smallest_change_is_proposed_and_says_what_is_in_the_way():
    answer = propose.propose(PINS, propose.wanted(["transformers>=5.2"]), line()["cells"])
    assert answer.changes() == ["transformers 5.1.0 -> 5.2.0"] and answer.baseline_judged
    answer = propose.propose(PINS, propose.wanted(["transformers>=5.20"]), line()["cells"])
    assert answer.changes() == ["transformers 5.1.0 -> 5.23.0", "peft 0.18.1 -> 0.21.2", "accelerate 1.13.0 -> 1.15.0"]
    nothing = propose.propose(PINS, propose.wanted(["transformers>=5.24"]), line()["cells"])
    assert nothing.proposal is None
    ((stack, reason),) = nothing.in_the_way
    assert "5.24.0" in stack and "no such release is on the index" in reason


def test_what_failed_before_may_fail_still():
    before = result("5.1.0", fails=["ACC-01"])
    answer = propose.propose(
        PINS, propose.wanted(["transformers==5.3.0"]), table(before, result("5.3.0", fails=["ACC-01"]))["cells"]
    )
    assert answer.clauses == ("LOSS-01", "RES-01") and answer.proposal is not None


def test_a_stack_that_is_not_in_the_table_is_judged_before_it_is_proposed():
    asked = []

    def judge(pins):
        asked.append(pins)
        cell = result(
            pins["transformers"], pins["peft"], pins["accelerate"], fails=["RES-01"] * (pins["peft"] == "0.18.1")
        )
        return table(cell)["cells"][0]

    more = [PINS | {"transformers": "5.30.0"}, PINS | {"transformers": "5.30.0", "peft": "0.22.0"}, PINS]
    answer = propose.propose(PINS, propose.wanted(["transformers>=5.30"]), line()["cells"], judge=judge, more=more)
    assert asked == more[:2]
    assert answer.changes() == ["transformers 5.1.0 -> 5.30.0", "peft 0.18.1 -> 0.22.0"]
    assert "RES-01: the cause of RES-01" in answer.in_the_way[0][1]


def test_a_stack_that_was_not_judged_has_neighbours():
    cells = line()["cells"]
    assert len(ask.exactly(cells, {"peft": "0.18.1"})) == 4
    near = ask.nearest(cells, PINS | {"transformers": "5.2.1"})
    assert near[0]["stack"]["transformers"] == "5.2.0"
    with pytest.raises(UsageError, match="is no release"):
        ask.pins("transformers>=5")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("transformers==5.3.0 peft==0.18.1", 1, "fails: transformers==5.3.0"),
        ("transformers==5.2.0", 0, "holds: transformers==5.2.0"),
        ("transformers==5.2.7 peft==0.18.1", 3, "The nearest judged stacks:"),
        ("transformers==5.9.0", 1, "unresolvable: transformers==5.9.0"),
    ],
)
def test_ask_prints_and_ends_with_what_it_says(tmp_path, capsys, words, code, said):
    (tmp_path / "t.json").write_text(results_table.write(line()))
    assert command.ask(words, tmp_path / "t.json", [], "cpu", tmp_path / "answer.json") == code
    assert said in capsys.readouterr().out
    assert json.loads((tmp_path / "answer.json").read_text())["asked"]["transformers"] == words.split()[0][14:]


def test_propose_without_a_network_says_what_stands_in_the_way(tmp_path, capsys):
    (tmp_path / "t.json").write_text(results_table.write(line()))
    ask_for = ["transformers==5.23.0 peft==0.21.2 accelerate==1.15.0", ["transformers==5.24.0"], tmp_path / "t.json"]
    assert command.propose(*ask_for, [], [], "cpu", True, 4, tmp_path, None) == 1
    assert "wants peft >= 0.22.0" in capsys.readouterr().out


def test_tables_are_joined_and_written_without_judging(tmp_path, capsys):
    for name, fails in (("mine", ["ACC-01"]), ("theirs", [])):
        (tmp_path / f"{name}.json").write_text(results_table.write(table(result("5.3.0", fails=fails))))
    outputs = {name: tmp_path / f"out.{name}" for name in ("json", "html", "markdown", "csv")}
    merge = [tmp_path / "mine.json", tmp_path / "theirs.json"]
    assert command.map_(None, 0, "local", None, tmp_path / "d", [], [], merge, False, outputs) == 3
    assert "conflict: transformers==5.3.0" in capsys.readouterr().out
    assert len(results_table.load(outputs["json"])["conflicts"]) == 1
    assert all(file.stat().st_size > 100 for file in outputs.values())
