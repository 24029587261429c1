"""Tests of harness/laws/schedule.py and rates.py on made-up traces."""

import copy
import dataclasses

import pytest
import torch

from harness import verdict
from harness.laws import rates, schedule
from tests.traces import A, made_up

# ---- laws ----


def complete():
    """Return a made-up run of four steps, updated by torch's AdamW, with the events of its epoch."""
    trace = made_up()
    trace.events = ["train_begin", "epoch_begin", "epoch_end", "train_end"]
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in trace.adapter_before.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.01, weight_decay=0.1)
    for group in trace.groups:
        group.settings["weight_decay"] = 0.1
    for step in trace.steps:
        optimizer.param_groups[0]["lr"] = step.learning_rates[0]
        for name, parameter in parameters.items():
            parameter.grad = step.clipped[name].clone()
        optimizer.step()
    trace.adapter = {name: parameter.detach() for name, parameter in parameters.items()}
    return trace


LAWS = {
    law.__name__: law
    for law in (
        schedule.all_steps,
        rates.learning_rates,
        rates.logged_rates,
        schedule.epochs,
        schedule.clipping,
        schedule.adamw,
    )
}


@pytest.mark.parametrize("law", LAWS)
def test_a_faultless_run_holds(law):
    assert LAWS[law](complete()).seen == ()


def _lost_step(trace):
    trace.steps.pop()


def _stops_early(trace):
    trace.output["global_step"] = 3


def _second_epoch(trace):
    trace.events.append("epoch_begin")


def _rate_of_next_step(trace):
    trace.log_history[1]["learning_rate"] = trace.log_history[2]["learning_rate"]


def _rate_used(trace):
    trace.steps[2].learning_rates[1] = 0.01


def _epoch(trace):
    trace.log_history[3]["epoch"] = 4 / 10


def _norm_after_clipping(trace):
    trace.log_history[0]["grad_norm"] *= 0.5


def _no_norm(trace):
    for entry in trace.log_history:
        del entry["grad_norm"]


def _clipped_too_far(trace):
    trace.steps[1].clipped = {name: g * 0.5 for name, g in trace.steps[1].clipped.items()}


def _skipped_update(trace):
    trace.adapter[A] = trace.adapter_before[A]


def _no_gradient(trace):
    del trace.steps[0].clipped[A]


def _no_decay(trace):
    for group in trace.groups:
        group.settings["weight_decay"] = 0.0


def _nothing_held(trace):
    trace.groups = []


def _nothing_logged(trace):
    trace.log_history = []


@pytest.mark.parametrize(
    ("law", "change", "words"),
    [
        ("all_steps", _lost_step, "made 3 optimizer steps"),
        ("all_steps", _stops_early, "TrainOutput.global_step is 3"),
        ("all_steps", _second_epoch, "began 2 epochs, expected 1"),
        ("learning_rates", _rate_used, "step 3: learning rates [0.005, 0.01], expected 0.005"),
        ("logged_rates", _rate_of_next_step, "step 2: logged learning rate 0.005, but the step used 0.0075"),
        ("logged_rates", _nothing_logged, "no learning rate was logged"),
        ("epochs", _epoch, "step 4: epoch 0.4, expected 0.2"),
        ("epochs", _nothing_logged, "no step was logged"),
        ("clipping", _norm_after_clipping, "step 1: logged grad_norm 0.0199999997, expected 0.03"),
        ("clipping", _no_norm, "no gradient norm was logged"),
        ("clipping", _clipped_too_far, f"step 2: clipped gradient of {A} differs by 0.01"),
        ("adamw", _skipped_update, f"adapter at the end: {A} differs by"),
        ("adamw", _no_decay, f"adapter at the end: {A} differs by"),
        ("adamw", _no_gradient, f"step 1: no gradient for {A}"),
        ("adamw", _nothing_held, "the optimizer holds no parameter"),
    ],
)
def test_a_fault_is_seen_and_named(law, change, words):
    trace = copy.deepcopy(complete())
    change(trace)
    verdict = LAWS[law](trace)
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


def test_gradients_above_the_limit_must_be_scaled_down_to_it():
    trace = complete()
    trace.spec = trace.spec.but(max_grad_norm=0.01)
    assert "clipped gradient of" in schedule.clipping(trace).seen[0]
    for step in trace.steps:
        factor = 0.01 / (schedule.total_norm(step.gradients) + 1e-6)
        step.clipped = {name: g * factor for name, g in step.gradients.items()}
    assert schedule.clipping(trace).holds


@pytest.mark.parametrize(
    ("norm", "factor", "words"), [(1, 1, ""), (0.98, 1, "logged grad_norm"), (1, 0.95, "clipped gradient")]
)
def test_half_precision_rounds_the_norm_and_what_is_clipped_by_it(norm, factor, words):
    trace = complete()
    trace.spec = trace.spec.but(max_grad_norm=0.01)
    for step, entry in zip(trace.steps, trace.log_history, strict=False):
        step.gradients = {name: g.bfloat16() for name, g in step.gradients.items()}
        total = torch.nn.utils.get_total_norm(list(step.gradients.values()))
        entry["grad_norm"] = float(total) * norm
        step.clipped = {name: g * (0.01 / (total + 1e-6)) * factor for name, g in step.gradients.items()}
    verdict = schedule.clipping(trace)
    assert verdict.holds is not bool(words), verdict
    assert all(words in one for one in verdict.seen)


def test_a_limit_of_null_is_not_judged():
    trace = complete()
    trace.spec = dataclasses.replace(trace.spec, arguments={**trace.spec.arguments, "max_grad_norm": None})
    found = schedule.clipping(trace)
    assert found.outcome == verdict.NOT_COMPARABLE and "max_grad_norm is null" in found.seen[0]


def test_without_a_limit_nothing_may_be_clipped():
    trace = complete()
    trace.spec = trace.spec.but(max_grad_norm=0.0)
    assert schedule.clipping(trace).holds
    trace.steps[0].clipped[A] *= 0.999
    assert "step 1: clipped gradient of" in schedule.clipping(trace).seen[0]
