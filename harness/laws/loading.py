"""Which places of an epoch's order each rank's data loader yields, computed from the spec alone.

1. The order has `rows` places. torch's DataLoader cuts it into batches (`_cut`).
2. If there are several ranks, accelerate gives each its share of these batches (`shares`), in one of four ways:
   - dispatched: rank 0 reads the batches of all ranks, and sends each rank a slice;
   - split: each rank takes a slice of every batch;
   - an IterableDataset that is not dispatched: each rank reads all rows, and keeps its own;
   - otherwise rank r of W takes the batches r, r + W, r + 2W, ...
3. Places that are left over at the end are filled with places from the start, unless `even_batches` is False.

The rules are those that accelerate/data_loader.py documents (BatchSamplerShard, IterableDatasetShard,
DataLoaderDispatcher), not its loops. `harness.laws.data_order` says which row has which place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from harness.spec import RunSpec

#: The places of one micro-batch.
Batch = tuple[int, ...]


class NotModelled(ValueError):
    """What a spec's data loader does does not follow from the spec alone. The message is the reason, for the user."""


@dataclass(frozen=True)
class Loading:
    """What a spec says about its training data loader.

    - rows: the rows of the dataset.
    - size: per_device_train_batch_size. With `split` it is the batch of all ranks together.
    - window: the micro-batches of one optimizer step.
    - ranks: the number of processes.
    - workers: the processes that read an IterableDataset, which all read all of it; at least 1.
    - iterable, drop_last, split, dispatch, even: whether the dataset has no length, and the arguments of these names.
    """

    rows: int
    size: int
    window: int = 1
    ranks: int = 1
    workers: int = 1
    iterable: bool = False
    drop_last: bool = False
    split: bool = False
    dispatch: bool = False
    even: bool = True


def accelerator_config(spec: RunSpec) -> Mapping[str, Any]:
    """Return the spec's accelerator_config without fields that are None, which leave the default."""
    given = spec.arguments.get("accelerator_config") or {}
    if not isinstance(given, Mapping):
        raise NotModelled("accelerator_config is a file")
    return {name: value for name, value in given.items() if value is not None}


def integer(spec: RunSpec, name: str, default: int) -> int:
    """Return a TrainingArguments value that is a whole number, or upstream's default."""
    value = spec.arguments.get(name)
    return default if value is None else int(value)


@cache
def loading(spec: RunSpec) -> Loading:
    """Return what a spec says about its training data loader. Raises NotModelled, with the reason."""
    config, ranks = accelerator_config(spec), spec.launch.row_ranks
    accumulation = config.get("gradient_accumulation_kwargs", {}).get("num_steps")
    found = Loading(
        rows=spec.data.rows,
        size=integer(spec, "per_device_train_batch_size", 8),
        window=int(accumulation) if accumulation else integer(spec, "gradient_accumulation_steps", 1),
        ranks=ranks,
        workers=max(1, integer(spec, "dataloader_num_workers", 0)) if spec.data.iterable else 1,
        iterable=spec.data.iterable,
        # The Trainer does not give drop_last to the loader of an IterableDataset.
        drop_last=bool(spec.arguments.get("dataloader_drop_last")) and not spec.data.iterable,
        split=bool(config.get("split_batches")) and ranks > 1,
        dispatch=bool(config.get("dispatch_batches", spec.data.iterable)) and ranks > 1,
        even=bool(config.get("even_batches", True)),
    )
    if reason := _unmodelled(spec, found):
        raise NotModelled(reason)
    return found


def _unmodelled(spec: RunSpec, found: Loading) -> str | None:
    if spec.arguments.get("train_sampling_strategy") == "batch_rebalance":
        return "train_sampling_strategy batch_rebalance gives ranks batches by their number of tokens"
    if spec.arguments.get("auto_find_batch_size") and spec.resume is not None:
        return "auto_find_batch_size takes the batch size of the checkpoint"
    if found.split and found.size % found.ranks:
        return f"split_batches cannot split batches of {found.size} rows over {found.ranks} ranks"
    if found.dispatch and found.rows < found.ranks:
        return f"{found.rows} rows are too few to dispatch to {found.ranks} ranks"
    if found.workers > 1 and found.dispatch and found.rows % found.size:
        return "each dataloader worker ends an IterableDataset with a short batch, which is dispatched with full ones"
    if found.workers > 1 and spec.arguments.get("dataloader_in_order") is False:
        return "dataloader_in_order=False takes batches of workers as they come"
    return None


@cache
def shares(found: Loading) -> tuple[tuple[Batch, ...], ...]:
    """Return the batches of each rank in one epoch, as places of the epoch's order."""
    if found.ranks == 1:
        return (_by_workers(_cut(range(found.rows), found.size, found.drop_last), found),)
    if found.dispatch:
        return _dispatched(found)
    if found.iterable:
        return tuple(_by_workers(batches, found) for batches in _sharded(found))
    return _split(found) if found.split else _dealt(found)


def _cut(places: Sequence[int], size: int, drop_last: bool = False) -> tuple[Batch, ...]:
    """Cut places into batches of `size`. The last one may be short, and is left out if `drop_last`."""
    batches = [tuple(places[start : start + size]) for start in range(0, len(places), size)]
    return tuple(batch for batch in batches if len(batch) == size or not drop_last)


def _by_workers(batches: tuple[Batch, ...], found: Loading) -> tuple[Batch, ...]:
    """Return the batches as workers yield them: each reads all of an IterableDataset, and they take turns."""
    return tuple(batch for batch in batches for _ in range(found.workers))


def _slices(together: Batch, ranks: int) -> list[Batch]:
    """Return each rank's slice of places, whose number all ranks share equally."""
    part = len(together) // ranks
    return [together[rank * part : (rank + 1) * part] for rank in range(ranks)]


def _turned(rounds: Sequence[Sequence[Batch]], ranks: int) -> tuple[tuple[Batch, ...], ...]:
    """Return each rank's batches, of rounds that have one batch for each rank. An empty batch is none."""
    return tuple(tuple(one[rank] for one in rounds if one[rank]) for rank in range(ranks))


def _dispatched(found: Loading) -> tuple[tuple[Batch, ...], ...]:
    """DataLoaderDispatcher: the rows of a round are cut into one slice for each rank.

    If the last round does not divide, it is filled from the first with as many rows as make it do so.
    """
    batches = _by_workers(_cut(range(found.rows), found.size, found.drop_last), found)
    together = 1 if found.split else found.ranks
    groups = [batches[start : start + together] for start in range(0, len(batches), together)]
    rounds = [
        [place for batch in group for place in batch]
        for group in groups
        if len(group) == together or not found.drop_last
    ]
    if rounds and (left_over := len(rounds[-1]) % found.ranks):
        rounds[-1] = rounds[-1] + rounds[0][: found.ranks - left_over]
    return _turned([_slices(tuple(one), found.ranks) for one in rounds], found.ranks)


def _sharded(found: Loading) -> tuple[tuple[Batch, ...], ...]:
    """IterableDatasetShard: a round has a full batch for each rank. The last one is filled from the first."""
    size = found.size if found.split else found.size * found.ranks
    rounds = _cut(range(found.rows), size)
    return _turned([_slices(_filled(one, rounds[0], size), found.ranks) for one in rounds], found.ranks)


def _split(found: Loading) -> tuple[tuple[Batch, ...], ...]:
    """BatchSamplerShard with split_batches: each rank takes its slice of every batch."""
    part = found.size // found.ranks
    rounds = []
    for batch in _cut(range(found.rows), found.size, found.drop_last):
        whole = _filled(batch, range(found.rows), found.size) if found.even else batch
        rounds.append([whole[rank * part : (rank + 1) * part] for rank in range(found.ranks)])
    return _turned(rounds, found.ranks)


def _dealt(found: Loading) -> tuple[tuple[Batch, ...], ...]:
    """BatchSamplerShard: rank r of W takes the batches r, r + W, ..., of an order that starts again at its end."""
    batches = _cut(range(found.rows), found.size, found.drop_last)
    whole, left_over = divmod(len(batches), found.ranks)
    if found.drop_last:
        batches = batches[: whole * found.ranks]
    elif found.even:
        rounds = whole + bool(left_over)
        batches = _cut([at % found.rows for at in range(rounds * found.ranks * found.size)], found.size)
    return tuple(tuple(batches[rank :: found.ranks]) for rank in range(found.ranks))


def _filled(batch: Batch, first: Sequence[int], size: int) -> Batch:
    """Return the batch with as many places of `first` after it as make it `size`, over and over if need be."""
    missing = size - len(batch)
    return batch + tuple(first[at % len(first)] for at in range(missing))
