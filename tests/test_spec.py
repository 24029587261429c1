"""RunSpec: round trips, the stable hash, and what a wrong spec is answered with."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.runs.scenarios import SCENARIOS
from harness.spec import ADD, ResumeSpec, RunSpec


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
        ({"schema_version": "1"}, "schema_version '1' is newer"),
        ({"modle": {}}, "unknown field 'modle'; known are model, adapter"),
        ({"model": {"famly": "llama"}}, "model: unknown field 'famly'"),
        ({"model": []}, "model: expected a JSON object, found []"),
        ({"data": {"rows": "many"}}, "data, rows: expected int, found 'many'"),
        ({"arguments": 3}, "arguments: expected Mapping[str, Any], found 3"),
        ({"resume": {"checkpoint": "6"}}, "resume, checkpoint: expected int | bool"),
    ],
)
def test_a_wrong_spec_is_answered_with_one_sentence(body, words):
    with pytest.raises(UsageError) as caught:
        RunSpec.from_json(body, "spec.json")
    assert words in str(caught.value)
    assert str(caught.value).startswith("spec.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [(None, "no such file"), ("{", "not JSON"), (b"\xff", "not JSON")])
def test_a_spec_file_that_cannot_be_read_is_answered_with_one_sentence(tmp_path, text, words):
    path = tmp_path / "spec.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=words):
        RunSpec.load(path)
