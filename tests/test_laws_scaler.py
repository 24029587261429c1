"""Tests of harness/laws/scaler.py on made-up traces: each law holds, and each fault is found and named."""

import copy
import math

import pytest

from harness.laws import scaler
from harness.spec import RunSpec
from tests.traces import A, made_up, with_checkpoint

SPEC = RunSpec().but(max_steps=4, per_device_train_batch_size=2, fp16=True, data={"rows": 8})


@pytest.fixture
def skipped(tmp_path):
    """Return a run that saved each step and skipped step 2, and the content of its scaler.pt files."""
    trace = made_up(SPEC)
    values = [trace.adapter_before, trace.adapter]
    for number in range(1, 5):
        adapter = {name: values[0][name].lerp(values[1][name], (number - (number > 1)) / 3) for name in values[0]}
        with_checkpoint(trace, tmp_path, number, adapter)
    for step in trace.steps:
        rate = 0.01 * (4 - (step.number - 1 - (step.number > 2))) / 4
        step.learning_rates = [rate, rate]
    trace.log_history[1]["grad_norm"] = math.inf
    return trace, {step: scaler.state_at(step, [2]) for step in range(1, 5)}


def test_the_state_after_each_step():
    assert [scaler.state_at(step, [2])["scale"] for step in (1, 2, 4)] == [65536.0, 32768.0, 32768.0]
    assert [scaler.state_at(step, [2])["_growth_tracker"] for step in (1, 2, 4)] == [1, 0, 2]
    grown = scaler.state_at(2000, [])
    assert grown["scale"] == 131072.0 and grown["_growth_tracker"] == 0


def test_a_step_that_overflowed_and_was_skipped_holds(skipped):
    trace, states = skipped
    assert scaler.overflow_skipped(trace, states, at=2).holds
    for checkpoint in trace.checkpoints:
        checkpoint.files["scaler.pt"] = 1
    assert scaler.saved(trace, states).holds


def _moved(trace, states):
    trace.checkpoints[1].adapter[A] = trace.checkpoints[1].adapter[A] + 1


def _not_halved(trace, states):
    states[2]["scale"] = 65536.0


def _advanced(trace, states):
    trace.steps[2].learning_rates = [0.005, 0.005]


def _finite(trace, states):
    trace.log_history[1]["grad_norm"] = 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_moved, f"over step 2: {A} differs by 1"),
        (_not_halved, "the scale is 65536.0 after step 2, expected half of 65536.0"),
        (_advanced, "step 3: learning rates [0.005, 0.005], expected 0.0075"),
        (_finite, "the logged grad_norm is not finite at steps [], expected [2]"),
    ],
)
def test_what_a_skipped_step_changes_is_seen(skipped, change, words):
    change(*skipped)
    (sentence,) = scaler.overflow_skipped(*skipped, at=2).seen
    assert sentence.startswith(words)


def test_a_missing_file_and_another_state_are_seen(skipped):
    trace, states = skipped
    del states[1]
    states[3] = {**states[3], "_growth_tracker": 0, "surprise": 1}
    assert scaler.saved(trace, states).seen == (
        "checkpoint-1/scaler.pt is missing",
        "checkpoint-3/scaler.pt: _growth_tracker is 0, expected 1",
        "checkpoint-3/scaler.pt: surprise is 1, expected no such entry",
    )
    assert not scaler.saved(made_up(SPEC), {}).holds


# ---- unscaled ----


@pytest.fixture
def fp16():
    """Return a run with scaled gradients, which are unscaled and clipped to 0.05."""
    trace = made_up(SPEC.but(max_grad_norm=0.05, data={"rows": 8}))
    for step in trace.steps:
        norm = trace.grad_norms[step.number]
        step.clipped = {name: tensor * min(1.0, 0.05 / norm) for name, tensor in step.gradients.items()}
        step.gradients = {name: tensor * 65536.0 for name, tensor in step.gradients.items()}
    return trace


def test_norm_and_clipping_of_the_unscaled_gradient_hold(fp16):
    assert scaler.clips_unscaled(fp16, {}).holds


def test_a_norm_of_the_scaled_gradient_is_seen(fp16):
    fp16.log_history[0]["grad_norm"] *= 65536.0
    assert scaler.clips_unscaled(fp16, {}).seen[0].startswith("step 1: logged grad_norm 2621.4")


def test_a_gradient_that_is_too_long_after_clipping_is_seen(fp16):
    fp16.steps[3].clipped = {name: 2 * tensor for name, tensor in fp16.steps[3].clipped.items()}
    (sentence,) = scaler.clips_unscaled(fp16, {}).seen
    assert sentence.endswith(", expected 0.05") and sentence.startswith("step 4: the norm after clipping is 0.0999")


# ---- rounding ----


def rounded():
    trace = made_up(SPEC)
    for step, entry in zip(trace.steps, trace.log_history, strict=True):
        step.clipped = {name: tensor * 1.0001 for name, tensor in step.clipped.items()}
        entry["loss"] += 1e-5
    return trace


def test_rounding_holds():
    assert scaler.rounds_only(rounded(), made_up(SPEC)).holds


def test_a_run_in_float32_after_all_is_seen():
    (sentence,) = scaler.rounds_only(made_up(SPEC), made_up(SPEC)).seen
    assert sentence.endswith("so lower precision had no effect")


@pytest.mark.parametrize(("name", "by"), [("loss", 0.1), ("grad_norm", 0.1)])
def test_more_than_rounding_is_seen(name, by):
    other = copy.deepcopy(rounded())
    other.log_history[2][name] += by
    (sentence,) = scaler.rounds_only(other, made_up(SPEC)).seen
    assert sentence.startswith(f"step 3: logged {name} ")


def test_a_step_that_was_not_logged_is_seen():
    other = rounded()
    del other.log_history[3]
    assert "loss is logged at steps [1, 2, 3], expected [1, 2, 3, 4]" in scaler.rounds_only(other, made_up(SPEC)).seen
