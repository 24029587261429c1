"""Tests of the laws on optimizer, scheduler, random states and trainer state, on made-up files."""

import copy
import random

import pytest
import torch

from harness.laws import optimizer_file, state_files
from harness.trace import Group
from tests.checkpoints import STEP, optimizer_state, rewrite, saved_run, says, scheduler_state
from tests.traces import A, B


@pytest.fixture
def saved(tmp_path):
    return saved_run(tmp_path)


LAWS = {
    "holds_the_trained_tensors": optimizer_file.holds_the_trained_tensors,
    "optimizer_is_current": optimizer_file.optimizer_is_current,
    "scheduler_is_current": optimizer_file.scheduler_is_current,
    "state_is_current": state_files.state_is_current,
}


@pytest.mark.parametrize("law", LAWS)
def test_a_whole_checkpoint_holds(law, saved):
    assert LAWS[law](saved).holds, LAWS[law](saved).seen


@pytest.mark.parametrize("law", LAWS)
def test_a_crashed_run_is_no_evidence(law, saved):
    saved.error = "ValueError: no"
    says(LAWS[law](saved), "the run ended with ValueError: no")


@pytest.mark.parametrize("law", LAWS)
def test_a_run_without_checkpoints_does_not_hold(law, saved):
    saved.checkpoints = []
    assert not LAWS[law](saved).holds


# ---- optimizer.pt and scheduler.pt ----


def _frozen_too(state):
    state["state"][2] = copy.deepcopy(state["state"][0])
    state["param_groups"][0]["params"].append(2)


def _one_moment(state):
    del state["state"][1]["exp_avg_sq"]


def _half_moment(state):
    state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"].half()


def _behind(state):
    state["state"][0]["step"] = torch.tensor(3.0)


def _not_current(state):
    state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"] + 1e-7


def _regrouped(state):
    state["param_groups"][0]["params"], state["param_groups"][1]["params"] = [0], [1]


@pytest.mark.parametrize(
    ("law", "change", "words"),
    [
        ("holds_the_trained_tensors", _frozen_too, "optimizer.pt: groups of [3, 0] tensors, expected [2, 0]"),
        ("holds_the_trained_tensors", _frozen_too, "state of tensors [0, 1, 2], expected 0 to 1"),
        ("holds_the_trained_tensors", _one_moment, f"{B} has ['exp_avg', 'step'], expected"),
        ("holds_the_trained_tensors", _one_moment, "104 bytes of tensors, expected 136"),
        ("holds_the_trained_tensors", _half_moment, f"exp_avg of {A} is float16 (2, 4), expected float32 (2, 4)"),
        ("holds_the_trained_tensors", _behind, f"{A} counts 3 steps, expected 4"),
        ("holds_the_trained_tensors", _regrouped, "groups of [1, 1] tensors, expected [2, 0]"),
        ("optimizer_is_current", _not_current, f"checkpoint-4/optimizer.pt: {A}: exp_avg differs by"),
    ],
)
def test_a_wrong_optimizer_file_is_named(law, change, words, saved):
    state = copy.deepcopy(optimizer_state(saved))
    change(state)
    rewrite(saved, "optimizer.pt", state)
    says(LAWS[law](saved), words)


def _a_view(state):
    moment = state["state"][0]["exp_avg"]
    state["state"][0]["exp_avg"] = torch.cat([moment, moment])[: len(moment)]


def _a_log(state):
    state["log"] = [f"step {number}" for number in range(9999)]


@pytest.mark.parametrize(
    ("change", "words"), [(_a_view, "bytes stored, expected 136"), (_a_log, "besides the tensors")]
)
def test_an_optimizer_file_that_holds_more_than_its_tensors_is_named(change, words, saved):
    assert optimizer_file.size_law(saved).holds
    state = copy.deepcopy(optimizer_state(saved))
    change(state)
    rewrite(saved, "optimizer.pt", state)
    says(optimizer_file.size_law(saved), words)


def test_a_trained_tensor_without_a_group_is_named(saved):
    saved.groups = [Group([A], {}), Group([], {})]
    says(optimizer_file.holds_the_trained_tensors(saved), f"{B} is trained, but in no group")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"last_epoch": 3}, "scheduler.pt: last_epoch is 3, expected 4"),
        ({"_step_count": 4}, "_step_count is 4, expected 5"),
        ({"base_lrs": [0.01]}, "base_lrs is [0.01], expected [0.01, 0.01]"),
        ({"lr_lambdas": [{}]}, "lr_lambdas: 1, expected 2"),
    ],
)
def test_a_wrong_scheduler_file_is_named(change, words, saved):
    rewrite(saved, "scheduler.pt", {**scheduler_state(), **change})
    says(optimizer_file.scheduler_is_current(saved), words)


def test_a_scheduler_at_another_rate_than_the_next_step_is_named(saved):
    saved.steps.append(copy.deepcopy(saved.steps[-1]))
    saved.steps[-1].number, saved.steps[-1].learning_rates = 5, [0.005, 0.005]
    says(optimizer_file.scheduler_is_current(saved), "_last_lr is [0.0, 0.0], expected [0.005, 0.005]")


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt"])
def test_a_missing_state_file_is_named(file, saved):
    rewrite(saved, file, None)
    law = optimizer_file.holds_the_trained_tensors if file == "optimizer.pt" else optimizer_file.scheduler_is_current
    says(law(saved), f"checkpoint-4 has no {file}")


# ---- rng_state.pth, trainer_state.json, training_args.bin ----


def test_random_states_are_compared_one_by_one(saved):
    now = state_files.load_generators(saved.checkpoints[0])
    assert state_files.generators_are_current(saved, {STEP: now}).holds
    random.seed(1)
    others = {**now, "python": random.getstate()}
    says(
        state_files.generators_are_current(saved, {STEP: others}), "the state of 'python' is not that of the generator"
    )
    torch.manual_seed(1)
    others = {**now, "cpu": torch.get_rng_state()}
    says(state_files.generators_are_current(saved, {STEP: others}), "rng_state.pth: the state of 'cpu' is not")
    less = {name: now[name] for name in ("python", "cpu")}
    says(state_files.generators_are_current(saved, {STEP: less}), "holds ['cpu', 'numpy', 'python'], expected ['cpu',")
    rewrite(saved, "rng_state.pth", None)
    says(state_files.generators_are_current(saved, {STEP: now}), "checkpoint-4/rng_state.pth is missing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"global_step": 3}, "trainer_state.json: global_step is 3, expected 4"),
        ({"epoch": 0.25}, "epoch is 0.25, expected 0.2"),
        ({"max_steps": 5}, "max_steps is 5, expected 4"),
        ({"log_history": []}, "log_history is [], expected [{"),
        ({"train_batch_size": 4}, "train_batch_size is 4, expected 2"),
    ],
)
def test_a_wrong_trainer_state_is_named(change, words, saved):
    rewrite(saved, "trainer_state.json", {**saved.checkpoints[0].state, **change})
    says(state_files.state_is_current(saved), words)


def test_a_missing_field_of_the_trainer_state_is_named(saved):
    del saved.checkpoints[0].state["total_flos"]
    says(state_files.state_is_current(saved), "checkpoint-4/trainer_state.json: no field total_flos")


DONE = []


class Dangerous:
    """An object whose pickle runs code when it is loaded."""

    def __reduce__(self):
        return DONE.append, ({"rate": 0.5, "steps": 70000, "name": "x"},)


class Plain:
    def __init__(self):
        self.rate, self.steps, self.name = 0.5, 70000, "x"


def test_a_pickle_is_read_and_not_run(tmp_path):
    torch.save(Dangerous(), tmp_path / "dangerous.bin")
    torch.save(Plain(), tmp_path / "plain.bin")
    assert state_files.pickled(tmp_path / "dangerous.bin")[1] == {"rate": 0.5, "steps": 70000}
    assert not DONE
    built, scalars = state_files.pickled(tmp_path / "plain.bin")
    assert "tests.test_laws_state_files Plain" in built
    assert scalars == {"rate": 0.5, "steps": 70000}
