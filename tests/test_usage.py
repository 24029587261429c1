"""Bad input to the commands: one sentence that says what, where and what to do, and exit code 2."""

import json
import subprocess
import sys

import pytest

from harness.errors import UsageError
from harness.paths import ROOT, SUITES
from harness.runs.scenarios import PLAIN
from harness.session.repro import judge_spec


def run(*words, cwd=None):
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, cwd=cwd or ROOT)
    return done.returncode, done.stdout + done.stderr


def harness(*words, **options):
    return run("harness.cli", *map(str, words), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--clause", "ABC-*"], "--clause 'ABC-*' matches no clause; chapters are API-*"),
        (["--subject", "nobody"], "unknown subject 'nobody'; known are hf-trainer, reference"),
        (["--subject", "no_module:x"], "module 'no_module' cannot be imported"),
        (["--subject", "platform:nothing"], "module 'platform' has no 'nothing'"),
        (["--subject", "platform:system"], "subject 'platform:system' returned str, which lacks name"),
        (["--preload", "no_module"], "--preload no_module: cannot be imported"),
        (["--device", "tpu"], "--device 'tpu' is neither cpu nor cuda"),
        (["--json", "harness"], "--json harness: is a directory; name a file"),
    ],
)
def test_wrong_options_of_the_suites(options, words):
    code, output = run("pytest", str(SUITES), *options)
    assert code == 2
    assert words in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["check", "--bogus"], "No such option: --bogus"),
        (["nonsense"], "No such command 'nonsense'"),
        (["clauses", "ABC-*"], "'ABC-*' matches no clause"),
        (["repro", "no-such-file.json"], "no-such-file.json: no such file"),
        (["train", "--steps", "none"], "Invalid value for '--steps'"),
    ],
)
def test_wrong_arguments_of_the_command_line(words, answer):
    code, output = harness(*words)
    assert code == 2
    assert answer in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"schema_version": 99}, "schema_version 99 is newer"),
        (
            {"test": "test_gone.py::x", "subject": "hf-trainer", "device": "cpu", "preload": []},
            "test 'test_gone.py::x'",
        ),
    ],
)
def test_spec_files_of_another_release(tmp_path, body, answer):
    (tmp_path / "spec.json").write_text(json.dumps(body))
    code, output = harness("repro", tmp_path / "spec.json")
    assert code == 2
    assert answer in output
    assert output.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"arguments": {"no_such_argument": 1}}, "no release of transformers has the argument 'no_such_argument'"),
        ({"model": {"path": "/no/such/model"}}, "/no/such/model: no model directory"),
        ({"model": {"family": "martian"}}, "unknown model family 'martian'"),
        ({"model": {"dtype": "float31"}}, "model dtype 'float31' is not a torch dtype"),
        ({"model": {"quantization": "nf3"}}, "unknown quantization 'nf3'"),
        ({"adapter": {"route": "by_hand"}}, "adapter route 'by_hand' is neither"),
        ({"adapter": {"peft_type": "LORE"}}, "no release of peft has the adapter type 'LORE'"),
        ({"trainer": {"surprise": 1}}, "spec.trainer: unknown 'surprise'"),
        ({"data": {"path": "rows.jsonl"}}, "rows.jsonl, line 2: not JSON"),
        ({"data": {"path": "gone.jsonl"}}, "gone.jsonl: cannot be read"),
        ({"data": {"path": "few.jsonl"}}, "few.jsonl: 1 rows, but 40 + 0 are asked for"),
        ({"data": {"path": "text.jsonl"}}, "text.jsonl, line 1: expected input_ids and labels"),
        ({"resume": {"checkpoint": 4, "damage": ["burn everything"]}}, "unknown damage 'burn everything'"),
    ],
)
def test_specs_that_cannot_be_trained(tmp_path, monkeypatch, body, answer):
    monkeypatch.chdir(tmp_path)
    row = '{"input_ids": [1, 2], "labels": [1, 2]}\n'
    (tmp_path / "rows.jsonl").write_text(row + '{"input_ids": [1\n')
    (tmp_path / "few.jsonl").write_text(row)
    (tmp_path / "text.jsonl").write_text('{"text": "no"}\n')
    arguments = {"max_steps": 4, "save_strategy": "steps", "save_steps": 4, "report_to": "none", "disable_tqdm": True}
    (tmp_path / "spec.json").write_text(json.dumps({"arguments": arguments, **body}))
    with pytest.raises(UsageError) as caught:
        judge_spec(tmp_path / "spec.json", "hf-trainer", None)
    assert answer in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_good_spec_is_trained_and_judged(tmp_path, capsys):
    (tmp_path / "spec.json").write_text(json.dumps(PLAIN.but(max_steps=2).to_json()))
    assert judge_spec(tmp_path / "spec.json", "hf-trainer", None) == 0
    assert "FRZ-01 pass: every base tensor bit-identical" in capsys.readouterr().out


def test_the_command_line_imports_neither_torch_nor_pytest():
    code = """
import sys, harness.cli, harness.spec, harness.trace
print({"torch", "pytest", "transformers"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
