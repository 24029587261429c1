"""Tests of harness/laws/plan.py: the plans of specs, on examples counted by hand."""

from typing import Any, cast

import pytest

from harness.laws.plan import NotModelled, if_planned, never_ends, plan
from harness.runs.scenarios import PLAIN, spread
from harness.verdict import NOT_COMPARABLE


@pytest.mark.parametrize(
    ("changes", "rows", "expected"),
    [
        ({}, 40, (10, 1, 0)),
        ({"max_steps": 25}, 40, (25, 3, 0)),
        ({"max_steps": None, "num_train_epochs": 1.5}, 40, (15, 2, 0)),
        ({"max_steps": None, "num_train_epochs": 1.5}, 37, (15, 2, 0)),
        ({"max_steps": None, "num_train_epochs": 1, "dataloader_drop_last": True}, 37, (9, 1, 0)),
        ({"max_steps": None, "gradient_accumulation_steps": 4}, 37, (9, 3, 0)),
        ({"max_steps": 4, "gradient_accumulation_steps": 4}, 7, (4, 4, 0)),
        ({"warmup_steps": 3}, 40, (10, 1, 3)),
        ({"warmup_steps": 0.25}, 40, (10, 1, 3)),
        ({"warmup_steps": 1}, 40, (10, 1, 1)),
    ],
)
def test_the_plan_is_what_a_person_counts(changes, rows, expected):
    planned = plan(PLAIN.but(data={"rows": rows}, **changes))
    assert (planned.total, planned.epochs, planned.warmup) == expected


def test_the_last_window_and_the_last_batch_of_an_epoch_are_short():
    planned = plan(PLAIN.but(data={"rows": 37}, gradient_accumulation_steps=4))
    assert planned.windows == (4, 4, 2)
    assert [planned.row_counts(number) for number in (1, 3, 4)] == [[4] * 4, [4, 1], [4] * 4]
    assert [planned.epoch(number) for number in (1, 3, 4)] == [0.4, 1.0, 1.4]


def of_ranks(ranks, **changes):
    """Return the plan of ten rows in batches of two on some ranks."""
    spec = PLAIN.but(data={"rows": 10}, per_device_train_batch_size=2, launch={"strategy": "ddp", "ranks": ranks})
    return plan(spec.but(**changes))


@pytest.mark.parametrize(
    ("ranks", "changes", "batches"),
    [
        (2, {}, (4, 4, 4)),
        (2, {"dataloader_drop_last": True}, (4, 4)),
        (3, {}, (6, 6)),
        (3, {"accelerator_config": {"dispatch_batches": True}}, (6, 6)),
        (2, {"accelerator_config": {"dispatch_batches": True}}, (4, 4, 2)),
        (2, {"accelerator_config": {"split_batches": True}}, (2,) * 5),
        (2, {"accelerator_config": {"split_batches": True}, "per_device_train_batch_size": 4}, (4, 4, 4)),
        (3, {"accelerator_config": {"split_batches": True}, "per_device_train_batch_size": 6}, (6, 6)),
        (1, {"accelerator_config": {"split_batches": True}}, (2,) * 5),
        (2, {"accelerator_config": {"even_batches": False}, "data": {"rows": 11}}, (4, 4, 3)),
        (2, {"data": {"iterable": True}}, (4, 4, 2)),
        (2, {"data": {"iterable": True}, "accelerator_config": {"dispatch_batches": False}}, (4, 4, 4)),
        (2, {"data": {"iterable": True}, "dataloader_drop_last": True}, (4, 4, 2)),
        (1, {"data": {"iterable": True}, "dataloader_num_workers": 2}, (2,) * 10),
    ],
)
def test_an_epoch_has_the_rows_of_all_ranks(ranks, changes, batches):
    if changes.get("accelerator_config", {}).get("even_batches") is False:
        # Eleven rows are six batches, of which each of two ranks gets three.
        assert of_ranks(ranks, **changes).batches == batches
        return
    assert of_ranks(ranks, **changes).batches == batches


def test_a_dataset_without_length_counts_passes():
    planned = of_ranks(1, data={"rows": 8, "iterable": True}, max_steps=6)
    assert (planned.windows, planned.total, planned.epochs) == ((1, 1, 1, 1), 6, 2)
    assert [planned.epoch(number) for number in (1, 4, 5)] == pytest.approx([1 / 6, 4 / 6, 1 + 1 / 6])
    assert not planned.leftover


def test_a_short_window_at_the_end_of_a_pass_is_said():
    spec = PLAIN.but(data={"rows": 10, "iterable": True}, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert plan(spec).leftover
    assert never_ends(spec) is None
    assert "5 micro-batches, and a step needs 6" in never_ends(spec.but(gradient_accumulation_steps=6))
    assert never_ends(spec.but(gradient_accumulation_steps=5)) is None
    assert never_ends(spec.but(data={"iterable": False}, gradient_accumulation_steps=6)) is None


def test_accelerates_name_for_the_window_is_read():
    spec = PLAIN.but(accelerator_config={"gradient_accumulation_kwargs": {"num_steps": 4}})
    assert plan(spec).windows == (4, 4, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"iterable": True}, "max_steps": None}, "needs max_steps"),
        ({"data": {"rows": 3}, "dataloader_drop_last": True}, "an epoch has no batch"),
        ({"train_sampling_strategy": "batch_rebalance"}, "batch_rebalance"),
        ({"accelerator_config": "accelerator.json"}, "accelerator_config is a file"),
        ({"data": {"rows": 10}, "accelerator_config": {"even_batches": False}}, "different numbers of batches"),
        (
            {"accelerator_config": {"split_batches": True}, "per_device_train_batch_size": 3},
            "cannot split batches of 3",
        ),
        ({"data": {"rows": 1, "iterable": True}}, "1 rows are too few to dispatch to 2 ranks"),
    ],
)
def test_what_is_not_modelled_is_said_and_never_guessed(changes, words):
    spec = spread(PLAIN, "ddp").but(**changes)
    if changes.get("data") == {"rows": 10}:
        spec = spec.but(per_device_train_batch_size=2)
    with pytest.raises(NotModelled, match=words):
        plan(spec)
    judged = if_planned(cast(Any, plan))(spec)
    assert judged.outcome == NOT_COMPARABLE
    assert words in judged.seen[0]
