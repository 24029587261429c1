"""Whether two runs are equal: first exact state (rows, tensors), then numbers within a tolerance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from harness.laws.completion import incomplete
from harness.laws.curves import curves
from harness.tolerance import ACCUMULATION, ELEMENTS, EXACT, HALF, LOSSES, Tolerance, scaled
from harness.trace import Step, Tensors, Trace
from harness.verdict import NOT_COMPARABLE, Otherwise, Unjudged, Verdict, not_finite, verdict


def equal_runs(seen: Trace, expected: Trace, within: Tolerance = EXACT, after: int = 0) -> Verdict:
    """Check that two runs have equal rows, gradients, learning rates, losses, adapters and optimizer states.

    - seen: the run that is judged.
    - expected: the run that it is compared with.
    - within: how far numbers may differ. Unless it is exact, rows and optimizer states are not compared.
    - after: only optimizer steps after this one are compared. A resumed run has no others.

    The largest differences of loss, gradient and adapter are measured in any case (`distance`). If the runs differ, so are
    their numbers by step (`harness.laws.curves`).

    If no adapter, or no finite number was there to compare, the verdict is NOT_COMPARABLE. Some steps may be without a finite
    gradient, since a gradient scaler skips those that overflow. There may be no step after `after`: then the ends are equal.
    """
    findings = incomplete(seen) + [f"(the run it is compared with) {reason}" for reason in incomplete(expected)]
    if not findings:
        findings = _all_differences(seen, expected, within, after)
    measured: dict[str, Any] = {**distance(seen, expected)}
    if any(not isinstance(sentence, Unjudged) for sentence in findings) and seen.steps and expected.steps:
        measured["curves"] = curves(seen, expected, largest_gap)
    return verdict(f"the two runs are equal ({within.name})", findings, **measured)


def unless_rounding(judged: Verdict, seen: Trace, gradients: Tensors, half: bool = False) -> Verdict:
    """Return a verdict on equality bit for bit, as it is for a run whose class computes the loss by operations of its own.

    Such a run is not comparable if the gradient of its first step is the expected one within rounding. Later steps start from
    weights that rounding has moved, so they say nothing. LOSS-01 judges every step within a bound.

    - judged: the verdict bit for bit.
    - seen: the run that is judged.
    - gradients: of the first step, as expected.
    - half: whether products are rounded to half precision.
    """
    if judged.holds or not seen.own_loss or not seen.steps or not gradients:
        return judged
    within = (HALF if half else ACCUMULATION).gradient
    if differences(seen.steps[0].gradients, gradients, within, "gradient of"):
        return judged
    reason = f"{seen.own_loss} computes the loss by operations of its own, which round otherwise; LOSS-01 judges it"
    return Verdict(NOT_COMPARABLE, judged.expected, (Otherwise(reason),))


def _all_differences(seen: Trace, expected: Trace, within: Tolerance, after: int) -> list[str]:
    ours, theirs = _steps(seen, after), _steps(expected, after)
    findings = []
    if list(ours) != list(theirs):
        findings.append(f"steps {_span(ours)}, expected {_span(theirs)}")
    findings += _first(
        f"step {n}: trained rows {_rows(ours[n])}, expected {_rows(theirs[n])}"
        for n in ours
        if n in theirs and within.exact and _rows(ours[n]) != _rows(theirs[n])
    )
    for what in ("gradients", "clipped"):
        findings += _first(
            sentence
            for n in ours
            if n in theirs
            for sentence in differences(
                getattr(ours[n], what), getattr(theirs[n], what), within.gradient, f"step {n}: {what} of", finite=False
            )
        )
    findings += _first(
        f"step {n}: learning rates {ours[n].learning_rates}, expected {theirs[n].learning_rates}"
        for n in ours
        if n in theirs and ours[n].learning_rates != theirs[n].learning_rates
    )
    findings += _numbers("logged loss", seen.losses, expected.losses, within.loss, LOSSES, after)
    findings += _numbers("logged grad_norm", seen.grad_norms, expected.grad_norms, within.gradient, ELEMENTS, after)
    findings += differences(seen.adapter, expected.adapter, within.adapter, "adapter at the end:")
    if within.exact:
        findings += _first(
            sentence
            for name in expected.optimizer_state
            for sentence in differences(
                seen.optimizer_state.get(name, {}), expected.optimizer_state[name], 0.0, f"optimizer state of {name}:"
            )
        )
    return findings + _uncompared(seen, expected, after)


def _uncompared(seen: Trace, expected: Trace, after: int) -> list[str]:
    """Return why there was nothing to compare: no adapter, no finite gradient, loss or norm."""
    ours, theirs = _steps(seen, after), _steps(expected, after)
    findings: list[str] = []
    if not (seen.adapter or expected.adapter):
        findings.append(Unjudged("no run has an adapter tensor to compare"))
    with_gradients = [step.gradients for step in (*ours.values(), *theirs.values()) if step.gradients]
    if with_gradients and not any(all(map(is_finite, tensors.values())) for tensors in with_gradients):
        findings.append(Unjudged("the gradients of each step are NaN or infinite, so none was compared"))
    for what, logged in (
        ("logged loss", [seen.losses, expected.losses]),
        ("logged grad_norm", [seen.grad_norms, expected.grad_norms]),
    ):
        findings += not_finite(f"each {what}", *(value for one in logged for n, value in one.items() if n > after))
    return findings


def same_adapter(seen: Tensors, expected: Tensors, within: Tolerance = EXACT) -> Verdict:
    """Check that two sets of adapter tensors have the same names, dtypes, shapes and values."""
    return verdict(f"the adapters are equal ({within.name})", differences(seen, expected, within.adapter, ""))


def differences(
    seen: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    bound: float,
    where: str,
    share: float = 0.0,
    finite: bool = True,
) -> list[str]:
    """Return a sentence for each tensor that differs by more than a bound, the largest difference first.

    A name, dtype, shape or device that differs is always a difference. So is a number that is NaN or infinite on one side
    only.

    - bound: the largest difference allowed between two elements; 0 for none. It holds for tensors whose elements are of
      the usual size, and grows in proportion for larger ones (`harness.tolerance.scaled`).
    - where: words that each sentence begins with, such as "step 3: gradient of".
    - share: if not 0, the difference allowed as a share of each tensor's largest element, and `bound` is ignored.
    - finite: whether a tensor with numbers that are NaN or infinite on both sides is an `Unjudged` finding.
    """
    found: list[tuple[float, str]] = []
    for name in sorted(set(seen) | set(expected)):
        if name not in seen or name not in expected:
            state = "missing" if name not in seen else "there, unexpected"
            found.append((math.inf, f"{where} {name} is {state}".strip()))
            continue
        a, b = seen[name], expected[name]
        if a.dtype != b.dtype or a.shape != b.shape:
            found.append((math.inf, f"{where} {name} is {_kind(a)}, expected {_kind(b)}".strip()))
            continue
        if a.device != b.device:
            found.append((math.inf, f"{where} {name} is on {a.device}, expected on {b.device}".strip()))
            continue
        if not _same_bits(a, b):
            gaps = _gaps(a, b)
            gap = float(gaps.max())
            allowed = share * largest(b) if share else scaled(bound, largest(b))
            if gap > 0 and (allowed == 0.0 or not gap <= allowed or math.isinf(gap)):
                at = int(gaps.argmax())
                x, y = float(a.reshape(-1)[at]), float(b.reshape(-1)[at])
                found.append((gap, f"{where} {name} differs by {gap:.3g} at most ({x:.9g}, expected {y:.9g})".strip()))
                continue
        if finite and not is_finite(b):
            count = int((~torch.isfinite(_wide(b))).sum())
            text = f"{where} {name}: {count} of {b.numel()} numbers are NaN or infinite on both sides, so not compared"
            found.append((-1.0, Unjudged(text.strip())))
    return [sentence for _, sentence in sorted(found, key=lambda pair: -pair[0])]


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether no element is NaN or infinite. An empty tensor, and one of ints, is finite."""
    return not tensor.is_floating_point() or bool(torch.isfinite(_wide(tensor)).all())


def has_moved(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Return whether training gave a tensor other values, and finite ones. NaN is no movement."""
    return not _same_bits(before, after) and is_finite(after)


def distance(seen: Trace, expected: Trace) -> dict[str, float]:
    """Return the largest differences between two runs, over what both have.

    The keys are "largest_loss_difference" (of logged losses), "largest_gradient_difference" and
    "largest_adapter_difference" (of elements).
    """
    ours, theirs = _steps(seen, 0), _steps(expected, 0)
    gaps = {
        "loss": [abs(seen.losses[n] - expected.losses[n]) for n in seen.losses if n in expected.losses],
        "gradient": [
            largest_gap(ours[n].gradients[k], theirs[n].gradients[k])
            for n in ours
            if n in theirs
            for k in ours[n].gradients
            if k in theirs[n].gradients
        ],
        "adapter": [largest_gap(seen.adapter[k], expected.adapter[k]) for k in seen.adapter if k in expected.adapter],
    }
    return {f"largest_{name}_difference": max(values, default=0.0) for name, values in gaps.items()}


def largest_gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest absolute difference of two tensors' elements.

    It is infinity if shapes differ, or if an element is NaN on one side only.
    """
    if a.shape != b.shape:
        return math.inf
    if _same_bits(a, b) or a.numel() == 0:
        return 0.0
    return float(_gaps(a, b).max())


def _gaps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the difference of each pair of elements, flat: 0 if both are NaN or the same infinity, infinity if one is."""
    x, y = a.double().reshape(-1), b.double().reshape(-1)
    alike = (x == y) | (x.isnan() & y.isnan())
    return (x - y).abs().nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(alike, 0.0)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that torch can ask for NaN: not all operations have kernels for floats of eight bits."""
    return tensor.float() if tensor.element_size() == 1 else tensor


def largest(tensor: torch.Tensor) -> float:
    """Return the largest absolute value of a tensor's finite elements; 0.0 if it has none."""
    return float(tensor.double().abs().nan_to_num(nan=0.0, posinf=0.0).max()) if tensor.numel() else 0.0


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a, b) or torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
    )


def _numbers(
    what: str, seen: dict[int, float], expected: dict[int, float], bound: float, usual: float, after: int
) -> list[str]:
    """Return a sentence on the first step after `after` whose number differs by more than the scaled bound.

    - what: the number's name, such as "logged loss".
    - usual: the usual size of such a number (`harness.tolerance.scaled`).
    """
    steps = sorted({n for n in (*seen, *expected) if n > after})
    for n in steps:
        a, b = seen.get(n), expected.get(n)
        if a is None or b is None:
            return [f"step {n}: {what} is {a}, expected {b}"]
        # NaN or infinity on one side is a difference, on both it is not (`_uncompared` says so if no number is finite).
        if math.isfinite(a) != math.isfinite(b) or abs(a - b) > scaled(bound, abs(b), usual):
            return [f"step {n}: {what} {a!r}, expected {b!r}"]
    return []


def _steps(trace: Trace, after: int) -> dict[int, Step]:
    return {step.number: step for step in trace.steps if step.number > after}


def _rows(step: Step) -> list[list[int]]:
    return [batch.rows for batch in step.batches]


def _span(steps: Iterable[int]) -> str:
    numbers = list(steps)
    return f"{numbers[0]} to {numbers[-1]}" if numbers else "none"


def _first(sentences: Iterable[str]) -> list[str]:
    return next(([sentence] for sentence in sentences), [])


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
