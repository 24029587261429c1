"""Measure how often the judgement is wrong: false alarms between equal sides, and slowdowns of known size that are missed.

1. `pools` times real A B B A, between equal sides and with slowdowns put in on purpose (`harness.throughput.slowed`).
2. `rates` draws trials from a pool. A trial draws pairs of processes with replacement, and stretches of consecutive A B B A
   of each pair, so that slow drifts stay in the draw.
3. Each trial is judged as the gate would judge it, and by two rules that others use.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import numpy as np

from harness.throughput.judgement import HOLDS, SLOWER, SPREAD, UNCLEAR, interval, judge
from harness.throughput.pairs import PROCESSES, Entrant, Pairs, lined_up, race
from harness.throughput.shapes import Shape

#: The slowdowns that are put in, shares.
SHARES = {"cpu": (0.0, 0.01, 0.02, 0.03, 0.05, 0.10), "cuda": (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.10)}

#: The smallest slowdown that must be found, a share.
GOAL = {"cpu": 0.01, "cuda": 0.005}
#: The seconds in which it must be found.
WITHIN = 120.0

#: How many times longer equal sides are timed, and sides with the smallest slowdown. The mean of a short pool is off by
#: chance, and that would look like an error of the rule.
LONGER, LONG = 4, 2

TRIALS = 1000

#: Pairs of processes that are timed; a trial draws PROCESSES of them, some twice.
PAIRS = {"cpu": 8, "cuda": 4}

#: Consecutive A B B A that are drawn together.
STRETCH = 8

BENCHMARK, MANN_WHITNEY = "pytest-benchmark mean:5%", "Mann-Whitney 0.05"


@dataclass
class Pool:
    """What was timed under one slowdown.

    - share: the slowdown, 0 for equal sides.
    - series: a list for each pair of processes, with an object for each A B B A: "ratios", metric -> log-ratio, and the
      seconds of a step of "a" and of "b".
    - seconds: of one A B B A.
    - strays: see `harness.throughput.pairs.Pairs`.
    """

    share: float
    series: list[list[dict[str, Any]]]
    seconds: float
    strays: float = SPREAD[False]


def _pool(share: float, timed: Pairs) -> Pool:
    pairs = len(timed.ratios["wall"])
    count = sum(map(len, timed.ratios["wall"]))
    made: list[list[dict[str, Any]]] = [[] for _ in range(pairs)]
    # The pairs take turns, and each A B B A has two blocks of each side.
    for number in range(count):
        index, turn = number % pairs, number // pairs
        quadruple: dict[str, Any] = {"ratios": {metric: each[index][turn] for metric, each in timed.ratios.items()}}
        for side in ("a", "b"):
            quadruple[side] = fmean(timed.times[side]["wall"][2 * number : 2 * number + 2])
        made[index].append(quadruple)
    return Pool(share, made, timed.seconds / count, timed.strays)


@dataclass
class Rates:
    """How often each rule says "slower" under one slowdown.

    - share: the slowdown that was put in.
    - trials: the number of trials.
    - came_to: the slowdown that was measured over the whole pool.
    - slower: rule -> the share of trials in which it says "slower".
    - unclear: the share of trials in which the harness's rule says neither.
    - seconds: the median seconds after which the harness's rule decides.
    - spread: the standard deviation of the log-ratios of A B B A.
    """

    share: float
    trials: int
    came_to: float
    slower: dict[str, float] = field(default_factory=dict)
    unclear: float = 0.0
    seconds: float = 0.0
    spread: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def rates(pooled: Pool, margin: float, budget: float, trials: int = TRIALS, seed: int = 0) -> Rates:
    """Draw trials from a pool, and judge each as `peft-harness gate` would.

    - margin: the smallest slowdown that must be found, a share.
    - budget: seconds of a trial.
    """
    draw = random.Random(seed)
    words, times, benchmark, ranks = [], [], [], []
    for _ in range(trials):
        drawn = _drawn(pooled, budget, draw)
        word, share = _judged(drawn, margin, pooled.strays)
        words.append(word)
        times.append(share * budget)
        a, b = ([quadruple[side] for pair in drawn for quadruple in pair] for side in ("a", "b"))
        benchmark.append(fmean(b) > 1.05 * fmean(a))
        ranks.append(_mann_whitney(a, b))
    every = [[quadruple["ratios"]["wall"] for quadruple in pair] for pair in pooled.series]
    return Rates(
        pooled.share,
        trials,
        interval(every).estimate,
        {
            "peft-harness": words.count(SLOWER) / trials,
            BENCHMARK: fmean(benchmark),
            MANN_WHITNEY: fmean(ranks),
        },
        words.count(UNCLEAR) / trials,
        median(times),
        float(np.std(np.concatenate(every))),
    )


def _drawn(pooled: Pool, budget: float, draw: random.Random) -> list[list[dict[str, Any]]]:
    """Draw the A B B A of a trial: as many as fit into the budget, for PROCESSES pairs of processes."""
    each = max(2, math.floor(budget / pooled.seconds / PROCESSES))
    stretch = min(STRETCH, each)
    made = []
    for _ in range(PROCESSES):
        series = draw.choice(pooled.series)
        quadruples: list[dict[str, Any]] = []
        while len(quadruples) < each:
            start = draw.randrange(max(1, len(series) - stretch + 1))
            quadruples += series[start : start + stretch]
        # Which of two equal sides is called A is chance, and so is which of them happened to be faster in this pool.
        swapped = pooled.share == 0 and draw.random() < 0.5
        made.append([_swapped(quadruple) if swapped else quadruple for quadruple in quadruples[:each]])
    return made


def _swapped(quadruple: dict[str, Any]) -> dict[str, Any]:
    ratios = {metric: -value for metric, value in quadruple["ratios"].items()}
    return {"ratios": ratios, "a": quadruple["b"], "b": quadruple["a"]}


def _judged(drawn: list[list[dict[str, Any]]], margin: float, strays: float) -> tuple[str, float]:
    """Return the judgement's word on a trial, and the share of the budget after which it is clear."""
    rounds = len(drawn[0])
    # It looks twenty times. The bound allows more looks.
    for end in sorted({max(2, math.ceil(rounds * part / 20)) for part in range(1, 21)}):
        ratios = {
            metric: [[quadruple["ratios"][metric] for quadruple in pair[:end]] for pair in drawn]
            for metric in drawn[0][0]["ratios"]
        }
        judgement = judge(ratios, margin, end / rounds, strays)
        if judgement.word in (SLOWER, HOLDS):
            return judgement.word, end / rounds
    return UNCLEAR, 1.0


def _mann_whitney(a: list[float], b: list[float]) -> bool:
    from scipy.stats import mannwhitneyu

    return bool(mannwhitneyu(b, a, alternative="two-sided").pvalue < 0.05 and median(b) > median(a))


def measure(
    shape: Shape, device: str, seconds: float, progress: Callable[[str], None] = lambda _: None
) -> Iterator[Rates]:
    """Yield the rates of each slowdown, as they are measured.

    - seconds: of timing for each slowdown. Equal sides and the smallest slowdown get more, large slowdowns half.
    - progress: called with words about what is done now.
    """
    for pooled in pools(shape, device, seconds, progress):
        yield rates(pooled, GOAL[device], trial_seconds(seconds))


def trial_seconds(seconds: float) -> float:
    """Return the seconds of a trial: WITHIN, or a third of the time for equal sides if that is less."""
    return min(WITHIN, LONGER * seconds / 3)


def pools(
    shape: Shape, device: str, seconds: float, progress: Callable[[str], None] = lambda _: None
) -> Iterator[Pool]:
    """Time equal sides, and then the same processes while one of each pair is slowed down. Parameters as in `measure`."""
    spec, slowed = shape.spec(device), ("harness.throughput.slowed",)
    progress(f"{shape.name}: starting")
    with lined_up([Entrant(name, "hf-trainer", spec, slowed) for name in "ab"] * PAIRS[device]) as runners:
        for runner in runners:
            runner.slower = 0.0
        for share in SHARES[device]:
            progress(f"{shape.name}: " + (f"slower by {share:.1%}" if share else "equal sides"))
            for runner in runners[1::2]:
                runner.slower = share
            times = {0.0: LONGER, GOAL[device]: LONG}.get(share, 1 if share <= 4 * GOAL[device] else 0.5)
            _, timed = race(runners[::2], runners[1::2], GOAL[device], times * seconds, decide=False)
            yield _pool(share, timed)
