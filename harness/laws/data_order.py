"""Which rows each optimizer step trains, computed from the spec alone, and which random numbers are drawn for that.

`harness.laws.loading` says which places of an epoch's order each rank trains, this module which rows these are.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from harness.laws.completion import incomplete
from harness.laws.loading import Batch, Loading, NotModelled, accelerator_config, loading, shares
from harness.laws.plan import if_planned, plan, position, resumed_from, windows_of
from harness.spec import RunSpec
from harness.trace import Tensors, Trace
from harness.verdict import NOT_COMPARABLE, Unjudged, Verdict, verdict

if TYPE_CHECKING:
    import torch


@if_planned
def follows_seed(trace: Trace) -> Verdict:
    """Check that each optimizer step trains the rows that follow from the spec's seed: none missing, repeated or moved.

    - trace: a run in one process, or `harness.laws.several.whole_run` of one in several.

    If the run was resumed, only the steps that it made itself are judged. If the order is drawn from torch's global
    generator, the verdict is NOT_COMPARABLE.
    """
    statement = "each step trains the rows that the seed gives"
    if reason := drawn(trace.spec):
        return Verdict(NOT_COMPARABLE, statement, (reason,))
    findings = incomplete(trace)
    if not trace.steps:
        findings.append("the run made no optimizer step")
    return verdict(statement, findings + out_of_order(trace), steps=len(trace.steps))


def out_of_order(trace: Trace, rank: int | None = None) -> list[str]:
    """Return the first step that trained other rows than those that follow from the spec, as a sentence.

    - rank: whose trace this is; None for `harness.laws.several.whole_run`, or the only process.

    If a dataset without a length leaves a short window at the end of a pass, only the order of the batches is judged,
    not which step has which: that is ACC-02's. Raises NotModelled if the rows do not follow from the spec.
    """
    spec, resumed = trace.spec, resumed_from(trace)
    found = loading(spec)
    batches, order = _batches(found, rank), epoch_order(spec, 0)
    in_turn = found.iterable and len(batches) % found.window != 0
    if in_turn and resumed:
        raise NotModelled("a pass over the IterableDataset ends in a short window, so steps do not count batches")
    done = 0
    for step in trace.steps:
        seen = [batch.rows for batch in step.batches]
        if in_turn:
            turns = [(done + index) % len(batches) for index in range(len(seen))]
            expected = [[order[place] for place in batches[turn]] for turn in turns]
        else:
            expected = expected_rows(spec, step.number, rank, resumed)
        if seen != expected:
            return [f"step {step.number}: trained rows {seen}, expected {expected}"]
        done += len(seen)
    return []


def other_draws(one: Trace, other: Trace) -> Verdict:
    """Check that two runs train the same rows, but draw different dropout masks in the first step."""
    from harness.laws.equal import is_finite

    findings = incomplete(one) + incomplete(other)
    if one.rows != other.rows:
        findings.append(f"rows of step 1: {one.rows[:1]}, expected {other.rows[:1]}")
    elif not findings and not all(map(is_finite, one.steps[0].gradients.values())):
        findings.append(Unjudged("step 1: a gradient is NaN or infinite, so the draws cannot be told apart"))
    elif not findings and not _differ(one.steps[0].gradients, other.steps[0].gradients):
        findings.append("step 1 has the same gradients, hence the same dropout")
    return verdict("the same rows with other dropout", findings)


def one_draw_each(state: torch.Tensor, seed: int, passes: int) -> Verdict:
    """Check that a run draws one int64 for each pass over a dataloader, and no other random number.

    - state: torch.get_rng_state() at the end of the run.
    - seed: what the generator was seeded with.
    - passes: how many passes there were.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    for _ in range(passes):
        torch.empty((), dtype=torch.int64).random_(generator=generator)
    findings = []
    if not torch.equal(state, generator.get_state()):
        findings.append(f"the generator is not where {passes} draws since seed {seed} leave it")
    return verdict("one draw for each pass over a dataloader, and no other", findings, passes=passes)


def expected_rows(spec: RunSpec, number: int, rank: int | None = None, resumed: int = 0) -> list[list[int]]:
    """Return the rows of each micro-batch of an optimizer step.

    - number: the 1-based global step.
    - rank: whose rows; None for those of all ranks together, rank 0's first.
    - resumed: the step of the checkpoint that the run resumed from; 0 if it did not.

    Raises NotModelled if they do not follow from the spec.
    """
    epoch, places = expected_places(spec, number, rank, resumed)
    order = epoch_order(spec, epoch)
    return [[order[place] for place in batch] for batch in places]


def expected_places(
    spec: RunSpec, number: int, rank: int | None = None, resumed: int = 0
) -> tuple[int, list[tuple[int, ...]]]:
    """Return the epoch (0-based) of an optimizer step, and the places in its order that each micro-batch has.

    Parameters and errors are those of `expected_rows`.
    """
    found = loading(spec)
    batches = _batches(found, rank)
    windows = windows_of(len(batches), found.window)
    epoch, update = divmod(position(spec, number, len(windows), resumed) - 1, len(windows))
    start = sum(windows[:update])
    return epoch, list(batches[start : start + windows[update]])


def _batches(found: Loading, rank: int | None) -> tuple[Batch, ...]:
    """Return the places of each micro-batch of an epoch, of one rank or of all together. Raises NotModelled for none."""
    of_ranks = shares(found)
    if rank is None and len({len(batches) for batches in of_ranks}) > 1:
        raise NotModelled("even_batches=False leaves the ranks with different numbers of batches")
    together = (sum(column, ()) for column in zip(*of_ranks, strict=False))
    batches = tuple(together) if rank is None else of_ranks[rank]
    if not batches:
        raise NotModelled("an epoch has no batch")
    return batches


def epoch_order(spec: RunSpec, epoch: int) -> tuple[int, ...]:
    """Return the order in which an epoch (0-based) goes through the rows.

    accelerate/data_loader.py:SeedableRandomSampler draws it from a generator of its own, which is seeded with data_seed +
    epoch, or seed + epoch without a data_seed. Raises NotModelled if the order does not follow from the spec.
    """
    if reason := drawn(spec):
        raise NotModelled(reason)
    if _is_sequential(spec):
        return tuple(range(spec.data.rows))
    seed = spec.arguments.get("data_seed")
    return _permutation(spec.data.rows, (int(spec.arguments.get("seed", 42)) if seed is None else int(seed)) + epoch)


def _is_sequential(spec: RunSpec) -> bool:
    return spec.data.iterable or spec.arguments.get("train_sampling_strategy") == "sequential"


def drawn(spec: RunSpec) -> str | None:
    """Return why the order does not follow from the spec: it is drawn from the global generator. None if it follows."""
    if _is_sequential(spec):
        return None
    strategy = spec.arguments.get("train_sampling_strategy") or "random"
    if spec.arguments.get("group_by_length"):
        strategy = "group_by_length"
    if strategy != "random":
        return f"train_sampling_strategy {strategy!r} draws the order from the global generator"
    if accelerator_config(spec).get("use_seedable_sampler") is False:
        return "use_seedable_sampler=False draws the order from the global generator"
    return None


def steps_per_epoch(spec: RunSpec) -> int:
    """Return the optimizer steps in one epoch. The last one may accumulate fewer micro-batches."""
    return len(plan(spec).windows)


def _differ(one: Tensors, other: Tensors) -> bool:
    import torch

    return any(not torch.equal(one[name], other[name]) for name in {*one, *other} if name in one and name in other)


@cache
def _permutation(count: int, seed: int) -> tuple[int, ...]:
    import torch

    return tuple(torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist())
