"""Tests of harness/laws/injection.py: initial values, what a layer adds, and which adapter is trained."""

import math

import pytest
import torch

from harness.laws import injection
from harness.runs.scenarios import PLAIN
from tests.traces import made_up

NAME = "model.layers.0.self_attn.q_proj.lora_A.weight"


def fresh():
    """Return a made-up trace of PLAIN whose adapter has the initial values that peft draws."""
    trace = made_up(PLAIN)
    torch.manual_seed(PLAIN.adapter.seed)
    trace.adapter_before = {}
    for layer in range(2):
        for projection, outputs in (("q_proj", 64), ("v_proj", 32)):
            a, b = torch.nn.Linear(64, 8, bias=False), torch.nn.Linear(8, outputs, bias=False)
            torch.nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
            path = f"model.layers.{layer}.self_attn.{projection}"
            trace.adapter_before[f"{path}.lora_A.weight"] = a.weight.detach()
            trace.adapter_before[f"{path}.lora_B.weight"] = torch.zeros_like(b.weight)
    return trace


def test_a_drawn_adapter_holds():
    verdict = injection.initialised(fresh())
    assert verdict.holds, verdict.seen


def _last_bit(trace):
    trace.adapter_before[NAME][0, 0] = torch.nextafter(trace.adapter_before[NAME][0, 0], torch.tensor(9.0))


def _b(trace):
    trace.adapter_before[NAME.replace("lora_A", "lora_B")][0, 0] = 1e-9


def _missing(trace):
    del trace.adapter_before[NAME]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_last_bit, f"before training: {NAME} differs by"),
        (_b, "q_proj.lora_B.weight differs by 1e-09"),
        (_missing, f"before training: {NAME} is missing"),
    ],
)
def test_another_start_is_seen_and_named(change, words):
    trace = fresh()
    change(trace)
    verdict = injection.initialised(trace)
    assert not verdict.holds
    assert words in verdict.seen[0]


def test_two_tensors_are_compared_bit_for_bit():
    x = torch.ones(2, 2)
    assert injection.same_tensor("logits", x, x.clone()).holds
    verdict = injection.same_tensor("logits", x, x.bfloat16())
    assert verdict.seen == ("logits is float32 (2, 2), expected bfloat16 (2, 2)",)


def test_an_adapted_layer_is_the_base_and_the_scaled_product():
    x = torch.tensor([[1.0, 2.0]])
    a, b = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    seen = injection.adapted(x, lambda x: torch.ones(1, 3), a, b, scaling=0.5)
    assert seen.tolist() == [[2.5, 4.0, 5.5]]
    without_input = injection.adapted(x, lambda x: torch.ones(1, 3), a, b, 0.5, dropout=torch.zeros_like)
    assert without_input.tolist() == [[1.0, 1.0, 1.0]]


def test_an_adapter_that_has_moved_is_named():
    before = {name: {NAME: torch.zeros(2, 2)} for name in ("default", "second")}
    after = {"default": {NAME: torch.ones(2, 2)}, "second": {NAME: torch.zeros(2, 2)}}
    assert injection.trained_adapters(before, after, ["default"]).holds
    verdict = injection.trained_adapters(before, after, ["second"])
    assert f"adapter 'default': {NAME} has moved" in verdict.seen
    assert f"adapter 'second': {NAME} is what it was before training" in verdict.seen
    assert not injection.trained_adapters({**before, "third": {}}, {**after, "third": {}}, ["default"]).holds


class Learned:
    """A stand-in for a Trainer."""

    label_names = ["labels"]

    def __init__(self, *columns):
        self.columns = columns

    def get_train_dataloader(self):
        if not self.columns:
            raise ValueError("no columns")
        return [dict.fromkeys(self.columns)]


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        (Learned("input_ids"), "the batch lacks labels"),
        (Learned("input_ids", "labels", "source"), "the batch has source, which forward() does not take"),
        (Learned(), "the first batch cannot be made: no columns"),
    ],
)
def test_columns_are_compared_name_by_name(trainer, words):
    assert injection.learned(Learned("input_ids", "labels"), ["labels"], ["input_ids", "labels"]).holds
    verdict = injection.learned(trainer, ["labels"], ["input_ids", "labels"])
    assert words in verdict.seen


def test_other_label_names_are_found():
    verdict = injection.learned(Learned("labels"), ["start_positions"], ["labels"])
    assert verdict.seen == ("label_names is ['labels'], expected ['start_positions']",)
