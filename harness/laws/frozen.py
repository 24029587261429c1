"""What is trained and what stays frozen."""

from __future__ import annotations

import torch

from harness.laws.runs import incomplete
from harness.trace import Trace
from harness.verdict import Verdict, verdict


def base_frozen(trace: Trace) -> Verdict:
    """Every tensor of state_dict() that does not require gradients is the same, bit for bit, before and after."""
    findings = incomplete(trace)
    if not trace.base_before:
        findings.append("no base tensor was observed")
    for name in sorted(set(trace.base_before) | set(trace.base)):
        before, after = trace.base_before.get(name), trace.base.get(name)
        if before != after:
            findings.append(f"{name}: digest {before or 'absent'} before training, {after or 'absent'} after")
    return verdict("every base tensor bit-identical before and after training", findings, tensors=len(trace.base))


def optimizer_holds_trainables(trace: Trace) -> Verdict:
    """The optimizer's groups hold exactly the parameters that require gradients, each once."""
    held = [name for group in trace.groups for name in group.names]
    findings = incomplete(trace)
    findings += [f"{name} requires gradients but is in no group" for name in trace.trainable if name not in held]
    findings += [f"{name} is in a group but does not require gradients" for name in held if name not in trace.trainable]
    findings += [f"{name} is held {held.count(name)} times" for name in sorted(set(held)) if held.count(name) > 1]
    numbers = sum(trace.adapter_before[name].numel() for name in trace.trainable if name in trace.adapter_before)
    return verdict("the optimizer holds exactly the trainable parameters", findings, tensors=len(held), numbers=numbers)


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
