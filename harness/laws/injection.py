"""Injected adapters: their initial values, what they add to a layer, and which of several is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch

from harness.fixtures import tensor_shapes
from harness.laws.completion import incomplete
from harness.laws.equal import differences, has_moved, is_finite
from harness.spec import RunSpec
from harness.tensors import names
from harness.trace import Tensors, Trace
from harness.verdict import Unjudged, Verdict, verdict

if TYPE_CHECKING:
    from torch import nn


def drawn(spec: RunSpec) -> Tensors:
    """Return the initial values of a spec's LoRA on the tiny Llama: canonical name -> tensor, float32.

    They are drawn as peft/tuners/lora/layer.py:LoraLayer.update_layer does: A and B are made as nn.Linear, which draws
    initial weights for each. Then reset_lora_parameters draws A again, and sets B to zero.
    """
    targets, r = spec.adapter.config["target_modules"], spec.adapter.config["r"]
    projections = ("",) if targets == "all-linear" else tuple(targets)
    made: Tensors = {}
    draw = torch.Generator().manual_seed(spec.adapter.seed)
    for path, (outputs, inputs) in tensor_shapes.linears(spec.model.config).items():
        if path.endswith(projections):
            torch.empty(r, inputs).uniform_(-1, 1, generator=draw)
            torch.empty(outputs, r).uniform_(-1, 1, generator=draw)
            # kaiming_uniform_(a=sqrt(5)): gain = sqrt(2 / (1 + 5)), bound = sqrt(3) * gain / sqrt(inputs).
            bound = math.sqrt(3.0) * (math.sqrt(2.0 / (1 + math.sqrt(5) ** 2)) / math.sqrt(inputs))
            made[f"{path}.lora_A.weight"] = torch.empty(r, inputs).uniform_(-bound, bound, generator=draw)
            made[f"{path}.lora_B.weight"] = torch.zeros(outputs, r)
    return made


def initialised(trace: Trace) -> Verdict:
    """Check that the adapter started with the values of `drawn`, bit for bit."""
    findings = incomplete(trace) + differences(trace.adapter_before, drawn(trace.spec), 0.0, "before training:")
    return verdict("the adapter is drawn from its seed, bit for bit", findings, tensors=len(trace.adapter_before))


def same_tensor(what: str, seen: torch.Tensor, expected: torch.Tensor) -> Verdict:
    """Check that two tensors are the same, bit for bit.

    - what: the name that findings give to them.
    """
    findings = differences({what: seen}, {what: expected}, 0.0, "")
    return verdict(f"{what}, bit for bit", findings)


def adapted(
    x: torch.Tensor,
    base: Callable[[torch.Tensor], torch.Tensor],
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    dropout: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
) -> torch.Tensor:
    """Return what a linear layer with a LoRA must return: (..., outputs), in the dtype that `base` returns.

    - x: the input, (..., inputs).
    - base: the layer without its LoRA.
    - a: lora_A's weight, (r, inputs).
    - b: lora_B's weight, (outputs, r).
    - scaling: lora_alpha / r.
    - dropout: of the LoRA's input.
    """
    result = base(x)
    lora = dropout(x.to(a.dtype)) @ a.T @ b.T * scaling
    return (result + lora).to(result.dtype)


def adapter_tensors(model: nn.Module, adapter: str) -> Tensors:
    """Return copies on the CPU of all parameters of one adapter of a model, by canonical name."""
    return {
        names.canonical(name, adapter): parameter.detach().cpu().clone()
        for name, parameter in model.named_parameters()
        if f".{adapter}." in name and names.is_adapter(name)
    }


def trained_adapters(before: Mapping[str, Tensors], after: Mapping[str, Tensors], trained: Collection[str]) -> Verdict:
    """Check that training changes every tensor of the trained adapters, and no tensor of the others.

    - before, after: adapter's name -> its tensors before training and after it.
    - trained: names of the adapters that are trained.
    """
    findings = [f"the model has no adapter {name!r}" for name, tensors in before.items() if not tensors]
    for adapter, tensors in before.items():
        for name, tensor in tensors.items():
            if not is_finite(after[adapter][name]):
                findings.append(Unjudged(f"adapter {adapter!r}: {name} is NaN or infinite after training"))
                continue
            moved = has_moved(tensor, after[adapter][name])
            if moved and adapter not in trained:
                findings.append(f"adapter {adapter!r}: {name} has moved")
            if not moved and adapter in trained:
                findings.append(f"adapter {adapter!r}: {name} is what it was before training")
    return verdict(f"training moves {', '.join(sorted(trained))} of {', '.join(sorted(before))}", findings)


def learned(trainer: Any, labels: list[str], columns: Collection[str]) -> Verdict:
    """Check what a Trainer found out about its model.

    - trainer: a transformers.Trainer.
    - labels: the label_names that it must have.
    - columns: the columns that its training batches must have.
    """
    findings = [] if trainer.label_names == labels else [f"label_names is {trainer.label_names}, expected {labels}"]
    try:
        seen = set(next(iter(trainer.get_train_dataloader())))
    except ValueError as error:
        findings.append(f"the first batch cannot be made: {error}")
    else:
        findings += [f"the batch has {name}, which forward() does not take" for name in sorted(seen - set(columns))]
        findings += [f"the batch lacks {name}" for name in sorted(set(columns) - seen)]
    return verdict(f"labels {labels}, columns {sorted(columns)}", findings)
