"""Scripts for upstream: each known defect has one or a reason, each imports upstream alone, and each shows its fault.

The scripts themselves are run with -m slow here, and on good and bad releases with -m network.
"""

import ast
import contextlib
import io
import json
import re
import subprocess
import sys

import peft
import pytest

from harness.contract import expectations
from harness.errors import UsageError
from harness.gate import environments
from harness.paths import SUITES
from harness.runs.scenarios import PLAIN, spec_for
from harness.spec import ADD
from harness.upstream import case_script, generator, issue, pieces, recipes
from tests.command_line import run

KNOWN = expectations.load(SUITES / "expectations")
RECIPES = recipes.load()
BY_ID = {one.id: one for one in RECIPES}

#: What a script may import: upstream, what upstream needs itself, and Python.
UPSTREAM = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "optuna"}


def shown(one):
    return [id(defect) for defect in recipes.defects(one, KNOWN)]


# ---- each known defect ----


def test_each_known_defect_has_a_script_or_a_reason_why_not():
    covered = {defect for one in [*RECIPES, *recipes.without_script()] for defect in shown(one)}
    left = [f"{one.clause} {one.scenario}: {one.match}" for one in KNOWN if id(one) not in covered]
    assert not left


def test_each_row_names_known_defects_alone():
    rows: list[recipes.Recipe | recipes.Unscripted] = [*RECIPES, *recipes.without_script()]
    for one in rows:
        named = recipes.defects(one, KNOWN)
        unknown = [name for name in one.shows if not any(name in (each.scenario, each.match) for each in named)]
        assert not unknown, (one, unknown)


def test_a_reason_names_what_is_missing():
    for one in recipes.without_script():
        assert one.reason.startswith("needs "), one


def test_a_defect_whose_script_is_gone_is_found():
    gone = BY_ID["acc-01-bert"]
    rest = [defect for one in RECIPES if one is not gone for defect in shown(one)]
    assert [one.scenario for one in recipes.defects(gone, KNOWN) if id(one) not in rest] == ["bert-classifier/*"]


# ---- each script ----


@pytest.fixture(scope="module")
def texts():
    return {one.id: recipes.script_of(one) for one in RECIPES}


def test_a_script_begins_with_what_is_wrong_in_the_defect_that_its_row_names_first(texts):
    # Another known defect of the same clause fails with the same words.
    assert texts["dist-02-llama-classifier"].startswith('"""GenericForSequenceClassification.forward')


def test_fields_at_upstreams_default_are_left_out(texts):
    # 4 heads is not LlamaConfig's default, and rank 8 is LoraConfig's.
    assert "num_attention_heads=4" in texts["acc-01-llama-classifier"]
    assert not re.search(r"\br=8|bos_token_id", texts["acc-01-llama-classifier"])


def test_each_script_is_short_and_imports_upstream_alone(texts):
    for name, text in texts.items():
        assert len(text.splitlines()) <= 60, name
        assert "harness" not in text, name
        imported = {
            (node.module if isinstance(node, ast.ImportFrom) else alias.name).partition(".")[0]
            for node in ast.walk(ast.parse(text))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        assert imported <= UPSTREAM | set(sys.stdlib_module_names), name


def outcome(text):
    """Run a script in this process, which has imported upstream already. Return its exit code and its output."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
        with pytest.raises(SystemExit) as ended:
            exec(compile(text, "script.py", "exec"), {"__name__": "__main__"})
    return ended.value.code, " ".join(output.getvalue().split())


@pytest.mark.parametrize("name", ["frz-11-disabled-frozen", "qlora-12-not-strict", "emb-06-tied-output-layer"])
def test_a_script_exits_with_1_where_the_fault_is_and_else_with_0(texts, name):
    one = BY_ID[name]
    code, said = outcome(texts[name])
    assert code == int(recipes.here(one))
    assert "expected:" in said and "seen:" in said
    assert code == 0 or one.words in said


# ---- the clauses about adapters that are loaded elsewhere ----

SERVED = {"plain": PLAIN, "seq2seq": spec_for("t5", "lora"), "add_adapter": spec_for("llama", "loha", ADD)}


@pytest.mark.parametrize("clause", ["SERVE-01", "SERVE-02", "SERVE-03", "SERVE-04"])
def test_each_clause_of_serve_has_a_short_script(clause):
    for spec in SERVED.values():
        text = case_script.of_spec(spec, clause, KNOWN).text
        assert len(text.splitlines()) <= 60 and "harness" not in text


def test_no_script_merges_what_upstream_does_not_merge_within_rounding():
    for spec, words in (
        (spec_for("llama", "prompt-tuning"), "PROMPT_TUNING is never merged"),
        (PLAIN.but(model={"quantization": "nf4"}), "the base is packed"),
    ):
        with pytest.raises(UsageError, match=words):
            case_script.of_spec(spec, "SERVE-02", KNOWN)


def test_a_clause_without_a_check_is_refused_with_the_reason(tmp_path):
    case = tmp_path / "case.json"
    case.write_text(json.dumps({"clause": "CRASH-05", "scenario": "limit-1/stopped", "spec": {}}))
    code, _, said = run("repro", case, "--script", tmp_path / "s.py")
    assert code == 2 and "needs a machine that stops" in said and not (tmp_path / "s.py").exists()


def _double_rank(self, *given, saved=peft.PeftConfig.to_dict, **options):
    return {**saved(self, *given, **options), "r": 16}


def _shifted(*given, merge=peft.tuners.lora.Linear.merge, **options):
    merge(*given, **options)
    given[0].get_base_layer().weight.data += 0.1


_from_pretrained = peft.PeftModel.from_pretrained


def _careless(model, *given, **options):
    model.lm_head.weight.data += 0.1
    return _from_pretrained(model, *given, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clause", "where", "fault", "words"),
    [
        ("SERVE-01", peft.PeftModel, ("from_pretrained", staticmethod(_careless)), "logits differ by"),
        ("SERVE-02", peft.tuners.lora.Linear, ("merge", _shifted), "logits differ by"),
        ("SERVE-03", peft.PeftConfig, ("to_dict", _double_rank), "r is 16, was 8"),
        ("SERVE-04", peft.PeftModel, ("from_pretrained", staticmethod(_careless)), "lm_head.weight changed"),
    ],
    ids=["SERVE-01", "SERVE-02", "SERVE-03", "SERVE-04"],
)
def test_a_script_of_serve_finds_a_fault(clause, where, fault, words, monkeypatch):
    text = case_script.of_spec(PLAIN, clause, KNOWN).text
    assert outcome(text)[0] == 0
    monkeypatch.setattr(where, *fault)
    code, said = outcome(text)
    assert code == 1 and words in said


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_ID)
def test_each_script_shows_its_fault_here(name):
    one = BY_ID[name]
    done = issue.run(recipes.script_of(one))
    said = " ".join(done.stdout.split())
    assert done.returncode == int(recipes.here(one)), issue.lines_of(done)
    assert "seen:" in said
    assert done.returncode == 0 or one.words in said


ELSEWHERE = [(one.id, stack, code) for one in RECIPES for stack, code in ((one.good, 0), (one.bad, 1)) if stack]


@pytest.mark.network
@pytest.mark.parametrize(("name", "stack", "code"), ELSEWHERE, ids=[f"{name}-{code}" for name, _, code in ELSEWHERE])
def test_a_script_tells_good_releases_from_bad_ones(name, stack, code):
    one = BY_ID[name]
    done = issue.run(recipes.script_of(one), environments.make(stack).python)
    said = " ".join(done.stdout.split())
    assert done.returncode == code, issue.lines_of(done)
    assert "seen:" in said
    assert code == 0 or one.words in said


# ---- what is not a stranger's code, and what no script can hold ----


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"config": {"a=1), print('mine') or (b": 1}}},
        {"adapter": {"name": 'x"); print("mine'}},
        {"adapter": {"others": {'x"); print("mine': {}}}},
        {"model": {"dtype": "float32); print('mine')"}},
        {"model": {"family": "config:llama"}, "lora": {'r=1), print("mine") or dict(r': 8}},
    ],
    ids=["config", "adapter", "second-adapter", "dtype", "field"],
)
def test_a_spec_adds_no_code_of_its_own(changes):
    with pytest.raises(UsageError, match="no short script"):
        generator.script(PLAIN.but(**changes), "completes", "", ["x"])


@pytest.mark.parametrize("value", ['"); print("mine")#', "'); print('mine')", "\\", "a\nb", "{x}", '"""'])
def test_a_string_stays_a_string(value):
    assert ast.literal_eval(pieces.text(value)) == value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"path": "rows.jsonl"}}, "its rows are in a file"),
        ({"model": {"path": "somewhere"}}, "its model is in a directory"),
        ({"model": {"family": "my_module:model"}}, "which is code of your own"),
        ({"trainer": {"data_collator": "my_module:collate"}}, "it passes data_collator to the Trainer"),
        ({"launch": {"strategy": "fsdp2", "ranks": 2}}, "on GPUs only"),
        ({"model": {"config": {f"field_{number}": "x" * 90 for number in range(40)}}}, "lines, and 60 are allowed"),
    ],
    ids=["rows", "path", "family", "collator", "fsdp", "length"],
)
def test_what_no_short_script_can_hold_is_refused(changes, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        generator.script(PLAIN.but(**changes), "completes", "", ["x"])


# ---- the command ----


@pytest.fixture
def case(tmp_path):
    """Write a case file, and return its path."""

    def write(**body):
        path = tmp_path / "case.json"
        path.write_text(json.dumps(body))
        return path

    return write


def test_a_case_of_a_known_defect_gets_the_script_of_that_defect(case, tmp_path, texts):
    file = case(clause="FRZ-11", scenario="disabled-frozen/lora", spec=PLAIN.to_json(), test="test_frz.py::test_x")
    assert run("repro", file, "--script", tmp_path / "s.py")[0] == 0
    assert (tmp_path / "s.py").read_text() == texts["frz-11-disabled-frozen"]


def test_a_spec_gets_a_script_of_the_clause_that_is_named(case, tmp_path):
    spec = PLAIN.but(
        model={"family": "bert-classifier"}, data={"task": "classification"}, gradient_accumulation_steps=3
    )
    spec = spec.but(lora={"target_modules": ["query"], "task_type": "SEQ_CLS"})
    code, _, said = run("repro", case(**spec.to_json()), "--script", tmp_path / "s.py", "--clause", "ACC-01")
    assert (code, said) == (0, "")
    code, said = outcome((tmp_path / "s.py").read_text())
    assert code == 1
    assert "seen: 3.0000 times that gradient" in said


@pytest.mark.parametrize(
    ("body", "words", "option"),
    [
        (PLAIN.to_json(), "names no clause", ()),
        (PLAIN.to_json(), "is no clause", ("--clause", "ACC-999")),
        (PLAIN.to_json(), "no check of PERF-01 is written as a script", ("--clause", "PERF-01")),
        ({"clause": "RES-01", "spec": PLAIN.to_json(), "life": [{"do": "train"}]}, "has a life", ()),
        ([1], "neither a case file nor a RunSpec", ()),
        ({"clause": "ACC-01"}, "has no run (spec)", ()),
        (
            PLAIN.but(launch={"strategy": "ddp", "ranks": 2}).to_json(),
            "it has 2 ranks, and the check split is written for one process",
            ("--clause", "ACC-01"),
        ),
    ],
    ids=["no-clause", "unknown-clause", "no-check", "life", "list", "no-run", "ranks"],
)
def test_what_has_no_script_is_said_in_one_sentence(case, tmp_path, body, words, option):
    file = tmp_path / "case.json"
    file.write_text(json.dumps(body))
    code, _, said = run("repro", file, "--script", tmp_path / "s.py", *option)
    assert code == 2 and words in said and "Traceback" not in said
    assert not (tmp_path / "s.py").exists()


def ran(monkeypatch, code, output):
    monkeypatch.setattr(issue, "run", lambda text: subprocess.CompletedProcess([], code, output, ""))


def test_a_report_has_the_script_its_output_and_the_release(case, tmp_path, monkeypatch):
    ran(monkeypatch, 1, "expected: one thing\nseen:     another\n")
    (tmp_path / "b.json").write_text(json.dumps({"clause": "ACC-01", "answer": "ACC-01 broke in transformers 5.0.0"}))
    file = case(clause="ACC-01", scenario="bert-classifier/lora", spec=PLAIN.to_json())
    assert run("repro", file, "--issue", tmp_path / "i.md", "--bisect", tmp_path / "b.json")[0] == 0
    text = (tmp_path / "i.md").read_text()
    for words in (
        "transformers 5",
        "What must hold: ",
        "```python",
        "seen:     another",
        "broke in transformers 5.0.0",
        "issues/47688",
    ):
        assert words in text
    assert "harness" not in text


def test_nothing_is_reported_that_the_script_does_not_show(case, tmp_path, monkeypatch):
    ran(monkeypatch, 0, "expected: one thing\nseen:     one thing\n")
    file = case(clause="ACC-01", scenario="bert-classifier/lora", spec=PLAIN.to_json())
    code, _, said = run("repro", file, "--issue", tmp_path / "i.md")
    assert code == 2 and "there is nothing to report" in said
    assert not (tmp_path / "i.md").exists()


def test_a_script_that_fails_by_itself_is_no_fault_of_upstream(case, tmp_path, monkeypatch):
    ran(monkeypatch, 1, "Traceback\n")
    code, _, said = run("repro", case(clause="ACC-01", scenario="bert-classifier/lora", spec=None), "--issue", "i.md")
    assert code == 2 and "there is nothing to report" in said


def test_a_bisection_of_another_clause_is_refused(case, tmp_path):
    (tmp_path / "b.json").write_text(json.dumps({"clause": "FRZ-01", "answer": "FRZ-01 broke"}))
    file = case(clause="ACC-01", scenario="bert-classifier/lora", spec=None)
    code, _, said = run("repro", file, "--issue", tmp_path / "i.md", "--bisect", tmp_path / "b.json")
    assert code == 2 and "is about FRZ-01" in said


def test_a_resumed_run_is_resumed_in_the_script():
    origin = case_script.of_spec(PLAIN.but(save_strategy="steps", save_steps=4), "RES-01", KNOWN)
    assert "/checkpoint-4" in origin.text
