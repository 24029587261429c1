"""Which rows each optimizer step trains, computed from the spec alone."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

from harness.laws.completion import incomplete
from harness.spec import RunSpec
from harness.trace import Tensors, Trace
from harness.verdict import NOT_COMPARABLE, Verdict, verdict

if TYPE_CHECKING:
    import torch


def follows_seed(trace: Trace, shift: int = 0) -> Verdict:
    """Each optimizer step trained the rows that the spec's seed gives it: not a row left out, repeated or moved.

    A resumed run is judged by the steps that it made itself. shift: step n trains what step n + shift would have.
    Not comparable where the order is drawn from the global generator.
    """
    expected = "each step trains the rows that the seed gives"
    if reason := _drawn(trace.spec):
        return Verdict(NOT_COMPARABLE, expected, (reason,))
    findings = incomplete(trace)
    if not trace.steps:
        findings.append("the run made no optimizer step")
    for step in trace.steps:
        seen = [batch.rows for batch in step.batches]
        wanted = expected_rows(trace.spec, step.number + shift)
        if seen != wanted:
            findings.append(f"step {step.number}: trained rows {seen}, expected {wanted}")
            break
    return verdict(expected, findings, steps=len(trace.steps))


def other_draws(one: Trace, other: Trace) -> Verdict:
    """Two runs trained the same rows, but dropout drew other numbers in the first step."""
    findings = incomplete(one) + incomplete(other)
    if one.rows != other.rows:
        findings.append(f"rows of step 1: {one.rows[:1]}, expected {other.rows[:1]}")
    elif not findings and not _differ(one.steps[0].gradients, other.steps[0].gradients):
        findings.append("step 1 has the same gradients, hence the same dropout")
    return verdict("the same rows with other dropout", findings)


def one_draw_each(state: torch.Tensor, seed: int, passes: int) -> Verdict:
    """A generator's state is what one int64 a pass leaves, of `passes` since it was seeded.

    state: what torch.get_rng_state() returned at the end of the run.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    for _ in range(passes):
        torch.empty((), dtype=torch.int64).random_(generator=generator)
    findings = []
    if not torch.equal(state, generator.get_state()):
        findings.append(f"the generator is not where {passes} draws since seed {seed} leave it")
    return verdict("one draw for each pass over a dataloader, and no other", findings, passes=passes)


def expected_rows(spec: RunSpec, number: int) -> list[list[int]]:
    """The rows of each micro-batch of an optimizer step (1-based global step), on one device."""
    size, accumulation = _batch_size(spec), int(spec.arguments.get("gradient_accumulation_steps", 1))
    epoch, update = divmod(number - 1, steps_per_epoch(spec))
    order = epoch_order(spec, epoch)
    first = update * accumulation
    last = min(first + accumulation, _batches(spec))
    return [list(order[batch * size : (batch + 1) * size]) for batch in range(first, last)]


def epoch_order(spec: RunSpec, epoch: int) -> tuple[int, ...]:
    """The order in which an epoch (0-based) goes through the rows.

    accelerate's SeedableRandomSampler draws it from a generator of its own, seeded with (data_seed or seed) + epoch.
    ValueError where the spec alone does not give it.
    """
    if reason := _drawn(spec):
        raise ValueError(reason)
    if _is_sequential(spec):
        return tuple(range(spec.data.rows))
    seed = spec.arguments.get("data_seed")
    return _permutation(spec.data.rows, (int(spec.arguments.get("seed", 42)) if seed is None else int(seed)) + epoch)


def _is_sequential(spec: RunSpec) -> bool:
    return spec.data.iterable or spec.arguments.get("train_sampling_strategy") == "sequential"


def _drawn(spec: RunSpec) -> str | None:
    """Why the order does not follow from the spec: it is drawn from the global generator. None if it follows."""
    strategy = spec.arguments.get("train_sampling_strategy", "random")
    if strategy not in ("random", "sequential"):
        return f"train_sampling_strategy {strategy!r} draws the order from the global generator"
    if spec.arguments.get("accelerator_config", {}).get("use_seedable_sampler") is False and not _is_sequential(spec):
        return "use_seedable_sampler=False draws the order from the global generator"
    return None


def steps_per_epoch(spec: RunSpec) -> int:
    """Optimizer steps in one pass over the rows; the last one may accumulate fewer micro-batches."""
    return max(1, math.ceil(_batches(spec) / int(spec.arguments.get("gradient_accumulation_steps", 1))))


def _batches(spec: RunSpec) -> int:
    whole, rest = divmod(spec.data.rows, _batch_size(spec))
    return whole + bool(rest and not spec.arguments.get("dataloader_drop_last", False))


def _batch_size(spec: RunSpec) -> int:
    return int(spec.arguments.get("per_device_train_batch_size", 8))


def _differ(one: Tensors, other: Tensors) -> bool:
    import torch

    return any(not torch.equal(one[name], other[name]) for name in {*one, *other} if name in one and name in other)


@cache
def _permutation(count: int, seed: int) -> tuple[int, ...]:
    import torch

    return tuple(torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist())
