"""What is observed of a run under FSDP1: which parameters hold a gradient, and tensors with two names."""

import functools

import torch
from torch import nn

from harness.laws import frozen
from harness.mutants.patch import in_this_process, replace
from harness.processes.imports import import_upstream
from harness.runs.cache import Runs
from harness.runs.scenarios import PLAIN, spread
from harness.subjects.hf_trainer import HFTrainer
from harness.subjects.observer import Observer
from harness.tensors import shards
from harness.verdict import FAIL, PASS

#: With add_adapter, frozen tensors lie in one flat parameter with trained ones.
MIXED = spread(PLAIN.but(adapter={"route": "add_adapter"}, max_steps=1, save_strategy="no"), "fsdp1")


def gradient_left(original, trainer, *args, **options):
    """Give a frozen parameter, of which the last rank has a part, a gradient on that rank."""
    loss = original(trainer, *args, **options)
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        part = [p for p in trainer.model.parameters() if not p.requires_grad and p.numel()][-1]
        part.grad = torch.zeros_like(part)
    return loss


def test_a_frozen_part_of_a_unit_has_no_gradient(runs):
    trace = runs.train(MIXED)
    assert frozen.base_without_gradients(trace).outcome == PASS
    assert set(trace.steps[0].gradients) | set(trace.steps[0].clipped) == set(trace.trainable)


def test_a_gradient_that_another_rank_holds_is_seen(tmp_path):
    import_upstream()
    fault = replace("transformers.trainer:Trainer", "training_step", gradient_left)
    runs = Runs(HFTrainer(in_each_rank=functools.partial(in_this_process, fault)), tmp_path)
    verdict = frozen.base_without_gradients(runs.train(MIXED))
    assert verdict.outcome == FAIL
    assert "held a gradient at an optimizer step" in verdict.seen[0]


def test_a_module_with_two_names_is_read_under_both():
    model = nn.Module()
    model.inner = nn.Linear(2, 2, bias=False)
    model.again = model.inner
    assert {name for name, _ in shards._held(model, set())} == {"inner.weight", "again.weight"}


def test_a_tensor_with_two_names_is_read_under_both():
    model = nn.Module()
    model.inner = nn.Module()
    model.inner.register_buffer("default", torch.ones(2))
    model.inner.register_buffer("second", model.inner.default)
    assert {name for name, _ in shards._held(model, set())} == {"inner.default", "inner.second"}


def test_a_tensor_that_is_neither_parameter_nor_buffer_is_no_part_of_the_state():
    model = nn.Module()
    model.inner = nn.Linear(2, 2, bias=False)
    model.inner.copied, model.inner.flat = torch.ones(2), torch.ones(2)
    assert {name for name, _ in shards._held(model, {(id(model.inner), "flat")})} == {"inner.weight", "inner.flat"}


def test_gradients_of_ranks_that_clip_nothing_are_recorded():
    observer = Observer(MIXED, "hf-trainer", [], ".")
    observer._model, observer._wrapped = nn.Linear(2, 2, bias=False), nn.Module()
    observer._model.weight.grad = torch.ones(2, 2)
    optimizer = torch.optim.SGD(observer._model.parameters(), lr=0.1)
    observer._before_step(optimizer, (), {})
    observer.before_clipping()
    observer._model.weight.grad = torch.zeros(2, 2)
    observer._before_step(optimizer, (), {})
    first, second = observer.trace.steps
    assert first.gradients["weight"].sum() == first.clipped["weight"].sum() == 4
    assert second.gradients["weight"].sum() == 4 and second.clipped["weight"].sum() == 0
