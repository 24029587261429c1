"""The learning rate at each step: one function for each lr_scheduler_type. transformers/optimization.py.

A function is given the number of steps done, the steps of the warm-up and of the whole run, and the peak rate. It returns
what the peak rate is multiplied by. Its other parameters are the names and defaults of `lr_scheduler_kwargs`.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from harness.reference.greedy import Greedy
from harness.reference.settings import Arguments


def wave(progress: float, cycles: float) -> float:
    """Return a cosine wave that starts at 1. It reaches 0 at progress 1, if `cycles` is 0.5."""
    return 0.5 * (1.0 + math.cos(math.pi * cycles * 2.0 * progress))


def share(step: int, warmup: int, total: int) -> float:
    """Return the share of the steps after the warm-up that is done."""
    return (step - warmup) / max(1, total - warmup)


def floor_rate(peak: float, min_lr: float | None, min_lr_rate: float | None) -> float:
    """Return the lowest rate as a share of the peak. min_lr is a rate, min_lr_rate is a share; one of them is given."""
    if (min_lr is None) == (min_lr_rate is None):
        raise ValueError("one of min_lr and min_lr_rate is needed, not both")
    return min_lr / peak if min_lr is not None else float(min_lr_rate or 0.0)


def linear(step: int, warmup: int, total: int, peak: float) -> float:
    return max(0.0, (total - step) / max(1, total - warmup))


def cosine(step: int, warmup: int, total: int, peak: float, num_cycles: float = 0.5) -> float:
    return max(0.0, wave(share(step, warmup, total), num_cycles))


def cosine_with_restarts(step: int, warmup: int, total: int, peak: float, num_cycles: int = 1) -> float:
    """Each cycle starts again at the peak. The last one stays at 0."""
    done = share(step, warmup, total)
    return 0.0 if done >= 1.0 else max(0.0, wave((num_cycles * done) % 1.0, 0.5))


def polynomial(step: int, warmup: int, total: int, peak: float, lr_end: float = 1e-7, power: float = 1.0) -> float:
    """From the peak to the rate `lr_end`, where it stays. The remaining share of the steps is raised to `power`."""
    if not peak > lr_end:
        raise ValueError("lr_end must be below learning_rate")
    if step > total:
        return lr_end / peak
    return ((peak - lr_end) * float((1 - share(step, warmup, total)) ** power) + lr_end) / peak


def inverse_sqrt(step: int, warmup: int, total: int, peak: float, timescale: int | None = None) -> float:
    """1 / sqrt(steps), shifted so that it is 1 at the end of the warm-up. The run's length does not matter."""
    scale = (warmup or 10_000) if timescale is None else timescale
    return 1.0 / math.sqrt((step + (scale - warmup)) / scale)


def cosine_with_min_lr(
    step: int,
    warmup: int,
    total: int,
    peak: float,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> float:
    floor = floor_rate(peak, min_lr, min_lr_rate)
    return max(0.0, wave(share(step, warmup, total), num_cycles) * (1 - floor) + floor)


def cosine_warmup_with_min_lr(
    step: int,
    warmup: int,
    total: int,
    peak: float,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> float:
    """As `cosine_with_min_lr`, one step ahead. The warm-up starts at `warmup_lr_rate` (1 / warmup), not at 0."""
    if step < warmup:
        if warmup_lr_rate is None:
            return (step + 1.0) / warmup
        return warmup_lr_rate + (1.0 - warmup_lr_rate) * step / max(1, warmup - 1)
    floor = floor_rate(peak, min_lr, min_lr_rate)
    done = (step - warmup + 1.0) / max(1.0, total - warmup)
    return max(0.0, wave(done, num_cycles) * (1 - floor) + floor)


#: Shape of a stage -> how high it is after a share of its steps, if it rises from 0 to 1.
RISES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: done,
    "cosine": lambda done: 0.5 * (1.0 - math.cos(math.pi * done)),
    "1-sqrt": lambda done: 1.0 - math.sqrt(1.0 - done),
}


def warmup_stable_decay(
    step: int,
    warmup: int,
    total: int,
    peak: float,
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
    stable = total - warmup - num_decay_steps if num_stable_steps is None else num_stable_steps
    if step < warmup:
        height = RISES[warmup_type](step / warmup)
    elif step < warmup + stable:
        return 1.0
    elif step < warmup + stable + num_decay_steps:
        done = (step - warmup - stable) / num_decay_steps
        falls = {"linear": 1.0 - done, "cosine": wave(done, num_cycles), "1-sqrt": 1.0 - math.sqrt(done)}
        height = falls[decay_type]
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
    """Return what the peak rate is multiplied by at optimizer step `step`, counted from 0.

    - kind: lr_scheduler_type; options: lr_scheduler_kwargs
    - warmup, total: steps of the warm-up and of the whole run
    - peak: learning_rate
    """
    if step < warmup and kind not in OWN_WARMUP:
        return step / warmup
    return 1.0 if kind in CONSTANT else SHAPES[kind](step, warmup, total, peak, **options)


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
