"""Which rows a batch holds is told from its tokens: padded on either side, cut to the longest row, packed, or not at all."""

import pytest
import torch

from harness.laws.universal import left_out
from harness.runs.scenarios import PLAIN
from harness.subjects.rows import Rows, unclear
from tests import traces

#: Row 2 begins as row 0, and row 3 has a token 0 that is no padding.
ROWS = [
    {"input_ids": [5, 6, 0, 0, 0], "attention_mask": [1, 1, 0, 0, 0]},
    {"input_ids": [7, 8, 9, 0, 0], "attention_mask": [1, 1, 1, 0, 0]},
    {"input_ids": [5, 6, 7, 8, 0], "attention_mask": [1, 1, 1, 1, 0]},
    {"input_ids": [3, 0, 4, 0, 0], "attention_mask": [1, 1, 1, 0, 0]},
]


@pytest.mark.parametrize(
    ("tokens", "mask", "positions", "expected"),
    [
        ([[5, 6, 0, 0, 0], [7, 8, 9, 0, 0]], None, None, [0, 1]),
        ([[5, 6, 0], [7, 8, 9]], None, None, [0, 1]),
        ([[0, 5, 6], [7, 8, 9]], [[0, 1, 1], [1, 1, 1]], None, [0, 1]),
        ([[3, 0, 4, 0]], [[1, 1, 1, 0]], None, [3]),
        ([[5, 6, 7, 8, 9]], None, [[0, 1, 0, 1, 2]], [0, 1]),
        ([[5, 6, 7, 8, 5, 6, 0]], None, [[0, 1, 2, 3, 0, 1, 0]], [2, 0]),
        ([[7, 8, 9, 5, 6, 3, 0, 4, 0]], None, None, [1, 0, 3]),
        ([[5, 6, 7, 8, 7, 8, 9]], None, None, [2, 1]),
        # No rows: a token was changed, lost, or joined to another row.
        ([[5, 7, 0]], None, None, [-1]),
        ([[5, 6, 7]], None, [[0, 1, 0]], [-1]),
        ([[5, 6, 8, 7, 8, 9]], None, None, [-1]),
        ([[0, 0, 0]], None, None, [-1]),
    ],
)
def test_rows_are_told_from_their_tokens(tokens, mask, positions, expected):
    tensors = [None if each is None else torch.tensor(each) for each in (tokens, mask, positions)]
    assert Rows(ROWS).of(*tensors) == expected


def test_the_last_token_of_augmented_rows_does_not_count():
    rows = Rows([{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}], augmented=True)
    assert rows.of(torch.tensor([[5, 6, 99]]), torch.ones(1, 3)) == [0]
    assert rows.of(torch.tensor([[5, 7, 7]]), torch.ones(1, 3)) == [-1]


def trace_of(spec, rows):
    trace = traces.made_up(steps=1)
    trace.spec, trace.steps[0].batches[0].rows = spec, rows
    return trace


def test_rows_that_are_alike_cannot_be_told(tmp_path):
    line = '{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}\n'
    (tmp_path / "rows.jsonl").write_text(line + line + '{"input_ids": [1, 2, 4], "labels": [1, 2, 4]}\n')
    spec = PLAIN.but(data={"path": str(tmp_path / "rows.jsonl"), "rows": 3})
    assert "same tokens" in unclear(trace_of(spec, [0, 1]))
    assert unclear(trace_of(PLAIN, [0, 1])) is None
    cut = PLAIN.but(data={"rows": 40, "vocab_size": 5, "max_length": 2})
    assert "same tokens" in unclear(trace_of(cut, [0]))
    assert unclear(trace_of(PLAIN.but(data={"max_length": 12}), [0])) is None


def test_laws_about_rows_say_that_they_cannot_be_told():
    reasons = left_out(trace_of(PLAIN.but(data={"rows": 40, "vocab_size": 5, "max_length": 2}), [0, 1]))
    assert {"ACC-02", "LOSS-01", "RNG-02"} <= set(reasons)
    assert "same tokens" in reasons["LOSS-01"]
    assert not {"ACC-02", "LOSS-01", "RNG-02"} & set(left_out(trace_of(PLAIN, [0, 1])))


def test_a_collator_of_the_user_may_change_tokens():
    mine = PLAIN.but(trainer={"data_collator": "mine:masked"})
    assert "'mine:masked' changes tokens" in unclear(trace_of(mine, [-1]))
    assert unclear(trace_of(mine, [0])) is None
    # A collator of the harness changes none: an unknown row is a fault of the run.
    assert unclear(trace_of(PLAIN.but(trainer={"data_collator": "harness.fixtures.collators:packed"}), [-1])) is None
