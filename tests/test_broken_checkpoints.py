"""`python -m harness.reference --resume`: a checkpoint of somebody else that does not fit is refused, in one sentence."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.real import reference_alone
from harness.spec import RunSpec
from harness.subjects import reference, resumable

ADAPTER, STATE = "adapter_model.safetensors", "trainer_state.json"
SPEC = RunSpec().but(max_steps=2, save_strategy="steps", save_steps=1, per_device_train_batch_size=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a directory with spec.json, and the checkpoint of step 1 of its run."""
    directory = tmp_path_factory.mktemp("run")
    (directory / "spec.json").write_text(json.dumps(SPEC.to_json()))
    assert reference_alone.main(["--spec", str(directory / "spec.json"), "--output", str(directory / "out")]) == 0
    shutil.copytree(directory / "out" / "checkpoint-1", directory / "checkpoint-1")
    return directory


class Evil:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def adapter(change):
    def save(directory):
        changed = load_file(directory / ADAPTER)
        change(changed)
        save_file(changed, directory / ADAPTER, metadata={"format": "pt"})

    return save


def state(**fields):
    def save(directory):
        old = json.loads((directory / STATE).read_text())
        (directory / STATE).write_text(json.dumps({**old, **fields}))

    return save


def stored(file, change):
    def save(directory):
        loaded = torch.load(directory / file, weights_only=False)
        changed = change(loaded)
        torch.save(loaded if changed is None else changed, directory / file)

    return save


def cut(file):
    return lambda directory: (directory / file).write_bytes((directory / file).read_bytes()[:100])


def text(file, content):
    return lambda directory: (directory / file).write_text(content)


def moments(change):
    return stored("optimizer.pt", lambda held: [change(held["state"], key) for key in held["state"]] and None)


def nan_moment(states, key):
    states[key]["exp_avg"][0] = math.nan


def small_moment(states, key):
    states[key]["exp_avg"] = torch.zeros(3)


def later_step(states, key):
    states[key]["step"] = torch.tensor(7.0)


SPOILED = {
    "torn adapter": (cut(ADAPTER), "adapter_model.safetensors cannot be read"),
    "NaN in the adapter": (adapter(lambda held: next(iter(held.values())).fill_(math.nan)), "NaN or infinite"),
    "infinity in the adapter": (adapter(lambda held: next(iter(held.values())).fill_(math.inf)), "NaN or infinite"),
    "a tensor of another shape": (adapter(lambda held: held.update({next(iter(held)): torch.ones(1)})), "has shape"),
    "a tensor too few": (adapter(lambda held: held.popitem()), "has shape None"),
    "torn state": (cut(STATE), "trainer_state.json cannot be read"),
    "empty state": (text(STATE, ""), "trainer_state.json cannot be read"),
    "a state that is a list": (text(STATE, "[]"), "expected a JSON object, found []"),
    "deep state": (text(STATE, "[" * 100_000), "trainer_state.json cannot be read"),
    "no step": (state(global_step=None), "global_step is None"),
    "a step that is NaN": (state(global_step=math.nan), "global_step is NaN"),
    "a negative step": (state(global_step=-1), "global_step is -1"),
    "a step that is text": (state(global_step="1"), "global_step is '1'"),
    "another step": (state(global_step=2), "global_step is 2, and the directory is checkpoint-1"),
    "an epoch that is NaN": (state(epoch=math.nan), "epoch is NaN"),
    "a log that is none": (state(log_history=3), "log_history must be a list"),
    "a pickle for the optimizer": (lambda d: torch.save(Evil(str(d / "ran")), d / "optimizer.pt"), "cannot be read"),
    "a pickle for the generators": (lambda d: torch.save(Evil(str(d / "ran")), d / "rng_state.pth"), "does not fit"),
    "torn optimizer": (cut("optimizer.pt"), "optimizer.pt cannot be read"),
    "an optimizer that is a list": (stored("optimizer.pt", lambda held: [1]), "does not fit the run"),
    "an optimizer of other groups": (
        stored("optimizer.pt", lambda held: held["param_groups"].pop() and None),
        "does not fit",
    ),
    "NaN in the optimizer": (moments(nan_moment), "exp_avg holds numbers that are NaN or infinite"),
    "moments of another shape": (moments(small_moment), "exp_avg has the shape (3,)"),
    "an optimizer of another step": (moments(later_step), "is of step 7, and trainer_state.json of step 1"),
    "a rate that is NaN": (
        stored("optimizer.pt", lambda held: held["param_groups"][0].update(lr=math.nan)),
        "lr is NaN",
    ),
    "a schedule of another step": (stored("scheduler.pt", lambda held: held.update(last_epoch=9)), "is of step 9"),
    "a schedule that is a list": (stored("scheduler.pt", lambda held: [1]), "does not fit the run"),
    "no generators": (lambda d: (d / "rng_state.pth").unlink(), "it has no rng_state.pth"),
    "generators that are a list": (stored("rng_state.pth", lambda held: [1]), "does not fit the run"),
    "torn generators": (cut("rng_state.pth"), "does not fit the run"),
}


def test_looking_at_a_checkpoint_draws_no_number(run, tmp_path):
    spec = RunSpec.load(run / "spec.json")
    trainer = reference.build(spec, tmp_path, lambda event, trainer: None)
    before = torch.get_rng_state()
    resumable.check(run / "checkpoint-1", trainer)
    assert torch.equal(torch.get_rng_state(), before)
    resumable.check(run / "checkpoint-1", trainer)  # a second time, since train() loads it once more
    assert trainer.schedule.last_epoch == 1


@pytest.mark.parametrize("wrong", SPOILED)
def test_a_checkpoint_that_does_not_fit_is_refused(run, tmp_path, capsys, wrong):
    spoil, words = SPOILED[wrong]
    directory = tmp_path / "checkpoint-1"
    shutil.copytree(run / "checkpoint-1", directory)
    spoil(directory)
    assert reference_alone.main(["--spec", str(run / "spec.json"), "--resume", str(directory)]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert words in sentence and str(directory) in sentence, sentence
    assert not (directory / "ran").exists()


def test_the_checkpoint_as_it_was_is_taken(run, capsys):
    assert reference_alone.main(["--spec", str(run / "spec.json"), "--resume", str(run / "checkpoint-1")]) == 0
    assert "2 steps" in capsys.readouterr().out


def test_a_checkpoint_that_is_no_directory(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none", tmp_path / "file"):
        assert reference_alone.main(["--spec", str(run / "spec.json"), "--resume", str(path)]) == 2
        assert "is no complete checkpoint" in capsys.readouterr().err
