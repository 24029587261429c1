"""The negative control of each tolerance: a fault, in a run that is really trained, that exceeds each bound tenfold."""

from __future__ import annotations

import copy
import functools

import pytest
from peft.tuners.lora import LoraLayer

from harness import subjects, tolerance
from harness.fixtures import models
from harness.gate import numbers
from harness.laws import accumulation, loss, output, rebuilt, scaler, schedule, several
from harness.laws.equal import differences, distance, largest_gap
from harness.laws.recompute import Recomputed
from harness.mutants.dist import without_average
from harness.processes.imports import import_upstream
from harness.runs.cache import Runs
from harness.runs.scenarios import PLAIN, STILL, STILL_RAGGED, saving
from harness.suites.test_acc import RAGGED, SPLIT, large_batch
from harness.tolerance import Tolerance
from tests.faults import replace
from tests.test_faults_ranks import BRIEF as UNLIKE
from tests.test_faults_ranks import runs_under

BOUNDS = ("loss", "gradient", "adapter")
NAMES = [name for name, value in vars(tolerance).items() if isinstance(value, Tolerance) and not value.exact]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    import_upstream()
    return Runs(subjects.load("hf-trainer"), tmp_path_factory.mktemp("runs"))


def _accumulation(optim, runs, monkeypatch):
    """Average micro-batches whatever their number of tokens, as transformers did before 4.46."""
    spec = SPLIT.but(data=RAGGED, optim=optim)
    expected = runs.train(large_batch(spec))
    replace("transformers.trainer:Trainer", "_get_num_items_in_batch", lambda *args: None)(monkeypatch)
    seen = runs.train(spec, again=True)
    assert not accumulation.same_split(seen, expected).holds
    gaps = distance(seen, expected)
    return {bound: gaps[f"largest_{bound}_difference"] for bound in BOUNDS}


def _merged(runs, monkeypatch):
    """Merge an adapter that is a thousandth too large. Unmerging does not undo that."""
    trace = runs.train(PLAIN)
    model = rebuilt.trained_model(trace)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    beside, weights = rebuilt.logits(model, trace.spec)["logits"], [layer.weight.clone() for layer in layers]
    inside = []

    def merge(original, self, *args):
        inside.append(self)
        original(self, *args)
        inside.pop()

    delta = lambda original, self, adapter: original(self, adapter) * (1.001 if inside else 1)  # noqa: E731
    replace("peft.tuners.lora.layer:Linear", "merge", merge)(monkeypatch)
    replace("peft.tuners.lora.layer:Linear", "get_delta_weight", delta)(monkeypatch)
    assert not rebuilt.merged(trace).holds
    for layer in layers:
        layer.merge()
    off = largest_gap(rebuilt.logits(model, trace.spec)["logits"], beside)
    for layer in layers:
        layer.unmerge()
    return {"loss": off, "adapter": max(map(largest_gap, [layer.weight for layer in layers], weights))}


def _oracle(runs, monkeypatch):
    """Count the first label of each row, as transformers 4.46.2 to 5.9 did."""
    counted = lambda original, self, batches, device: sum(b["labels"].ne(-100).sum() for b in batches)  # noqa: E731
    replace("transformers.trainer:Trainer", "_get_num_items_in_batch", counted)(monkeypatch)
    trace = runs.train(STILL_RAGGED.but(max_steps=1), again=True)
    assert not loss.window_mean(trace).holds
    expected, gradients = Recomputed(trace.spec, trace.adapter_before).window(trace.steps[0].batches)
    seen = trace.steps[0].gradients
    largest = max(float((seen[name] - gradients[name]).abs().max()) for name in seen)
    return {"loss": abs(trace.losses[1] - expected), "gradient": largest}


def _adamw(runs, monkeypatch):
    """Train with a weight decay of 0.01 that the trace's parameter groups do not have."""
    trace = copy.deepcopy(runs.train(PLAIN.but(weight_decay=0.01)))
    for group in trace.groups:
        group.settings["weight_decay"] = 0.0
    assert not schedule.adamw(trace).holds
    without = runs.train(PLAIN)
    assert differences(trace.adapter, without.adapter, tolerance.ADAMW.adapter, "")
    return {"adapter": distance(trace, without)["largest_adapter_difference"]}


def _summation(runs, monkeypatch):
    """Lose the loss of the last step, which was not logged yet when training ended."""
    trace = copy.deepcopy(runs.train(PLAIN))
    mean = trace.output["training_loss"]
    trace.output["training_loss"] -= trace.losses[10] / 10
    assert not output.training_loss(trace).holds
    return {"loss": abs(trace.output["training_loss"] - mean)}


def _ranks(runs, monkeypatch):
    """Let each rank average over its own labels: average_tokens_across_devices=False."""
    fault = replace("transformers:TrainingArguments", "__post_init__", without_average)
    seen = runs_under(fault, runs.directory("ranks")).train(UNLIKE)
    expected = runs.train(several.one_process_spec(UNLIKE))
    assert not several.equals_single(seen, expected).holds
    gaps = distance(several.whole_run(seen), expected)
    return {bound: gaps[f"largest_{bound}_difference"] for bound in BOUNDS}


def _half(runs, monkeypatch):
    """Log loss and norm as they are scaled for the backward pass."""
    plain = runs.train(STILL)
    trace = copy.deepcopy(plain)
    for entry in trace.log_history:
        entry.update({name: entry[name] * scaler.INITIAL for name in ("loss", "grad_norm") if name in entry})
    assert not scaler.rounds_only(trace, plain).holds
    return {
        "loss": abs(trace.losses[1] - plain.losses[1]),
        "gradient": abs(trace.grad_norms[1] - plain.grad_norms[1]),
    }


def _rebuilt(runs, monkeypatch):
    """Do not load the adapter at all."""
    trace = runs.train(saving(PLAIN))
    off = largest_gap(
        rebuilt.logits(models.build(PLAIN.model), PLAIN)["logits"],
        rebuilt.logits(rebuilt.trained_model(trace), PLAIN)["logits"],
    )
    return {"loss": off}


def _stacks(runs, monkeypatch):
    """Let a release average micro-batches whatever their number of tokens, as transformers did before 4.46."""
    spec = SPLIT.but(data=RAGGED, optim=None)
    before = runs.train(spec)
    replace("transformers.trainer:Trainer", "_get_num_items_in_batch", lambda *args: None)(monkeypatch)
    after = runs.train(spec, again=True)
    assert numbers.parting(before, after).kind == numbers.CHANGED
    gaps = distance(after, before)
    return {bound: gaps[f"largest_{bound}_difference"] for bound in BOUNDS}


CONTROLS = {
    "ACCUMULATION": functools.partial(_accumulation, "sgd"),
    "ACCUMULATION_ADAPTIVE": functools.partial(_accumulation, "adamw_torch"),
    "ORACLE": _oracle,
    "ADAMW": _adamw,
    "SUMMATION": _summation,
    "MERGED": _merged,
    "RANKS": _ranks,
    "HALF": _half,
    # A compiled loss that averages micro-batches whatever their tokens.
    "COMPILED": functools.partial(_accumulation, "adamw_torch"),
    "REBUILT": _rebuilt,
    "STACKS": _stacks,
}


def test_every_tolerance_has_a_negative_control():
    assert set(NAMES) == set(CONTROLS)


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_exceeds_each_bound_tenfold(name, runs, monkeypatch):
    bounds = {bound: getattr(getattr(tolerance, name), bound) for bound in BOUNDS}
    seen = CONTROLS[name](runs, monkeypatch)
    assert {bound: seen.get(bound, 0.0) >= 10 * limit for bound, limit in bounds.items()} == dict.fromkeys(BOUNDS, True)
