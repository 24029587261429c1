"""harness/laws/rebuilt.py: a model is rebuilt as its run trained it, and what a law accepts for that can fail still."""

import dataclasses
from contextlib import contextmanager

import pytest
import torch

from harness.fixtures import models
from harness.laws import checkpoint, optimizer_file, rebuilt
from harness.runs.scenarios import PLAIN, saving
from harness.spec import GET
from harness.verdict import NOT_COMPARABLE
from tests.checkpoints import says
from tests.traces import made_up

KEPT = PLAIN.but(max_steps=2, model={"dtype": "bfloat16"}, adapter={"options": {"autocast_adapter_dtype": False}})
BEST = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}


def test_an_adapter_is_loaded_in_the_dtype_that_it_was_trained_in(runs, monkeypatch):
    trace = runs.train(saving(KEPT, every=1))
    assert rebuilt.reloads(trace).holds
    monkeypatch.setattr(rebuilt, "_KEPT_OPTION", "another")
    says(rebuilt.reloads(trace), "lora_A.weight is float32 (8, 64), expected bfloat16 (8, 64)")


@pytest.mark.parametrize("fields", [{"model": {"dtype": "bfloat16"}}, {"model": {"quantization": "nf4"}, "bf16": True}])
def test_the_rounding_of_a_prompt_encoder_is_not_judged_in_half_precision(fields):
    trace = made_up(PLAIN.but(**fields, adapter={"peft_type": "P_TUNING"}))
    judged = rebuilt.reloads(trace)
    assert judged.outcome == NOT_COMPARABLE
    assert "rounded otherwise" in judged.seen[0]


def test_files_are_judged_by_what_was_trained_if_the_best_checkpoint_was_loaded(runs):
    """The Trainer loads the best adapter in float32, and maybe not the last one."""
    trace = runs.train(saving(KEPT.but(data={"eval_rows": 4}, **BEST), every=1))
    assert {tensor.dtype for tensor in trace.adapter.values()} == {torch.float32}
    assert optimizer_file.holds_the_trained_tensors(trace).holds
    assert checkpoint.every_adapter_saved(trace).holds
    plain = dataclasses.replace(trace, spec=trace.spec.but(load_best_model_at_end=None))
    says(optimizer_file.holds_the_trained_tensors(plain), "is bfloat16 (8, 64), expected float32 (8, 64)")
    says(checkpoint.every_adapter_saved(plain), "lora_A.weight is not saved as it is in memory")


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_mixed_model_is_computed_under_the_autocast_of_its_run(quantization, monkeypatch):
    """Beside a base in half precision SHiRA adds a float32 weight, and computes under autocast only."""
    if quantization:
        pytest.importorskip("bitsandbytes", reason="quantized bases need bitsandbytes")
    mixed = PLAIN.but(model={"dtype": "bfloat16", "quantization": quantization}, bf16=True)
    seen = []
    model = type("Model", (), {})()
    model.parameters = lambda: iter([torch.zeros(1)])
    model.eval = lambda: lambda **batch: seen.append(torch.is_autocast_enabled("cpu")) or {"logits": torch.zeros(1)}
    for spec, expected in ((mixed, True), (mixed.but(bf16=None), False), (PLAIN.but(bf16=True), False)):
        rebuilt.logits(model, spec)
        assert seen.pop() is expected
    monkeypatch.setattr(rebuilt, "_AUTOCASTS", {})
    rebuilt.logits(model, mixed)
    assert seen == [False]


def test_a_model_that_raises_once_its_adapter_is_enabled_again_fails(monkeypatch):
    calls = iter([torch.ones(2), torch.zeros(2), torch.zeros(2)])
    monkeypatch.setattr(rebuilt, "logits", lambda model, spec: {"logits": next(calls)})
    monkeypatch.setattr(rebuilt, "_of_base", lambda spec: {"logits": torch.zeros(2)})
    monkeypatch.setattr(models, "build", lambda spec: None)

    class Model:
        @contextmanager
        def disable_adapter(self):
            yield

    spec = PLAIN.but(adapter={"route": GET})
    says(rebuilt.off_and_on(Model(), spec), "enabled again: logits differs by 1")
    calls = iter([torch.ones(2), torch.zeros(2)])
    says(rebuilt.off_and_on(Model(), spec), "enabled again: the model raises StopIteration")


@pytest.mark.parametrize(("off", "holds"), [(0.0, True), (1e-3, False)])
def test_unmerging_may_round_by_the_size_of_what_was_merged(off, holds, runs, monkeypatch):
    """Adapters a thousand times as large as those that the bound was measured on are merged into weights as large."""
    trace = runs.train(PLAIN.but(max_steps=1))
    large = dataclasses.replace(trace, adapter={name: torch.full_like(t, 1.1) for name, t in trace.adapter.items()})
    from peft.tuners.lora.layer import Linear

    unmerge = Linear.unmerge

    def unmerge_and_shift(self):
        unmerge(self)
        self.get_base_layer().weight.data += off

    monkeypatch.setattr(Linear, "unmerge", unmerge_and_shift)
    verdict = rebuilt.merged(large)
    apart = [sentence for sentence in verdict.seen if sentence.startswith("unmerged: layer")]
    assert bool(apart) is not holds, verdict.seen
