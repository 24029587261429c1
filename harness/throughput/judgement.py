"""Judge paired times: B holds, B is slower, or it is not yet clear.

1. `interval` makes a trimmed mean of the log-ratios and its 99 % interval.
2. `judge` compares the intervals of all metrics with zero and with the margin.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

HOLDS, SLOWER, UNCLEAR = "holds", "slower", "unclear"

#: The false-alarm rate between equal sides, over all metrics and all looks. Also the rate at which a slower side is missed.
ALPHA = 0.01

#: The share of the values that is cut off at either end before they are averaged. Other work on the machine is in the tails.
TRIM = 0.2

#: With fewer values there is no interval.
FEWEST = 5

#: The standard deviation of a pair's mean between equal processes, if the host does all the work, by whether their memory
#: lies in huge pages. The place of its memory makes one process faster for as long as it runs. Measured on two cores on
#: 2026-11-27: without huge pages 0.6 % over six pairs (0.4 and 0.7 % over four), with them 0.1 % over six and 0.15 to
#: 0.26 % over eight.
SPREAD = {False: 0.006, True: 0.003}

#: The same if the device does all the work, by whether its clock is steady (`harness.throughput.clock`). Measured on an
#: H100 on 2026-11-27. At full power its clock varies between 1650 and 1980 MHz: 0 to 0.55 % in nine series of six pairs, 0
#: and 0.31 % in the two longest (3 minutes each). If it waits for memory its clock stays at 1980 MHz: the means of four pairs
#: were within 0.06 % of zero over two minutes (fixtures/baselines/rates-h100.json).
DEVICE_SPREAD = {False: 0.0035, True: 0.001}


def spread(device: str, huge_pages: bool, host: float, steady: bool = False) -> float:
    """Return the standard deviation of a pair's mean between equal processes, a share. More timing does not lower it.

    - device: "cpu" or "cuda".
    - huge_pages: whether the processes' memory lies in huge pages.
    - host: the share of a step that is the host's work.
    - steady: whether the device's clock was steady.
    """
    own = SPREAD[huge_pages] * min(host, 1.0)
    return own if device == "cpu" else math.hypot(own, DEVICE_SPREAD[steady])


@dataclass(frozen=True)
class Interval:
    """How much slower B is than A.

    - estimate: a share (0.01 is 1 % slower, -0.01 is faster).
    - error: the standard error of the log-ratio.
    - low, high: the ends of the 99 % interval, shares.
    - count: the number of A B B A.
    - freedom: degrees of freedom of the error; infinite if none of it was estimated from the values.
    """

    estimate: float
    error: float
    low: float
    high: float
    count: int
    freedom: float = math.inf

    def beyond(self, share: float) -> float:
        """Return how far the estimate is above a share, as a standard normal deviate that is as rare (Wallace 1959).

        The error is itself estimated, so with few A B B A a distance of three errors is not rare.
        """
        away = (self.estimate - share) / self.error
        return away if math.isinf(self.freedom) else math.copysign(_normal(abs(away), self.freedom), away)

    @staticmethod
    def error_of(low: float, high: float) -> float:
        """Return the standard error of a log-ratio, given the ends of its interval as ratios (1.01 is 1 % slower)."""
        return math.log(high / low) / (2 * _z(0.005))

    def __str__(self) -> str:
        """The estimate and its interval, with signs: "+0.92% (+0.10% to +1.74%)"."""
        if not math.isfinite(self.low):
            return f"unknown from {self.count} A B B A"
        return f"{self.estimate:+.2%} ({self.low:+.2%} to {self.high:+.2%})"

    def describe(self, more: str = "slower", less: str = "faster", what: str = "") -> str:
        """Return the estimate in words, such as "0.92 % faster (99 % interval: 2.1 % faster to 0.26 % slower)"."""
        if not math.isfinite(self.low):
            return str(self)
        low, high = sorted((self.low, self.high), key=abs)
        if self.low < 0 < self.high:
            between = f"{percent(self.low)} {less} to {percent(self.high)} {more}"
        else:
            between = f"{percent(low)} to {percent(high)}"
        words = f"{percent(self.estimate)} {less if self.estimate < 0 else more} {what}".rstrip()
        return f"{words} (99 % interval: {between})"


@dataclass(frozen=True)
class Judgement:
    """Whether B is slower.

    - word: HOLDS, SLOWER or UNCLEAR.
    - margin: the smallest slowdown that must be found, a share.
    - slower: the metrics by which B is slower.
    - intervals: metric -> its 99 % interval.
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
    """Return the trimmed mean of log-ratios and its interval (Tukey and McLaughlin 1963), as shares.

    - ratios: a list of log-ratios for each pair of processes.
    - strays: the standard deviation of a pair's mean between equal processes (`spread`).
    - compared_with: the standard error of a recorded log-ratio that was subtracted from these; 0 if none was.
    """
    flat = np.sort(np.concatenate([_turns(pair) for pair in ratios])) if ratios else np.empty(0)
    if len(flat) < FEWEST and ratios:
        flat = np.sort(np.concatenate([np.asarray(pair, float) for pair in ratios]))
    count, timed = len(flat), sum(map(len, ratios))
    # A time that is NaN, zero or infinite would be cut off with the tails, unseen.
    if count < FEWEST or not np.isfinite(flat).all():
        return Interval(math.nan, math.inf, -math.inf, math.inf, timed)
    cut = int(TRIM * count)
    middle_part = flat[cut : count - cut]
    winsorized = np.concatenate([np.full(cut, middle_part[0]), middle_part, np.full(cut, middle_part[-1])])
    within = float(winsorized.std(ddof=1)) / ((1 - 2 * TRIM) * math.sqrt(count))
    error = math.hypot(within, strays / math.sqrt(len(ratios)), compared_with)
    # Only the part within the series is estimated from the values (Welch 1947, Satterthwaite 1946).
    freedom = (len(middle_part) - 1) * (error / within) ** 4 if within else math.inf
    middle, half = float(middle_part.mean()), _student(_z(0.005), freedom) * error
    return Interval(math.expm1(middle), error, math.expm1(middle - half), math.expm1(middle + half), timed, freedom)


def percent(share: float) -> str:
    """Return the size of a share in percent, without its sign: "0.92 %", "1 %"."""
    return f"{100 * abs(share):.2f}".rstrip("0").rstrip(".") + " %"


def _turns(pair: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the means of each A B B A and the B A A B after it.

    The second of the two middle blocks finds the caches as its own side left them. On two cores (2026-11-27) that made the
    side in the middle about 4 % faster, two fifths of the variance of an A B B A. In the mean of both orders it cancels.
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
    """Judge whether B is slower by any metric. It may be called after each A B B A.

    - ratios: metric -> the log-ratios, as for `interval`.
    - margin: the smallest slowdown that must be found, a share.
    - spent: the share of the time budget that is spent, above 0.
    - strays, compared_with: as for `interval`.

    SLOWER: equality is rejected (Holm 1979, over the metrics), and the estimate is nearer to the margin than to zero.
    HOLDS: a slowdown by the margin is rejected for each metric, and each estimate is nearer to zero than to the margin.

    Looking early needs more evidence: the bound of the end divided by sqrt(spent) (O'Brien and Fleming 1979). A Brownian
    motion crosses such a bound at some time with twice the chance of being above it at the end, so ALPHA is halved.
    """
    intervals = {metric: interval(pairs, strays, compared_with) for metric, pairs in ratios.items()}
    if not intervals or not all(math.isfinite(one.error) for one in intervals.values()):
        return Judgement(UNCLEAR, margin, intervals=intervals)
    scale = 1 / math.sqrt(min(max(spent, 1e-3), 1.0))
    far = sorted(intervals, key=lambda metric: -intervals[metric].beyond(0.0))
    slower: list[str] = []
    for rank, metric in enumerate(far):
        if intervals[metric].beyond(0.0) <= _z(ALPHA / 2 / (len(far) - rank)) * scale:
            break
        if intervals[metric].estimate > margin / 2:
            slower.append(metric)
    if slower:
        return Judgement(SLOWER, margin, tuple(slower), intervals)
    near = all(one.estimate < margin / 2 and -one.beyond(margin) > _z(ALPHA / 2) * scale for one in intervals.values())
    return Judgement(HOLDS if near else UNCLEAR, margin, intervals=intervals)


def _normal(student: float, freedom: float) -> float:
    """Return the standard normal deviate that is as rare as a deviate of Student's t, within 0.02 (Wallace 1959)."""
    return (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(student**2 / freedom))


def _student(normal: float, freedom: float) -> float:
    """Return the inverse of `_normal`."""
    if math.isinf(freedom):
        return normal
    return math.sqrt(freedom * math.expm1((normal * (8 * freedom + 3) / (8 * freedom + 1)) ** 2 / freedom))


@functools.cache
def _z(tail: float) -> float:
    """Return the standard normal quantile above which a share `tail` lies."""
    return NormalDist().inv_cdf(1 - tail)
