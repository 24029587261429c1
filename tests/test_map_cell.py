"""A cell: what its process writes, and how its result is published."""

import json

import pytest

from harness.errors import UsageError
from harness.gate import environments, requires, stored
from harness.map import cell, command, results_table
from harness.processes import lease
from harness.runs.scenarios import PLAIN
from harness.verdict import Case

TASK = {
    "id": "x", "stack": {"peft": "0.18.1"}, "requirements": "peft==0.18.1", "device": "cpu", "run": "suites",
    "sources": {"ACC-01": "1"},
    "specs": [], "extras": [], "lock": "", "keep": True, "tests": [], "concerns": [[], [], []],
}  # fmt: skip


def result(tmp_path, **more):
    asked, answer = tmp_path / "asked.json", tmp_path / "answer.json"
    asked.write_text(json.dumps(TASK | {"directory": str(tmp_path)} | more))
    cell.main(asked, answer)
    return stored.read(answer.read_text().rstrip("\n"))


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (environments.Unresolvable("because x==1 and x==2"), "unresolvable"),
        (environments.TooOld("older than what is judged"), "too old"),
        (UsageError("the suites cannot run"), "could not run"),
    ],
)
def test_a_stack_that_cannot_be_made_is_a_result_with_the_sentence(tmp_path, monkeypatch, error, state):
    def make(*_, **__):
        raise error

    monkeypatch.setattr(environments, "make", make)
    body = result(tmp_path)
    assert (body["state"], body["sentence"], body["clauses"]) == (state, str(error), {})
    (one,) = results_table.table([body], [], "now", "0")["cells"]
    assert results_table.of_cell(one) == "fails" and results_table.reason(one) == f"{state}: {error}"


def test_the_environment_is_removed_if_it_was_made_for_this_cell_and_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_HARNESS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "environments" / "old").mkdir(parents=True)

    def make(*_, **__):
        (tmp_path / "cache" / "environments" / "new").mkdir(exist_ok=True)
        return environments.Environment("peft==0.18.1", "python", {"peft": "0.18.1"}, "peft==0.18.1\n", "new")

    monkeypatch.setattr(environments, "make", make)
    monkeypatch.setattr(requires, "contradictions", lambda made: [])
    monkeypatch.setattr(cell, "_suites", lambda task, made: {"clauses": {}, "causes": []})
    left = {True: {"old", "new"}, False: {"old"}}
    for keep in (False, True):
        body = result(tmp_path, keep=keep)
        assert (body["state"], body["lock"]) == ("judged", "peft==0.18.1\n")
        assert {one.name for one in (tmp_path / "cache" / "environments").iterdir()} == left[keep]


def test_cases_are_counted_by_clause_and_kind_of_run():
    def case(scenario, verdict, spec=None, **more):
        return Case(
            "ACC-01", scenario, scenario, "hf-trainer", verdict=verdict, specs=[spec.to_json()] if spec else [], **more
        )

    found = cell.by_clause(
        [
            case("a", "pass", PLAIN),
            case("b", "pass", PLAIN),
            case("c", "fail", PLAIN.but(adapter={"route": "add_adapter"}), evidence={"seen": ["too large"]}),
            case("d", "skipped", reason="needs a GPU"),
        ]
    )["ACC-01"]
    assert (found["verdict"], found["seen"]) == ("fail", "too large")
    assert found["cases"] == [
        ["", "", "", "skipped", 1],
        ["add_adapter", "lora", "single", "fail", 1],
        ["get_peft_model", "lora", "single", "pass", 2],
    ]


@pytest.mark.parametrize(
    ("sentence", "stored"),
    [
        ("no checkpoint at /srv/x-1/run/checkpoint-6", "no checkpoint at checkpoint-6"),
        ("from 'peft.utils' (/srv/.cache/a/site-packages/peft/utils/save.py)", "from 'peft.utils' (save.py)"),
        ("raised in transformers/integrations/peft.py; 1/2 of https://github.com/a/b", None),
    ],
)
def test_a_table_names_no_directory_of_the_machine(sentence, stored):
    assert cell._stored(sentence) == (stored or sentence)


def test_the_first_result_stays(tmp_path):
    target = tmp_path / "r.json"
    assert cell.publish(b"one", target) and not cell.publish(b"two", target)
    assert target.read_bytes() == b"one" and list(tmp_path.iterdir()) == [target]


def test_a_cell_whose_command_has_ended_publishes_nothing(tmp_path):
    (tmp_path / "results").mkdir()
    task = TASK | {
        "directory": str(tmp_path),
        "lease": str(tmp_path / "lease"),
        "owner": "me",
        "module": "tests.sleeping_cells",
    }
    with pytest.raises(lease.Lost):
        cell.judge(task)
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.network
def test_a_stack_is_judged_by_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.toml").write_text(
        "pairing = 'all'\nclauses = ['ACC-01']\ntests = ['suites/test_acc.py']\n"
        "[packages]\ntransformers = ['5.3.0']\npeft = ['0.18.1']\naccelerate = ['1.13.0']\n"
    )
    outputs = {"json": tmp_path / "t.json"}
    arguments = [tmp_path / "m.toml", 1, "local", 1, tmp_path / "campaign", [], [], [], False, outputs]
    assert command.map_(*arguments) == 1
    assert "gradient_accumulation_steps times" in capsys.readouterr().out
    (one,) = results_table.load(outputs["json"])["cells"]
    assert one["clauses"]["ACC-01"]["verdict"] == "fail" and one["state"] == "judged"
    (file,) = (tmp_path / "campaign" / "results").iterdir()
    before = file.stat().st_mtime_ns
    assert command.map_(*arguments) == 1
    assert [one.stat().st_mtime_ns for one in (tmp_path / "campaign" / "results").iterdir()] == [before]
