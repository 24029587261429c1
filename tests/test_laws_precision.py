"""Tests of harness/laws/precision.py: dtypes on made-up traces, autocast on a real model. Each fault is named."""

import copy

import pytest
import torch

from harness.laws import precision
from harness.processes.imports import import_upstream
from harness.runs.scenarios import PLAIN
from harness.spec import ADD
from harness.trace import MicroBatch, Step
from harness.verdict import NOT_COMPARABLE
from tests.traces import A, B, made_up, with_checkpoint

SPEC = PLAIN.but(bf16=True, lora={"lora_dropout": 0.0}, max_steps=1)


def _gradient(trace):
    trace.steps[1].gradients[A] = trace.steps[1].gradients[A].bfloat16()


def _clipped(trace):
    trace.steps[3].clipped[B] = trace.steps[3].clipped[B].half()


def _before(trace):
    trace.adapter_before = {name: tensor.bfloat16() for name, tensor in trace.adapter_before.items()}


def _adapter(trace):
    trace.adapter[B] = trace.adapter[B].double()


def _moment(trace):
    trace.optimizer_state[A]["exp_avg"] = trace.optimizer_state[A]["exp_avg"].bfloat16()


def _no_gradient(trace):
    del trace.steps[0].gradients[B]


def _error(trace):
    trace.error = "ValueError: no"


def with_moments(trace):
    trace.optimizer_state = {n: {"exp_avg": t.clone(), "exp_avg_sq": t.clone()} for n, t in trace.adapter.items()}
    return trace


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_gradient, f"step 2: the gradient: 1 tensors are not float32, {A} is bfloat16"),
        (_clipped, f"step 4: the clipped gradient: 1 tensors are not float32, {B} is float16"),
        (_before, f"the adapter before training: 2 tensors are not float32, {A} is bfloat16"),
        (_adapter, f"the adapter: 1 tensors are not float32, {B} is float64"),
        (_moment, f"the optimizer's exp_avg: 1 tensors are not float32, {A} is bfloat16"),
        (_no_gradient, "step 1: the gradient holds 1 tensors, 2 are trained"),
        (_error, "the run ended with ValueError: no"),
    ],
)
def test_another_dtype_is_seen_and_named(change, words):
    assert precision.adapter_dtypes(with_moments(made_up()), "float32").holds
    trace = with_moments(made_up())
    change(trace)
    assert words in precision.adapter_dtypes(trace, "float32").seen


def test_a_file_of_another_dtype_is_seen(tmp_path):
    trace = with_moments(made_up())
    with_checkpoint(trace, tmp_path, 4, {name: tensor.bfloat16() for name, tensor in trace.adapter.items()})
    (sentence,) = precision.adapter_dtypes(trace, "float32").seen
    assert sentence == f"checkpoint-4: 2 tensors are not float32, {A} is bfloat16"


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        (PLAIN, "float32"),
        (PLAIN.but(model={"dtype": "float16"}), "float32"),
        (PLAIN.but(model={"dtype": "bfloat16"}, adapter={"options": {"autocast_adapter_dtype": False}}), "bfloat16"),
        (PLAIN.but(model={"dtype": "bfloat16"}, adapter={"route": ADD}), "bfloat16"),
        (PLAIN.but(model={"dtype": "float64"}), "float64"),
    ],
)
def test_the_dtype_follows_from_the_spec(spec, dtype):
    assert precision.adapter_dtype(spec) == dtype


# ---- autocast ----


@pytest.fixture(scope="module")
def autocast():
    """Return a trace whose only step was computed under torch.autocast."""
    from harness.fixtures import models
    from harness.subjects.hf_trainer import inject

    import_upstream()
    model = inject(models.build(SPEC.model), SPEC.adapter)
    named = {n.removeprefix("base_model.model.").replace(".default", ""): p for n, p in model.named_parameters()}
    adapter = {name: p.detach().clone() for name, p in named.items() if p.requires_grad}
    batch = MicroBatch([0, 1], tokens=30, num_items=30.0)
    loss, gradients = precision.Autocast(SPEC).step(batch, adapter)
    batch.loss = loss
    trace = made_up(SPEC, adapter_before=adapter, adapter=adapter)
    trace.steps = [Step(1, [batch], [0.01], gradients, gradients)]
    return trace


def test_the_same_pass_under_autocast_holds(autocast):
    assert precision.plain_autocast(autocast).measured == {"steps": 1}
    assert precision.plain_autocast(autocast).holds


def test_a_pass_in_float32_does_not(autocast, monkeypatch):
    import contextlib

    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    sentences = "\n".join(precision.plain_autocast(autocast).seen)
    assert "step 1: the model returned" in sentences
    assert "step 1: gradient of" in sentences


def test_a_last_bit_of_a_gradient_is_seen(autocast):
    trace = copy.deepcopy(autocast)
    name = next(name for name in trace.steps[0].gradients if "lora_B" in name)
    gradient = trace.steps[0].gradients[name]
    gradient[0, 0] = torch.nextafter(gradient[0, 0], torch.tensor(9.0))
    (sentence,) = precision.plain_autocast(trace).seen
    assert sentence.startswith(f"step 1: gradient of {name} differs by")


def test_dropout_and_windows_are_not_comparable(autocast):
    assert precision.plain_autocast(made_up(SPEC.but(lora={"lora_dropout": 0.1}))).outcome == NOT_COMPARABLE
    window = copy.deepcopy(autocast)
    window.steps[0].batches *= 2
    assert precision.plain_autocast(window).outcome == NOT_COMPARABLE


# ---- fp16 on a CPU ----


def test_a_silent_float32_run_is_seen():
    judged = precision.not_silently_float32(made_up(), made_up(), "fp16")
    assert judged.seen == ("neither an error nor a warning: 4 steps, bit for bit those of float32",)


def test_an_error_a_warning_and_another_run_all_hold():
    other = made_up()
    other.adapter[A] += 0.1
    refused = made_up(steps=0, error="ValueError: fp16 needs a GPU")
    for trace in (refused, made_up(warnings=["FP16 does nothing here"]), other):
        assert precision.not_silently_float32(trace, made_up(), "fp16").holds


def test_an_error_after_the_first_step_is_seen():
    late = made_up(error="ValueError: no")
    assert precision.not_silently_float32(late, made_up(), "fp16").seen == (
        "the error came after step 4, expected before the first: ValueError: no",
    )
