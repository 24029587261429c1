"""Tests of harness/laws/equal.py on made-up traces: equal traces hold, and each kind of difference is named."""

import copy

import pytest
import torch

from harness.laws.equal import differences, equal_runs, largest_gap
from harness.tolerance import ACCUMULATION, scaled
from tests.traces import A, B, made_up


def test_a_trace_equals_its_copy():
    assert equal_runs(made_up(), made_up()).holds


def _gradient(trace):
    trace.steps[2].gradients[A][0, 0] += 1e-7


def _clipped(trace):
    trace.steps[1].clipped[B][0, 0] += 1e-7


def _rows(trace):
    trace.steps[0].batches[0].rows = [1, 0]


def _rate(trace):
    trace.steps[3].learning_rates[0] *= 1.0000001


def _loss(trace):
    trace.log_history[1]["loss"] += 1e-7


def _lost_log(trace):
    del trace.log_history[1]


def _norm(trace):
    trace.log_history[0]["grad_norm"] = float("nan")


def _adapter(trace):
    trace.adapter[B][1, 1] = torch.nextafter(trace.adapter[B][1, 1], torch.tensor(9.0))


def _missing(trace):
    del trace.adapter[B]


def _dtype(trace):
    trace.adapter[B] = trace.adapter[B].bfloat16()


def _optimizer(trace):
    trace.optimizer_state[A]["exp_avg"][0, 0] += 1e-7


def _short(trace):
    trace.steps.pop()


def _crash(trace):
    trace.error = "ValueError: no"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_gradient, "step 3: gradients of"),
        (_clipped, "step 2: clipped of"),
        (_rows, "step 1: trained rows [[1, 0]]"),
        (_rate, "step 4: learning rates"),
        (_loss, "step 2: logged loss"),
        (_lost_log, "step 2: logged loss is None"),
        (_norm, "step 1: logged grad_norm nan"),
        (_adapter, f"adapter at the end: {B} differs by"),
        (_missing, f"{B} is missing"),
        (_dtype, "is bfloat16 (4, 2), expected float32 (4, 2)"),
        (_optimizer, f"optimizer state of {A}"),
        (_short, "steps 1 to 3, expected 1 to 4"),
        (_crash, "the run ended with ValueError: no"),
    ],
)
def test_a_difference_is_seen_and_named(change, words):
    changed = copy.deepcopy(made_up())
    change(changed)
    verdict = equal_runs(changed, made_up())
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


def test_differences_before_the_resumed_step_do_not_count():
    changed = made_up()
    _rows(changed)
    _norm(changed)
    assert equal_runs(changed, made_up(), after=1).holds


def test_a_tolerance_lets_noise_pass_and_ten_times_as_much_fail():
    noise, fault = made_up(), made_up()
    limit = scaled(ACCUMULATION.adapter, float(noise.adapter[A].abs().max()))
    noise.adapter[A] += limit / 2
    fault.adapter[A] += limit * 10
    assert equal_runs(noise, made_up(), ACCUMULATION).holds
    assert not equal_runs(fault, made_up(), ACCUMULATION).holds


def test_a_tensor_on_another_device_differs():
    found = differences({"w": torch.zeros(2, device="meta")}, {"w": torch.zeros(2)}, 1.0, "loaded:")
    assert found == ["loaded: w is on meta, expected on cpu"]


def test_nan_is_never_within_a_bound():
    broken = made_up()
    broken.adapter[A][0, 0] = float("nan")
    assert not equal_runs(broken, made_up(), ACCUMULATION).holds
    assert largest_gap(broken.adapter[A], made_up().adapter[A]) == float("inf")


def test_the_largest_difference_comes_first():
    seen = {"small": torch.tensor([1.0]), "large": torch.tensor([1.0])}
    wanted = {"small": torch.tensor([1.1]), "large": torch.tensor([2.0])}
    assert differences(seen, wanted, 0.0, "")[0].startswith("large")
