"""Tests of harness/laws/best.py on made-up traces: each law holds, and each fault is found and named."""

import pytest
import torch

from harness.laws import best
from harness.runs.scenarios import PLAIN
from harness.trace import Evaluation
from harness.verdict import NOT_COMPARABLE
from tests.traces import A, B, made_up, with_checkpoint

LOSSES = {2: 5.3, 4: 5.1, 6: 5.2}


def trained(directory, ended=4, losses=LOSSES, **arguments):
    """Return a run of six steps that evaluates and saves at 2, 4 and 6, and ends with the adapter of one of these."""
    trace = made_up(PLAIN.but(max_steps=6, per_device_train_batch_size=2, load_best_model_at_end=True, **arguments), 6)
    adapters = {step: {A: trace.adapter[A] + step, B: trace.adapter[B] + step} for step in losses}
    for step, loss in losses.items():
        trace.evaluations.append(Evaluation(step, [[20]], {"eval_loss": loss, "eval_accuracy": 1 / loss}))
        with_checkpoint(trace, directory, step, adapters[step])
    trace.adapter = adapters[ended]
    trace.best = {"metric": losses[4], "step": 4, "checkpoint": str(directory / "checkpoint-4")}
    return trace


def test_the_best_of_three_checkpoints_holds(tmp_path):
    judged = best.best_loaded(trained(tmp_path))
    assert judged.holds
    assert judged.measured == {"best_step": 4, "last_step": 6, "best_metric": 5.1}


def test_the_last_adapter_is_seen(tmp_path):
    (sentence,) = best.best_loaded(trained(tmp_path, ended=6)).seen
    assert sentence == "the adapter at the end is not that of checkpoint-4, but that of checkpoint-6"


def test_a_last_bit_and_a_dtype_are_seen(tmp_path):
    trace = trained(tmp_path)
    trace.adapter = {A: torch.nextafter(trace.adapter[A], torch.tensor(99.0)), B: trace.adapter[B].bfloat16()}
    (sentence,) = best.best_loaded(trace).seen
    assert "nor that of any other" in sentence
    assert "is bfloat16 (4, 2), expected float32 (4, 2)" in sentence


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("metric", 5.3, "best_metric is 5.3, expected 5.1, that of checkpoint-4"),
        ("checkpoint", None, "best_model_checkpoint is None, expected checkpoint-4"),
        ("checkpoint", "runs/checkpoint-2", "best_model_checkpoint is runs/checkpoint-2, expected checkpoint-4"),
    ],
)
def test_a_state_that_names_another_is_seen(name, value, words, tmp_path):
    trace = trained(tmp_path)
    trace.best[name] = value
    assert best.best_loaded(trace).seen == (words,)


def test_which_one_is_best_follows_from_the_arguments(tmp_path):
    accuracy = trained(tmp_path / "accuracy", metric_for_best_model="accuracy")
    assert best.best_evaluation(accuracy) == (4, 1 / 5.1)
    assert best.best_evaluation(trained(tmp_path / "greater", greater_is_better=True)) == (2, 5.3)
    assert best.best_evaluation(trained(tmp_path / "smaller", metric_for_best_model="eval_loss")) == (4, 5.1)


def test_of_equal_ones_the_first_is_best(tmp_path):
    assert best.best_evaluation(trained(tmp_path, losses={2: 5.2, 4: 5.1, 6: 5.1})) == (4, 5.1)


def test_an_evaluation_without_a_checkpoint_does_not_count(tmp_path):
    trace = trained(tmp_path)
    trace.evaluations.append(Evaluation(5, [[20]], {"eval_loss": 1.0}))
    assert best.best_evaluation(trace) == (4, 5.1)


def test_a_best_at_the_last_step_decides_nothing(tmp_path):
    judged = best.best_loaded(trained(tmp_path, losses={2: 5.3, 4: 5.2, 6: 5.1}))
    assert judged.outcome == NOT_COMPARABLE
    assert "is of the last step" in judged.seen[0]


def test_a_run_that_failed_or_was_not_evaluated_does_not_hold(tmp_path):
    failed = trained(tmp_path / "failed")
    failed.error = "FileNotFoundError: pytorch_model.bin"
    assert "the run ended with FileNotFoundError" in best.best_loaded(failed).seen[0]
    assert best.best_loaded(made_up()).seen == ("no checkpoint was evaluated by eval_loss",)


def test_one_more_evaluation():
    assert best.evaluates_to_best(5.1, 5.1, LOSSES).holds
    assert best.evaluates_to_best(5.2, 5.1, LOSSES).seen == (
        "after training it returns 5.2, expected best_metric 5.1 of steps [4]",
    )
    assert best.evaluates_to_best(5.1, None, LOSSES).outcome == NOT_COMPARABLE
    assert best.evaluates_to_best(5.1, 5.1, {2: 5.1, 4: 5.1}).outcome == NOT_COMPARABLE


@pytest.mark.parametrize(
    ("training", "before", "after", "words"),
    [
        (["", "lm_head"], ["a"], ["a"], "2 modules are in training mode, the model first"),
        (["lm_head"], ["a"], ["a"], "1 modules are in training mode, lm_head first"),
        ([], ["a", "b"], ["b"], "a no longer requires gradients"),
        ([], ["a"], ["a", "b"], "b requires gradients now"),
        ([], [], [], "no parameter required gradients before training"),
    ],
)
def test_a_model_that_is_not_ready_for_inference_is_seen(training, before, after, words):
    assert best.ready_for_inference([], ["a"], ["a"]).holds
    assert words in best.ready_for_inference(training, before, after).seen
