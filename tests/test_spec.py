"""RunSpec: round trips, the stable hash, specs of earlier releases, and the messages about a wrong spec."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.fixtures.models import FAMILIES, family, load_object
from harness.paths import ROOT
from harness.runs.scenarios import SCENARIOS
from harness.spec import ADD, MOVED, ResumeSpec, RunSpec


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_spec_is_the_same_after_a_round_trip_through_json(name):
    spec = SCENARIOS[name].resumed(3, damage=("delete optimizer.pt",))
    again = RunSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.hash == spec.hash


@given(st.integers(1, 99), st.floats(0, 1), st.sampled_from(["linear", "cosine"]))
def test_different_specs_have_different_hashes(steps, rate, schedule):
    base = RunSpec()
    other = base.but(max_steps=steps, learning_rate=rate, lr_scheduler_type=schedule)
    assert (other.hash == base.hash) == (other == base)


def test_the_hash_does_not_depend_on_the_process_or_the_order_of_fields():
    code = "from harness.spec import RunSpec; print(RunSpec().but(weight_decay=0.1, seed=3).hash)"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert hashes == {RunSpec().but(seed=3, weight_decay=0.1).hash}


def test_but_changes_what_it_names_and_nothing_else():
    spec = RunSpec().but(adapter={"route": ADD}, lora={"r": 4}, data={"rows": 37}, max_steps=None, num_train_epochs=2)
    assert spec.adapter.route == ADD
    assert spec.adapter.config == {**RunSpec().adapter.config, "r": 4}
    assert spec.data.rows == 37
    assert "max_steps" not in spec.arguments
    assert spec.model == RunSpec().model


def test_but_keeps_a_null_that_it_does_not_name():
    spec = RunSpec.from_json({"arguments": {"max_grad_norm": None}, "adapter": {"config": {"target_modules": None}}})
    changed = spec.but(lora={"r": 4}, seed=3)
    assert changed.arguments["max_grad_norm"] is None
    assert changed.adapter.config["target_modules"] is None
    assert "max_grad_norm" not in spec.but(max_grad_norm=None).arguments


def test_the_first_leg_of_a_resumed_run_is_the_run_that_wrote_the_checkpoint():
    spec = RunSpec().but(save_strategy="steps", save_steps=3)
    assert spec.resumed(3).first_leg() == spec
    longer = spec.but(resume=ResumeSpec(3, first_leg={"max_steps": 5}))
    assert longer.first_leg() == spec.but(max_steps=5)
    with pytest.raises(UsageError, match="resumes nothing"):
        spec.first_leg()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "a run spec is a JSON object, this is list"),
        ({"schema_version": 2}, "schema_version 2 is newer than 1"),
        ({"schema_version": "1"}, "schema_version '1' is none; expected 1 to 1"),
        ({"modle": {}}, "unknown field 'modle'; known are model, adapter"),
        ({"model": {"famly": "llama"}}, "model: unknown field 'famly'"),
        ({"model": []}, "model: expected a JSON object, found []"),
        ({"data": {"rows": "many"}}, "data, rows: expected int, found 'many'"),
        ({"arguments": 3}, "arguments: expected Mapping[str, Any], found 3"),
        ({"resume": {"checkpoint": "6"}}, "resume, checkpoint: expected int | bool"),
    ],
)
def test_the_message_about_a_wrong_spec_is_one_sentence(body, words):
    with pytest.raises(UsageError) as caught:
        RunSpec.from_json(body, "spec.json")
    assert words in str(caught.value)
    assert str(caught.value).startswith("spec.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [(None, "no such file"), ("{", "not JSON"), (b"\xff", "not UTF-8")])
def test_the_message_about_an_unreadable_spec_file_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "spec.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=words):
        RunSpec.load(path)


# ---- specs that 0.1.0 wrote ----

#: A failure's case file as 0.1.0 wrote it, with each of the places where a name can stand.
OF_0_1_0 = {
    "test": "test_fsdp.py::test_a_late_rank[late]",
    "subject": "hf-trainer",
    "spec": {
        "schema_version": 1,
        "model": {"family": "fixtures.plain_loss:llama"},
        "trainer": {
            "callbacks": [["fixtures.late:LateRank", {"rank": 1}], "early_stopping"],
            "compute_loss_func": "fixtures.plain_loss:window_loss",
        },
        "resume": {"checkpoint": 3, "first_leg": {"model": {"family": "fixtures.wrapped:compiled_layers"}}},
    },
}


def test_names_of_0_1_0_are_read_as_those_of_today(tmp_path):
    file = tmp_path / "case.json"
    file.write_text(json.dumps(OF_0_1_0))
    spec = RunSpec.load(file)
    assert spec.model.family == "harness.fixtures.plain_loss:llama"
    assert family(spec.model) is FAMILIES["harness.fixtures.plain_loss:llama"]
    assert spec.trainer == {
        "callbacks": [["harness.fixtures.late_rank:LateRank", {"rank": 1}], "early_stopping"],
        "compute_loss_func": "harness.fixtures.plain_loss:window_loss",
    }
    assert spec.first_leg().model.family == "harness.fixtures.wrapped_layers:compiled_layers"


def test_a_users_own_fixtures_keep_their_names():
    body = {"model": {"family": "fixtures.other:thing"}, "trainer": {"callbacks": ["fixtures.late:Mine"]}}
    spec = RunSpec.from_json(body)
    assert spec.model.family == "fixtures.other:thing"
    assert spec.trainer["callbacks"] == ["fixtures.late:Mine"]


def test_every_new_name_exists():
    missing = {name for name in MOVED.values() if not callable(load_object(name))}
    assert not missing


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory that is on sys.path and has no fixtures of ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(path for path in sys.path if path not in ("", str(ROOT)))])
    for name in [name for name in sys.modules if name.partition(".")[0] == "fixtures"]:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "fixtures"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", MOVED)
def test_an_object_is_found_by_its_name_of_0_1_0(elsewhere, name):
    assert load_object(name) is load_object(MOVED[name])


def test_a_users_own_object_is_preferred_to_a_name_of_0_1_0(elsewhere):
    (elsewhere / "fixtures").mkdir()
    (elsewhere / "fixtures" / "late.py").write_text("LateRank = 'mine'")
    assert load_object("fixtures.late:LateRank") == "mine"
