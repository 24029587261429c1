"""Which rows of the data a batch holds, told from its tokens: padded, cut to the longest of the batch, or packed.

Upstream's collators pad each batch to its own longest row, on either side, or put several rows into one sequence. A row is
therefore known by its tokens without padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from harness import spec_fields
from harness.fixtures import data
from harness.trace import Trace

if TYPE_CHECKING:
    import torch


class Rows:
    """The rows of a run, by their tokens.

    - rows: dicts of `input_ids` and `attention_mask` (`harness.fixtures.data`).
    - augmented: whether the last token of the padded row changes at every access, so that the others must do.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], augmented: bool = False):
        # An augmented row is cut at its full length, padding included: the token that changes stands there.
        self._fixed = slice(None, -1) if augmented else slice(None)
        self._index: dict[tuple[int, ...], int] = {}
        rows = list(rows)
        for index, row in enumerate(rows):
            self._index[self._key(row["input_ids"], row.get("attention_mask"))] = index
        #: Labels -> the rows that have them. Rows with the same tokens count as one.
        self._labels: dict[tuple[int, ...], list[int]] = {}
        for row in rows:
            index = self._index[self._key(row["input_ids"], row.get("attention_mask"))]
            self._labels.setdefault(_predicted(row.get("labels")), []).append(index)
        #: Lengths of rows, the longest first.
        self._lengths = sorted({len(key) for key in self._index}, reverse=True)

    def of(
        self, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None, position_ids: torch.Tensor | None = None
    ) -> list[int]:
        """Return the index of each row in a batch, in order; -1 for each sequence that holds what is no row.

        - tokens: (sequences, length), the input_ids.
        - attention_mask: of the same shape, 0 at padding; None or another shape if nothing says where padding is.
        - position_ids: of the same shape if rows are packed: each row begins where they begin anew.
        """
        masks, positions = _listed(attention_mask, tokens), _listed(position_ids, tokens)
        found: list[int] = []
        for row, mask, places in zip(tokens.tolist(), masks, positions, strict=True):
            index = self._index.get(self._key(row, mask))
            found += [index] if index is not None else self._packed(row, places)
        return found

    def labelled(self, labels: torch.Tensor, rows: Sequence[int]) -> list[int]:
        """Return for each row of a batch the row whose labels it has: itself, if it may be; -1 for labels of no row.

        - labels: of the batch.
        - rows: what `of` returned for it.
        """
        if len(rows) != len(labels):
            return [-1] * len(rows)  # packed
        found = []
        for row, given in zip(rows, labels.tolist(), strict=True):
            owners = self._labels.get(_predicted(given), [])
            found.append(row if row in owners else next(iter(owners), -1))
        return found

    def __len__(self) -> int:
        """The number of rows that differ."""
        return len(self._index)

    def _key(self, tokens: Sequence[int], mask: Sequence[int] | None) -> tuple[int, ...]:
        tokens = tokens[self._fixed]
        if mask is not None:
            tokens = [token for token, shown in zip(tokens, mask[self._fixed], strict=True) if shown]
        return _stripped(tokens)

    def _packed(self, tokens: list[int], positions: list[int] | None) -> list[int]:
        """Return the rows that were put one after the other into a sequence; [-1] if it is not made of rows alone."""
        if positions is not None:
            starts = [0, *(at for at in range(1, len(tokens)) if positions[at] != positions[at - 1] + 1), len(tokens)]
            pieces = [_stripped(tokens[start:end]) for start, end in itertools.pairwise(starts)]
            found = [self._index.get(piece, -1) for piece in pieces if piece]
        else:
            found = self._cut(list(_stripped(tokens)))
        return found if found and -1 not in found else [-1]

    def _cut(self, tokens: list[int]) -> list[int]:
        """Cut a sequence into rows, the longest that fits at each place."""
        found, at = [], 0
        while at < len(tokens):
            fitting = (length for length in self._lengths if tuple(tokens[at : at + length]) in self._index)
            length = next(fitting, 0)
            if not length:
                return [-1]
            found.append(self._index[tuple(tokens[at : at + length])])
            at += length
        return found


def unclear(trace: Trace) -> str | None:
    """Return why it cannot be told which rows the batches of a run held; None if it can.

    - Two rows have the same tokens, such as two lines of a file, or two rows that max_length has cut.
    - A collator that is not the harness's changes the tokens.
    """
    spec = trace.spec
    made = [row for part in data.rows(spec.data) for row in part]
    if len(Rows(made, spec.data.augment)) < len(made):
        return "rows of the data have the same tokens, so batches do not tell which of them they held"
    collator = spec_fields.named(spec.trainer.get("data_collator"))
    changed = any(-1 in batch.rows for step in trace.steps for batch in step.batches)
    if changed and collator is not None and not collator[0].startswith("harness.fixtures."):
        return f"data_collator {collator[0]!r} changes tokens, so batches do not tell which rows they held"
    return None


def _listed(tensor: torch.Tensor | None, tokens: torch.Tensor) -> list[Any]:
    """Return a tensor as a list for each sequence; None for each if there is none of the tokens' shape."""
    if tensor is None or tensor.shape != tokens.shape:
        return [None] * len(tokens)
    listed: list[Any] = tensor.tolist()
    return listed


def _predicted(labels: Any) -> tuple[int, ...]:
    """Return labels without those that are ignored at either end. labels: a list, or the one label of a classified row."""
    given = labels if isinstance(labels, list) else [] if labels is None else [labels]
    start, end = 0, len(given)
    while end > start and given[end - 1] == data.IGNORED:
        end -= 1
    while start < end and given[start] == data.IGNORED:
        start += 1
    return tuple(given[start:end])


def _stripped(tokens: Sequence[int]) -> tuple[int, ...]:
    """Return tokens without the padding at either end."""
    start, end = 0, len(tokens)
    while end > start and tokens[end - 1] == data.PAD:
        end -= 1
    while start < end and tokens[start] == data.PAD:
        start += 1
    return tuple(tokens[start:end])
