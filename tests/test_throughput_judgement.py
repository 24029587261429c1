"""The judgement of paired times: its words, how often it is wrong, and what two rules that others use would say."""

import math
import random

import pytest

from harness.laws import throughput
from harness.throughput.judgement import HOLDS, SLOWER, UNCLEAR, Interval, interval, judge, spread
from harness.throughput.pairs import Pairs
from harness.throughput.rates import BENCHMARK, MANN_WHITNEY, Pool, rates


def series(share, count=200, pairs=4, spread=0.03, seed=0):
    """Return log-ratios of a side that is slower by a share, with the noise of two cores."""
    draw = random.Random(seed)
    return [[math.log1p(share) + draw.gauss(0, spread) for _ in range(count)] for _ in range(pairs)]


@pytest.mark.parametrize(("share", "word"), [(0.0, HOLDS), (-0.05, HOLDS), (0.02, SLOWER), (0.1, SLOWER)], ids=str)
def test_a_clear_difference_is_judged_at_the_end(share, word):
    assert judge({"wall": series(share)}, margin=0.02, spent=1.0).word == word


@pytest.mark.parametrize("share", [0.0, 0.01, 0.02], ids=str)
def test_noise_that_hides_a_slowdown_leaves_it_unclear(share):
    assert judge({"wall": series(share, count=60, spread=0.3)}, margin=0.02, spent=1.0).word == UNCLEAR


def test_an_early_judgement_needs_more_evidence():
    ratios = {"wall": series(0.02, count=40)}
    assert judge(ratios, 0.02, 1.0).word == SLOWER
    assert judge(ratios, 0.02, 0.1).word == UNCLEAR


def test_one_metric_is_enough_for_slower_and_all_must_hold():
    slow, equal, noisy = series(0.03), series(0.0, seed=1), series(0.0, spread=0.8, seed=2)
    judgement = judge({"wall": equal, "cpu": slow}, 0.02, 1.0)
    assert (judgement.word, judgement.slower) == (SLOWER, ("cpu",))
    assert judge({"wall": equal, "cpu": noisy}, 0.02, 1.0).word == UNCLEAR


def test_a_few_blocks_disturbed_by_another_process_do_not_count():
    ratios = series(0.0)
    for pair in ratios:
        pair[::10] = [1.5] * len(pair[::10])
    assert abs(interval(ratios).estimate) < 0.01
    assert judge({"wall": ratios}, 0.02, 1.0).word == HOLDS


def test_the_effect_of_the_order_cancels():
    """In A B B A the side in the middle finds its caches warm; in B A A B the other one does."""
    ratios = series(0.0, count=60, spread=0.01)
    in_turns = [[value + (-0.05 if place % 2 else 0.05) for place, value in enumerate(pair)] for pair in ratios]
    plain, turning = interval(ratios, strays=0.0), interval(in_turns, strays=0.0)
    assert turning.error == pytest.approx(plain.error) and turning.estimate == pytest.approx(plain.estimate)
    assert turning.count == 240 and interval([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]]).count == 6


@pytest.mark.parametrize("count", [4, 8, 40])
def test_few_values_need_more_evidence(count):
    """The noise of a few values may be larger than it looks."""
    words = []
    for seed in range(300):
        ratios = {"wall": series(0.0, count=count, spread=0.01 * math.sqrt(count), seed=seed)}
        words.append(judge(ratios, 0.002, 1.0, strays=0.0).word)
    assert words.count(SLOWER) <= 6


def test_the_interval_of_a_few_values_is_wider():
    few = interval([[0.0, 0.02, 0.01, 0.03], [0.01, 0.01, 0.03, 0.0]] * 3, strays=0.0)
    half = math.log((1 + few.high) / (1 + few.low)) / 2
    assert few.freedom == 7 and half == pytest.approx(3.499 * few.error, rel=0.01)  # Student's t of 7, at 0.005
    assert few.beyond(few.estimate) == 0.0 and few.beyond(few.high) == pytest.approx(-2.576, abs=0.05)
    assert interval([[0.0, 0.02, 0.01, 0.03]] * 10, strays=0.1).freedom > 1e4


def test_too_few_values_are_unclear():
    assert judge({"wall": [[0.5, 0.5, 0.5]]}, 0.02, 1.0).word == UNCLEAR


@pytest.mark.parametrize(
    ("estimate", "low", "high", "words"),
    [
        (-0.0092, -0.021, 0.0026, "0.92 % faster (99 % interval: 2.1 % faster to 0.26 % slower)"),
        (0.05, 0.03, 0.07, "5 % slower (99 % interval: 3 % to 7 %)"),
        (-0.05, -0.07, -0.03, "5 % faster (99 % interval: 3 % to 7 %)"),
        (math.nan, -math.inf, math.inf, "unknown from 1 A B B A"),
    ],
    ids=["faster or slower", "slower", "faster", "too few"],
)
def test_a_change_of_time_is_worded_without_signs(estimate, low, high, words):
    assert Interval(estimate, 0.01, low, high, 1).describe() == words


def pooled(share, spread=0.03):
    draw = random.Random(3)

    def one():
        wall = math.log1p(share) + draw.gauss(0, spread)
        return {"ratios": {"wall": wall, "cpu": wall}, "a": 0.01, "b": 0.01 * math.exp(wall)}

    return Pool(share, [[one() for _ in range(300)] for _ in range(4)], 0.1)


def test_equal_processes_in_huge_pages_need_less_evidence():
    """In huge pages the place of its memory makes a process less different from an equal one."""
    ratios = {"wall": series(0.0065, spread=0.01)}
    assert judge(ratios, 0.01, 1.0).word == UNCLEAR
    assert judge(ratios, 0.01, 1.0, spread("cpu", huge_pages=True, host=1.0)).word == SLOWER


def test_the_less_the_host_works_the_less_equal_processes_differ():
    ratios = {"wall": series(0.006, count=100, spread=0.01)}
    assert judge(ratios, 0.01, 1.0, spread("cuda", huge_pages=True, host=1.0)).word == UNCLEAR
    assert judge(ratios, 0.01, 1.0, spread("cuda", huge_pages=True, host=0.1)).word == SLOWER
    assert spread("cuda", True, 0.1, steady=True) < spread("cuda", True, 0.1) / 2
    assert spread("cpu", True, 1.3) == spread("cpu", True, 1.0) < spread("cuda", True, 1.0) < spread("cpu", False, 1.0)


def test_the_false_alarm_rate_between_equal_sides_is_one_percent_at_most():
    found = rates(pooled(0.0), margin=0.02, budget=120, trials=200)
    assert found.slower["peft-harness"] <= 0.01 and found.unclear <= 0.05


def test_a_slowdown_by_the_margin_is_found_and_usual_rules_miss_it_or_find_too_many():
    found = rates(pooled(0.02), margin=0.02, budget=120, trials=100)
    assert found.slower["peft-harness"] >= 0.95 and found.came_to == pytest.approx(0.02, abs=0.003)
    assert found.slower[BENCHMARK] == 0.0
    # With so many samples, even a difference of no importance is significant.
    assert rates(pooled(0.003), margin=0.02, budget=120, trials=50).slower[MANN_WHITNEY] > 0.5


# ---- compared with a recorded ratio ----


def ratio(value, share=0.01):
    """Return a ratio as a baseline has it. share: half the width of its interval, relative to the ratio."""
    return {"ratio": value, "low": value * (1 - share), "high": value * (1 + share)}


@pytest.mark.parametrize(("recorded", "outcome"), [(1.2, "pass"), (1.1, "fail"), (1.3, "pass")], ids=str)
def test_a_ratio_is_compared_with_the_recorded_one(recorded, outcome):
    timed = Pairs(ratios={"wall": series(0.2)}, seconds=60.0)
    seen = throughput.no_slower(timed, ratio(recorded), margin=0.02, budget=60.0)
    assert seen.outcome == outcome
    assert seen.measured["recorded"] == recorded


def test_a_noisy_ratio_is_undecided():
    timed = Pairs(ratios={"wall": series(0.2, spread=0.5)}, seconds=60.0)
    seen = throughput.no_slower(timed, ratio(1.2), margin=0.02, budget=60.0)
    assert seen.outcome == "ambiguous" and "compared with the recorded one" in seen.seen[0]


def test_a_ratio_that_was_recorded_with_noise_decides_nothing():
    timed = Pairs(ratios={"wall": series(0.2)}, seconds=60.0)
    for recorded, sharp in ((1.2, "pass"), (1.1, "fail")):
        assert throughput.no_slower(timed, ratio(recorded), margin=0.02, budget=60.0).outcome == sharp
        blurred = throughput.no_slower(timed, ratio(recorded, share=0.2), margin=0.02, budget=60.0)
        assert blurred.outcome == "ambiguous"
