"""How often the judgement is wrong: false alarms between equals, and slowdowns of a known size that are found or missed.

Real A B B A are timed, between equals and under slowdowns put in on purpose (`harness.throughput.slowed`). A trial draws from
them: pairs of processes with replacement, and of each stretches that followed each other, so that what drifts together stays
together. Beside it, on the same draws, two rules in use say what they would have said.
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

#: Slowdowns put in, as shares.
SHARES = {"cpu": (0.0, 0.01, 0.02, 0.03, 0.05, 0.10), "cuda": (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.10)}

#: The smallest that must be found, and the seconds in which.
GOAL, WITHIN = {"cpu": 0.01, "cuda": 0.005}, 120.0

#: How much longer equals are timed, and the smallest slowdown: the mean of a short pool strays by itself, and would pass for
#: the rule's error.
LONGER, LONG = 4, 2

TRIALS = 1000

#: Pairs of processes that are timed; a trial draws PROCESSES of them, some twice.
PAIRS = {"cpu": 8, "cuda": 4}

#: A B B A that are drawn together.
STRETCH = 8

BENCHMARK, MANN_WHITNEY = "pytest-benchmark mean:5%", "Mann-Whitney 0.05"


@dataclass
class Pool:
    """What was timed under one slowdown. series: for each pair of processes, of each A B B A "ratios" (metric -> log-ratio),
    and the seconds of a step of "a" and of "b". seconds: of one A B B A. strays: see `Pairs`.
    """

    share: float
    series: list[list[dict[str, Any]]]
    seconds: float
    strays: float = SPREAD[False]


def _pool(share: float, timed: Pairs) -> Pool:
    pairs = len(timed.ratios["wall"])
    count = sum(map(len, timed.ratios["wall"]))
    made: list[list[dict[str, Any]]] = [[] for _ in range(pairs)]
    # The pairs take turns, and each A B B A has two blocks of a side.
    for number in range(count):
        index, place = number % pairs, number // pairs
        one: dict[str, Any] = {"ratios": {metric: each[index][place] for metric, each in timed.ratios.items()}}
        for side in ("a", "b"):
            one[side] = fmean(timed.times[side]["wall"][2 * number : 2 * number + 2])
        made[index].append(one)
    return Pool(share, made, timed.seconds / count, timed.strays)


@dataclass
class Rates:
    """Of a slowdown: how often each rule says "slower". came_to: what was put in, as it was measured over all that was timed.
    unclear: how often ours says neither; seconds: its median time. spread: of the log-ratios of A B B A.
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
    """Draw trials from a pool, and judge each as `peft-harness gate` would, within the budget."""
    draw = random.Random(seed)
    words, times, benchmark, ranks = [], [], [], []
    for _ in range(trials):
        drawn = _drawn(pooled, budget, draw)
        word, share = _judged(drawn, margin, pooled.strays)
        words.append(word)
        times.append(share * budget)
        a, b = ([one[side] for pair in drawn for one in pair] for side in ("a", "b"))
        benchmark.append(fmean(b) > 1.05 * fmean(a))
        ranks.append(_mann_whitney(a, b))
    every = [[one["ratios"]["wall"] for one in pair] for pair in pooled.series]
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
    """A trial's A B B A: as many as the budget holds, for as many pairs of processes as are started."""
    each = max(2, math.floor(budget / pooled.seconds / PROCESSES))
    stretch = min(STRETCH, each)
    made = []
    for _ in range(PROCESSES):
        series = draw.choice(pooled.series)
        one: list[dict[str, Any]] = []
        while len(one) < each:
            start = draw.randrange(max(1, len(series) - stretch + 1))
            one += series[start : start + stretch]
        # Which of two equals is called the first is chance, and that what was timed leans to one side is, too.
        swapped = pooled.share == 0 and draw.random() < 0.5
        made.append([_swapped(each_one) for each_one in one[:each]] if swapped else one[:each])
    return made


def _swapped(one: dict[str, Any]) -> dict[str, Any]:
    return {"ratios": {metric: -value for metric, value in one["ratios"].items()}, "a": one["b"], "b": one["a"]}


def _judged(drawn: list[list[dict[str, Any]]], margin: float, strays: float) -> tuple[str, float]:
    """What is said, and after which share of the budget."""
    rounds = len(drawn[0])
    # A look at every twentieth of the budget: the bound allows more.
    for end in sorted({max(2, math.ceil(rounds * part / 20)) for part in range(1, 21)}):
        ratios = {
            metric: [[one["ratios"][metric] for one in pair[:end]] for pair in drawn]
            for metric in drawn[0][0]["ratios"]
        }
        judgement = judge(ratios, margin, end / rounds, strays)
        if judgement.word in (SLOWER, HOLDS):
            return judgement.word, end / rounds
    return UNCLEAR, 1.0


def _mann_whitney(a: list[float], b: list[float]) -> bool:
    from scipy.stats import mannwhitneyu

    return bool(mannwhitneyu(b, a, alternative="two-sided").pvalue < 0.05 and median(b) > median(a))


def measure(shape: Shape, device: str, seconds: float, told: Callable[[str], None] = lambda _: None) -> Iterator[Rates]:
    """The rates of each slowdown, as they are measured. seconds: of timing for each; more for equals and for the goal's,
    half for what is far above it.
    """
    for pooled in pools(shape, device, seconds, told):
        yield rates(pooled, GOAL[device], trial_seconds(seconds))


def trial_seconds(seconds: float) -> float:
    """Seconds of a trial: the goal's, or a third of what equals are timed for, whose mean would pass for the rule's error."""
    return min(WITHIN, LONGER * seconds / 3)


def pools(shape: Shape, device: str, seconds: float, told: Callable[[str], None] = lambda _: None) -> Iterator[Pool]:
    """Time equals, and then the same processes while one of each pair is slowed down. seconds: see `measure`."""
    spec, slowed = shape.spec(device), ("harness.throughput.slowed",)
    told(f"{shape.name}: starting")
    with lined_up([Entrant(name, "hf-trainer", spec, slowed) for name in "ab"] * PAIRS[device]) as runners:
        for runner in runners:
            runner.slower = 0.0
        for share in SHARES[device]:
            told(f"{shape.name}: " + (f"slower by {share:.1%}" if share else "equals"))
            for runner in runners[1::2]:
                runner.slower = share
            times = {0.0: LONGER, GOAL[device]: LONG}.get(share, 1 if share <= 4 * GOAL[device] else 0.5)
            _, timed = race(runners[::2], runners[1::2], GOAL[device], times * seconds, decide=False)
            yield _pool(share, timed)
