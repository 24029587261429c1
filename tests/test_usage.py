"""Bad input to the commands: one sentence that says what, where and what to do, and exit code 2."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UsageError
from harness.paths import ROOT, SUITES
from harness.progress import screen
from harness.register import entries
from harness.runs.scenarios import PLAIN
from harness.session.repro import judge_spec
from tests import forked


def run(*words, cwd=None):
    done = forked.run([sys.executable, "-m", *words], cwd=cwd or ROOT)
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
    (error,) = [line for line in output.splitlines() if words in line]
    assert error.startswith("peft-harness: ")
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
    (error,) = [line for line in output.splitlines() if answer in line]
    assert error.startswith("peft-harness: ")
    assert "Traceback" not in output


COMMANDS = [
    *(
        "check",
        "soak",
        "judge",
        "repro",
        "sweep",
        "gate",
        "bisect",
        "history",
        "speed",
        "coverage",
        "mutants",
        "report",
        "clauses",
    ),
    *("train", "report", "trend", "defects", "adapter", "checkpoint", "crash"),
    *("where", "map", "ask", "bounds", "propose"),
    *("cache", "cache list", "cache size", "cache clean"),
]


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help(option):
    runner = CliRunner()
    for command in ["", *COMMANDS]:
        shown = runner.invoke(app, [*command.split(), option])
        assert shown.exit_code == 0 and "-h, --help" in shown.output, command
        # A description and each option have a sentence.
        assert ".\n" in shown.output
        assert max(map(len, shown.output.splitlines())) <= 80


def test_the_list_of_commands_is_whole():
    shown = CliRunner().invoke(app, ["-h"]).output
    commands = re.findall(r"^  (\w+)  +\S", shown.partition("Commands:")[2], re.MULTILINE)
    assert sorted(commands) == sorted({command.split()[0] for command in COMMANDS})
    assert "..." not in shown.partition("Commands:")[2]


def test_no_command_is_wrong_usage_and_shows_help():
    code, output = harness()
    assert code == 2 and "Commands:" in output


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("peft-harness ", "check"),
        ("peft-harness check --clause RES-0", "RES-05"),
        ("peft-harness gate --subject ", "reference"),
        ("peft-harness cache ", "clean"),
        ("peft-harness cache clean ", "bytecode"),
    ],
)
def test_a_shell_completes(words, offered):
    variables = {
        "_PEFT_HARNESS_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    code = "import sys; sys.argv[0] = 'peft-harness'; from harness.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | variables)
    assert offered in done.stdout.split()


def test_in_a_pipe_nothing_is_wrapped_or_coloured():
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "clauses", "RES-05", "API-01"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "40"},
    )
    judged = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("  judged by")]
    assert judged == [f"suites/{test}" for id in ("RES-05", "API-01") for test in entries.entries()[id].judged_by]
    assert "\x1b" not in done.stdout
    assert not any(line.endswith(" ") for line in done.stdout.splitlines())


def test_no_color_leaves_out_colours_in_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    for variable, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", variable)
        stream = Terminal()
        screen(stream).print("failed", style="red")
        assert ("\x1b[31m" in stream.getvalue()) is coloured


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


@pytest.mark.parametrize("test", ["../../mine/test_x.py", "{}", "../tests/test_spec.py::test_x", "conftest.py"])
def test_a_case_file_runs_nothing_but_tests_of_the_suites(tmp_path, test):
    """pytest imports the file that it is given, and a case file may be somebody else's."""
    (tmp_path / "test_x.py").write_text("raise SystemExit('run')\n")
    body = {"test": test.format(tmp_path / "test_x.py"), "subject": "hf-trainer", "device": "cpu", "preload": []}
    (tmp_path / "case.json").write_text(json.dumps(body))
    code, output = harness("repro", tmp_path / "case.json")
    assert (code, output.strip().count("\n")) == (2, 0)
    assert "which this release does not have" in output


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"arguments": {"no_such_argument": 1}}, "no release of transformers has the argument 'no_such_argument'"),
        ({"model": {"path": "/no/such/model"}}, "/no/such/model: no such directory"),
        ({"model": {"family": "martian"}}, "unknown model family 'martian'"),
        ({"model": {"dtype": "float31"}}, "model, dtype: expected one of float32, "),
        (
            {"model": {"quantization": "nf3"}},
            "model, quantization: expected one of None, nf4, int8, or the fields of a quantization_config; found 'nf3'",
        ),
        (
            {"adapter": {"route": "by_hand"}},
            "adapter, route: expected one of get_peft_model, add_adapter; found 'by_hand'",
        ),
        ({"adapter": {"peft_type": "LORE"}}, "no release of peft has the adapter type 'LORE'"),
        ({"trainer": {"surprise": 1}}, "trainer: unknown field 'surprise'; known are callbacks, model_init, "),
        ({"data": {"path": "rows.jsonl"}}, "rows.jsonl, line 2: not JSON"),
        ({"data": {"path": "gone.jsonl"}}, "gone.jsonl: no such file"),
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
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("holds: equal to the independent reference bit for bit")
    assert "FRZ-01 holds every base tensor bit-identical" in said


def test_the_command_line_imports_neither_torch_nor_pytest():
    code = """
import sys, harness.cli, harness.spec, harness.trace
print({"torch", "pytest", "transformers"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
