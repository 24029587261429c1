"""Which rows each optimizer step trains, computed from the spec alone, and which random numbers are drawn for that."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

from harness.laws.completion import incomplete
from harness.spec import RunSpec
from harness.trace import Tensors, Trace
from harness.verdict import NOT_COMPARABLE, Unjudged, Verdict, verdict

if TYPE_CHECKING:
    import torch


def follows_seed(trace: Trace, shift: int = 0) -> Verdict:
    """Check that each optimizer step trains the rows that follow from the spec's seed: none missing, repeated or moved.

    If the run was resumed, only the steps that it made itself are judged. If the order is drawn from torch's global
    generator, the verdict is NOT_COMPARABLE.

    - shift: step n is expected to train the rows of step n + shift.
    """
    statement = "each step trains the rows that the seed gives"
    if reason := _drawn(trace.spec):
        return Verdict(NOT_COMPARABLE, statement, (reason,))
    findings = incomplete(trace)
    if not trace.steps:
        findings.append("the run made no optimizer step")
    for step in trace.steps:
        seen = [batch.rows for batch in step.batches]
        expected = expected_rows(trace.spec, step.number + shift)
        if seen != expected:
            findings.append(f"step {step.number}: trained rows {seen}, expected {expected}")
            break
    return verdict(statement, findings, steps=len(trace.steps))


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


def expected_rows(spec: RunSpec, number: int) -> list[list[int]]:
    """Return the rows of each micro-batch of an optimizer step, on one device.

    - number: the 1-based global step.
    """
    size, accumulation = _batch_size(spec), int(spec.arguments.get("gradient_accumulation_steps", 1))
    epoch, update = divmod(number - 1, steps_per_epoch(spec))
    order = epoch_order(spec, epoch)
    first = update * accumulation
    last = min(first + accumulation, _batches(spec))
    return [list(order[batch * size : (batch + 1) * size]) for batch in range(first, last)]


def epoch_order(spec: RunSpec, epoch: int) -> tuple[int, ...]:
    """Return the order in which an epoch (0-based) goes through the rows.

    accelerate/data_loader.py:SeedableRandomSampler draws it from a generator of its own, which is seeded with data_seed +
    epoch, or seed + epoch without a data_seed. Raises ValueError if the order does not follow from the spec.
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
    """Return why the order does not follow from the spec: it is drawn from the global generator. None if it follows."""
    strategy = spec.arguments.get("train_sampling_strategy", "random")
    if strategy not in ("random", "sequential"):
        return f"train_sampling_strategy {strategy!r} draws the order from the global generator"
    if spec.arguments.get("accelerator_config", {}).get("use_seedable_sampler") is False and not _is_sequential(spec):
        return "use_seedable_sampler=False draws the order from the global generator"
    return None


def steps_per_epoch(spec: RunSpec) -> int:
    """Return the optimizer steps in one epoch. The last one may accumulate fewer micro-batches."""
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
