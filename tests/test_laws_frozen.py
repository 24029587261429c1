"""Tests of harness/laws/frozen.py on made-up traces: a good run holds, and each fault is named with its tensor."""

import pytest
import torch

from harness.laws import frozen
from harness.trace import Group
from tests.traces import BASE, A, B, made_up

LORA = {A: [2, 4], B: [4, 2]}
LAYER = BASE.removesuffix(".weight")


def quantized(trace):
    """Return the trace with its base packed as NF4."""
    state = {f"{BASE}.{part}": "4567" for part in frozen.NF4_STATE}
    trace.base_before = {**trace.base_before, **state}
    trace.base = dict(trace.base_before)
    return trace


#: Law -> how it judges a trace. A made-up trace holds all of them.
LAWS = {
    "base_frozen": frozen.base_frozen,
    "parameters_frozen": frozen.parameters_frozen,
    "quantized_base_frozen": lambda trace: frozen.quantized_base_frozen(trace, [LAYER]),
    "optimizer_holds_trainables": frozen.optimizer_holds_trainables,
    "groups_hold": lambda trace: frozen.groups_hold(trace, LORA),
    "base_without_gradients": frozen.base_without_gradients,
    "adapter_moved": frozen.adapter_moved,
    "gradients_arrive": frozen.gradients_arrive,
}


@pytest.mark.parametrize("law", LAWS)
def test_a_good_run_holds(law):
    verdict = LAWS[law](quantized(made_up()))
    assert verdict.holds, verdict.seen


@pytest.mark.parametrize("law", LAWS)
def test_a_crashed_run_is_no_evidence(law):
    verdict = LAWS[law](quantized(made_up(error="ValueError: no")))
    assert "the run ended with ValueError: no" in verdict.seen


def _base(trace):
    trace.base[BASE] = "9999"


def _lost(trace):
    del trace.base[BASE]


def _unobserved(trace):
    trace.base_before = trace.base = {}


def _absmax(trace):
    trace.base[f"{BASE}.absmax"] = "9999"


def _no_quant_map(trace):
    del trace.base_before[f"{BASE}.quant_map"], trace.base[f"{BASE}.quant_map"]


def _base_in_the_optimizer(trace):
    trace.groups[0].names.append(BASE)


def _forgotten(trace):
    trace.groups[0].names.remove(B)


def _twice(trace):
    trace.groups[1].names.append(A)


def _no_decay(trace):
    trace.groups[0].names.remove(B)
    trace.groups[1].names.append(B)


def _no_group(trace):
    trace.groups.clear()


def _one_group(trace):
    trace.groups = [Group([*trace.groups[0].names, *trace.groups[1].names], trace.groups[0].settings)]
    trace.events.insert(0, "step_begin")


def _decay(trace):
    trace.groups[0].settings["weight_decay"] = 0.1


def _rank(trace):
    trace.adapter_before[A] = torch.zeros(3, 4)


def _gradient(trace):
    trace.base_gradients.append(BASE)


def _stuck(trace):
    trace.adapter[A] = trace.adapter_before[A].clone()


def _no_gradient_of_b(trace):
    del trace.steps[0].gradients[B]


def _zero_gradient_of_b(trace):
    trace.steps[0].gradients[B].zero_()


def _zero_gradient_of_a(trace):
    for step in trace.steps:
        step.gradients[A].zero_()


def _nothing_trainable(trace):
    trace.trainable = []


@pytest.mark.parametrize(
    ("law", "change", "words"),
    [
        ("base_frozen", _base, f"{BASE}: digest 0123 before training, 9999 after"),
        ("base_frozen", _lost, f"{BASE}: digest 0123 before training, absent after"),
        ("base_frozen", _unobserved, "no base tensor was observed"),
        ("parameters_frozen", _base, f"{BASE}: digest 0123 before training, 9999 after"),
        ("parameters_frozen", _unobserved, "no base tensor was observed"),
        ("quantized_base_frozen", _absmax, f"{BASE}.absmax: digest 4567 before training, 9999 after"),
        ("quantized_base_frozen", _no_quant_map, f"{BASE}.quant_map was not observed"),
        ("optimizer_holds_trainables", _base_in_the_optimizer, f"{BASE} is in a group but does not require gradients"),
        ("optimizer_holds_trainables", _forgotten, f"{B} requires gradients but is in no group"),
        ("optimizer_holds_trainables", _twice, f"{A} is in groups 2 times, expected once"),
        ("groups_hold", _base_in_the_optimizer, f"group 0: {BASE} is in it, unexpected"),
        ("groups_hold", _no_decay, f"group 0: no {B}"),
        ("groups_hold", _no_decay, f"group 1: {B} is in it, unexpected"),
        ("groups_hold", _no_group, "the optimizer has 0 groups, expected 2"),
        ("groups_hold", _one_group, "the optimizer has 1 groups, expected 2"),
        ("groups_hold", _decay, "group 0: weight decay 0.1, expected 0.0"),
        ("groups_hold", _rank, f"group 0: {A} is [3, 4], expected [2, 4]"),
        ("base_without_gradients", _gradient, f"{BASE} held a gradient at an optimizer step"),
        ("adapter_moved", _stuck, f"{A} is what it was before training"),
        ("gradients_arrive", _no_gradient_of_b, f"step 1: {B} has no gradient"),
        ("gradients_arrive", _zero_gradient_of_b, f"step 1: the gradient of {B} is zero"),
        ("gradients_arrive", _zero_gradient_of_a, f"step 2: the gradient of {A} is zero"),
        ("gradients_arrive", _nothing_trainable, "nothing is trainable"),
    ],
)
def test_a_fault_is_seen_and_named(law, change, words):
    trace = quantized(made_up())
    change(trace)
    verdict = LAWS[law](trace)
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


def test_a_lora_a_may_wait_for_the_first_update():
    trace = made_up()
    trace.steps[0].gradients[A].zero_()
    assert frozen.gradients_arrive(trace).holds
    # If the first step has learning rate 0, lora_B stays zero, and lora_A has no gradient at the second step either.
    trace.steps[0].learning_rates = [0.0, 0.0]
    trace.steps[1].gradients[A].zero_()
    assert frozen.gradients_arrive(trace).holds
    trace.steps[2].gradients[A].zero_()
    assert not frozen.gradients_arrive(trace).holds


def test_a_tensor_may_be_stuck_where_that_is_said():
    trace = made_up()
    _stuck(trace)
    assert frozen.adapter_moved(trace, stuck=("lora_A.weight",)).holds


@pytest.mark.parametrize(
    ("seen", "words"),
    [([A, B, BASE], f"enabled: {BASE} requires gradients"), ([A], f"enabled: {B} does not require gradients")],
)
def test_what_requires_gradients_is_compared_name_by_name(seen, words):
    assert frozen.trains_exactly([A, B], [A, B]).holds
    verdict = frozen.trains_exactly(seen, [A, B], when="enabled")
    assert verdict.seen == (words,)


def test_names_of_trainable_parameters_are_canonical():
    model = torch.nn.Module()
    model.base_model = torch.nn.Module()
    model.base_model.model = torch.nn.ModuleDict({"lora_A": torch.nn.ModuleDict({"second": torch.nn.Linear(2, 2)})})
    model.base_model.model["lora_A"]["second"].bias.requires_grad_(False)
    assert frozen.trainable_names(model, "second") == ["lora_A.weight"]
