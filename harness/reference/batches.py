"""Which rows go into which batch, and what of that draws from torch's global random state."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

Batch = dict[str, torch.Tensor]


def batches(order: Sequence[int], size: int, drop_last: bool) -> list[Sequence[int]]:
    """Consecutive slices of `size` rows; a short last one is left out if `drop_last`."""
    cut = [order[start : start + size] for start in range(0, len(order), size)]
    return [rows for rows in cut if len(rows) == size or not drop_last]


def shuffled(rows: int, seed: int) -> list[int]:
    """The order of an epoch, from a generator of its own; seed: the run's plus the epoch's number.

    accelerate/data_loader.py:SeedableRandomSampler.
    """
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist()


def load(dataset: Any, indices: list[Sequence[int]], device: str) -> Iterator[Batch]:
    """The batches of those rows on `device`, each column stacked: int64 (rows, length).

    A DataLoader draws a number when its iteration starts, to seed workers that it may not have: an evaluation changes
    the dropout masks after it (torch/utils/data/dataloader.py:_BaseDataLoaderIter). accelerate reads one batch ahead
    (data_loader.py:DataLoaderShard), which shows where the rows draw as well.
    """
    torch.empty((), dtype=torch.int64).random_()
    ahead = None
    for rows in indices:
        items = [dataset[index] for index in rows]
        batch, ahead = ahead, {key: torch.stack([item[key] for item in items]).to(device) for key in items[0]}
        if batch is not None:
            yield batch
    if ahead is not None:
        yield ahead
