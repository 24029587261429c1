"""What is trained and what stays frozen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from harness.laws.completion import incomplete
from harness.tensors import names
from harness.trace import Trace
from harness.verdict import Verdict, verdict

if TYPE_CHECKING:
    from torch import nn

#: Canonical tensor name -> shape.
Shapes = Mapping[str, Sequence[int]]

#: What bitsandbytes keeps in state_dict() beside a weight that is packed as NF4 with double quantization.
NF4_STATE = ("absmax", "nested_absmax", "nested_quant_map", "quant_map", "quant_state.bitsandbytes__nf4")


def base_frozen(trace: Trace) -> Verdict:
    """Every tensor of state_dict() that does not require gradients is the same, bit for bit, before and after."""
    findings = _changed(trace, (set(trace.base_before) | set(trace.base)) - set(trace.shared))
    return verdict("every base tensor bit-identical before and after training", findings, tensors=len(trace.base))


def parameters_frozen(trace: Trace) -> Verdict:
    """The same of the parameters alone: once packed weights are sharded, state_dict() has no quantization state of them."""
    frozen = set(trace.parameters) - set(trace.trainable)
    return verdict("every frozen parameter bit-identical", _changed(trace, frozen), parameters=len(frozen))


def _changed(trace: Trace, of: set[str]) -> list[str]:
    findings = incomplete(trace)
    if not of & set(trace.base_before):
        findings.append("no base tensor was observed")
    for name in sorted(of):
        before, after = trace.base_before.get(name), trace.base.get(name)
        if before != after:
            findings.append(f"{name}: digest {before or 'absent'} before training, {after or 'absent'} after")
    return findings


def quantized_base_frozen(trace: Trace, linears: Iterable[str]) -> Verdict:
    """Each of these linear layers (module paths) has a packed weight and all its NF4 state, and keeps them bit for bit."""
    findings = list(base_frozen(trace).seen)
    for path in linears:
        parts = [f"{path}.weight", *(f"{path}.weight.{part}" for part in NF4_STATE)]
        findings += [f"{name} was not observed" for name in parts if name not in trace.base_before]
    return verdict("packed weights and quantization state bit-identical", findings, tensors=len(trace.base))


def optimizer_holds_trainables(trace: Trace) -> Verdict:
    """The optimizer's groups hold exactly the parameters that require gradients, each once."""
    held = [name for group in trace.groups for name in group.names]
    findings = incomplete(trace)
    findings += [f"{name} requires gradients but is in no group" for name in trace.trainable if name not in held]
    findings += [f"{name} is in a group but does not require gradients" for name in held if name not in trace.trainable]
    findings += [f"{name} is held {held.count(name)} times" for name in sorted(set(held)) if held.count(name) > 1]
    numbers = sum(trace.adapter_before[name].numel() for name in trace.trainable if name in trace.adapter_before)
    return verdict("the optimizer holds exactly the trainable parameters", findings, tensors=len(held), numbers=numbers)


def groups_hold(trace: Trace, decayed: Shapes, others: Shapes | None = None) -> Verdict:
    """Two groups: one with the weight decay of the arguments holds exactly `decayed`, one with none exactly `others`."""
    findings = incomplete(trace)
    decay = trace.spec.arguments.get("weight_decay", 0.0)
    if len(trace.groups) != 2:
        findings.append(f"the optimizer has {len(trace.groups)} groups, expected 2")
    for index, (group, wanted, rate) in enumerate(
        zip(trace.groups, (decayed, others or {}), (decay, 0.0), strict=False)
    ):
        where = f"group {index}"
        if group.settings.get("weight_decay") != rate:
            findings.append(f"{where}: weight decay {group.settings.get('weight_decay')}, expected {rate}")
        findings += [f"{where}: {name} is in it, unexpected" for name in group.names if name not in wanted]
        findings += [f"{where}: no {name}" for name in wanted if name not in group.names]
        findings += [
            f"{where}: {name} is {list(trace.adapter_before[name].shape)}, expected {list(shape)}"
            for name, shape in wanted.items()
            if name in trace.adapter_before and list(trace.adapter_before[name].shape) != list(shape)
        ]
    numbers = sum(math.prod(shape) for shape in (*decayed.values(), *(others or {}).values()))
    expected = f"the optimizer holds {len(decayed)} tensors with weight decay, {len(others or {})} without"
    return verdict(f"{expected}, {numbers} numbers", findings, numbers=numbers)


def base_without_gradients(trace: Trace) -> Verdict:
    """No frozen parameter holds a .grad when the optimizer steps."""
    findings = incomplete(trace)
    findings += [f"{name} held a gradient at an optimizer step" for name in trace.base_gradients]
    return verdict("frozen parameters never get a gradient", findings, steps=len(trace.steps))


def adapter_moved(trace: Trace, stuck: tuple[str, ...] = ()) -> Verdict:
    """Every trainable tensor differs from its start, save those whose name ends with one of `stuck`."""
    findings = incomplete(trace)
    for name in trace.trainable:
        if torch.equal(trace.adapter[name], trace.adapter_before[name]) and not name.endswith(stuck or ("\0",)):
            findings.append(f"{name} is what it was before training")
    return verdict("every trainable tensor has moved", findings, tensors=len(trace.trainable))


def gradients_arrive(trace: Trace) -> Verdict:
    """Every trainable tensor has a gradient that is not zero: each lora_A after the first update, all others at once.

    A fresh lora_B is zero, and with it the gradient of its lora_A, until a step whose learning rate is not zero.
    """
    findings = incomplete(trace)
    if not trace.trainable:
        findings.append("nothing is trainable")
    updated = False
    for step in trace.steps:
        for name in trace.trainable:
            gradient = step.gradients.get(name)
            if gradient is None:
                findings.append(f"step {step.number}: {name} has no gradient")
            elif not gradient.any() and (updated or "lora_A" not in name):
                findings.append(f"step {step.number}: the gradient of {name} is zero")
        if updated:
            break
        updated = any(rate > 0 for rate in step.learning_rates)
    return verdict("a gradient arrives at every trainable tensor", findings, tensors=len(trace.trainable))


def trainable_names(model: nn.Module, adapter: str = "default") -> list[str]:
    """Canonical names (see harness.tensors.names) of the parameters that require gradients; `adapter` is left out of them."""
    return [names.canonical(name, adapter) for name, p in model.named_parameters() if p.requires_grad]


def trains_exactly(seen: Iterable[str], wanted: Iterable[str], when: str = "") -> Verdict:
    """Exactly the wanted parameters require gradients (canonical names)."""
    have, expected = set(seen), set(wanted)
    at = f"{when}: " if when else ""
    findings = [f"{at}{name} requires gradients" for name in sorted(have - expected)]
    findings += [f"{at}{name} does not require gradients" for name in sorted(expected - have)]
    return verdict(f"{at}exactly these are trainable: {', '.join(sorted(expected)) or 'none'}", findings)
