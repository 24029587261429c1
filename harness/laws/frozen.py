"""Which parameters are trained, and which stay frozen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from harness.laws import base_weights
from harness.laws.completion import incomplete
from harness.laws.equal import has_moved, is_finite
from harness.tensors import names
from harness.trace import Trace
from harness.verdict import Unjudged, Verdict, verdict

if TYPE_CHECKING:
    from torch import nn

#: Canonical tensor name -> shape.
Shapes = Mapping[str, Sequence[int]]

#: Entries of state_dict() that bitsandbytes adds for a weight packed as NF4 with double quantization.
NF4_STATE = ("absmax", "nested_absmax", "nested_quant_map", "quant_map", "quant_state.bitsandbytes__nf4")


def base_frozen(trace: Trace) -> Verdict:
    """Check that training changes no bit of any tensor of state_dict() that does not require gradients.

    What an adapter's own forward pass counts up is left out (`base_weights.counted`).
    """
    moving = base_weights.counted(trace.spec.adapter)
    frozen = {name for name in (*trace.base_before, *trace.base) if not (moving and name.endswith(moving))}
    findings = _changed(trace, frozen - set(trace.shared))
    return verdict("every base tensor bit-identical before and after training", findings, tensors=len(trace.base))


def parameters_frozen(trace: Trace) -> Verdict:
    """Check that training changes no bit of any frozen parameter. Other tensors of state_dict() are ignored.

    Use it for sharded models: if packed weights are sharded, state_dict() loses their quantization state.
    """
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
    """Check that each linear layer has a packed weight and all its NF4 state, and that training changes no bit of them.

    - linears: module paths.
    """
    findings = list(base_frozen(trace).seen)
    for path in linears:
        parts = [f"{path}.weight", *(f"{path}.weight.{part}" for part in NF4_STATE)]
        findings += [f"{name} was not observed" for name in parts if name not in trace.base_before]
    return verdict("packed weights and quantization state bit-identical", findings, tensors=len(trace.base))


def optimizer_holds_trainables(trace: Trace) -> Verdict:
    """Check that the optimizer's groups hold exactly the parameters that require gradients, each once."""
    grouped = [name for group in trace.groups for name in group.names]
    findings = incomplete(trace) + _nothing_trainable(trace)
    findings += [f"{name} requires gradients but is in no group" for name in trace.trainable if name not in grouped]
    findings += [
        f"{name} is in a group but does not require gradients" for name in grouped if name not in trace.trainable
    ]
    findings += [
        f"{name} is in groups {grouped.count(name)} times, expected once"
        for name in sorted(set(grouped))
        if grouped.count(name) > 1
    ]
    numbers = sum(trace.adapter_before[name].numel() for name in trace.trainable if name in trace.adapter_before)
    return verdict(
        "the optimizer holds exactly the trainable parameters", findings, tensors=len(grouped), numbers=numbers
    )


def groups_hold(trace: Trace, decayed: Shapes, others: Shapes | None = None) -> Verdict:
    """Check that the optimizer has two groups, one with weight decay and one without, and what each of them holds.

    A loop of somebody's, which sends no step_begin, may have a single group if nothing tells the two apart: if nothing is
    trained without decay, or if the decay is 0. A Trainer with one cannot read an optimizer.pt of two.

    - decayed: canonical name -> shape of the tensors in the group with the weight decay of the arguments.
    - others: the same for the group without weight decay; None if it must be empty.
    """
    findings = incomplete(trace)
    decay = trace.spec.arguments.get("weight_decay", 0.0)
    expected_groups: list[tuple[Shapes, float]] = [(decayed, decay), (others or {}, 0.0)]
    if len(trace.groups) == 1 and "step_begin" not in trace.events and not (others and decay):
        expected_groups = [({**decayed, **(others or {})}, decay)]
    elif len(trace.groups) != 2:
        findings.append(f"the optimizer has {len(trace.groups)} groups, expected 2")
    for index, (group, (shapes, rate)) in enumerate(zip(trace.groups, expected_groups, strict=False)):
        where = f"group {index}"
        if group.settings.get("weight_decay") != rate:
            findings.append(f"{where}: weight decay {group.settings.get('weight_decay')}, expected {rate}")
        findings += [f"{where}: {name} is in it, unexpected" for name in group.names if name not in shapes]
        findings += [f"{where}: no {name}" for name in shapes if name not in group.names]
        findings += [
            f"{where}: {name} is {list(trace.adapter_before[name].shape)}, expected {list(shape)}"
            for name, shape in shapes.items()
            if name in trace.adapter_before and list(trace.adapter_before[name].shape) != list(shape)
        ]
    numbers = sum(math.prod(shape) for shape in (*decayed.values(), *(others or {}).values()))
    expected = f"the optimizer holds {len(decayed)} tensors with weight decay, {len(others or {})} without"
    return verdict(f"{expected}, {numbers} numbers", findings, numbers=numbers)


def base_without_gradients(trace: Trace) -> Verdict:
    """Check that no frozen parameter has a .grad when the optimizer steps."""
    findings = incomplete(trace)
    findings += [f"{name} held a gradient at an optimizer step" for name in trace.base_gradients]
    return verdict("frozen parameters never get a gradient", findings, steps=len(trace.steps))


def adapter_moved(trace: Trace, stuck: tuple[str, ...] = ()) -> Verdict:
    """Check that training changes every trainable tensor.

    - stuck: endings of the names of tensors that may stay as they are.
    """
    findings = incomplete(trace) + _nothing_trainable(trace)
    for name in trace.trainable:
        after = trace.adapter[name]
        if not is_finite(after):
            findings.append(Unjudged(f"{name} is NaN or infinite after training, so no movement was seen"))
        elif not has_moved(trace.adapter_before[name], after) and not name.endswith(stuck or ("\0",)):
            findings.append(f"{name} is what it was before training")
    return verdict("every trainable tensor has moved", findings, tensors=len(trace.trainable))


def gradients_arrive(trace: Trace) -> Verdict:
    """Check that every trainable tensor gets a gradient that is not zero, at the first step.

    A new lora_B is zero, and so is the gradient of its lora_A until a step with a learning rate above zero. So lora_A's
    gradient is checked after the first such step.
    """
    findings = incomplete(trace) + _nothing_trainable(trace)
    updated = False
    for step in trace.steps:
        for name in trace.trainable:
            gradient = step.gradients.get(name)
            if gradient is None:
                findings.append(f"step {step.number}: {name} has no gradient")
            elif not is_finite(gradient):
                findings.append(Unjudged(f"step {step.number}: the gradient of {name} is NaN or infinite"))
            elif not gradient.any() and (updated or "lora_A" not in name):
                findings.append(f"step {step.number}: the gradient of {name} is zero")
        if updated:
            break
        updated = any(rate > 0 for rate in step.learning_rates)
    return verdict("a gradient arrives at every trainable tensor", findings, tensors=len(trace.trainable))


def _nothing_trainable(trace: Trace) -> list[str]:
    return [] if trace.trainable else ["nothing is trainable"]


def trainable_names(model: nn.Module, adapter: str = "default") -> list[str]:
    """Return the canonical names (harness.tensors.names) of the parameters that require gradients.

    - adapter: the name of the adapter, which canonical names do not contain.
    """
    return [names.canonical(name, adapter) for name, p in model.named_parameters() if p.requires_grad]


def trains_exactly(seen: Iterable[str], expected: Iterable[str], when: str = "") -> Verdict:
    """Check that exactly the expected parameters require gradients.

    - seen: canonical names of the parameters that require gradients.
    - expected: canonical names of those that must.
    - when: words that each sentence begins with, such as "after switch".
    """
    have, need = set(seen), set(expected)
    at = f"{when}: " if when else ""
    findings = [f"{at}{name} requires gradients" for name in sorted(have - need)]
    findings += [f"{at}{name} does not require gradients" for name in sorted(need - have)]
    return verdict(f"{at}exactly these are trainable: {', '.join(sorted(need)) or 'none'}", findings)
