"""Adapters as they are injected: their initial values, what they add to a layer, and which of several is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch

from harness.fixtures import tensor_shapes
from harness.laws.completion import incomplete
from harness.laws.equal import differences
from harness.spec import RunSpec
from harness.tensors import names
from harness.trace import Tensors, Trace
from harness.verdict import Verdict, verdict

if TYPE_CHECKING:
    from torch import nn


def drawn(spec: RunSpec) -> Tensors:
    """The LoRA of a spec on the tiny llama as it must be drawn: canonical name -> tensor, float32.

    Each of the two linear layers draws its own weights first, as nn.Linear does; then A is drawn anew and B zeroed.
    """
    targets, r = spec.adapter.config["target_modules"], spec.adapter.config["r"]
    projections = ("",) if targets == "all-linear" else tuple(targets)
    made: Tensors = {}
    draw = torch.Generator().manual_seed(spec.adapter.seed)
    for path, (outputs, inputs) in tensor_shapes.linears(spec.model.config).items():
        if path.endswith(projections):
            torch.empty(r, inputs).uniform_(-1, 1, generator=draw)
            torch.empty(outputs, r).uniform_(-1, 1, generator=draw)
            # kaiming_uniform(a=sqrt(5)): gain sqrt(2 / (1 + 5)), bound sqrt(3) * gain / sqrt(inputs).
            bound = math.sqrt(3.0) * (math.sqrt(2.0 / (1 + math.sqrt(5) ** 2)) / math.sqrt(inputs))
            made[f"{path}.lora_A.weight"] = torch.empty(r, inputs).uniform_(-bound, bound, generator=draw)
            made[f"{path}.lora_B.weight"] = torch.zeros(outputs, r)
    return made


def initialised(trace: Trace) -> Verdict:
    """The adapter started with the values that `drawn` makes of its spec."""
    findings = incomplete(trace) + differences(trace.adapter_before, drawn(trace.spec), 0.0, "before training:")
    return verdict("the adapter is drawn from its seed, bit for bit", findings, tensors=len(trace.adapter_before))


def same_tensor(what: str, seen: torch.Tensor, wanted: torch.Tensor) -> Verdict:
    """Two tensors are the same, bit for bit."""
    findings = [one.strip() for one in differences({what: seen}, {what: wanted}, 0.0, "")]
    return verdict(f"{what}, bit for bit", findings)


def adapted(
    x: torch.Tensor,
    base: Callable[[torch.Tensor], torch.Tensor],
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    dropout: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
) -> torch.Tensor:
    """What a layer with a LoRA returns. x: (..., inputs); a: (r, inputs); b: (outputs, r); `base`'s dtype."""
    result = base(x)
    lora = dropout(x.to(a.dtype)) @ a.T @ b.T * scaling
    return (result + lora).to(result.dtype)


def adapter_tensors(model: nn.Module, adapter: str) -> Tensors:
    """Copies on the CPU of all parameters of one of the adapters of a model, by canonical name."""
    return {
        names.canonical(name, adapter): parameter.detach().cpu().clone()
        for name, parameter in model.named_parameters()
        if f".{adapter}." in name and names.is_adapter(name)
    }


def trained_adapters(before: Mapping[str, Tensors], after: Mapping[str, Tensors], trained: Collection[str]) -> Verdict:
    """Of several adapters (by name), every tensor of the trained ones has moved, and none of the others'."""
    findings = [f"the model has no adapter {name!r}" for name, tensors in before.items() if not tensors]
    for adapter, tensors in before.items():
        for name, tensor in tensors.items():
            moved = not torch.equal(tensor, after[adapter][name])
            if moved and adapter not in trained:
                findings.append(f"adapter {adapter!r}: {name} has moved")
            if not moved and adapter in trained:
                findings.append(f"adapter {adapter!r}: {name} is what it was before training")
    return verdict(f"training moves {', '.join(sorted(trained))} of {', '.join(sorted(before))}", findings)


def learned(trainer: Any, labels: list[str], columns: Collection[str]) -> Verdict:
    """What a Trainer made of its model: the names of the labels, and the columns of the batches that it hands over."""
    findings = [] if trainer.label_names == labels else [f"label_names is {trainer.label_names}, expected {labels}"]
    try:
        seen = set(next(iter(trainer.get_train_dataloader())))
    except ValueError as error:
        findings.append(f"the first batch cannot be made: {error}")
    else:
        findings += [f"the batch has {name}, which forward() does not take" for name in sorted(seen - set(columns))]
        findings += [f"the batch lacks {name}" for name in sorted(set(columns) - seen)]
    return verdict(f"labels {labels}, columns {sorted(columns)}", findings)
