"""Tests of harness/laws/search.py on made-up searches: each law holds, and each fault is found and named."""

import json
from types import SimpleNamespace

import pytest

from harness.laws import search as laws
from harness.runs.scenarios import PLAIN
from harness.subjects.hyperparameter_search import Search, Trial
from harness.trace import Evaluation
from tests.traces import A, made_up, with_checkpoint

SPEC = PLAIN.but(max_steps=4, per_device_train_batch_size=2)
LOSSES = (5.5, 5.25, 5.75)


@pytest.fixture
def seen():
    """Return a search of three trials of four steps, evaluated at steps 2 and 4. The second trial is the best."""
    trials = []
    for number, loss in enumerate(LOSSES):
        trace = made_up(SPEC, events=["train_begin", "evaluate", "train_end"])
        trace.evaluations = [
            Evaluation(step, [], {"eval_loss": loss + 1 / step, "eval_runtime": 0.1}) for step in (2, 4)
        ]
        reported = {evaluation.step: evaluation.metrics["eval_loss"] for evaluation in trace.evaluations}
        trials.append(Trial(number, trace, number + 1, {"seed": number + 1}, "COMPLETE", loss + 0.25, reported))
    best = SimpleNamespace(run_id="1", objective=5.5, hyperparameters={"seed": 2})
    return Search(best, trials, [None, 0, 1, 2], SimpleNamespace(), [])


def words(verdict):
    assert not verdict.holds
    return "\n".join(verdict.seen)


def eval_loss(metrics):
    return metrics["eval_loss"]


def test_a_search_without_a_fault_holds(seen):
    assert laws.seeded(seen).holds
    assert laws.best_run(seen).holds
    assert laws.reported(seen).holds
    assert laws.objectives(seen, eval_loss).holds
    assert laws.as_own_runs(seen, lambda spec: made_up(spec)).holds
    assert laws.made_models(seen, [2, 2, 2]).holds


def test_a_seed_that_comes_late_is_named(seen):
    seen.trials[1].initial_seed = 1
    assert words(laws.seeded(seen)) == "trial 1 (seed 2): torch.initial_seed() is 1, expected 2"


def test_a_trial_that_trained_otherwise_is_named(seen):
    seen.trials[2].trace.steps[0].gradients[A][0, 0] += 1e-6
    assert "trial 2 (seed 3): step 1: gradients of" in words(laws.as_own_runs(seen, lambda spec: made_up(spec)))


def test_another_call_of_model_init_or_another_rank_is_named(seen):
    seen.made_for = [None, 0, 0, 2]
    sentences = words(laws.made_models(seen, [2, 2, 4]))
    assert "model_init was called for [None, 0, 0, 2], expected [None, 0, 1, 2]" in sentences
    assert "trial 2 (seed 3): adapters of rank [2], expected 4" in sentences


@pytest.mark.parametrize(
    ("field", "value"), [("run_id", 1), ("objective", 6.0), ("hyperparameters", {"seed": 1}), ("run_id", "0")]
)
def test_another_best_run_is_named(seen, field, value):
    setattr(seen.best, field, value)
    assert f"{field} is {value!r}, expected" in words(laws.best_run(seen))


def test_an_objective_that_is_another_metric_is_named(seen):
    seen.trials[0].value = 0.1
    sentences = words(laws.objectives(seen, eval_loss))
    assert sentences == "trial 0 (seed 1): the objective is 0.1, eval_runtime, not 5.75"


def test_an_evaluation_that_is_not_reported_is_named(seen):
    del seen.trials[1].reported[2]
    assert "trial 1 (seed 2): reported {4: 5.5}, evaluated {2: 5.75, 4: 5.5}" in words(laws.reported(seen))


def pruned_at_2(seen):
    trial = seen.trials[1]
    trial.state, trial.trace.steps = "PRUNED", trial.trace.steps[:2]
    return seen


def test_a_pruned_trial_holds(seen):
    assert laws.pruned(pruned_at_2(seen), number=1, step=2).holds


def test_each_fault_of_a_pruned_trial_is_named(seen):
    assert "trial 1 (seed 2): COMPLETE, expected PRUNED" in words(laws.pruned(seen, number=1, step=2))
    assert "trial 1 (seed 2): 4 optimizer steps, expected 2" in words(laws.pruned(seen, number=1, step=2))
    pruned_at_2(seen).trials[1].trace.events.pop()
    assert "expected one train_end" in words(laws.pruned(seen, number=1, step=2))


@pytest.fixture
def saved(seen, tmp_path):
    for trial in seen.trials:
        with_checkpoint(trial.trace, tmp_path / f"run-{trial.number}", 4)
        state = {"trial_params": trial.params, "is_hyper_param_search": True}
        path = tmp_path / f"run-{trial.number}" / "checkpoint-4" / "trainer_state.json"
        path.write_text(json.dumps(state))
    return seen


def test_checkpoints_of_each_trial_hold(saved, tmp_path):
    assert laws.checkpoints(saved, tmp_path, [4]).holds


def test_checkpoints_elsewhere_and_other_parameters_are_named(saved, tmp_path):
    (tmp_path / "run-2" / "checkpoint-4").rename(tmp_path / "checkpoint-4")
    (tmp_path / "run-0" / "checkpoint-4" / "trainer_state.json").write_text(
        json.dumps({"trial_params": {}, "is_hyper_param_search": True})
    )
    sentences = words(laws.checkpoints(saved, tmp_path, [4]))
    assert "run-2/checkpoint-4 is missing" in sentences and "checkpoint-4 is there besides" in sentences
    assert (
        "run-0/checkpoint-4/trainer_state.json: trial_params {}, is_hyper_param_search True; expected {'seed': 1}, True"
        in sentences
    )


def test_no_trial_is_no_pass(seen):
    seen.trials = []
    assert not laws.seeded(seen).holds
    assert not laws.as_own_runs(seen, made_up).holds
    assert not laws.objectives(seen, eval_loss).holds
    assert not laws.reported(seen).holds
    assert not laws.best_run(seen).holds
