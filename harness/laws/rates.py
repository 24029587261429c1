"""Which learning rate each optimizer step must use: the schedule's, by formulas written out from the arguments.

Update k (from 0) of T uses learning_rate * f. In a warm-up of w updates f = k / w, unless the schedule has a warm-up of its
own. After it, x = (k - w) / max(1, T - w) is the share of the updates that is done. `FORMULAS` has f for each schedule.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from harness.laws.completion import incomplete
from harness.laws.plan import NotModelled, if_planned, plan
from harness.laws.schedule import argument, number
from harness.spec import RunSpec
from harness.spec_fields import named
from harness.trace import Evaluation, Trace
from harness.verdict import Verdict, verdict

pi, cos, sqrt = math.pi, math.cos, math.sqrt


def _half_wave(x: float, cycles: float = 0.5) -> float:
    """Return 1 at the start of a cosine and 0 at x = 1, if there is half a cycle."""
    return 0.5 * (1 + cos(pi * cycles * 2 * x))


def _linear(k: int, w: int, t: int, peak: float) -> float:
    return max(0.0, (t - k) / max(1, t - w))


def _cosine(k: int, w: int, t: int, peak: float, num_cycles: float = 0.5) -> float:
    return max(0.0, _half_wave((k - w) / max(1, t - w), num_cycles))


def _restarts(k: int, w: int, t: int, peak: float, num_cycles: float = 1) -> float:
    x = (k - w) / max(1, t - w)
    return max(0.0, _half_wave(num_cycles * x % 1)) if x < 1 else 0.0


def _polynomial(k: int, w: int, t: int, peak: float, lr_end: float = 1e-7, power: float = 1) -> float:
    left = 1 - (k - w) / (t - w)
    return ((peak - lr_end) * float(left**power) + lr_end) / peak


def _inverse_sqrt(k: int, w: int, t: int, peak: float, timescale: int | None = None) -> float:
    scale = timescale if timescale is not None else w or 10000
    return 1 / sqrt((k - w + scale) / scale)


def _floor(peak: float, min_lr: float | None, min_lr_rate: float | None) -> float:
    """Return the lowest factor. ValueError unless exactly one of the two is given, as upstream demands."""
    if (min_lr is None) is (min_lr_rate is None):
        raise ValueError("one of min_lr and min_lr_rate must be given")
    return min_lr_rate if min_lr is None else min_lr / peak  # type: ignore[return-value]


def _min_lr(
    k: int, w: int, t: int, peak: float, num_cycles: float = 0.5, min_lr: Any = None, min_lr_rate: Any = None
) -> float:
    low = _floor(peak, min_lr, min_lr_rate)
    return max(0.0, low + (1 - low) * _half_wave((k - w) / max(1, t - w), num_cycles))


def _warmup_min_lr(
    k: int,
    w: int,
    t: int,
    peak: float,
    num_cycles: float = 0.5,
    min_lr: Any = None,
    min_lr_rate: Any = None,
    warmup_lr_rate: float | None = None,
) -> float:
    low = _floor(peak, min_lr, min_lr_rate)
    if k < w:
        first = warmup_lr_rate
        return (k + 1) / w if first is None else first + (1 - first) * k / max(1, w - 1)
    return max(0.0, low + (1 - low) * _half_wave((k + 1 - w) / max(1, t - w), num_cycles))


def _warmup_stable_decay(
    k: int,
    w: int,
    t: int,
    peak: float,
    num_decay_steps: int,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0,
    num_cycles: float = 0.5,
) -> float:
    decays = t - num_decay_steps if num_stable_steps is None else w + num_stable_steps  # the first update that decays
    if k < w:
        shapes: dict[str, Callable[[float], float]] = {
            "linear": lambda x: x,
            "cosine": lambda x: 0.5 * (1 - cos(pi * x)),
            "1-sqrt": lambda x: 1 - sqrt(1 - x),
        }
        height = shapes[warmup_type](k / w)
    elif k < decays:
        return 1.0
    elif k < decays + num_decay_steps:
        x = (k - decays) / num_decay_steps
        height = {"linear": 1 - x, "cosine": _half_wave(x, num_cycles), "1-sqrt": 1 - sqrt(x)}[decay_type]
    else:
        height = 0.0
    return max(0.0, min_lr_ratio + (1 - min_lr_ratio) * height)


def _constant(k: int, w: int, t: int, peak: float, **ignored: Any) -> float:
    return 1.0


#: lr_scheduler_type -> f(k, w, T, learning_rate, **lr_scheduler_kwargs). transformers/optimization.py.
FORMULAS: dict[str, Callable[..., float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _restarts,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "cosine_with_min_lr": _min_lr,
    "cosine_warmup_with_min_lr": _warmup_min_lr,
    "warmup_stable_decay": _warmup_stable_decay,
    "constant": _constant,
    "constant_with_warmup": _constant,
}

#: Schedules whose formula covers the warm-up. The constant one has none.
_OWN_WARMUP = ("constant", "cosine_warmup_with_min_lr", "warmup_stable_decay")

#: The schedule that lowers the rate when evaluations get no better (torch.optim.lr_scheduler.ReduceLROnPlateau).
PLATEAU = "reduce_lr_on_plateau"


#: The user's own optimizers whose groups have rates that are multiples of learning_rate, with the Trainer's own schedule.
OWN_RATES = ("harness.fixtures.optimizers:loraplus", "harness.fixtures.optimizers:parameter_groups")


def learning_rate(spec: RunSpec, step: int, base: float | None = None) -> float:
    """Return the learning rate that an optimizer step must use. Steps are counted from 1.

    - base: the rate that the schedule multiplies in a parameter group; None: learning_rate.

    Raises NotModelled if the spec has no plan, or its schedule no formula (with its options).
    """
    kind = str(argument(spec, "lr_scheduler_type"))
    if kind not in FORMULAS:
        raise NotModelled(f"lr_scheduler_type {kind!r} is not modelled")
    planned, peak, done = plan(spec), number(spec, "learning_rate"), step - 1
    base = peak if base is None else base
    if done < planned.warmup and kind not in _OWN_WARMUP:
        return base * (done / planned.warmup)
    try:
        return base * FORMULAS[kind](done, planned.warmup, planned.total, peak, **_options(spec))
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise NotModelled(f"lr_scheduler_kwargs {dict(_options(spec))} of {kind!r}: {error}") from error


def _options(spec: RunSpec) -> Mapping[str, Any]:
    options: Mapping[str, Any] = spec.arguments.get("lr_scheduler_kwargs") or {}
    if not isinstance(options, Mapping):
        raise NotModelled("lr_scheduler_kwargs is no object")
    return options


def on_plateau(spec: RunSpec, evaluations: Iterable[Evaluation], step: int) -> float:
    """Return the rate that a step must use with `reduce_lr_on_plateau`, given the run's evaluations.

    After more than `patience` evaluations in a row that are not better than the best one by `threshold`, the rate is
    multiplied by `factor`. Evaluations within `cooldown` after that count as none. The one of eval_on_start does not count.

    Raises NotModelled for options that ReduceLROnPlateau does not have.
    """
    defaults = {"mode": "min", "factor": 0.1, "patience": 10, "threshold": 1e-4, "threshold_mode": "rel"}
    option: dict[str, Any] = {**defaults, "cooldown": 0, "min_lr": 0.0, "eps": 1e-8}
    if unknown := set(_options(spec)) - set(option):
        raise NotModelled(f"lr_scheduler_kwargs[{min(unknown)!r}] of {PLATEAU!r} is not modelled")
    option |= _options(spec)
    name = str(spec.arguments.get("metric_for_best_model") or "loss")
    metric = name if name.startswith("eval_") else f"eval_{name}"
    sign = 1 if option["mode"] == "max" else -1
    rate, best, worse, cooling = number(spec, "learning_rate"), -sign * math.inf, 0, 0
    for evaluation in evaluations:
        if not 0 < evaluation.step < step:
            continue
        value = evaluation.metrics.get(metric, math.nan)
        margin = option["threshold"]
        limit = best * (1 + sign * margin) if option["threshold_mode"] == "rel" else best + sign * margin
        better = value > limit if sign > 0 else value < limit
        best, worse = (value, 0) if better else (best, worse + 1)
        if cooling:
            cooling, worse = cooling - 1, 0
        if worse > option["patience"]:
            lowered = max(rate * option["factor"], option["min_lr"])
            rate = lowered if rate - lowered > option["eps"] else rate
            cooling, worse = option["cooldown"], 0
    return rate


def follows_metric(spec: RunSpec) -> bool:
    """Return whether the schedule moves on after evaluations, by what they measure, and not after each step."""
    return spec.arguments.get("lr_scheduler_type") in (PLATEAU, "greedy")


@if_planned
def learning_rates(trace: Trace) -> Verdict:
    """Check that each step uses the schedule's learning rate, in every parameter group.

    Groups of the user's own (`OWN_RATES`) have a rate each, which the schedule multiplies.
    """
    spec, findings = trace.spec, incomplete(trace)
    if spec.trainer.get("optimizers"):
        return _rates_of_groups(trace, findings)
    expected_at = functools.partial(learning_rate, spec)
    if argument(spec, "lr_scheduler_type") == PLATEAU:
        if spec.resume is not None:
            raise NotModelled(f"lr_scheduler_type {PLATEAU!r} goes on from evaluations before the checkpoint")
        expected_at = functools.partial(on_plateau, spec, trace.evaluations)
    for step in trace.steps:
        expected = expected_at(step.number)
        if any(rate != expected for rate in step.learning_rates):
            findings.append(f"step {step.number}: learning rates {step.learning_rates}, expected {expected!r}")
    return verdict("each step uses the schedule's learning rate", findings, steps=len(trace.steps))


def _rates_of_groups(trace: Trace, findings: list[str]) -> Verdict:
    spec = trace.spec
    name, _ = named(spec.trainer["optimizers"]) or ("", {})
    if name not in OWN_RATES or argument(spec, "lr_scheduler_type") == PLATEAU:
        raise NotModelled("the optimizer and its parameter groups are the user's own")
    # The scheduler notes in each group what it multiplies.
    bases = [group.settings.get("initial_lr", math.nan) for group in trace.groups]
    for step in trace.steps:
        expected = [learning_rate(spec, step.number, base) for base in bases]
        if step.learning_rates != expected:
            findings.append(f"step {step.number}: learning rates {step.learning_rates}, expected {expected!r}")
    if not bases:
        findings.append("the optimizer has no parameter group")
    return verdict("each step uses the schedule's rate, times its group's", findings, groups=len(bases))


def logged_rates(trace: Trace) -> Verdict:
    """Check that the learning rate logged for a step is the one that this step used, and not the next step's."""
    findings = incomplete(trace)
    used = {step.number: step.learning_rates[0] for step in trace.steps}
    logged = {entry["step"]: entry["learning_rate"] for entry in trace.log_history if "learning_rate" in entry}
    if not logged:
        findings.append("no learning rate was logged")
    for step, rate in logged.items():
        if rate != used.get(step):
            findings.append(f"step {step}: logged learning rate {rate!r}, but the step used {used.get(step)!r}")
    return verdict("the logged learning rate is the one that the step used", findings, logged=len(logged))
