"""What is made of paired times: whose word it is, how often it is wrong, and what two rules in use would say."""

import math
import random

import pytest

from harness.laws import throughput
from harness.throughput.judgement import HOLDS, SLOWER, UNCLEAR, interval, judge, spread
from harness.throughput.pairs import Pairs
from harness.throughput.rates import BENCHMARK, MANN_WHITNEY, Pool, rates


def series(share, count=200, pairs=4, spread=0.03, seed=0):
    """Log-ratios of a side that is slower by a share, as noisy as two cores are."""
    draw = random.Random(seed)
    return [[math.log1p(share) + draw.gauss(0, spread) for _ in range(count)] for _ in range(pairs)]


@pytest.mark.parametrize(("share", "word"), [(0.0, HOLDS), (-0.05, HOLDS), (0.02, SLOWER), (0.1, SLOWER)], ids=str)
def test_what_is_clear_at_the_end_is_said(share, word):
    assert judge({"wall": series(share)}, margin=0.02, spent=1.0).word == word


@pytest.mark.parametrize("share", [0.0, 0.01, 0.02], ids=str)
def test_where_noise_hides_it_nothing_is_said(share):
    assert judge({"wall": series(share, count=60, spread=0.3)}, margin=0.02, spent=1.0).word == UNCLEAR


def test_early_it_takes_more_evidence():
    ratios = {"wall": series(0.02, count=40)}
    assert judge(ratios, 0.02, 1.0).word == SLOWER
    assert judge(ratios, 0.02, 0.1).word == UNCLEAR


def test_each_metric_can_tell_and_all_must_hold():
    slow, equal, noisy = series(0.03), series(0.0, seed=1), series(0.0, spread=0.8, seed=2)
    told = judge({"wall": equal, "cpu": slow}, 0.02, 1.0)
    assert (told.word, told.slower) == (SLOWER, ("cpu",))
    assert judge({"wall": equal, "cpu": noisy}, 0.02, 1.0).word == UNCLEAR


def test_a_few_blocks_of_another_process_do_not_count():
    ratios = series(0.0)
    for pair in ratios:
        pair[::10] = [1.5] * len(pair[::10])
    assert abs(interval(ratios).estimate) < 0.01
    assert judge({"wall": ratios}, 0.02, 1.0).word == HOLDS


def test_what_the_order_does_is_no_noise():
    """The side in the middle of A B B A finds its caches warm, and so does the other in B A A B."""
    ratios = series(0.0, count=60, spread=0.01)
    in_turns = [[value + (-0.05 if place % 2 else 0.05) for place, value in enumerate(pair)] for pair in ratios]
    plain, turning = interval(ratios, strays=0.0), interval(in_turns, strays=0.0)
    assert turning.error == pytest.approx(plain.error) and turning.estimate == pytest.approx(plain.estimate)
    assert turning.count == 240 and interval([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]]).count == 6


@pytest.mark.parametrize("count", [4, 8, 40])
def test_of_few_it_takes_more(count):
    """A noise of which little has been seen may be larger than it looks."""
    words = []
    for seed in range(300):
        ratios = {"wall": series(0.0, count=count, spread=0.01 * math.sqrt(count), seed=seed)}
        words.append(judge(ratios, 0.002, 1.0, strays=0.0).word)
    assert words.count(SLOWER) <= 6


def test_an_interval_of_few_is_the_wider_one():
    few = interval([[0.0, 0.02, 0.01, 0.03], [0.01, 0.01, 0.03, 0.0]] * 3, strays=0.0)
    half = math.log((1 + few.high) / (1 + few.low)) / 2
    assert few.freedom == 7 and half == pytest.approx(3.499 * few.error, rel=0.01)  # Student's t of 7, at 0.005
    assert few.beyond(few.estimate) == 0.0 and few.beyond(few.high) == pytest.approx(-2.576, abs=0.05)
    assert interval([[0.0, 0.02, 0.01, 0.03]] * 10, strays=0.1).freedom > 1e4


def test_too_few_are_undecided():
    assert judge({"wall": [[0.5, 0.5, 0.5]]}, 0.02, 1.0).word == UNCLEAR


def pooled(share, spread=0.03):
    draw = random.Random(3)

    def one():
        wall = math.log1p(share) + draw.gauss(0, spread)
        return {"ratios": {"wall": wall, "cpu": wall}, "a": 0.01, "b": 0.01 * math.exp(wall)}

    return Pool(share, [[one() for _ in range(300)] for _ in range(4)], 0.1)


def test_equal_processes_in_huge_pages_need_less_evidence():
    """Where memory comes to lie cannot make one of them as much faster."""
    ratios = {"wall": series(0.0065, spread=0.01)}
    assert judge(ratios, 0.01, 1.0).word == UNCLEAR
    assert judge(ratios, 0.01, 1.0, spread("cpu", huge_pages=True, host=1.0)).word == SLOWER


def test_equal_processes_differ_as_far_as_the_host_works():
    """Where it waits for the device most of the time, less is seen."""
    ratios = {"wall": series(0.006, count=100, spread=0.01)}
    assert judge(ratios, 0.01, 1.0, spread("cuda", huge_pages=True, host=1.0)).word == UNCLEAR
    assert judge(ratios, 0.01, 1.0, spread("cuda", huge_pages=True, host=0.1)).word == SLOWER
    assert spread("cuda", True, 0.1, steady=True) < spread("cuda", True, 0.1) / 2
    assert spread("cpu", True, 1.3) == spread("cpu", True, 1.0) < spread("cuda", True, 1.0) < spread("cpu", False, 1.0)


def test_equals_are_told_apart_in_one_trial_of_a_hundred_at_most():
    found = rates(pooled(0.0), margin=0.02, budget=120, trials=200)
    assert found.slower["peft-harness"] <= 0.01 and found.unclear <= 0.05


def test_a_slowdown_by_the_margin_is_found_where_usual_rules_see_none_or_see_them_everywhere():
    found = rates(pooled(0.02), margin=0.02, budget=120, trials=100)
    assert found.slower["peft-harness"] >= 0.95 and found.came_to == pytest.approx(0.02, abs=0.003)
    assert found.slower[BENCHMARK] == 0.0
    # On so many samples a difference that nobody cares for is significant.
    assert rates(pooled(0.003), margin=0.02, budget=120, trials=50).slower[MANN_WHITNEY] > 0.5


# ---- against what is recorded ----


def ratio(value, share=0.01):
    """As a baseline has it; share: how far its interval goes, of it."""
    return {"ratio": value, "low": value * (1 - share), "high": value * (1 + share)}


@pytest.mark.parametrize(("recorded", "outcome"), [(1.2, "pass"), (1.1, "fail"), (1.3, "pass")], ids=str)
def test_a_ratio_is_held_to_the_recorded_one(recorded, outcome):
    timed = Pairs(ratios={"wall": series(0.2)}, seconds=60.0)
    seen = throughput.no_slower(timed, ratio(recorded), margin=0.02, budget=60.0)
    assert seen.outcome == outcome
    assert seen.measured["recorded"] == recorded


def test_a_ratio_that_noise_hides_is_undecided():
    timed = Pairs(ratios={"wall": series(0.2, spread=0.5)}, seconds=60.0)
    seen = throughput.no_slower(timed, ratio(1.2), margin=0.02, budget=60.0)
    assert seen.outcome == "ambiguous" and "compared with the recorded one" in seen.seen[0]


def test_a_ratio_that_was_recorded_amid_noise_decides_nothing():
    timed = Pairs(ratios={"wall": series(0.2)}, seconds=60.0)
    for recorded, sharp in ((1.2, "pass"), (1.1, "fail")):
        assert throughput.no_slower(timed, ratio(recorded), margin=0.02, budget=60.0).outcome == sharp
        blurred = throughput.no_slower(timed, ratio(recorded, share=0.2), margin=0.02, budget=60.0)
        assert blurred.outcome == "ambiguous"
