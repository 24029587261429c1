"""What paired times mean: holds, slower, or not yet clear."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

HOLDS, SLOWER, UNCLEAR = "holds", "slower", "unclear"

#: Chance that two equal sides are told apart, over all metrics and all looks; and that a slower one is passed.
ALPHA = 0.01

#: Of what is averaged, a share that is cut off at either end: what else the machine does is in the tails.
TRIM = 0.2

#: Fewest of which an interval is told.
FEWEST = 5

#: How much the mean of a pair of equal processes strays for good where the host does all the work, by whether their memory
#: lies in huge pages: where it came to lie makes one faster. Measured on two cores: 0.6 % over six pairs without (and 0.4 and
#: 0.7 % over four), 0.1 % over six and 0.15 to 0.26 % over eight pairs with.
SPREAD = {False: 0.006, True: 0.003}

#: The same where the device does all the work, by whether its clock stays (`harness.throughput.clock`). On an H100 that
#: draws all the power it may, so that its clock wanders between 1650 and 1980 MHz, it came to 0 to 0.55 % in nine series of
#: six pairs, 0 and 0.31 % in the two longest (3 minutes each). Where memory is what it waits for, and the clock stays at
#: 1980 MHz, the means of four pairs lay within 0.06 % of zero over two minutes (fixtures/baselines/rates-h100.json).
DEVICE_SPREAD = {False: 0.0035, True: 0.001}


def spread(device: str, huge_pages: bool, host: float, steady: bool = False) -> float:
    """How much the mean of a pair of equal processes strays for good.

    host: the share of a step that is the host's work. steady: whether the device's clock stayed.
    """
    own = SPREAD[huge_pages] * min(host, 1.0)
    return own if device == "cpu" else math.hypot(own, DEVICE_SPREAD[steady])


@dataclass(frozen=True)
class Interval:
    """How much slower: a share (0.01: one percent), its standard error, and its confidence interval.

    count: of how many A B B A. freedom: degrees of freedom of the error, infinite where noise has no part in it.
    """

    estimate: float
    error: float
    low: float
    high: float
    count: int
    freedom: float = math.inf

    def beyond(self, share: float) -> float:
        """How far it lies above a share: the deviate of a standard normal that is as rare (Wallace 1959).

        The error is itself measured: of few A B B A, three errors are nothing rare.
        """
        away = (self.estimate - share) / self.error
        return away if math.isinf(self.freedom) else math.copysign(_normal(abs(away), self.freedom), away)

    @staticmethod
    def error_of(low: float, high: float) -> float:
        """The standard error of the log-ratio whose interval ends there, as ratios (1.01: one percent slower)."""
        return math.log(high / low) / (2 * _z(0.005))

    def __str__(self) -> str:
        if not math.isfinite(self.low):
            return f"not known from {self.count} A B B A"
        return f"{self.estimate:+.2%} ({self.low:+.2%} to {self.high:+.2%})"


@dataclass(frozen=True)
class Judgement:
    """word: HOLDS, SLOWER or UNCLEAR. margin: the slowdown that had to be found, a share. slower: the metrics that are.
    intervals: by metric, 99 % each.
    """

    word: str
    margin: float
    slower: tuple[str, ...] = ()
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def decided(self) -> bool:
        return self.word != UNCLEAR

    def to_json(self) -> dict[str, Any]:
        return {"word": self.word, "margin": self.margin, "slower": list(self.slower)} | {
            metric: {"estimate": one.estimate, "low": one.low, "high": one.high, "quadruples": one.count}
            for metric, one in self.intervals.items()
        }


def interval(ratios: Sequence[Sequence[float]], strays: float = SPREAD[False], compared_with: float = 0.0) -> Interval:
    """The trimmed mean of log-ratios and its interval (Tukey and McLaughlin 1963), as a share.

    ratios: a list for each pair of processes. strays: how much a pair's mean does (`spread`). compared_with: the standard
    error of a recorded log-ratio that was taken off these, 0 where none was.
    """
    flat = np.sort(np.concatenate([_turns(pair) for pair in ratios])) if ratios else np.empty(0)
    if len(flat) < FEWEST and ratios:
        flat = np.sort(np.concatenate([np.asarray(pair, float) for pair in ratios]))
    count, timed = len(flat), sum(map(len, ratios))
    if count < FEWEST:
        return Interval(math.nan, math.inf, -math.inf, math.inf, timed)
    cut = int(TRIM * count)
    kept = flat[cut : count - cut]
    winsorized = np.concatenate([np.full(cut, kept[0]), kept, np.full(cut, kept[-1])])
    within = float(winsorized.std(ddof=1)) / ((1 - 2 * TRIM) * math.sqrt(count))
    error = math.hypot(within, strays / math.sqrt(len(ratios)), compared_with)
    # Of the error only what is within is measured here (Welch 1947, Satterthwaite 1946).
    freedom = (len(kept) - 1) * (error / within) ** 4 if within else math.inf
    middle, half = float(kept.mean()), _student(_z(0.005), freedom) * error
    return Interval(math.expm1(middle), error, math.expm1(middle - half), math.expm1(middle + half), timed, freedom)


def _turns(pair: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Means of an A B B A and the B A A B after it.

    The two blocks in the middle of either follow their own like, and find the caches as they left them: that made the side in
    the middle faster by some 4 % on two cores, two fifths of the variance of an A B B A, in the one as in the other.
    """
    whole = np.asarray(pair[: len(pair) // 2 * 2], float)
    turns: np.ndarray[Any, np.dtype[np.float64]] = whole.reshape(-1, 2).mean(axis=1)
    return turns


def judge(
    ratios: Mapping[str, Sequence[Sequence[float]]],
    margin: float,
    spent: float,
    strays: float = SPREAD[False],
    compared_with: float = 0.0,
) -> Judgement:
    """Is the second side slower, by any metric?

    margin: the smallest slowdown that must be found, a share. spent: share of the budget, above 0. strays, compared_with: see
    `interval`. It may be asked after each A B B A: the evidence that it takes is that of the end over sqrt(spent) (O'Brien
    and Fleming 1979), and a Brownian motion crosses such a bound once with twice the chance of being above it at the end.

    SLOWER: equality is refused (Holm 1979, over the metrics), and the middle is nearer to the margin than to zero. HOLDS:
    a slowdown by the margin is refused for each metric, and each middle is nearer to zero.
    """
    intervals = {metric: interval(pairs, strays, compared_with) for metric, pairs in ratios.items()}
    if not all(math.isfinite(one.error) for one in intervals.values()):
        return Judgement(UNCLEAR, margin, intervals=intervals)
    scale = 1 / math.sqrt(min(max(spent, 1e-3), 1.0))
    far = sorted(intervals, key=lambda metric: -intervals[metric].beyond(0.0))
    slower: list[str] = []
    for place, metric in enumerate(far):
        one = intervals[metric]
        if one.beyond(0.0) <= _z(ALPHA / 2 / (len(far) - place)) * scale:
            break
        if one.estimate > margin / 2:
            slower.append(metric)
    if slower:
        return Judgement(SLOWER, margin, tuple(slower), intervals)
    near = all(one.estimate < margin / 2 and -one.beyond(margin) > _z(ALPHA / 2) * scale for one in intervals.values())
    return Judgement(HOLDS if near else UNCLEAR, margin, intervals=intervals)


def _normal(student: float, freedom: float) -> float:
    """The standard normal deviate above which as much lies as above a deviate of Student's t, to 0.02 (Wallace 1959)."""
    return (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(student**2 / freedom))


def _student(normal: float, freedom: float) -> float:
    """The inverse of `_normal`."""
    if math.isinf(freedom):
        return normal
    return math.sqrt(freedom * math.expm1((normal * (8 * freedom + 3) / (8 * freedom + 1)) ** 2 / freedom))


@functools.cache
def _z(tail: float) -> float:
    """The standard normal quantile above which a share `tail` lies."""
    return NormalDist().inv_cdf(1 - tail)
