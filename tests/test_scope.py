"""--scope: what concerns the user is judged, what is outside is listed, and bad values are one sentence."""

import json

import pytest

from harness.cli import options
from harness.contract import expectations
from harness.errors import UsageError
from harness.fixtures.methods import METHODS
from harness.gate import cells, compare, outside, own_defects, scope_file
from harness.gate.scope import Scope
from harness.runs.scenarios import LAUNCHES, spec_for
from harness.session import concerns, report
from harness.session.concerns import Concerns
from harness.spec import RunSpec
from harness.verdict import FAIL, KNOWN_DEFECT, PASS, SKIPPED, UNEXPECTED_PASS, Case
from tests.made_up_suite import HOLDS, defect, verdicts

pytest_plugins = ["pytester", "tests.made_up_suite"]

# ---- routes, methods, launches ----


@pytest.mark.parametrize("method", METHODS)
def test_each_row_of_methods_is_known_by_its_run(method):
    assert concerns.method_of(spec_for("llama", method).adapter) == method


def test_other_numbers_are_the_same_method_and_another_type_has_its_own_name():
    assert concerns.method_of(RunSpec().but(adapter={"config": {"r": 2}}).adapter) == "lora"
    assert concerns.method_of(RunSpec().but(adapter={"peft_type": "TRAINABLE_TOKENS"}).adapter) == "trainable-tokens"


def test_a_run_is_outside_by_its_route_its_method_or_its_launch():
    chosen = Concerns(("get_peft_model",), ("lora",), ("single", "ddp"))
    assert chosen.outside(spec_for("llama")) == chosen.outside(LAUNCHES["ddp-2"]) == ""
    assert chosen.outside(spec_for("llama", "lora", "add_adapter")) == "route add_adapter"
    assert chosen.outside(spec_for("llama", "dora")) == "method dora"
    assert chosen.outside(LAUNCHES["fsdp2-2"]) == "launch fsdp2"
    assert Concerns().outside(LAUNCHES["fsdp2-2"]) == ""


def test_the_gate_trains_the_cells_of_the_scope():
    some = compare.cells_of(Scope(concerns=Concerns(methods=("dora",)), clauses=("ACC-*",), file="x.toml"))
    assert some and {concerns.method_of(spec.adapter) for spec in some.values()} == {"dora"}
    assert len(compare.cells_of(Scope(file="x.toml"))) == len(cells.cells())
    assert compare.cells_of(Scope(clauses=("ACC-*",))) == {}


# ---- the file ----


def write(directory, text, name="scope.toml"):
    path = directory / name
    path.write_text(text)
    return path


def test_a_pyproject_says_all_of_it(tmp_path):
    write(tmp_path, defect(clause="ACC-01"), "mine.toml")
    write(tmp_path, json.dumps(RunSpec().to_json()), "run.json")
    table = """
        [project]
        name = "x"
        [tool.peft-harness]
        subject = "reference"
        device = "cuda"
        routes = ["add_adapter"]
        methods = ["lora", "dora"]
        launches = ["ddp"]
        clauses = ["ACC-*"]
        specs = ["run.json"]
        known-defects = ["mine.toml"]
        margins = { throughput = 0.05, memory = 1 }
    """
    path = write(tmp_path, table, "pyproject.toml")
    judged = options.scope(file=path)
    assert (judged.subject, judged.device, judged.clauses) == ("reference", "cuda", ("ACC-*",))
    assert judged.concerns == Concerns(("add_adapter",), ("lora", "dora"), ("ddp",))
    assert [name for name, _ in judged.specs] == ["run"]
    assert judged.defects == (("1-mine.toml", (tmp_path / "mine.toml").read_text()),)
    assert (judged.slower, judged.larger, judged.file) == (0.05, 1.0, str(path))
    words = [*judged.options(), *judged.file_options(tmp_path)]
    assert words[words.index("--route") :][:8] == [
        *("--route", "add_adapter", "--method", "lora", "--method", "dora", "--launch", "ddp"),
    ]
    assert words[-2:] == ["--known-defects", "1-mine.toml"] and (tmp_path / "1-mine.toml").is_file()


def test_the_command_line_takes_the_place_of_the_file(tmp_path):
    path = write(tmp_path, 'subject = "reference"\nclauses = ["ACC-*"]\n')
    assert options.scope(file=path, clause=["RES-01"]).clauses == ("RES-01",)
    assert options.scope(file=path).subject == "reference"
    assert options.scope() == Scope()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('methods = ["loora"]', "method: 'loora' is unknown; the nearest known name is 'lora'"),
        ('routes = ["addadapter"]', "route: 'addadapter' is unknown; the nearest known name is 'add_adapter'"),
        ('launches = ["fsdp"]', "launch: 'fsdp' is unknown; the nearest known name is 'fsdp"),
        ('launches = ["slurm"]', "launch: 'slurm' is unknown; known are single, "),
        ('clauses = ["LOS-01"]', "clauses: 'LOS-01' is unknown; the nearest known name is 'LOSS-01'"),
        ('clauses = ["CKPTS-*"]', "clauses: 'CKPTS-*' is unknown; the nearest known name is 'CKPT-*'"),
        ('subject = "hf_trainer"', "subject: 'hf_trainer' is unknown; the nearest known name is 'hf-trainer'"),
        ('device = "cuda:0"', "device: 'cuda:0' is unknown; the nearest known name is 'cuda'"),
        ("device = 1", "device is 1; expected a text"),
        ('method = ["lora"]', "'method' is unknown; the nearest known name is 'methods'"),
        ('methods = "lora"', "methods is 'lora'; expected a list of texts"),
        ("methods = [1]", "methods is [1]; expected a list of texts"),
        ("methods = []", "methods is empty, so that nothing would be judged"),
        ('specs = ["none.json"]', "none.json: no such file"),
        ('known-defects = ["none.toml"]', "none.toml: no such file"),
        ("margins = 1", "margins is 1; expected a table"),
        ("margins = { speed = 1 }", "margins: 'speed' is unknown"),
        ("margins = { throughput = 0 }", "throughput is 0; expected a share from 0.005 to 1"),
        ("margins = { memory = nan }", "expected a share from 0.0 to 1, such as 0.05"),
        ("margins = { memory = true }", "memory is True; expected a share"),
        ("margins = { memory = 5 }", "memory is 5; expected a share"),
        ("methods = [", "not TOML"),
        ("[tool.other]", "has no table [tool.peft-harness]"),
    ],
)
def test_a_bad_value_is_one_sentence(tmp_path, text, says):
    with pytest.raises(UsageError) as error:
        options.scope(file=write(tmp_path, text))
    assert says in str(error.value) and "scope.toml" in str(error.value) and "\n" not in str(error.value)


def test_a_pyproject_without_the_table_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"has no table \[tool\.peft-harness\]; write one, or name another file"):
        scope_file.read(write(tmp_path, "subject = 'x'", "pyproject.toml"))
    with pytest.raises(UsageError, match="no such file"):
        scope_file.read(tmp_path / "none.toml")


# ---- outside ----


def test_what_is_outside_is_counted_and_named():
    judged = Scope(concerns=Concerns(methods=("lora",)), clauses=("ACC-*",), file="x.toml")
    cases = [
        Case("ACC-01", name, "x", "s", verdict=SKIPPED, reason=f"{concerns.OUTSIDE}method dora", outside=True)
        for name in "ab"
    ]
    found = outside.to_json(judged, [*cases, Case("ACC-01", "c", "x", "s")])
    assert found["cases"] == {"method dora": 2} and "dora" in found["runs"] and "lora" not in found["runs"]
    assert "LOSS-01" in found["clauses"] and "ACC-01" not in found["clauses"]
    said = outside.sentence(judged, cases)
    assert said.startswith("outside of x.toml, not judged: ") and "2 cases (method dora: 2)" in said
    assert outside.sentence(Scope(), cases) == ""
    assert outside.sentence(Scope(file="x.toml"), []) == "outside of x.toml, not judged: nothing"


ROUTES = """
import pytest
from harness.runs.scenarios import cases, spec_for
from harness.verdict import same

@cases({"in": spec_for("llama"), "out": spec_for("llama", "dora")})
@pytest.mark.clause("XYZ-01")
def test_spec(judge, spec):
    judge(same("x", spec.adapter.config.get("use_dora"), None))

@pytest.mark.parametrize("route", ["add_adapter", "get_peft_model"])
@pytest.mark.clause("XYZ-01")
def test_route(judge, route):
    judge(same("x", route, "get_peft_model"))

@pytest.mark.clause("XYZ-02")
def test_two():
    pass
"""


def test_cases_outside_are_listed_and_block_nothing(suite):
    code, out, report = suite(ROUTES, "--method", "lora", "--route", "get_peft_model")
    found = {scenario: verdict for (clause, scenario), verdict in verdicts(report).items() if clause == "XYZ-01"}
    assert code == 0, out
    assert found == {"in": PASS, "out": SKIPPED, "add_adapter": SKIPPED, "get_peft_model": PASS}
    assert "skipped 2 cases: outside of the scope: method dora (1), route add_adapter (1)" in " ".join(out.split())


def test_without_a_scope_the_same_cases_are_judged(suite):
    code, _, report = suite(ROUTES)
    assert code == 1 and verdicts(report)[("XYZ-01", "out")] == verdicts(report)[("XYZ-01", "add_adapter")] == FAIL


def test_a_clause_that_is_outside_as_a_whole_leaves_the_others_decided():
    inside, beyond = Case("ACC-01", "a", "x", "s"), Case("ACC-02", "a", "x", "s", verdict=SKIPPED, outside=True)
    assert report.exit_code([inside, beyond], named=True) == 0
    assert report.exit_code([inside, Case("ACC-02", "a", "x", "s", verdict=SKIPPED)], named=True) == 3
    assert report.exit_code([beyond], named=False) == 3


def test_an_unknown_name_on_the_command_line_is_one_sentence():
    with pytest.raises(UsageError, match=r"^--method: 'loora' is unknown; the nearest known name is 'lora'$"):
        concerns.read((), ("loora",), ())


# ---- known defects of the user's own ----


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"scenario": "other"}, 0, ""),
        ({"scenario": "other", "match": "elsewhere"}, 1, ""),
        ({"scenario": ["one", "other"]}, 1, "XYZ-01 holds on one, but {} says it must fail with '2'"),
        ({"scenario": "gone"}, 4, "{}: XYZ-01 'gone' names no case"),
    ],
)
def test_own_known_defects_are_strict_both_ways(suite, tmp_path, fields, code, says):
    file = write(tmp_path, defect(**fields), "mine.toml")
    done, out, _ = suite(HOLDS.format(second=2), "--known-defects", str(file))
    assert done == code, out
    assert says.format(file) in out


def test_a_mistake_in_the_users_file_names_that_file(tmp_path):
    file = write(tmp_path, defect(match=""), "mine.toml")
    with pytest.raises(UsageError, match=r"mine\.toml, defect 1: missing match"):
        expectations.load_own(file)


def own(verdict, scenario="a", **fields):
    return Case("ACC-01", scenario, "x", "s", verdict=verdict, reason="mine", **fields)


def test_a_failure_that_the_user_knows_blocks_no_upgrade():
    before, after = [own(PASS), own(PASS, "b")], [own(KNOWN_DEFECT, own=True), own(FAIL, "b")]
    (found,) = own_defects.findings(after)
    assert (found.means, found.where) == ("note", "ACC-01")
    assert found.sentence == "fails in 1 case (a), as your known defects say: mine"
    assert own_defects.others(before, after) == ([before[1]], [after[1]])


def test_a_known_defect_that_holds_makes_the_gate_inconclusive():
    (found,) = own_defects.findings([own(UNEXPECTED_PASS, own=True)])
    assert found.means == "lost" and "which your known defects expect to fail (mine): narrow" in found.sentence
    assert own_defects.findings([own(KNOWN_DEFECT), own(UNEXPECTED_PASS)]) == []
