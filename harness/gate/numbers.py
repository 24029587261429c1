"""Compare the numbers of one run under two stacks, and name the first step and tensor that differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from harness.laws.curves import curves
from harness.laws.equal import distance, equal_runs, largest_gap
from harness.tolerance import STACKS
from harness.trace import Tensors, Trace
from harness.verdict import NOT_COMPARABLE, spelled

EQUAL, WITHIN, CHANGED, UNJUDGED = "bit-equal", "within", "changed", "not comparable"


@dataclass(frozen=True)
class Parting:
    """How far two runs of a spec differ.

    - kind: EQUAL, WITHIN (the tolerance STACKS) or CHANGED; UNJUDGED if there was nothing finite to compare.
    - step: the first optimizer step that differs; None if it is the adapter before or after training.
    - what: what differs there, for example "gradient of model.layers.0..."; if UNJUDGED, why nothing was compared.
    - loss, gradient, adapter: the largest difference, divided by the largest value.
    - ratio: the gradient's norm at the first step, after divided by before.
    - curves: the numbers of both runs by step (`harness.laws.curves`), if they are CHANGED.
    """

    kind: str
    step: int | None = None
    what: str = ""
    loss: float = 0.0
    gradient: float = 0.0
    adapter: float = 0.0
    ratio: float | None = None
    curves: dict[str, Any] | None = None

    def __str__(self) -> str:
        if self.kind == EQUAL:
            return "bit-equal"
        if self.kind == UNJUDGED:
            return f"not comparable: {self.what}"
        words = []
        if self.ratio is not None and abs(self.ratio - 1) > 1e-3:
            words.append(f"the gradient is {self.ratio:.4g} times what it was")
        words.append(f"first differs at step {self.step} in {self.what}" if self.step else f"differs in {self.what}")
        gaps = (("loss", self.loss), ("gradient", self.gradient), ("adapter", self.adapter))
        words.append("relative differences: " + ", ".join(f"{name} {gap:.2g}" for name, gap in gaps))
        return "; ".join(words)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "curves" or value}


def parting(before: Trace, after: Trace) -> Parting:
    """Return how the run `after` differs from the run `before`. Both trained the same spec."""
    step, what = next(_differences(before, after), (None, ""))
    judged = equal_runs(after, before, STACKS)
    if judged.outcome == NOT_COMPARABLE:
        return Parting(UNJUDGED, None, judged.seen[0])
    if not what:
        return Parting(EQUAL)
    gaps = distance(after, before)
    within = judged.holds and _rows(before) == _rows(after)
    return Parting(
        WITHIN if within else CHANGED,
        step,
        what,
        loss=_relative(gaps["largest_loss_difference"], [abs(value) for value in before.losses.values()]),
        gradient=_relative(gaps["largest_gradient_difference"], [_largest(step.gradients) for step in before.steps]),
        adapter=_relative(gaps["largest_adapter_difference"], [_largest(before.adapter)]),
        ratio=_ratio(before, after),
        curves=None if within else curves(before, after, largest_gap, ("baseline", "candidate")),
    )


def _differences(before: Trace, after: Trace) -> Iterator[tuple[int | None, str]]:
    """Yield (step, what) of each difference, in the order in which a run makes them."""
    yield from (
        (None, f"adapter at the start, {name}") for name in _unequal(before.adapter_before, after.adapter_before)
    )
    for old, new in zip(before.steps, after.steps, strict=False):
        if [batch.rows for batch in old.batches] != [batch.rows for batch in new.batches]:
            yield old.number, "the rows it trains"
        yield from ((old.number, f"gradient of {name}") for name in _unequal(old.gradients, new.gradients))
        yield from ((old.number, f"clipped gradient of {name}") for name in _unequal(old.clipped, new.clipped))
        if old.learning_rates != new.learning_rates:
            yield old.number, "learning rate"
        for what, was, now in (
            ("logged loss", before.losses, after.losses),
            ("logged grad_norm", before.grad_norms, after.grad_norms),
        ):
            if spelled(was.get(old.number)) != spelled(now.get(old.number)):
                yield old.number, what
    if len(before.steps) != len(after.steps):
        yield min(len(before.steps), len(after.steps)) + 1, "the number of steps"
    yield from ((None, f"adapter at the end, {name}") for name in _unequal(before.adapter, after.adapter))


def _unequal(before: Tensors, after: Tensors) -> Iterator[str]:
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if was is None or now is None or was.dtype != now.dtype or largest_gap(was, now) > 0:
            yield name


def _rows(trace: Trace) -> list[list[int]]:
    return [sorted(rows) for rows in trace.rows]


def _relative(gap: float, sizes: list[float]) -> float:
    size = max(sizes, default=0.0)
    return gap / size if size else gap


def _largest(tensors: Tensors) -> float:
    return max((float(tensor.double().abs().max()) for tensor in tensors.values() if tensor.numel()), default=0.0)


def _ratio(before: Trace, after: Trace) -> float | None:
    if not (before.steps and after.steps):
        return None
    norms = [_norm(trace.steps[0].gradients) for trace in (before, after)]
    return norms[1] / norms[0] if norms[0] else None


def _norm(tensors: Tensors) -> float:
    return float(torch.stack([tensor.double().norm() for tensor in tensors.values()]).norm()) if tensors else 0.0
