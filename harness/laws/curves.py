"""The numbers of two runs by step, as a report stores them: what a reader needs to see where two runs part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from harness.trace import Step, Tensors, Trace

if TYPE_CHECKING:
    import torch

#: Steps of a curve. A plot of 600 pixels shows no more, and a report has some hundred curves.
MOST_STEPS = 48

#: Tensors of which the difference is stored, those that differ most.
MOST_TENSORS = 5

#: Significant digits. A float32 has no more than nine.
_DIGITS = 7


def curves(
    seen: Trace,
    expected: Trace,
    gap: Callable[[torch.Tensor, torch.Tensor], float],
    names: Sequence[str] = ("seen", "expected"),
) -> dict[str, Any]:
    """Return loss, gradient norm and the differences of gradients of two runs by step. Empty if no step has a number.

    - seen, expected: the two runs.
    - gap: returns the largest difference of two tensors' elements (`harness.laws.equal.largest_gap`).
    - names: what the report calls them.

    The result has `of` (the names), `steps`, `loss` and `grad_norm` (a list for each run), and `tensors` (name -> the
    largest difference of two elements of its gradient, for the tensors that differ most). A number that is missing, NaN or
    infinite is None. Of a long run some steps are left out, but never the first that differs.
    """
    ours, theirs = ({step.number: step for step in trace.steps} for trace in (seen, expected))
    losses = (seen.losses, expected.losses)
    norms = (_norms(seen.grad_norms, ours), _norms(expected.grad_norms, theirs))
    numbers = sorted({*ours, *theirs, *losses[0], *losses[1]})
    both = [number for number in numbers if number in ours and number in theirs]
    gaps = {number: _gaps(ours[number].gradients, theirs[number].gradients, gap) for number in both}

    def differs(number: int) -> bool:
        pairs = ((one.get(number), other.get(number)) for one, other in (losses, norms))
        return any(a != b for a, b in pairs) or any(one > 0 for one in gaps.get(number, {}).values())

    steps = _thinned(numbers, next((number for number in numbers if differs(number)), None))
    largest: dict[str, float] = {}
    for found in gaps.values():
        for name, one in found.items():
            largest[name] = max(one, largest.get(name, 0.0))
    worst = sorted((name for name in largest if largest[name] > 0), key=lambda name: -largest[name])[:MOST_TENSORS]
    if not steps:
        return {}
    return {
        "of": list(names),
        "steps": steps,
        "loss": [[_short(one.get(step)) for step in steps] for one in losses],
        "grad_norm": [[_short(one.get(step)) for step in steps] for one in norms],
        "tensors": {name: [_short(gaps.get(step, {}).get(name)) for step in steps] for name in worst},
    }


def _norms(logged: dict[int, float], steps: dict[int, Step]) -> dict[int, float]:
    """Return the logged gradient norm of each step, or the norm of its gradients if none was logged."""
    return {**{number: _norm(step.gradients.values()) for number, step in steps.items() if step.gradients}, **logged}


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def _gaps(ours: Tensors, theirs: Tensors, gap: Callable[[torch.Tensor, torch.Tensor], float]) -> dict[str, float]:
    return {name: gap(ours[name], theirs[name]) for name in ours if name in theirs}


def _thinned(numbers: list[int], first: int | None) -> list[int]:
    """Return at most MOST_STEPS of the steps, at even distances, with the first that differs among them."""
    if len(numbers) <= MOST_STEPS:
        return numbers
    chosen = {numbers[round(i * (len(numbers) - 1) / (MOST_STEPS - 2))] for i in range(MOST_STEPS - 1)}
    return sorted(chosen | ({first} if first is not None else set()))


def _short(value: float | None) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if value is not None and math.isfinite(value) else None
