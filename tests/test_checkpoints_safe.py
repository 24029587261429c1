"""`harness.SafeCheckpoints`: whatever a crash leaves, a run goes on from a whole checkpoint."""

import json
import os
import random
import shutil
import signal
import sys

import pytest
from safetensors.torch import load_file

import harness
from harness import crash
from harness.checkpoints import CheckpointError, manifest, newest_whole, saving
from harness.checkpoints import safe as safe_checkpoints
from harness.checkpoints.judge import judge
from harness.crash.enumeration import MACHINE, PROCESS
from harness.crash.outcomes import folders, whole_folders, wholes
from harness.crash.saves import SAVES
from harness.crash.trainer_ways import record_run
from harness.crash.trees import write_tree
from harness.errors import UsageError
from harness.runs.scenarios import PLAIN
from harness.runs.scenarios import saving as with_saves
from tests import forked, made_checkpoints, safe_training

SHORT = with_saves(PLAIN.but(data={"rows": 24}, lora={"target_modules": ["q_proj"]}, max_steps=4), every=2)


def trained(spec, path, resume=None, trainer_class=safe_training.SafeTrainer):
    trainer = harness.subjects.hf_trainer.HFTrainer(trainer_class).build(spec, path)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def equal(one, other):
    a, b = (load_file(path / "adapter_model.safetensors") for path in (one, other))
    same = a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
    return same and (one / "optimizer.pt").read_bytes() == (other / "optimizer.pt").read_bytes()


def flip(file):
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(bytes(content))


def test_a_checkpoint_has_the_files_of_upstream_and_a_manifest(tmp_path):
    from transformers import Trainer

    safe = trained(SHORT, tmp_path / "safe")
    trained(SHORT, tmp_path / "plain", trainer_class=Trainer)
    for step in (2, 4):
        ours, theirs = (tmp_path / name / f"checkpoint-{step}" for name in ("safe", "plain"))
        assert {each.name for each in ours.iterdir()} - {each.name for each in theirs.iterdir()} == {manifest.MANIFEST}
        assert equal(ours, theirs) and judge(ours).verdict == "whole"
    assert not (tmp_path / "safe" / saving.SAVING).exists()
    assert set(safe.checkpoint_seconds) == {"save", "digest", "fsync", "rename", "rotate"}
    # One flipped bit of a number: only the manifest tells.
    flip(tmp_path / "safe/checkpoint-4/adapter_model.safetensors")
    assert "its SHA-256 is another" in judge(tmp_path / "safe/checkpoint-4").why
    with pytest.raises(CheckpointError, match=r"checkpoint-4 is torn.*resume from .*checkpoint-2"):
        trained(SHORT, tmp_path / "safe", str(tmp_path / "safe/checkpoint-4"))
    trained(SHORT, tmp_path / "safe", True)  # from checkpoint-2; checkpoint-4 is saved anew
    assert equal(tmp_path / "safe/checkpoint-4", tmp_path / "plain/checkpoint-4")
    # Loading without it: the Trainer takes the checkpoint as it is.
    trained(SHORT.but(max_steps=6), tmp_path / "safe", str(tmp_path / "safe/checkpoint-4"), Trainer)
    for step in (2, 4):
        flip(tmp_path / f"safe/checkpoint-{step}/optimizer.pt")
    shutil.rmtree(tmp_path / "safe/checkpoint-6")
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        trained(SHORT, tmp_path / "safe", True)


def test_rotation_and_the_best_model(tmp_path):
    spec = SHORT.but(
        max_steps=8, save_total_limit=2, data={"eval_rows": 4}, eval_strategy="steps", eval_steps=2,
        metric_for_best_model="eval_loss", load_best_model_at_end=True, greater_is_better=True,
    )  # fmt: skip
    trainer = trained(spec, tmp_path)
    best = trainer.state.best_model_checkpoint
    assert os.path.dirname(best) == str(tmp_path) and os.path.isdir(best)
    left = sorted(each.name for each in tmp_path.glob("checkpoint-*"))
    assert len(left) == 2 and "checkpoint-8" in left
    for name in left:
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        assert os.path.dirname(state["best_model_checkpoint"]) == str(tmp_path)
        assert judge(tmp_path / name).verdict == "whole"
    only = trained(SHORT.but(save_only_model=True), tmp_path / "only")
    assert only.state.global_step == 4 and judge(tmp_path / "only/checkpoint-4").verdict == "whole"


def test_a_path_in_bytes_is_a_path(tmp_path):
    made_checkpoints.states(made_checkpoints.adapter(tmp_path / "checkpoint-4"))
    with os.scandir(os.fsencode(tmp_path)) as entries:
        assert safe_checkpoints._chosen(tmp_path, next(entries)) == str(tmp_path / "checkpoint-4")


def test_it_is_no_callback():
    with pytest.raises(UsageError, match="is a mixin, and no callback"):
        harness.SafeCheckpoints()


def test_a_save_that_fails_leaves_the_older_ones(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    trained(SHORT.but(max_steps=2), tmp_path)
    monkeypatch.setattr(manifest, "content", full)
    with pytest.raises(CheckpointError, match=r"checkpoint-4 was not saved \(OSError: .*No space left"):
        trained(SHORT, tmp_path, True)
    assert [each.name for each in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert newest_whole(tmp_path) == str(tmp_path / "checkpoint-2")


# ---- crash states ----


def check_states(name, at_most, directory):
    """Check every crash state of a save: what is judged whole is as it was saved, and a whole one is always chosen."""
    made = record_run(SAVES[name], directory / "recorded", safe_training.safe()).recording
    tree = dict(made.before)
    known = wholes(made.before)
    for operation in made.operations:
        crash.operations.apply(tree, operation)
        for where, versions in wholes(tree).items():
            if f"{where}/{manifest.MANIFEST}" in tree:
                known[where] = [*known.get(where, []), *versions]
    judged = 0
    for state in crash.states(made, (PROCESS, MACHINE), at_most):
        run = directory / "state"
        shutil.rmtree(run, ignore_errors=True)
        write_tree(state.tree, run)
        whole = [where for where in folders(state.tree) if judge(run / where).verdict == "whole"]
        assert set(whole) <= set(whole_folders(state.tree, known)), state.how
        before = folders(made.before)
        chosen = newest_whole(run)
        if before or whole:
            assert chosen is not None, state.how
            step = int(chosen.rpartition("-")[2])
            assert step >= max((int(each.rpartition("-")[2]) for each in [*before, *whole]), default=0), state.how
            assert not manifest.wrong(run / os.path.basename(chosen)), state.how
        judged += 1
    return judged


def test_crash_states_of_a_save(tmp_path):
    assert check_states("limit-1", 25, tmp_path) == 25


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SAVES if "nf4" not in name])
def test_every_crash_state_of_every_save(name, tmp_path):
    assert check_states(name, None, tmp_path) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "limit-1", "overwritten", "best-at-end"])
def test_crash_states_resume_bit_equal(name, tmp_path):
    from harness.crash.judged_run import explore_states
    from harness.crash.outcomes import EQUAL, NAMED
    from harness.crash.trainer_ways import RESUME

    subject, saved = safe_training.safe(), SAVES[name]
    recorded = record_run(saved, tmp_path, subject)
    found = explore_states(name, saved, recorded, at_most=60, ways=[RESUME], subject=subject)
    wrong = [f"{one.how}: {one.outcome}: {one.said}" for one in found.found if one.outcome not in (EQUAL, NAMED)]
    assert not wrong and len(found.found) == found.judged


# ---- kills ----


def run_in_fork(output_dir, seconds=None):
    words = [sys.executable, "-m", "tests.safe_training", str(output_dir), *([str(seconds)] if seconds else [])]
    return forked.run(words, timeout=200).returncode


@pytest.mark.parametrize(("kills", "seed"), [(1, 5), pytest.param(30, 30, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_ends_as_the_undisturbed_one(kills, seed, tmp_path):
    assert run_in_fork(tmp_path / "undisturbed") == 0
    draw, done = random.Random(seed), 0
    while done < kills:
        code = run_in_fork(tmp_path / "killed", 0.02 + 0.4 * draw.random())
        if code == 0:  # it was faster than its end
            shutil.rmtree(tmp_path / "killed")
            continue
        assert code == -signal.SIGKILL
        done += 1
    assert run_in_fork(tmp_path / "killed") == 0
    assert equal(tmp_path / "killed/checkpoint-8", tmp_path / "undisturbed/checkpoint-8")


# ---- ranks ----


@pytest.mark.slow
def test_two_ranks_save_together_and_fail_together(tmp_path):
    from harness.processes import launch

    spec = SHORT.but(launch={"strategy": "ddp", "ranks": 2}, data={"eval_rows": 4}, eval_strategy="steps", eval_steps=2,
                     metric_for_best_model="eval_loss", load_best_model_at_end=True)  # fmt: skip
    trace = launch.train(safe_training.safe(), spec, tmp_path / "whole")
    assert trace.error is None
    for step in (2, 4):
        found = judge(tmp_path / f"whole/checkpoint-{step}")
        assert (found.verdict, found.ranks) == ("whole", 2)
    failed = launch.train(safe_training.broken_disk(), spec, tmp_path / "broken")
    said = "checkpoint-4 was not saved (OSError: [Errno 5] Input/output error)"
    assert all(f"rank 1: {said}" in each.error or said in each.error for each in [failed, *failed.ranks])
    assert newest_whole(tmp_path / "broken") == str(tmp_path / "broken/checkpoint-2")


# ---- the pieces ----


def test_what_a_crash_between_two_renames_left_is_completed(tmp_path):
    path = made_checkpoints.states(made_checkpoints.adapter(tmp_path / saving.SAVING / "checkpoint-4"))
    (tmp_path / saving.SAVING / "replaced-checkpoint-4").mkdir()
    (path / manifest.MANIFEST).write_text(manifest.content(path))
    assert newest_whole(tmp_path) == str(tmp_path / "checkpoint-4")
    half = made_checkpoints.states(made_checkpoints.adapter(tmp_path / saving.SAVING / "checkpoint-6"), step=6)
    assert newest_whole(tmp_path) == str(tmp_path / "checkpoint-4") and half.is_dir()


def test_a_replaced_checkpoint_gets_its_name_back(tmp_path):
    old = made_checkpoints.states(made_checkpoints.adapter(tmp_path / saving.SAVING / "replaced-checkpoint-4"))
    assert newest_whole(tmp_path) == str(tmp_path / "checkpoint-4") and not old.exists()


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"schema_version": 1, "files": {"../x": {}}, "sha256": ""}', "\0" * 9]
)
def test_a_manifest_that_is_none_is_torn(text, tmp_path):
    path = made_checkpoints.states(made_checkpoints.adapter(tmp_path / "checkpoint-4"))
    (path / manifest.MANIFEST).write_text(text)
    assert judge(path).verdict == "torn"
