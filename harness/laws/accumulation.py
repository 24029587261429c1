"""Gradient accumulation: a window of micro-batches makes one optimizer step."""

from __future__ import annotations

import dataclasses
import math

from harness.laws.completion import incomplete
from harness.laws.data_order import epoch_order
from harness.laws.equal import differences, equal_runs, is_finite
from harness.laws.loading import loading
from harness.laws.loss import logged_rounding, scale
from harness.laws.plan import NotModelled, if_planned, plan, positions, resumed_from
from harness.spec import RunSpec
from harness.tolerance import ACCUMULATION, ACCUMULATION_ADAPTIVE, Tolerance
from harness.trace import Trace
from harness.verdict import Unjudged, Verdict, both, verdict


def noise(spec: RunSpec) -> Tolerance:
    """Return how far two splits of the same rows into micro-batches may differ, with the optimizer of a spec."""
    return ACCUMULATION if spec.arguments.get("optim") == "sgd" else ACCUMULATION_ADAPTIVE


def same_split(small: Trace, large: Trace) -> Verdict:
    """Check that accumulated small batches train as large ones do: same rows, gradients, logged losses and adapter.

    - small: the run that accumulates.
    - large: the run over the same rows, with a batch as large as a window of `small`.
    """
    statement, within = "each step trains the same rows, and its gradient is that of the large batch", noise(small.spec)
    findings = []
    if len(small.steps) != len(large.steps):
        findings.append(f"{len(small.steps)} optimizer steps, expected {len(large.steps)}, as with large batches")
    for ours, theirs in zip(small.steps, large.steps, strict=False):
        rows, expected = [[row for batch in step.batches for row in batch.rows] for step in (ours, theirs)]
        if rows != expected:
            findings.append(f"step {ours.number}: trained rows {rows}, expected {expected}")
        if differences(ours.gradients, theirs.gradients, within.gradient, ""):
            factor = scale(ours.gradients, theirs.gradients)
            if factor is not None and math.isfinite(factor) and not math.isclose(factor, 1, rel_tol=1e-3):
                findings.append(f"step {ours.number}: the gradient is {factor:.4g} times that of the large batch")
    # If two nearly equal losses are rounded, they may differ by one unit of the last digit.
    within = dataclasses.replace(within, loss=within.loss + 2 * min(logged_rounding(small), logged_rounding(large)))
    return both(verdict(statement, findings[:3]), equal_runs(small, large, within))


def rows_reversed(spec: RunSpec) -> RunSpec:
    """Return the spec with its rows stored in another order: each window of the first epoch has its rows in reverse."""
    planned, order = plan(spec), epoch_order(spec, 0)
    stored, start = list(range(spec.data.rows)), 0
    for number in range(1, len(planned.windows) + 1):
        rows = order[start : start + sum(planned.row_counts(number))]
        for index, row in zip(rows, reversed(rows), strict=True):
            stored[index] = row
        start += len(rows)
    return spec.but(data={"order": tuple(stored)})


def same_windows(reordered: Trace, plain: Trace) -> Verdict:
    """Check that each window of the first epoch has the same rows in both runs, in any order, and the same gradient.

    - reordered: a run of `rows_reversed(spec)`. Its `data.order` says where each row comes from.
    - plain: the run of `spec`.
    """
    statement = "the order of a window's rows, and which micro-batch has which, does not change its gradient"
    findings = incomplete(reordered) + [f"(rows as they were) {one}" for one in incomplete(plain)]
    # Only the first epoch: later ones shuffle other rows into a window.
    pairs = list(zip(reordered.steps, plain.steps, strict=False))[: len(plan(plain.spec).windows)]
    source, within = reordered.spec.data.order, noise(plain.spec)
    for ours, theirs in pairs:
        rows, expected = (
            sorted(source[row] for batch in ours.batches for row in batch.rows),
            sorted(row for batch in theirs.batches for row in batch.rows),
        )
        if rows != expected:
            findings.append(f"step {ours.number}: trained rows {rows}, expected {expected}")
            break
        findings += differences(ours.gradients, theirs.gradients, within.gradient, f"step {ours.number}: gradient of")
    moved = [
        s.number
        for s, t in pairs
        if [[source[row] for row in b.rows] for b in s.batches] != [b.rows for b in t.batches]
    ]
    if not findings and not moved:
        findings.append("no window met its rows in another order, so nothing was compared")
    return verdict(statement, findings, windows_reordered=len(moved))


def draws_differ(small: Trace, large: Trace) -> Verdict:
    """Check that with dropout another split of the same rows changes the first gradient by more than noise.

    Each micro-batch must draw a dropout mask of its own.
    """
    findings = incomplete(small) + [f"(large batches) {one}" for one in incomplete(large)]
    if not findings:
        ours, theirs = small.steps[0].gradients, large.steps[0].gradients
        if not all(map(is_finite, (*ours.values(), *theirs.values()))):
            findings.append(Unjudged("step 1: a gradient is NaN or infinite, so the draws cannot be told apart"))
        elif not differences(ours, theirs, 10 * ACCUMULATION.gradient, ""):
            findings.append("step 1: the gradients are equal, so both splits drew the same dropout masks, or none")
    return verdict("each micro-batch draws dropout masks of its own", findings)


@if_planned
def windows(trace: Trace) -> Verdict:
    """Check that each optimizer step has as many micro-batches and rows as the spec says.

    The last window of an epoch may be short.
    """
    planned, findings, place = plan(trace.spec), incomplete(trace), positions(trace)
    for step in trace.steps:
        seen, expected = [len(batch.rows) for batch in step.batches], planned.row_counts(place[step.number])
        if seen != expected:
            findings.append(f"step {step.number}: micro-batches of {seen} rows, expected {expected}")
    if len(trace.steps) != (left := planned.total - resumed_from(trace)):
        findings.append(f"{len(trace.steps)} optimizer steps, expected {left}")
    return verdict(
        f"an epoch has {len(planned.windows)} windows of {list(planned.windows)} micro-batches",
        findings,
        steps=len(trace.steps),
    )


def whole_batches(trace: Trace) -> Verdict:
    """Check that each micro-batch has as many rows as the batch size says, so that short ones are left out."""
    size, findings = loading(trace.spec).size, incomplete(trace)
    for step in trace.steps:
        seen = [len(batch.rows) for batch in step.batches]
        if set(seen) - {size}:
            findings.append(f"step {step.number}: micro-batches of {seen} rows, expected {size}")
    return verdict(f"each micro-batch has {size} rows", findings[:3], steps=len(trace.steps))


#: The events of a window, in order. substep_end comes once for each micro-batch but the last.
_WINDOW = ("step_begin", "substep_end", "pre_optimizer_step", "optimizer_step", "step_end")


@if_planned
def events(trace: Trace) -> Verdict:
    """Check that each window has one step_begin, a substep_end for each micro-batch but the last, and one optimizer step."""
    planned, findings, place = plan(trace.spec), incomplete(trace), positions(trace)
    if planned.leftover:
        raise NotModelled("a pass over the IterableDataset ends in a short window, which ACC-02 judges")
    seen = [event for event in trace.events if event in _WINDOW]
    for step in trace.steps:
        substeps = ["substep_end"] * (planned.window(place[step.number]) - 1)
        expected = [_WINDOW[0], *substeps, *_WINDOW[2:]]
        if seen[: len(expected)] != expected:
            findings.append(f"step {step.number}: events {seen[: len(expected)]}, expected {expected}")
            break
        seen = seen[len(expected) :]
    else:
        if seen:
            findings.append(f"events after the last step: {seen[:5]}")
    return verdict("clipping, step, schedule and zeroing happen once a window", findings, steps=len(trace.steps))
