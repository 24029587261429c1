"""Tests of harness/laws/callbacks.py on made-up traces: each law holds, and each fault is found and named."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.laws import callbacks
from harness.runs.scenarios import PLAIN
from harness.trace import Checkpoint, Evaluation
from tests.traces import made_up

#: Three micro-batches in windows of two. The run evaluates and saves at the end of the epoch.
SPEC = PLAIN.but(
    data={"rows": 6, "eval_rows": 4},
    max_steps=None,
    num_train_epochs=1,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    eval_strategy="epoch",
    save_strategy="epoch",
)
#: The events of SPEC in the order of upstream's documentation and source, written out by hand.
WINDOW = ["step_begin", "substep_end", "pre_optimizer_step", "optimizer_step", "step_end", "log"]
SHORT_WINDOW = ["step_begin", "pre_optimizer_step", "optimizer_step", "step_end", "log"]
ORDER = ["init_end", "train_begin", "epoch_begin", *WINDOW, *SHORT_WINDOW]
ORDER += ["epoch_end", "prediction_step", "log", "evaluate", "save", "log", "train_end"]


def words(verdict):
    assert not verdict.holds
    return "\n".join(verdict.seen)


# ---- the order of events ----


@pytest.fixture
def trace():
    return made_up(SPEC, steps=2, events=list(ORDER))


def test_the_order_of_the_documentation_holds(trace):
    assert callbacks.event_order(trace).holds


def test_two_events_in_the_other_order_are_named(trace):
    trace.events[17], trace.events[18] = trace.events[18], trace.events[17]
    assert words(callbacks.event_order(trace)) == (
        "event 18 is save, expected evaluate, after epoch_end, prediction_step, log"
    )


@pytest.mark.parametrize("index", range(len(ORDER)))
def test_each_event_that_is_missing_is_seen(trace, index):
    del trace.events[index]
    assert "expected" in words(callbacks.event_order(trace))


def test_an_event_after_the_last_is_seen(trace):
    trace.events.append("save")
    assert words(callbacks.event_order(trace)) == "save comes after the last event"


def test_an_error_is_named_before_the_missing_events(trace):
    trace.error, trace.events = "ValueError: no", trace.events[:3]
    assert words(callbacks.event_order(trace)).startswith("the run ended with ValueError: no")


def test_events_of_a_resumed_run_start_in_the_epoch_of_the_checkpoint():
    spec = PLAIN.but(data={"rows": 8}, max_steps=4).resumed(3)
    assert list(callbacks.events(spec)).count("epoch_begin") == 1
    assert list(callbacks.events(spec)).count("step_begin") == 1


@pytest.mark.parametrize(
    ("changes", "number", "is_due"),
    [
        ({"logging_steps": 3}, 3, True),
        ({"logging_steps": 3}, 4, False),
        ({"logging_steps": 0.5}, 5, True),
        ({"logging_strategy": "epoch"}, 1, False),
    ],
)
def test_when_a_log_is_due(changes, number, is_due):
    assert callbacks.due(PLAIN.but(**changes), "logging", number) == is_due


# ---- early stopping ----

STOPPING = PLAIN.but(max_steps=20, metric_for_best_model="loss")


def stopped(step, metrics, spec=STOPPING):
    """Return a run of `step` steps that evaluates every second step, with these metrics."""
    trace = made_up(spec, steps=step)
    trace.evaluations = [Evaluation(2 * n, [], {"eval_loss": value}) for n, value in enumerate(metrics, start=1)]
    return trace


def test_three_equal_evaluations_spend_a_patience_of_two():
    assert callbacks.stops_early(stopped(6, [5.0, 5.0, 5.0]), 2).holds


@pytest.mark.parametrize("step", [4, 8])
def test_stopping_early_or_late_is_named(step):
    sentences = words(callbacks.stops_early(stopped(step, [5.0, 5.0, 5.0, 5.0]), 2))
    assert sentences.startswith(
        f"the last step is {step}, expected 6: patience is 2, the count 0 at step 2, 1 at step 4"
    )


def test_a_gain_of_the_threshold_is_none():
    assert callbacks.stops_early(stopped(6, [5.0, 4.5, 4.0]), 2, threshold=0.5).holds
    assert callbacks.stops_early(stopped(8, [5.0, 4.25, 3.75, 3.25]), 2, threshold=0.5).holds


def test_greater_may_be_better():
    spec = STOPPING.but(greater_is_better=True)
    assert callbacks.stops_early(stopped(6, [5.0, 4.0, 3.0], spec), 2).holds


def test_a_resumed_run_counts_from_zero_or_goes_on():
    whole = stopped(8, [5.0] * 4)
    resumed = stopped(10, [], STOPPING.resumed(4))
    resumed.evaluations = [Evaluation(step, [], {"eval_loss": 5.0}) for step in (6, 8, 10)]
    assert callbacks.stops_early(resumed, 3, before=whole).holds
    assert "the last step is 10, expected 8" in words(
        callbacks.stops_early(resumed, 3, before=whole, counter_restored=True)
    )


def checkpoint(step, states):
    return Checkpoint(step, "", {}, {}, {}, {"stateful_callbacks": {"EarlyStoppingCallback": states}}, [step])


def state(counter):
    return {"args": {}, "attributes": {"early_stopping_patience_counter": counter}}


def test_a_counter_that_was_saved_wrong_is_named():
    trace = stopped(6, [5.0, 5.0, 5.0])
    trace.checkpoints = [checkpoint(4, state(0))]
    assert "checkpoint-4: the counter is 0, expected 1" in words(callbacks.stops_early(trace, 2))


def test_stopping_elsewhere_is_named():
    assert callbacks.stops_at(stopped(6, []), 6).holds
    assert words(callbacks.stops_at(stopped(6, []), 8)) == "the run stopped at step 6, expected 8"


# ---- saved states, and arguments of callbacks ----


def test_states_in_their_order_hold():
    assert callbacks.states_saved(
        checkpoint(4, [state(1), state(2)]), "EarlyStoppingCallback", [state(1), state(2)]
    ).holds
    assert callbacks.states_saved(checkpoint(4, state(1)), "EarlyStoppingCallback", [state(1)]).holds


def test_states_besides_and_in_another_order_are_named():
    sentences = words(
        callbacks.states_saved(checkpoint(4, [state(2), state(1), state(1)]), "EarlyStoppingCallback", [state(1)] * 2)
    )
    assert "holds 3 states of EarlyStoppingCallback, expected 2" in sentences
    assert "state 1 of EarlyStoppingCallback is" in sentences


def test_another_object_and_a_wrapper_are_told_apart():
    model, wrapper = SimpleNamespace(), Path()
    assert callbacks.given_to_callbacks([("step_end", {"model": model})], {"model": model}).holds
    sentences = words(callbacks.given_to_callbacks([("step_end", {"model": wrapper})], {"model": model}))
    assert "at 1 of 1 events, step_end first; expected the run's SimpleNamespace" in sentences
    assert "another SimpleNamespace" in words(
        callbacks.given_to_callbacks([("log", {"model": SimpleNamespace()})], {"model": model})
    )


def test_no_event_is_no_pass():
    assert not callbacks.given_to_callbacks([], {}).holds
