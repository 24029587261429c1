"""Many stacks: the matrix, which of its stacks are judged in which order, and the table with the questions to it."""

import csv
import io
import json
from datetime import date

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


def test_a_clause_that_the_matrix_does_not_judge_is_looked_for_in_all_tests(tmp_path, index):
    matrix = read(tmp_path, "clauses = ['ACC-*']\ntests = ['suites/test_acc.py']\n[packages]\na = '>=1.0'")
    assert matrix_file.judging(matrix, ["ACC-01"]).tests == ("suites/test_acc.py",)
    assert matrix_file.judging(matrix, ["ACC-01", "EMB-01"]).tests == ()
    with pytest.raises(UsageError, match="matches no clause"):
        matrix_file.judging(matrix, ["ABC-*"])


def test_the_default_matrix_is_whole(monkeypatch):
    monkeypatch.setattr(
        matrix_file, "dated", lambda package: {"4.45.2": None, "5.0": None, "0.13.2": None, "1.0.1": None}
    )
    found = matrix_file.read()
    assert found.stacks == 400 and len(found.clauses) == 69 and len(found.tests) == 74


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


TREE = {
    "suites/test_a.py": """
import pytest
from harness.laws import equal, loss as losses
from harness.runs.scenarios import SHORT
from harness.suites.test_b import helped
pytestmark = pytest.mark.usefixtures("quiet")
BOUND = 3
TABLE = {}
TABLE["x"] = 1

@pytest.fixture
def made():
    return losses.shift(1)

@pytest.mark.clause("ACC-01")
@pytest.mark.parametrize("n", [1, 2])
def test_one(made, n, judge):
    judge(equal.same(made, BOUND))

@pytest.mark.clause("ACC-02")
def test_two(judge):
    from harness.laws.loss import mean
    judge(mean(helped(SHORT), TABLE))
""",
    "suites/test_b.py": """
import pytest
from harness.laws.universal import LAWS

def helped(spec):
    return spec

@pytest.mark.clause("LOSS-01", "FRZ-01")
def test_table(draw):
    draw(LAWS)
""",
    "laws/equal.py": """
from harness.laws.loss import mean
def same(a, b):
    return a == b
def near(a):
    return mean(a)
""",
    "laws/loss.py": """
def mean(a, b=0):
    return Mean().of(a)
def shift(a):
    return a
class Mean:
    def of(self, a):
        return a
""",
    "laws/universal.py": """
from harness.laws import equal, loss
LAWS = {"LOSS-01": loss.mean, "FRZ-01": equal.same}
LAWS_OF_ONE_RUN = {"LOG-01": equal.near}
LAWS_OF_SEVERAL_RUNS = {}
""",
    "runs/scenarios.py": "SHORT = dict(max_steps=4)\nLONG = dict(max_steps=40)\n",
}
CLAUSES = ("ACC-01", "ACC-02", "LOSS-01", "FRZ-01", "LOG-01")


@pytest.mark.parametrize(
    ("file", "old", "new", "voided"),
    [
        ("laws/equal.py", "a == b", "a is b", {"ACC-01", "FRZ-01"}),
        ("laws/equal.py", "return mean(a)", "return mean(a, 1)", {"LOG-01"}),
        ("laws/equal.py", "def same(a, b):", "# a comment\ndef same(a,  b):\n    'What it is for.'", set()),
        ("laws/equal.py", "def near", "def unused():\n    return 1\ndef near", set()),
        (
            "laws/loss.py",
            "of(self, a):\n        return a",
            "of(self, a):\n        return a + 1",
            {"ACC-02", "LOSS-01", "LOG-01"},
        ),
        ("laws/loss.py", "def shift(a):\n    return a", "def shift(a):\n    return -a", {"ACC-01"}),
        ("suites/test_a.py", "BOUND = 3", "BOUND = 4", {"ACC-01"}),
        ("suites/test_a.py", 'TABLE["x"] = 1', 'TABLE["x"] = 2', {"ACC-02"}),
        ("suites/test_a.py", "[1, 2]", "[1, 2, 3]", {"ACC-01"}),
        ("suites/test_a.py", '"quiet"', '"loud"', {"ACC-01", "ACC-02"}),
        ("suites/test_a.py", 'clause("ACC-02")', 'clause("ACC-02", "RES-01")', set()),
        ("suites/test_b.py", "return spec", "return spec.but()", {"ACC-02"}),
        ("suites/test_b.py", "draw(LAWS)", "draw(LAWS, 2)", {"LOSS-01", "FRZ-01"}),
        ("laws/universal.py", '"FRZ-01": equal.same', '"FRZ-01": equal.near', {"FRZ-01"}),
        ("laws/universal.py", '"FRZ-01": equal.same', '"FRZ-01": equal.same, "FRZ-02": equal.near', set()),
        ("runs/scenarios.py", "max_steps=4)", "max_steps=5)", {"ACC-02"}),
        ("runs/scenarios.py", "max_steps=40", "max_steps=50", set()),
    ],
)
def test_a_verdict_is_voided_by_what_its_tests_reach_and_by_nothing_else(tmp_path, monkeypatch, file, old, new, voided):
    monkeypatch.setattr(clause_sources, "SUITES", tmp_path / "suites")
    monkeypatch.setattr(clause_sources, "PACKAGE", tmp_path)
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = fresh_keys(CLAUSES)
    assert len(set(before.values())) == len(CLAUSES) and TREE[file].count(old) == 1
    (tmp_path / file).write_text(TREE[file].replace(old, new))
    after = fresh_keys(CLAUSES)
    fresh_keys(())
    assert {clause for clause in CLAUSES if after[clause] != before[clause]} == voided


def fresh_keys(clauses, tests=()):
    for cached in vars(clause_sources).values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()
    return {clause: clause_sources.sources(clause, tests) for clause in clauses}


def test_the_code_that_a_clause_reaches_is_found_in_the_suites_as_they_are():
    reached = clause_sources.reached("ACC-01", ("suites/test_acc.py",))
    assert ("harness.laws.accumulation", "same_split") in reached and ("harness.runs.scenarios", "RAGGED") in reached
    assert ("harness.laws.equal", "same_adapter") not in reached and len(reached) < 100
    one = clause_sources.reached("ACC-01", ("suites/test_acc.py::test_no",))
    assert ("harness.laws.comparisons", "splits") in one and ("harness.suites.test_acc", "SPLIT") not in one
    name = "suites/test_acc.py::test_accumulated_micro_batches_train_as_the_large_batch"
    assert clause_sources.reached("ACC-01", (f"{name}[ragged]",)) == clause_sources.reached("ACC-01", (name,))


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
        (
            lambda body: body["cells"][0]["stack"].update(transformers="abc"),
            "is damaged (cells[0]: Invalid version: 'abc')",
        ),
        (lambda body: body["cells"][0].update(requirements="a b"), "is damaged (cells[0]: 'a': is no release"),
        (lambda body: body.update(not_judged=["x"]), "is damaged (not_judged[0]: 'x' is not of type 'object')"),
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
    assert found["transformers"].line() == "transformers>=5.1.0,<=5.23.0,!=5.3.0"
    assert found["transformers"].undecided == ("5.9.0",)  # judged only beside a peft with which it does not resolve
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


def test_a_stack_whose_packages_refuse_each_other_does_not_hold():
    wants = ["transformers 5.24.0 wants peft >= 0.22.0, the stack has 0.21.2"]
    (cell,) = table(result("5.24.0", "0.21.2", requires=wants))["cells"]
    assert results_table.of_cell(cell) == results_table.of_cell(cell, ["ACC-01"]) == "fails"
    assert results_table.reason(cell) == wants[0] and bounds.bounds([cell], ["ACC-01"], ["peft"]) == []
    answer = propose.propose(PINS, propose.wanted(["transformers>=5.24"]), [cell])
    assert answer.proposal is None and answer.in_the_way == [(cell["requirements"], wants[0])]


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
    near = ask.nearest(cells, ask.asked("transformers==5.2.1 peft==0.18.1 accelerate==1.13.0"))
    assert near[0]["stack"]["transformers"] == "5.2.0"
    assert ask.nearest(cells, ask.asked("transformers>=6"))[0]["stack"]["transformers"] == "5.24.0"
    assert ask.outside(cells, ask.asked("transformers>=6 peft")) == [
        "transformers>=6: the table has 7 releases of it, 5.1.0 to 5.24.0, but none of these"
    ]
    with pytest.raises(UsageError, match="is no release"):
        ask.pins("transformers>=5")


@pytest.mark.parametrize(
    ("words", "releases"),
    [
        ("transformers==5.3", ["5.3.0"]),
        ("Transformers==v5.3.0, PEFT==0.18.1", ["5.3.0"]),
        ("transformers[torch,vision]===5.3.0", ["5.3.0"]),
        ("transformers==5.3.0+cpu", ["5.3.0"]),
        ("transformers~=5.3.0", ["5.3.0"]),
        ("transformers>=5.2,<5.4", ["5.2.0", "5.3.0"]),
        ("transformers==5.*,>=5.20 peft", ["5.23.0", "5.24.0"]),
        ("accelerate==1.15.0", ["5.23.0", "5.24.0"]),
        ("transformers==5.4.0rc1", []),
    ],
)
def test_a_question_may_name_releases_as_requirements_do(words, releases):
    found = ask.matching(line()["cells"], ask.asked(words))
    assert sorted(cell["stack"]["transformers"] for cell in found) == releases


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "name a stack, such as"),
        ("transformers 5.3.0", "5.3.0 is no package; write a release as transformers==5.1.0"),
        ("transformers==5.3.0 transformers==5.4.0", "contradicts"),
        ("transformers===five", "is no release"),
        ("pefft==0.18.1", "pefft: the table has no such package; the nearest name is 'peft'"),
        ("bits_and_bytes==0.50", "bits-and-bytes: the table has stacks of accelerate, peft, transformers only"),
        ("peft @ https://example.org/peft-1.0-py3-none-any.whl", "peft: comes from an address or a folder"),
        ("nowhere.txt", "nowhere.txt: no such requirements file"),
    ],
)
def test_a_question_that_cannot_be_answered_is_one_sentence(words, said):
    with pytest.raises(UsageError) as error:
        ask.known(line()["cells"], ask.asked(words))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_the_table_does_not_have_is_left_out_of_the_answer(tmp_path, capsys):
    (tmp_path / "t.json").write_text(results_table.write(line()))
    (tmp_path / "reqs.txt").write_text("transformers==5.2.0\ndatasets>=3  # any\n-c limits.txt\n")
    (tmp_path / "limits.txt").write_text("transformers<6\nnumpy<2\n")
    assert command.ask(str(tmp_path / "reqs.txt"), tmp_path / "t.json", [], "cpu", None) == 3
    out = capsys.readouterr().out
    assert "datasets: is in no stack of the table" in out and "holds: transformers==5.2.0" in out
    with pytest.raises(UsageError, match="no stack was judged by PERF-01; it has clauses of ACC-"):
        command.ask("transformers==5.2.0", tmp_path / "t.json", ["PERF-01"], "cpu", None)


def test_without_a_network_a_baseline_must_name_releases():
    assert propose.baseline("transformers[torch]==5.3 peft==0.18.1 datasets>=2", True) == {
        "transformers": "5.3",
        "peft": "0.18.1",
    }
    with pytest.raises(UsageError, match=r"transformers>=5.3: is no release; write =="):
        propose.baseline("transformers>=5.3 peft==0.18.1", True)
    with pytest.raises(UsageError, match="names none of torch, transformers"):
        propose.baseline("numpy==2.0", True)


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
    left = [{"requirements": words, "why": "not yet judged"} for words in (result("5.3.0")["requirements"], "a==1")]
    merge[1].write_text(results_table.write(table(result("5.4.0")) | {"not_judged": left}))
    command.map_(None, 0, "local", None, tmp_path / "d", [], [], merge, False, outputs)
    assert results_table.load(outputs["json"])["not_judged"] == left[1:]
    assert all(file.stat().st_size > 100 for file in outputs.values())
