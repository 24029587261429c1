"""Tests of harness/laws/several.py on made-up traces of two ranks: each law holds, and each fault is found and named."""

import copy

import pytest
import torch

from harness.laws import several
from harness.spec import RunSpec
from tests.traces import BASE, TWO_RANKS, A, B, made_up, two_ranks


def single():
    """Return the run of two_ranks() in one process."""
    trace = several.whole_run(two_ranks())
    return copy.deepcopy(trace)


def test_ranks_are_put_together_in_their_order():
    merged = several.whole_run(two_ranks())
    assert [step.batches[0].rows for step in merged.steps] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [step.batches[0].tokens for step in merged.steps] == [60, 60]
    assert merged.steps[0].batches[0].loss == pytest.approx(5.1)
    assert merged.spec == two_ranks().spec and not merged.ranks


@pytest.mark.parametrize("items", [None, 30.0], ids=["no-count", "own-count"])
def test_losses_of_ranks_are_means_without_a_count_over_all(items):
    trace = two_ranks()
    for one in (trace, *trace.ranks):
        one.steps[0].batches[0].num_items = items
    assert several.whole_run(trace).steps[0].batches[0].loss == pytest.approx(2.55)


def move(trace, name=A, by=0.01):
    trace.adapter[name] = trace.adapter[name] + by


def first_batch(trace, rows):
    trace.steps[0].batches[0].rows = rows


def lose_a_rank(trace):
    trace.ranks = []


def fail(trace):
    trace.error = "rank 1 of 2: ValueError: no"


def change_base(trace):
    trace.base = {BASE: "4567"}


def change_state(trace):
    trace.optimizer_state[B] = {"exp_avg": torch.ones(4, 2)}


def change_gradient(trace):
    trace.steps[1].clipped[A] = trace.steps[1].clipped[A] + 1e-3


LAWS = {
    "ranks_agree": several.ranks_agree,
    "equals_single": lambda trace: several.equals_single(trace, single()),
    "trains_its_share": several.trains_its_share,
    "logged_mean": several.logged_mean,
}


@pytest.mark.parametrize("law", LAWS)
def test_a_law_holds(law):
    verdict = LAWS[law](two_ranks())
    assert verdict.holds, verdict.seen


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("damage", "words"),
    [(lose_a_rank, "1 ranks left a trace, expected 2"), (fail, "the run ended with rank 1 of 2")],
    ids=["lost", "failed"],
)
def test_a_law_requires_every_rank(law, damage, words):
    trace = two_ranks()
    damage(trace)
    assert words in "\n".join(LAWS[law](trace).seen)


@pytest.mark.parametrize(
    ("law", "damage", "words"),
    [
        ("ranks_agree", lambda t: move(t.ranks[0], by=1e-7), "rank 1: adapter at the end: " + A),
        ("ranks_agree", lambda t: change_base(t.ranks[0]), "rank 1: its base is another"),
        ("ranks_agree", lambda t: change_state(t.ranks[0]), f"rank 1: state of {B}:"),
        ("ranks_agree", lambda t: change_gradient(t.ranks[0]), f"rank 1: step 2: gradient of {A}"),
        ("equals_single", move, "adapter at the end: " + A),
        ("equals_single", lambda t: first_batch(t.ranks[0], [0, 1]), "step 1: the ranks trained rows [[0, 1, 0, 1]]"),
        ("trains_its_share", lambda t: first_batch(t.ranks[0], [0, 1]), "rank 1, step 1: trained rows [[0, 1]]"),
        ("trains_its_share", lambda t: first_batch(t, [2, 3]), "rank 0, step 1: trained rows [[2, 3]]"),
        ("logged_mean", lambda t: t.log_history[1].update(loss=5.2), "step 2: logged loss 5.2"),
        ("logged_mean", lambda t: t.log_history.pop(), "step 2: no loss to compare"),
    ],
)
def test_a_law_fails_for_what_it_is_there_to_see(law, damage, words):
    trace = two_ranks()
    damage(trace)
    verdict = LAWS[law](trace)
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


def test_ranks_must_have_started_apart_for_the_first_to_win():
    trace = two_ranks()
    assert "all ranks started from the same adapter" in "\n".join(several.first_rank_wins(trace, single()).seen)
    trace.ranks[0].adapter_before[A] = trace.adapter_before[A] + 1
    assert several.first_rank_wins(trace, single()).holds


# ---- another number of ranks ----


def resumed(rows):
    """Return a run in one process, resumed from step 1 of two_ranks(), that trained these rows."""
    trace = made_up(RunSpec().but(data={"rows": 8}, max_steps=2), steps=2)
    trace.steps = trace.steps[1:]
    trace.steps[0].batches[0].rows = rows
    return trace


def test_every_row_of_the_epoch_is_trained_once():
    assert several.no_row_twice(resumed([4, 5, 6, 7]), two_ranks(), after=1).holds
    seen = "\n".join(several.no_row_twice(resumed([2, 3, 4, 5]), two_ranks(), after=1).seen)
    assert "2 of 4 rows had been trained before in this epoch: [2, 3]" in seen
    assert "2 rows of the epoch are never trained: [6, 7]" in seen


def test_the_same_rows_go_on_to_the_same_end():
    trace = single()
    trace.steps = trace.steps[1:]
    trace.spec = RunSpec().but(data={"rows": 8}, max_steps=2)
    assert several.continues_with_other_ranks(trace, two_ranks(), after=1).holds
    other = copy.deepcopy(trace)
    other.steps[0].batches[0].rows = [4, 5, 6, 0]
    assert "after step 1 rows [[0, 4, 5, 6]] were trained" in "\n".join(
        several.continues_with_other_ranks(other, two_ranks(), after=1).seen
    )
    move(trace)
    assert "adapter at the end" in "\n".join(several.continues_with_other_ranks(trace, two_ranks(), after=1).seen)


# ---- rows and epochs of each rank ----


def drawn(**changes):
    """Return a run of two ranks whose order of rows is drawn from the global generator."""
    return two_ranks(TWO_RANKS.but(train_sampling_strategy="group_by_length", **changes))


def test_ranks_must_agree_on_an_order_that_is_drawn():
    assert several.trains_its_share(drawn()).holds
    twice = drawn()
    first_batch(twice.ranks[0], [0, 1])
    assert "epoch 0: rows [0, 1] have several places" in "\n".join(several.trains_its_share(twice).seen)
    short = drawn()
    first_batch(short.ranks[0], [2])
    assert "rank 1, step 1: micro-batches of [1] rows, expected [2]" in "\n".join(several.trains_its_share(short).seen)
    # Six rows fill one batch of each rank, and a half: rank 1's second batch starts the order again.
    filled = drawn(data={"rows": 6})
    filled.ranks[0].steps[1].batches[0].rows = [0, 1]
    assert several.trains_its_share(filled).holds
    filled.ranks[0].steps[1].batches[0].rows = [1, 0]
    assert "rank 1, step 2: trained row 1, expected 0" in "\n".join(several.trains_its_share(filled).seen)


def test_what_does_not_follow_from_the_spec_is_not_judged():
    verdict = several.trains_its_share(two_ranks(TWO_RANKS.but(train_sampling_strategy="batch_rebalance")))
    assert (verdict.outcome, "batch_rebalance" in verdict.seen[0]) == ("not_comparable", True)


def test_each_rank_must_go_on_where_it_was():
    whole, trace = two_ranks(), two_ranks()
    for one in (trace, *trace.ranks):
        one.steps = one.steps[1:]
    assert several.same_rows(trace, whole, after=1).holds
    trace.ranks[0].steps[0].batches[0].rows = [2, 3]
    seen = "\n".join(several.same_rows(trace, whole, after=1).seen)
    assert "rank 1, step 2: trained rows [[2, 3]], but [[6, 7]] in the run that was not interrupted" in seen
    trace.ranks[0].steps = []
    assert "rank 1, step 2: trained rows None" in "\n".join(several.same_rows(trace, whole, after=1).seen)


def test_ranks_must_be_in_the_same_epoch():
    trace = two_ranks()
    assert several.same_epochs(trace).holds
    trace.ranks[0].log_history[1]["epoch"] = 0.5
    assert "rank 1, step 2: epoch 0.5, expected 0.1" in "\n".join(several.same_epochs(trace).seen)
    for one in (trace, *trace.ranks):
        one.log_history = []
    assert several.same_epochs(trace).seen == ("no step was logged",)


def test_a_run_that_ends_with_an_error_does_not_complete():
    trace = two_ranks()
    assert several.completes(trace).holds
    fail(trace)
    assert several.completes(trace).seen == ("the run ended with rank 1 of 2: ValueError: no",)
