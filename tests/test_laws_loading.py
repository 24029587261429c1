"""Tests of harness/laws/loading.py: each rank's places of an epoch, worked out by hand from accelerate's documentation."""

import pytest

from harness.laws.loading import Loading, NotModelled, loading, shares
from harness.runs.scenarios import PLAIN


def of(rows, size, ranks=2, **fields):
    """Return each rank's batches as text: "01 45" is a batch of places 0 and 1, then one of 4 and 5."""
    found = shares(Loading(rows=rows, size=size, ranks=ranks, **fields))
    return ["".join(" " + "".join(format(place, "x") for place in batch) for batch in one)[1:] for one in found]


STREAM = {"iterable": True}
SENT = {"dispatch": True}


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        # One process.
        (of(5, 2, 1), ["01 23 4"]),
        (of(5, 2, 1, drop_last=True), ["01 23"]),
        (of(4, 2, 1, iterable=True, workers=2), ["01 01 23 23"]),
        # Dealt: the example of BatchSamplerShard's documentation, then rows that do not divide.
        (of(8, 4), ["0123", "4567"]),
        (of(10, 2), ["01 45 89", "23 67 01"]),
        (of(9, 2), ["01 45 80", "23 67 12"]),
        (of(10, 2, drop_last=True), ["01 45", "23 67"]),
        (of(9, 2, drop_last=True), ["01 45", "23 67"]),
        (of(10, 2, even=False), ["01 45 89", "23 67"]),
        (of(9, 2, even=False), ["01 45 8", "23 67"]),
        (of(10, 2, 3), ["01 67", "23 89", "45 01"]),
        (of(3, 2, 3), ["01", "20", "12"]),
        # Split: the other example, then rows that do not divide.
        (of(8, 4, split=True), ["01 45", "23 67"]),
        (of(10, 4, split=True), ["01 45 89", "23 67 01"]),
        (of(9, 4, split=True), ["01 45 80", "23 67 12"]),
        (of(10, 4, split=True, drop_last=True), ["01 45", "23 67"]),
        (of(9, 4, split=True, even=False), ["01 45 8", "23 67"]),
        (of(11, 4, split=True, even=False), ["01 45 89", "23 67 a"]),
        # Dispatched: a last round that does not divide has one more row a rank, taken from the start.
        (of(8, 2, **SENT), ["01 45", "23 67"]),
        (of(10, 2, **SENT), ["01 45 8", "23 67 9"]),
        (of(9, 2, **SENT), ["01 45 8", "23 67 0"]),
        (of(11, 2, **SENT), ["01 45 89", "23 67 a0"]),
        (of(10, 2, drop_last=True, **SENT), ["01 45", "23 67"]),
        (of(10, 2, 3, **SENT), ["01 67", "23 89", "45 01"]),
        (of(10, 4, split=True, **SENT), ["01 45 8", "23 67 9"]),
        # A stream that each rank reads: the examples of IterableDatasetShard, then rows that do not divide.
        (of(8, 4, **STREAM), ["0123", "4567"]),
        (of(8, 4, split=True, **STREAM), ["01 45", "23 67"]),
        (of(9, 2, **STREAM), ["01 45 80", "23 67 12"]),
        (of(3, 2, **STREAM), ["01", "20"]),
        (of(8, 2, workers=2, **STREAM), ["01 01 45 45", "23 23 67 67"]),
        (of(8, 2, workers=2, **STREAM, **SENT), ["01 23 45 67", "01 23 45 67"]),
    ],
)
def test_each_rank_has_the_places_that_accelerate_documents(seen, expected):
    assert seen == expected


def test_all_places_are_trained_and_only_fill_is_trained_twice():
    for rows in range(6, 20):
        for ranks in (1, 2, 3):
            for fields in ({}, {"dispatch": ranks > 1}, {"iterable": True}):
                places = [p for one in shares(Loading(rows, 2, ranks=ranks, **fields)) for batch in one for p in batch]
                assert sorted(set(places)) == list(range(rows))
                assert len(places) < rows + 2 * ranks


def test_a_spec_says_how_its_rows_are_loaded():
    ranks = {"strategy": "ddp", "ranks": 2}
    assert loading(PLAIN) == Loading(rows=40, size=4)
    assert loading(PLAIN.but(launch=ranks, data={"iterable": True}, dataloader_drop_last=True)) == Loading(
        rows=40, size=4, ranks=2, iterable=True, dispatch=True
    )
    config = {"split_batches": True, "dispatch_batches": None, "even_batches": False}
    assert loading(PLAIN.but(launch=ranks, accelerator_config=config)) == Loading(
        rows=40, size=4, ranks=2, split=True, even=False
    )
    # One process shares with nobody.
    assert loading(PLAIN.but(accelerator_config={"split_batches": True, "dispatch_batches": True})) == Loading(40, 4)


def test_what_a_spec_does_not_say_is_not_modelled():
    spec = PLAIN.but(launch={"strategy": "ddp", "ranks": 2}, data={"rows": 9, "iterable": True})
    with pytest.raises(NotModelled, match="each dataloader worker ends"):
        loading(spec.but(dataloader_num_workers=2))
    with pytest.raises(NotModelled, match="takes the batch size of the checkpoint"):
        loading(PLAIN.but(auto_find_batch_size=True).resumed(2))
