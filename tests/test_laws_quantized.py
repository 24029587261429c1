"""Tests of harness/laws/quantized.py on made-up traces: packing, dtypes, optimizer state, saving."""

import math

import pytest
import torch

from harness.laws import quantized
from tests.checkpoints import says
from tests.traces import BASE, A, B, made_up

LINEARS = {BASE.removesuffix(".weight"): (4, 4)}
STATE = f"{BASE}.quant_state.bitsandbytes__nf4"


def packed_trace(**others):
    """Return a made-up run whose base has one linear layer, packed: 16 numbers in 8 bytes."""
    trace = made_up()
    trace.parameters = {**trace.parameters, BASE: ["uint8", [8, 1]], "lm_head.weight": ["float32", [4, 4]], **others}
    return trace


def test_two_numbers_are_packed_in_a_byte():
    assert quantized.packed(packed_trace(), LINEARS).holds
    says(quantized.packed(made_up(), LINEARS), f"{BASE} is float32 [4, 4], expected uint8 [8, 1]")
    says(quantized.packed(packed_trace(**{BASE: ["uint8", [16, 1]]}), LINEARS), f"{BASE} is uint8 [16, 1], expected")
    head = packed_trace(**{"lm_head.weight": ["uint8", [8, 1]]})
    says(quantized.packed(head, LINEARS), "lm_head.weight is uint8, expected a floating dtype")
    says(quantized.packed(packed_trace(), {**LINEARS, "other": (4, 4)}), "other.weight is absent")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("loss", math.nan, "step 2: loss nan"),
        ("grad_norm", math.inf, "step 2: gradient norm inf"),
        ("grad_norm", 0.0, "step 2: gradient norm 0.0"),
    ],
)
def test_losses_and_gradient_norms_are_finite(name, value, words):
    trace = made_up()
    assert quantized.learns(trace).holds
    trace.log_history[1][name] = value
    says(quantized.learns(trace), words)
    says(quantized.learns(made_up(log_history=[])), "no loss or no gradient norm was logged")


def test_exactly_the_expected_tensors_are_trained():
    shapes = {A: [2, 4], B: [4, 2]}
    assert quantized.adapts(made_up(), shapes).holds
    says(quantized.adapts(made_up(), {A: [2, 4]}), f"{B} is trained, unexpected")
    says(quantized.adapts(made_up(), {**shapes, "other": [1]}), "other is not trained")
    says(quantized.adapts(made_up(), {A: [2, 4], B: [2, 4]}), f"{B} is [4, 2], expected [2, 4]")


def test_base_and_adapter_have_their_dtypes():
    assert quantized.computes_in(packed_trace(), base="float32", adapter="float32").holds
    says(quantized.computes_in(packed_trace(), base="bfloat16", adapter="float32"), "lm_head.weight is float32")
    says(
        quantized.computes_in(packed_trace(), base="float32", adapter="bfloat16"), f"{A} is float32, expected bfloat16"
    )
    bare = made_up(parameters={BASE: ["uint8", [8, 1]]})
    says(quantized.computes_in(bare, "float32", "float32"), "no parameter that is not packed")


def with_moments(**dtypes):
    """Return a made-up run whose optimizer has both moments of A and of B, eight numbers each, in these dtypes."""
    trace = made_up()
    kinds = {A: torch.uint8, B: torch.uint8, **dtypes}
    trace.optimizer_state = {
        name: {f"state{i}": torch.zeros(8, dtype=kind) for i in (1, 2)} for name, kind in kinds.items()
    }
    return trace


def test_moments_are_8_bit_from_a_size_on():
    assert quantized.state_in_8_bits(with_moments(), smallest=8).holds
    assert quantized.state_in_8_bits(with_moments(**{A: torch.float32, B: torch.float32}), smallest=9).holds
    says(quantized.state_in_8_bits(with_moments(), smallest=9), f"state1 of {A} is uint8 of 8, expected float32 of 8")
    wide = with_moments(**{B: torch.float32})
    says(quantized.state_in_8_bits(wide, smallest=8), f"state2 of {B} is float32 of 8, expected uint8 of 8")
    says(quantized.state_in_8_bits(made_up(), smallest=8), f"state1 of {A} is absent")
    says(quantized.state_in_8_bits(made_up(optimizer_state={})), f"{A} has no optimizer state")


def test_a_continued_run_has_the_same_quantized_base():
    base = {BASE: "1", STATE: "2"}
    first, resumed = made_up(base=dict(base)), made_up(base_before=dict(base), base=dict(base))
    assert quantized.same_base(resumed, first).holds
    resumed.base[STATE] = "3"
    says(quantized.same_base(resumed, first), f"{STATE} after the resumed run: digest 3, expected 2")
    resumed.base_before["besides"] = "4"
    says(quantized.same_base(resumed, first), "besides before the resumed run: digest 4, expected absent")
    says(quantized.same_base(made_up(), made_up()), "the base has no quantization state")


def test_a_reloaded_model_is_the_saved_one():
    state, logits = {BASE: torch.ones(8, 1), STATE: torch.ones(3)}, torch.ones(2)
    assert quantized.same_model(state, logits, state, logits).holds
    says(quantized.same_model({**state, STATE: torch.zeros(3)}, logits, state, logits), f"{STATE} differs by 1")
    says(quantized.same_model({BASE: state[BASE]}, logits, state, logits), f"{STATE} is missing")
    says(quantized.same_model(state, logits + 1, state, logits), "forward: logits differs by 1")
    says(quantized.same_model({BASE: state[BASE]}, logits, {BASE: state[BASE]}, logits), "has no quantization state")


def test_a_run_that_failed_holds_no_law():
    failed = made_up(error="RuntimeError: no")
    for verdict in (
        quantized.packed(failed, {}),
        quantized.learns(failed),
        quantized.adapts(failed, {A: [2, 4], B: [4, 2]}),
        quantized.computes_in(failed, "float32", "float32"),
        quantized.state_in_8_bits(failed),
        quantized.same_base(failed, made_up()),
    ):
        says(verdict, "the run ended with RuntimeError: no")


# ---- paged moments ----


def test_moments_are_paged_from_100_000_numbers_on():
    assert quantized.paged({"a": [131072, True, True], "b": [65536, False, False]}).holds


@pytest.mark.parametrize(
    ("moments", "words"),
    [
        ({"a": [131072, True, False]}, "moments of a, 131072 numbers: paged [True, False], expected True for each"),
        (
            {"a": [131072, True, True], "b": [10, True, True]},
            "moments of b, 10 numbers: paged [True, True], expected False for each",
        ),
        ({"b": [10, False, False]}, "no tensor has 100000 numbers"),
    ],
)
def test_moments_that_lie_elsewhere_are_seen(moments, words):
    assert quantized.paged(moments).seen == (words,)
