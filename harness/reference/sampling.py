"""In which order rows are read: train_sampling_strategy. trainer.py:_get_train_sampler, _get_eval_sampler."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from harness.reference import batches
from harness.reference.settings import Arguments


def lengths(rows: Any) -> list[int]:
    """Return the number of tokens of each row, padding included."""
    return [len(rows[index]["input_ids"]) for index in range(len(rows))]


def grouped(lengths: Sequence[int], size: int, generator: torch.Generator | None) -> list[int]:
    """Return an order in which rows of about the same length stand together. trainer_pt_utils.py:get_length_grouped_indices.

    The rows are shuffled and cut into blocks of 50 batches (of fewer, if there are not four blocks then). Each block is
    sorted, the longest row first. The longest row of all changes places with the first, so that a run whose memory does
    not suffice fails at once.

    - size: rows of a batch. generator: None draws from torch's global random state
    """
    block = size * (min(len(lengths) // (size * 4), 50) or 1)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    blocks = [
        sorted(order[start : start + block], key=lambda row: lengths[row], reverse=True)
        for start in range(0, len(order), block)
    ]
    longest = max(range(len(blocks)), key=lambda number: lengths[blocks[number][0]])
    blocks[0][0], blocks[longest][0] = blocks[longest][0], blocks[0][0]
    return [row for rows in blocks for row in rows]


def training(args: Arguments, rows: Any, epoch: int) -> Iterator[int]:
    """Yield the rows of an epoch. By length, they are drawn from the global state when the first one is asked for.

    A shuffle depends on seed and epoch only, so a resumed run can repeat it. An order by length cannot be repeated.
    """
    if args.train_sampling_strategy == "random":
        yield from batches.shuffled(len(rows), epoch + (args.seed if args.data_seed is None else args.data_seed))
    elif args.train_sampling_strategy == "sequential":
        yield from range(len(rows))
    else:
        size = args.per_device_train_batch_size * args.gradient_accumulation_steps
        yield from grouped(lengths(rows), size, None)


def evaluation(args: Arguments, rows: Any) -> Sequence[int]:
    """Return the rows of an evaluation: in order, or by length in the same order each time."""
    if args.train_sampling_strategy != "group_by_length":
        return range(len(rows))
    seed = args.seed if args.data_seed is None else args.data_seed
    return grouped(lengths(rows), args.per_device_eval_batch_size, torch.Generator().manual_seed(seed))
