"""Tests of harness/laws/data_order.py: the order of rows, worked out by hand, and faults in it, each named."""

import pytest
import torch

from harness.laws import data_order
from harness.laws.loading import NotModelled
from harness.runs.scenarios import PLAIN, continued
from harness.verdict import NOT_COMPARABLE
from tests.traces import A, made_up

SPEC = PLAIN.but(data={"rows": 8}, per_device_train_batch_size=2, max_steps=6)


def in_order(spec=SPEC, steps=6, first=1):
    """Return a made-up trace whose steps train the rows that follow from the spec."""
    trace = made_up(spec, steps=steps)
    for number, step in enumerate(trace.steps, start=first):
        step.number = number
        batch = step.batches[0]
        step.batches = [type(batch)(rows, tokens=30, loss=5.0) for rows in data_order.expected_rows(spec, number)]
    return trace


def test_an_epoch_is_a_permutation_seeded_with_seed_plus_epoch():
    for epoch in (0, 1, 2):
        expected = torch.randperm(8, generator=torch.Generator().manual_seed(42 + epoch)).tolist()
        assert list(data_order.epoch_order(SPEC, epoch)) == expected
    assert data_order.epoch_order(SPEC.but(data_seed=43), 0) == data_order.epoch_order(SPEC, 1)
    assert data_order.epoch_order(SPEC.but(data_seed=0), 0) != data_order.epoch_order(SPEC, 0)
    assert data_order.epoch_order(SPEC.but(train_sampling_strategy="sequential"), 1) == tuple(range(8))
    assert data_order.epoch_order(SPEC.but(data={"iterable": True}), 1) == tuple(range(8))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_sampling_strategy": "group_by_length"}, "group_by_length"),
        ({"accelerator_config": {"use_seedable_sampler": False}}, "use_seedable_sampler"),
    ],
)
def test_an_order_that_the_spec_does_not_give_is_not_guessed(changes, words):
    with pytest.raises(NotModelled, match=words):
        data_order.epoch_order(SPEC.but(**changes), 0)
    verdict = data_order.follows_seed(made_up(SPEC.but(**changes)))
    assert verdict.outcome == NOT_COMPARABLE
    assert words in verdict.seen[0]


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, [[2], [2], [2], [2]]),
        ({"data": {"rows": 7}}, [[2], [2], [2], [1]]),
        ({"data": {"rows": 7}, "dataloader_drop_last": True}, [[2], [2], [2]]),
        ({"gradient_accumulation_steps": 3}, [[2, 2, 2], [2]]),
        ({"data": {"rows": 9}, "gradient_accumulation_steps": 4}, [[2, 2, 2, 2], [1]]),
    ],
)
def test_steps_of_an_epoch_are_consecutive_slices_of_it(changes, sizes):
    spec = SPEC.but(**changes)
    assert data_order.steps_per_epoch(spec) == len(sizes)
    steps = [data_order.expected_rows(spec, number) for number in range(1, len(sizes) + 1)]
    assert [[len(batch) for batch in step] for step in steps] == sizes
    rows = [row for step in steps for batch in step for row in batch]
    assert rows == list(data_order.epoch_order(spec, 0))[: len(rows)]
    # The next step is the first of the next epoch.
    assert data_order.expected_rows(spec, len(sizes) + 1)[0] == list(data_order.epoch_order(spec, 1))[:2]


def test_a_run_in_order_holds_resumed_or_not():
    assert data_order.follows_seed(in_order()).holds
    assert data_order.follows_seed(in_order(continued(SPEC, 3), steps=3, first=4)).holds
    assert data_order.follows_seed(in_order(SPEC.but(gradient_accumulation_steps=3))).holds


def _swap(trace):
    batch = trace.steps[1].batches[0]
    batch.rows = batch.rows[::-1]


def _epoch_0_again(trace):
    trace.steps[4].batches = trace.steps[0].batches


def _one_short(trace):
    trace.steps[2].batches[0].rows.pop()


def _unknown_row(trace):
    trace.steps[5].batches[0].rows[0] = -1


def _crash(trace):
    trace.error = "ValueError: no"


def _nothing(trace):
    trace.steps = []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_swap, "step 2: trained rows"),
        (_epoch_0_again, "step 5: trained rows"),
        (_one_short, "step 3: trained rows"),
        (_unknown_row, "step 6: trained rows [[-1,"),
        (_crash, "the run ended with ValueError: no"),
        (_nothing, "made no optimizer step"),
    ],
)
def test_leaving_the_order_is_seen_and_named(change, words):
    trace = in_order()
    change(trace)
    verdict = data_order.follows_seed(trace)
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


@pytest.mark.parametrize(("checkpoint", "first"), [(2, 1), (5, 5)])
def test_with_ignore_data_skip_the_epoch_of_the_checkpoint_starts_again(checkpoint, first):
    plain = in_order(steps=6)
    trace = made_up(continued(SPEC.but(ignore_data_skip=True), checkpoint), steps=6)
    trace.steps = trace.steps[checkpoint:]
    for index, step in enumerate(trace.steps):
        rows = data_order.expected_rows(SPEC, first + index)
        step.batches = [type(batch)(one, tokens=30) for batch, one in zip(step.batches, rows, strict=True)]
    assert data_order.follows_seed(trace).holds
    trace.steps[0].batches = plain.steps[checkpoint].batches
    assert data_order.follows_seed(trace).holds == (plain.rows[checkpoint] == plain.rows[first - 1])


def test_other_draws_wants_other_dropout_on_the_same_rows():
    noisy = made_up()
    noisy.steps[0].gradients[A][0, 0] += 1e-3
    assert data_order.other_draws(noisy, made_up()).holds
    assert "the same gradients" in data_order.other_draws(made_up(), made_up()).seen[0]
    noisy.steps[0].batches[0].rows = [1, 0]
    assert "rows of step 1: [[1, 0]]" in data_order.other_draws(noisy, made_up()).seen[0]


def test_one_draw_each_counts_draws():
    torch.manual_seed(42)
    for _ in range(3):
        torch.empty((), dtype=torch.int64).random_()
    assert data_order.one_draw_each(torch.get_rng_state(), seed=42, passes=3).holds
    torch.rand(1)
    verdict = data_order.one_draw_each(torch.get_rng_state(), seed=42, passes=3)
    assert verdict.seen == ("the generator is not where 3 draws since seed 42 leave it",)
