"""`peft-harness checkpoint`: what it prints and writes, its exit codes, --repair, and directories that are none."""

import json
import os
import resource
import subprocess
import sys

import jsonschema
import pytest

from harness.checkpoints import command, outlook
from harness.contract import expectations
from harness.errors import UsageError
from harness.paths import PACKAGE, SUITES
from tests import made_checkpoints as made

SCHEMA = json.loads((PACKAGE / "checkpoints/checkpoint_schema.json").read_text())


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints 2, 4 and 6, of which 6 is torn."""
    for step in (2, 4, 6):
        made.states(made.adapter(tmp_path / f"run/checkpoint-{step}"), step=step)
    (tmp_path / "run/checkpoint-6/optimizer.pt").write_bytes(b"PK\3\4 half")
    return tmp_path / "run"


def looked_at(path, repair=False, model=None):
    file = path.parent / "out.json"
    code = command.run(path, model, repair, file)
    written = json.loads(file.read_text())
    jsonschema.validate(written, SCHEMA)
    return code, written


def test_a_run(run, capsys):
    code, written = looked_at(run)
    said = capsys.readouterr().out
    assert (code, written["verdict"], written["use"]) == (1, "torn", str(run / "checkpoint-4"))
    assert "resume_from_checkpoint=True takes checkpoint-6, which is torn" in said
    assert f"resume from checkpoint-4: trainer.train(resume_from_checkpoint='{run}/checkpoint-4')" in said
    assert "optimizer.pt is torn: it has 9 bytes and no end" in said
    assert [one["verdict"] for one in written["checkpoints"]] == ["torn", "whole", "whole"]


def test_one_checkpoint(run):
    assert looked_at(run / "checkpoint-4")[0] == 0
    code, written = looked_at(run / "checkpoint-6")
    assert (code, written["use"]) == (1, str(run / "checkpoint-4"))
    assert {one["file"]: one["state"] for one in written["files"]}["optimizer.pt"] == "torn"


def test_repair_renames_and_deletes_nothing(run):
    (run / "torn-checkpoint-6").mkdir()
    (run / "torn-checkpoint-6/mine").touch()
    code, written = looked_at(run, repair=True)
    assert (code, written["verdict"]) == (0, "whole")
    assert written["moved"] == [{"from": str(run / "checkpoint-6"), "to": str(run / "torn-checkpoint-6-2")}]
    assert (run / "torn-checkpoint-6/mine").exists() and (run / "torn-checkpoint-6-2/optimizer.pt").exists()
    assert looked_at(run, repair=True)[1]["moved"] == []


def test_what_save_model_wrote_beside_the_checkpoints(run, capsys):
    made.arguments(made.trainer_state(made.adapter(run), step=6))
    (run / "adapter_model.safetensors").write_bytes(b"")
    code, written = looked_at(run, repair=True)
    assert (code, len(written["moved"])) == (1, 1) and run.is_dir()  # an adapter alone is never moved
    assert f"torn: {run} (an adapter" in capsys.readouterr().out


def test_repair_of_one_checkpoint(run):
    code, written = looked_at(run / "checkpoint-6", repair=True)
    assert code == 0 and not (run / "checkpoint-6").exists() and written["use"] == str(run / "checkpoint-4")


def test_where_none_is_whole(run, capsys):
    for step in (2, 4):
        (run / f"checkpoint-{step}/scheduler.pt").unlink()
    code, written = looked_at(run)
    assert (code, written["use"]) == (1, None)
    assert "no whole checkpoint is left to resume from" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["empty", "missing", "file", "unreadable", "code"])
def test_what_is_no_checkpoint(kind, tmp_path):
    path = tmp_path / "given"
    if kind == "file":
        path.touch()
    elif kind == "code":
        path.mkdir()
        (path / "train.py").write_text("print()")
    elif kind != "missing":
        path.mkdir(mode=0 if kind == "unreadable" else 0o755)
    if kind == "unreadable" and os.access(path, os.R_OK):
        pytest.skip("this user reads everything")
    with pytest.raises(UsageError, match=r"no checkpoint that can be read|no such|no directory|cannot be read"):
        command.run(path, None, False, None)


def test_a_directory_of_runs_names_them(run):
    (run.parent / "other").mkdir()
    with pytest.raises(UsageError, match=f"checkpoints are in {run}: name one of these"):
        command.run(run.parent, None, False, None)


def test_accelerate(tmp_path, capsys):
    for step in (1, 2):
        made.saved_by_accelerate(tmp_path / f"project/checkpoints/checkpoint_{step}")
    (tmp_path / "project/checkpoints/checkpoint_2/random_states_0.pkl").unlink()
    assert looked_at(tmp_path / "project")[0] == 1
    assert "accelerator.load_state(" in capsys.readouterr().out


def test_a_large_optimizer_takes_little_memory(tmp_path):
    at = made.states(made.adapter(tmp_path / "checkpoint-4"))
    with open(at / "optimizer.pt", "r+b") as file:
        file.truncate(10 * 2**30)
    code = "import sys; from pathlib import Path; from harness.checkpoints.judge import judge; print(judge(sys.argv[1]).why)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(at)], capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (500 * 2**20, 500 * 2**20)),
    )  # fmt: skip
    assert done.stdout.startswith("optimizer.pt has 10,737,418,240 bytes and no end")


# ---- what resuming will do ----


def test_the_table_of_properties_names_known_defects():
    known = {(one.clause, one.scenario) for one in expectations.load(SUITES / "expectations")}
    assert {pair for pairs in outlook.REACHED.values() for pair in pairs} <= known


def test_known_defects_of_the_installed_releases_are_said(tmp_path, capsys):
    path = tmp_path / "checkpoint-4"
    made.states(made.adapter(path, "P_TUNING", {"prompt_embeddings": made.tensors()[made.NAMES[0]]}))
    code, written = looked_at(path)
    assert code == 0 and written["defects"][0]["clause"] == "RES-01"
    assert "No checkpoint holds the layers of the prompt encoder" in capsys.readouterr().out
