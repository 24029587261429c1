"""The loss of an optimizer step and its gradient, compared with both recomputed in float64 (harness/laws/recompute.py)."""

from __future__ import annotations

import math

from harness import compat
from harness.laws.completion import incomplete
from harness.laws.equal import differences
from harness.laws.logs import logging_steps
from harness.laws.plan import if_planned
from harness.laws.recompute import TOKENS, Recomputed, Targets, obstacles
from harness.tolerance import LOSSES, ORACLE, scaled
from harness.trace import Step, Tensors, Trace
from harness.verdict import NOT_COMPARABLE, Verdict, not_finite, verdict


@if_planned
def window_mean(
    trace: Trace, mean: str = TOKENS, smoothing: float | None = None, targets: Targets | None = None
) -> Verdict:
    """Check that each step's gradient, and the loss logged for it, are those of the window's mean loss.

    A step is judged only if the adapter's values before it are in the trace. These are the first step, and every step if the
    learning rate is 0.

    - mean: how the mean is taken: TOKENS, BATCHES or GIVEN (`harness.laws.recompute`).
    - smoothing: the label smoothing factor; None for the spec's.
    - targets: returns what each position of a row predicts; None for what the spec's task says.

    If the run has dropout, quantization or half precision, the verdict is NOT_COMPARABLE (`recompute.obstacles`), and if the
    adapter's method does not compute in float64.
    """
    expected = f"gradient and loss of each step are the mean over the window's {mean}"
    if reasons := obstacles(trace.spec):
        return Verdict(NOT_COMPARABLE, expected, tuple(reasons))
    if findings := incomplete(trace):
        return verdict(expected, findings)
    if smoothing is None:
        smoothing = trace.spec.arguments.get("label_smoothing_factor", 0.0)
    recomputed = Recomputed(trace.spec, trace.adapter_before)
    judged = trace.steps if trace.spec.arguments.get("learning_rate") == 0.0 else trace.steps[:1]
    gaps: list[float] = []
    # If the steps n - 1 and n are both logged, the second entry is the loss of step n alone.
    entries = {0, *logging_steps(trace.spec)}
    for step in judged:
        loss, gradients = recomputed.window(step.batches, mean, smoothing, targets)
        found = gradient_findings(step, gradients)
        logged = trace.losses.get(step.number)
        if {step.number - 1, step.number} <= entries:
            if logged is None:
                found.append(f"step {step.number}: no loss was logged")
            elif unjudged := not_finite(f"step {step.number}: the logged loss, as recomputed,", logged, loss):
                found += unjudged
            elif not abs(logged - loss) <= scaled(ORACLE.loss, abs(loss), LOSSES) + logged_rounding(trace):
                found.append(f"step {step.number}: logged loss {logged:.9g}, expected {loss:.9g}")
            else:
                gaps.append(abs(logged - loss))
        if found and mean == TOKENS:
            findings += _other_labels(step) + _count(step, recomputed.tokens(step.batches, targets))
        findings += found
    return verdict(expected, findings, steps=len(judged), largest_loss_difference=max(gaps, default=0.0))


def logged_rounding(trace: Trace) -> float:
    """Return by how much the logged losses of a trace are rounded."""
    return compat.logged_rounding(trace.losses.values())


def _other_labels(step: Step) -> list[str]:
    """Return in a sentence which row of a step was trained with the labels of another one; an empty list if none was."""
    pairs = (pair for batch in step.batches for pair in zip(batch.rows, batch.labels, strict=False))
    other = next(((row, owner) for row, owner in pairs if row >= 0 and owner not in (row, -1)), None)
    return [] if other is None else [f"step {step.number}: row {other[0]} is trained with the labels of row {other[1]}"]


def _count(step: Step, tokens: int) -> list[str]:
    given = {batch.num_items for batch in step.batches if batch.num_items is not None} - {float(tokens)}
    return [
        f"step {step.number}: the model was given num_items_in_batch {items:g}, but {tokens} labels are predicted"
        for items in sorted(given)
    ]


def gradient_findings(step: Step, expected: Tensors) -> list[str]:
    """Return how a step's gradients before clipping differ from the expected ones, an empty list if they do not.

    If all gradients are off by nearly the same factor, the first sentence says so.
    """
    cast = {name: value.to(step.gradients[name].dtype) for name, value in expected.items() if name in step.gradients}
    cast |= {name: value for name, value in expected.items() if name not in cast}
    found = differences(step.gradients, cast, ORACLE.gradient, f"step {step.number}: gradient of")
    factor = scale(step.gradients, cast) if found else None
    if factor is not None and math.isfinite(factor) and not math.isclose(factor, 1, rel_tol=1e-4):
        found.insert(0, f"step {step.number}: the gradient is {factor:.4g} times what it must be")
    return found


def scale(seen: Tensors, expected: Tensors) -> float | None:
    """Return the factor that brings `expected` closest to `seen` (least squares); None if `expected` is zero or empty."""
    both = [name for name in expected if name in seen and seen[name].shape == expected[name].shape]
    length = sum(float((expected[name].double() ** 2).sum()) for name in both)
    return (
        sum(float((seen[name].double() * expected[name].double()).sum()) for name in both) / length if length else None
    )


def labels_taken(trace: Trace) -> Verdict:
    """Check that the model is given no labels in training, and returns no loss: the loss is computed outside of it."""
    findings = incomplete(trace) + [
        f"step {step.number}: the model was given {batch.tokens} labels"
        if batch.tokens
        else f"step {step.number}: the model returned the loss {batch.loss:.6g}"
        for step in trace.steps
        for batch in step.batches
        if batch.tokens or batch.loss is not None
    ]
    return verdict("the model runs without labels and returns no loss", findings, steps=len(trace.steps))


def nonfinite_shows(trace: Trace) -> Verdict:
    """Check that if a micro-batch's loss is NaN or infinite, the step's logged loss and training_loss are not finite."""
    findings = incomplete(trace)
    broken = [s.number for s in trace.steps if any(not math.isfinite(b.loss) for b in s.batches if b.loss is not None)]
    if not broken:
        findings.append("no micro-batch had a loss that is not finite, so nothing could show")
    for number in broken:
        logged = trace.losses.get(number)
        if logged is not None and math.isfinite(logged):
            findings.append(f"step {number}: a micro-batch's loss is not finite, but {logged!r} is logged")
    total = trace.output.get("training_loss", math.nan)
    if broken and math.isfinite(total):
        findings.append(f"training_loss is {total:.6g}, though steps {broken} had a loss that is not finite")
    return verdict("a loss that is not finite shows in the log", findings, steps_not_finite=len(broken))
