"""Which rows go into which batch, and which of these steps draw from torch's global random state."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch

Batch = dict[str, torch.Tensor]


def batches(order: Iterable[int], size: int, drop_last: bool) -> Iterator[list[int]]:
    """Yield slices of `size` rows. A short last slice is left out if `drop_last`."""
    rows = iter(order)
    while batch := list(islice(rows, size)):
        if len(batch) == size or not drop_last:
            yield batch


def shuffled(rows: int, seed: int) -> list[int]:
    """Return the order of `rows` rows. accelerate/data_loader.py:SeedableRandomSampler.

    It draws from a generator of its own, so shuffling does not change the dropout masks.
    """
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist()


def load(dataset: Any, indices: Iterable[list[int]], device: str) -> Iterator[Batch]:
    """Yield the batches on `device`. Each column is int64 of shape (rows, length)."""
    # torch's DataLoader draws one number when its iteration starts, to seed workers, even if it has none
    # (torch/utils/data/dataloader.py:_BaseDataLoaderIter). Dropout masks after an evaluation differ for that reason.
    torch.empty((), dtype=torch.int64).random_()
    # accelerate reads one batch ahead (data_loader.py:DataLoaderShard.__iter__). It matters if reading a row draws.
    read_ahead = None
    for rows in indices:
        items = [dataset[index] for index in rows]
        batch = {name: torch.stack([item[name] for item in items]).to(device) for name in items[0]}
        if read_ahead is not None:
            yield read_ahead
        read_ahead = batch
    if read_ahead is not None:
        yield read_ahead
