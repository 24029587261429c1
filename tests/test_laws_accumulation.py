"""Tests of harness/laws/accumulation.py on made-up traces: each law holds, and each fault is found and named."""

import copy

import pytest

from harness.laws import accumulation
from harness.runs.scenarios import PLAIN
from harness.trace import MicroBatch
from tests.traces import A, made_up

SMALL = PLAIN.but(data={"rows": 7}, per_device_train_batch_size=2, gradient_accumulation_steps=3, max_steps=3)
#: Seven rows in batches of two: an epoch has a window of three batches and one of one. The third step is in the second
#: epoch.
ROWS = [[[0, 1], [2, 3], [4, 5]], [[6]], [[0, 1], [2, 3], [4, 5]]]
WINDOW = ["step_begin", "substep_end", "substep_end", "pre_optimizer_step", "optimizer_step", "step_end"]
SHORT = ["step_begin", "pre_optimizer_step", "optimizer_step", "step_end"]


def accumulated():
    """Return a trace of SMALL whose losses are shares of a mean, with the events of its windows."""
    trace = made_up(SMALL, steps=3)
    for step, rows in zip(trace.steps, ROWS, strict=True):
        total = step.batches[0].loss
        step.batches = [MicroBatch(batch, 15 * len(batch), 75.0, total / len(rows)) for batch in rows]
    trace.events = ["train_begin", "epoch_begin", *WINDOW, "log", *SHORT, "epoch_end", "epoch_begin", *WINDOW]
    return trace


def large():
    trace = accumulated()
    for step in trace.steps:
        step.batches = [MicroBatch([row for batch in step.batches for row in batch.rows], tokens=0)]
    return trace


def test_the_same_rows_in_smaller_batches_are_the_same_run():
    assert accumulation.same_split(accumulated(), large()).holds


def _gradient(trace):
    step = trace.steps[1]
    step.gradients = {name: g * 0.25 for name, g in step.gradients.items()}


def _rows(trace):
    trace.steps[0].batches[1].rows = [2, 6]


def _loss(trace):
    trace.log_history[2]["loss"] *= 4


def _adapter(trace):
    trace.adapter[A] += 1e-1


def _short(trace):
    trace.steps.pop()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_gradient, "step 2: the gradient is 0.25 times that of the large batch"),
        (_rows, "step 1: trained rows [0, 1, 2, 6, 4, 5], expected [0, 1, 2, 3, 4, 5]"),
        (_loss, "step 3: logged loss"),
        (_adapter, f"adapter at the end: {A} differs by 0.1"),
        (_short, "2 optimizer steps, expected 3, as with large batches"),
    ],
)
def test_another_split_that_trains_otherwise_is_seen(change, words):
    other = accumulated()
    change(other)
    verdict = accumulation.same_split(other, large())
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


def test_losses_logged_with_four_digits_may_differ_in_the_last():
    ours, theirs = accumulated(), large()
    for trace, last in ((ours, 0.0001), (theirs, 0.0)):
        trace.log_history[0]["loss"] = 5.4 + last
    assert accumulation.same_split(ours, theirs).holds
    ours.log_history[1]["loss"] += 1e-7  # no longer four digits: both are exact
    theirs.log_history[1]["loss"] += 1e-7
    assert not accumulation.same_split(ours, theirs).holds


def test_equal_first_gradients_mean_equal_dropout_masks():
    other = large()
    other.steps[0].gradients = {name: g + 0.01 for name, g in other.steps[0].gradients.items()}
    assert accumulation.draws_differ(accumulated(), other).holds
    assert "drew the same dropout masks, or none" in accumulation.draws_differ(accumulated(), large()).seen[0]


def test_windows_and_events_of_a_faultless_run_hold():
    assert accumulation.windows(accumulated()).holds
    assert accumulation.events(accumulated()).holds


def test_a_window_that_takes_from_the_next_epoch_is_seen():
    greedy = accumulated()
    greedy.steps[1].batches += [MicroBatch([0, 1], 30), MicroBatch([2, 3], 30)]
    assert accumulation.windows(greedy).seen == ("step 2: micro-batches of [1, 2, 2] rows, expected [1]",)


def test_a_dropped_last_window_is_seen():
    dropped = accumulated()
    del dropped.steps[1]
    assert "2 optimizer steps, expected 3" in accumulation.windows(dropped).seen


def _twice(events):
    events.insert(events.index("optimizer_step"), "optimizer_step")


def _no_substep(events):
    events.remove("substep_end")


def _after(events):
    events.append("optimizer_step")


@pytest.mark.parametrize(
    ("change", "words"),
    [(_twice, "step 1: events"), (_no_substep, "step 1: events"), (_after, "events after the last step")],
)
def test_a_step_that_happens_twice_or_not_is_seen(change, words):
    other = copy.deepcopy(accumulated())
    change(other.events)
    assert words in accumulation.events(other).seen[0]


def reordered():
    """Return a trace of SMALL over rows stored so that each window of the first epoch has its rows in reverse."""
    spec = accumulation.rows_reversed(SMALL.but(train_sampling_strategy="sequential"))
    trace = accumulated()
    trace.spec = spec
    return trace


def test_rows_are_reversed_within_each_window():
    assert reordered().spec.data.order == (5, 4, 3, 2, 1, 0, 6)


def test_the_order_of_a_windows_rows_does_not_matter():
    verdict = accumulation.same_windows(reordered(), accumulated())
    assert verdict.holds and verdict.measured["windows_reordered"] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_gradient, "step 2: gradient of"),
        (_rows, "step 1: trained rows [0, 1, 2, 3, 4, 5], expected [0, 1, 2, 4, 5, 6]"),
    ],
)
def test_a_window_that_its_order_changes_is_named(change, words):
    plain = accumulated()
    change(plain)
    verdict = accumulation.same_windows(reordered(), plain)
    assert not verdict.holds and words in "\n".join(verdict.seen)


def test_the_same_order_is_no_evidence():
    same = accumulated()
    same.spec = SMALL.but(data={"order": tuple(range(7))})
    assert accumulation.same_windows(same, accumulated()).seen == (
        "no window met its rows in another order, so nothing was compared",
    )


def test_short_batches_are_seen_where_none_may_be():
    trace = made_up()
    assert accumulation.whole_batches(trace).holds
    trace.steps[3].batches[0].rows = [6]
    assert accumulation.whole_batches(trace).seen == ("step 4: micro-batches of [1] rows, expected 2",)


def test_a_short_window_of_a_stream_must_make_a_step():
    spec = PLAIN.but(
        data={"rows": 3, "iterable": True}, per_device_train_batch_size=1, gradient_accumulation_steps=2, max_steps=2
    )
    trace = made_up(spec, steps=2)
    one, two = (type(trace.steps[0].batches[0])([row], tokens=15) for row in (0, 1))
    trace.steps[0].batches, trace.steps[1].batches = [one, two], [one]
    assert accumulation.windows(trace).holds
    trace.steps[1].batches = [one, one, two]
    assert accumulation.windows(trace).seen == ("step 2: micro-batches of [1, 1, 1] rows, expected [1]",)
    assert "ends in a short window" in accumulation.events(trace).seen[0]
