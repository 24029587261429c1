"""Tests of harness/laws/rates.py: its formulas on examples computed by hand, and against torch and the reference."""

import pytest
import torch

from harness.laws import rates
from harness.laws.plan import NotModelled
from harness.reference import schedules
from harness.runs.configured import SCHEDULES
from harness.runs.scenarios import PLAIN
from harness.trace import Evaluation
from harness.verdict import FAIL, NOT_COMPARABLE, PASS
from tests.traces import made_up

MIN = {"min_lr_rate": 0.1}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0.01, 0.0075, 0.005, 0.0025]),
        ({"warmup_steps": 2}, [0.0, 0.005, 0.01, 0.005]),
        ({"lr_scheduler_type": "cosine"}, [0.01, 0.00853553, 0.005, 0.00146447]),
        ({"lr_scheduler_type": "constant", "warmup_steps": 2}, [0.01] * 4),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}, [0.0, 0.005, 0.01, 0.01]),
        ({"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}}, [0.01, 0.005] * 2),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2, "lr_end": 0.002}},
            [0.01, 0.0065, 0.004, 0.0025],
        ),
        ({"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 1}, [0.0, 0.01, 0.00707107, 0.00577350]),
        (
            {"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 1}},
            [0.01, 0.00707107, 0.00577350, 0.005],
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": MIN},
            [0.01, 0.00868198, 0.0055, 0.00231802],
        ),
        (
            {"lr_scheduler_type": "cosine_warmup_with_min_lr", "lr_scheduler_kwargs": MIN, "warmup_steps": 2},
            [0.005, 0.01, 0.0055, 0.001],
        ),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "warmup_steps": 1,
                "lr_scheduler_kwargs": {"num_decay_steps": 2, "decay_type": "linear", "min_lr_ratio": 0.2},
            },
            [0.002, 0.01, 0.01, 0.006],
        ),
    ],
)
def test_rates_are_those_of_the_textbook(changes, expected):
    spec = PLAIN.but(max_steps=4, **changes)
    assert [rates.learning_rate(spec, step) for step in (1, 2, 3, 4)] == pytest.approx(expected, abs=1e-8)


def test_the_law_and_the_reference_have_the_same_formulas_bit_for_bit():
    for spec in SCHEDULES.values():
        given = spec.arguments
        kind, options, peak = given["lr_scheduler_type"], given.get("lr_scheduler_kwargs", {}), given["learning_rate"]
        if kind in schedules.BY_METRIC:
            continue
        for step in range(8):
            factor = schedules.factor(step, kind, given["warmup_steps"], 8, peak, options)
            assert rates.learning_rate(spec, step + 1) == peak * factor, (kind, step)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr_scheduler_type": "greedy"}, "lr_scheduler_type 'greedy' is not modelled"),
        ({"lr_scheduler_type": "of_next_year"}, "lr_scheduler_type 'of_next_year' is not modelled"),
        ({"lr_scheduler_kwargs": {"power": 2}}, "unexpected keyword argument 'power'"),
        ({"lr_scheduler_kwargs": [1]}, "lr_scheduler_kwargs is no object"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "one of min_lr and min_lr_rate"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "x"}}, "lr_scheduler_kwargs"),
    ],
)
def test_a_schedule_without_formula_is_not_judged(changes, words):
    trace = made_up()
    trace.spec = trace.spec.but(**changes)
    with pytest.raises(NotModelled, match=words):
        rates.learning_rate(trace.spec, 1)
    verdict = rates.learning_rates(trace)
    assert verdict.outcome == NOT_COMPARABLE
    assert words in verdict.seen[0]


PLATEAU = PLAIN.but(lr_scheduler_type=rates.PLATEAU)


@pytest.mark.parametrize(
    "options",
    [
        {"patience": 0},
        {"patience": 1, "factor": 0.5, "cooldown": 2, "min_lr": 2e-3},
        {"patience": 0, "mode": "max", "threshold": 0.3, "threshold_mode": "abs", "factor": 0.9},
        {"patience": 0, "mode": "max", "threshold": 0.1, "eps": 5e-3},
    ],
)
def test_the_rate_on_a_plateau_is_torchs(options):
    losses = [5.0, 5.0, 4.0, 4.5, 4.2, float("nan"), 4.1, 3.0, 3.0, 3.0, 3.5]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    spec = PLATEAU.but(lr_scheduler_kwargs=options)
    evaluations = [Evaluation(step, [], {"eval_loss": loss}) for step, loss in enumerate(losses, start=1)]
    for step, loss in enumerate(losses, start=1):
        assert rates.on_plateau(spec, evaluations, step) == optimizer.param_groups[0]["lr"], step
        schedule.step(loss)


def test_a_plateau_that_is_not_followed_is_named():
    trace = made_up()
    trace.spec = trace.spec.but(lr_scheduler_type=rates.PLATEAU, lr_scheduler_kwargs={"patience": 0})
    trace.evaluations = [Evaluation(step, [], {"eval_loss": 5.0}) for step in (1, 2)]
    for step in trace.steps:
        step.learning_rates = [0.01 if step.number < 3 else 0.01 * 0.1] * 2
    assert rates.learning_rates(trace).holds
    trace.steps[2].learning_rates = [0.01, 0.01]
    assert "step 3: learning rates [0.01, 0.01], expected 0.001" in rates.learning_rates(trace).seen[0]
    trace.spec = trace.spec.resumed(2)
    assert "goes on from evaluations before the checkpoint" in rates.learning_rates(trace).seen[0]


def of_groups(rates, optimizers="harness.fixtures.optimizers:loraplus", **arguments):
    """Return a trace of two groups, of which the second learns 16 times as fast: (0.01 f, `rates`[step]) are its rates."""
    trace = made_up(PLAIN.but(trainer={"optimizers": optimizers}, max_steps=4, **arguments))
    for group, rate in zip(trace.groups, (0.01, 0.16), strict=True):
        group.settings["initial_lr"] = rate
    for step, rate in zip(trace.steps, rates, strict=True):
        step.learning_rates = [0.01 * (5 - step.number) / 4, rate]
    return trace


def test_the_schedule_multiplies_the_rate_of_each_group():
    assert rates.learning_rates(of_groups([0.16, 0.12, 0.08, 0.04])).outcome == PASS
    failing = rates.learning_rates(of_groups([0.16, 0.12, 0.12, 0.04]))
    assert failing.outcome == FAIL and failing.seen == ("step 3: learning rates [0.005, 0.12], expected [0.005, 0.08]",)


@pytest.mark.parametrize(
    ("optimizers", "kind"),
    [("mine:factory", "linear"), ("harness.fixtures.optimizers:loraplus", "reduce_lr_on_plateau")],
)
def test_groups_with_a_schedule_of_their_own_are_not_judged(optimizers, kind):
    verdict = rates.learning_rates(of_groups([0.16] * 4, optimizers, lr_scheduler_type=kind))
    assert verdict.outcome == NOT_COMPARABLE and "the user's own" in verdict.seen[0]
