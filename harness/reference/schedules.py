"""The learning rate at each step: one function for each lr_scheduler_type. transformers/optimization.py.

A function returns what the peak rate is multiplied by. Its parameters but the first are those of `lr_scheduler_kwargs`.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from harness.reference.greedy import Greedy
from harness.reference.settings import Arguments

Rate = float | None


class At(NamedTuple):
    """Where a run is: steps done, steps of the warm-up and of the whole run; and the peak rate."""

    step: int
    warmup: int
    total: int
    peak: float

    def share(self) -> float:
        """Return the share of the steps after the warm-up that is done."""
        return (self.step - self.warmup) / max(1, self.total - self.warmup)


def wave(progress: float, cycles: float) -> float:
    """Return a cosine wave that starts at 1. It reaches 0 at progress 1, if `cycles` is 0.5."""
    return 0.5 * (1.0 + math.cos(math.pi * cycles * 2.0 * progress))


def floor_rate(peak: float, min_lr: Rate, min_lr_rate: Rate) -> float:
    """Return the lowest rate as a share of the peak. min_lr is a rate, min_lr_rate is a share; one of them is given."""
    if (min_lr is None) == (min_lr_rate is None):
        raise ValueError("one of min_lr and min_lr_rate is needed, not both")
    return min_lr / peak if min_lr is not None else float(min_lr_rate or 0.0)


def linear(at: At) -> float:
    return max(0.0, (at.total - at.step) / max(1, at.total - at.warmup))


def cosine(at: At, num_cycles: float = 0.5) -> float:
    return max(0.0, wave(at.share(), num_cycles))


def cosine_with_restarts(at: At, num_cycles: int = 1) -> float:
    """Each cycle starts again at the peak. The last one stays at 0."""
    done = at.share()
    return 0.0 if done >= 1.0 else max(0.0, wave((num_cycles * done) % 1.0, 0.5))


def polynomial(at: At, lr_end: float = 1e-7, power: float = 1.0) -> float:
    """From the peak to the rate `lr_end`, where it stays. The remaining share of the steps is raised to `power`."""
    if not at.peak > lr_end:
        raise ValueError("lr_end must be below learning_rate")
    if at.step > at.total:
        return lr_end / at.peak
    return ((at.peak - lr_end) * float((1 - at.share()) ** power) + lr_end) / at.peak


def inverse_sqrt(at: At, timescale: int | None = None) -> float:
    """1 / sqrt(steps), shifted so that it is 1 at the end of the warm-up. The run's length does not matter."""
    scale = (at.warmup or 10_000) if timescale is None else timescale
    return 1.0 / math.sqrt((at.step + (scale - at.warmup)) / scale)


def cosine_with_min_lr(at: At, num_cycles: float = 0.5, min_lr: Rate = None, min_lr_rate: Rate = None) -> float:
    floor = floor_rate(at.peak, min_lr, min_lr_rate)
    return max(0.0, wave(at.share(), num_cycles) * (1 - floor) + floor)


def cosine_warmup_with_min_lr(
    at: At, num_cycles: float = 0.5, min_lr: Rate = None, min_lr_rate: Rate = None, warmup_lr_rate: Rate = None
) -> float:
    """As `cosine_with_min_lr`, one step ahead. The warm-up starts at `warmup_lr_rate` (1 / warmup), not at 0."""
    if at.step < at.warmup:
        if warmup_lr_rate is None:
            return (at.step + 1.0) / at.warmup
        return warmup_lr_rate + (1.0 - warmup_lr_rate) * at.step / max(1, at.warmup - 1)
    floor = floor_rate(at.peak, min_lr, min_lr_rate)
    done = (at.step - at.warmup + 1.0) / max(1.0, at.total - at.warmup)
    return max(0.0, wave(done, num_cycles) * (1 - floor) + floor)


#: Shape of a stage -> how high it is after a share of its steps, if it rises from 0 to 1.
RISES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: done,
    "cosine": lambda done: 0.5 * (1.0 - math.cos(math.pi * done)),
    "1-sqrt": lambda done: 1.0 - math.sqrt(1.0 - done),
}


def warmup_stable_decay(
    at: At,
    num_decay_steps: int,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0,
    num_cycles: float = 0.5,
) -> float:
    """Three stages: up from `min_lr_ratio`, level, and down to it. num_stable_steps: what the other two leave."""
    if unknown := {warmup_type, decay_type} - set(RISES):
        raise ValueError(f"no shape {min(unknown)!r}")
    stable = at.total - at.warmup - num_decay_steps if num_stable_steps is None else num_stable_steps
    if at.step < at.warmup:
        height = RISES[warmup_type](at.step / at.warmup)
    elif at.step < at.warmup + stable:
        return 1.0
    elif at.step < at.warmup + stable + num_decay_steps:
        done = (at.step - at.warmup - stable) / num_decay_steps
        height = {"linear": 1.0 - done, "cosine": wave(done, num_cycles), "1-sqrt": 1.0 - math.sqrt(done)}[decay_type]
    else:
        return min_lr_ratio
    return max(0.0, height * (1.0 - min_lr_ratio) + min_lr_ratio)


#: lr_scheduler_type -> its function. Constant rates need none.
SHAPES: dict[str, Callable[..., float]] = {
    shape.__name__: shape
    for shape in (
        *(linear, cosine, cosine_with_restarts, polynomial, inverse_sqrt),
        *(cosine_with_min_lr, cosine_warmup_with_min_lr, warmup_stable_decay),
    )
}

#: Kinds whose functions have a warm-up of their own. In the others the rate rises from 0 in equal steps.
OWN_WARMUP = ("cosine_warmup_with_min_lr", "warmup_stable_decay")

#: Kinds that change the rate after an evaluation, by what it measured, and not after each step.
BY_METRIC = {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": Greedy}

#: Kinds that ignore lr_scheduler_kwargs.
CONSTANT = ("constant", "constant_with_warmup")


def factor(step: int, kind: str, warmup: int, total: int, peak: float, options: Mapping[str, Any]) -> float:
    """Return what the peak rate is multiplied by. kind: lr_scheduler_type; options: lr_scheduler_kwargs; others: see `At`."""
    if step < warmup and kind not in OWN_WARMUP:
        return step / warmup
    return 1.0 if kind in CONSTANT else SHAPES[kind](At(step, warmup, total, peak), **options)


def make_schedule(optimizer: torch.optim.Optimizer, args: Arguments, total: int) -> Any:
    """Make the schedule over `total` optimizer steps. trainer.py:create_scheduler, optimization.py:get_scheduler."""
    kind, options = args.lr_scheduler_type, dict(args.lr_scheduler_kwargs or {})
    if kind in BY_METRIC:
        return BY_METRIC[kind](optimizer, **options)
    if kind == "constant":
        return LambdaLR(optimizer, lambda step: 1.0)
    warmup = int(args.warmup_steps) if args.warmup_steps >= 1 else math.ceil(total * args.warmup_steps)
    # A partial, as upstream: torch writes {} for it into scheduler.pt, and None for a plain function.
    chosen = partial(factor, kind=kind, warmup=warmup, total=total, peak=args.learning_rate, options=options)
    return LambdaLR(optimizer, chosen)
