"""Training on a quantized base: which layers are packed, which dtypes are used, what is the same after saving."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch

from harness.laws.completion import incomplete
from harness.laws.equal import differences
from harness.trace import Tensors, Trace
from harness.verdict import Verdict, verdict

#: Module path -> (outputs, inputs).
Linears = Mapping[str, tuple[int, int]]

#: bitsandbytes stores the optimizer state of smaller tensors in 32 bits (min_8bit_size of its optimizers).
SMALLEST_8BIT = 4096


def packed(trace: Trace, linears: Linears) -> Verdict:
    """Check that each of these linear layers stores its weight as NF4, two numbers in a byte, and no other parameter does.

    - linears: module path -> (outputs, inputs).
    """
    findings = incomplete(trace)
    expected = {f"{path}.weight": [outputs * inputs // 2, 1] for path, (outputs, inputs) in linears.items()}
    for name, shape in expected.items():
        kind = trace.parameters.get(name, ["absent", []])
        if kind != ["uint8", shape]:
            findings.append(f"{name} is {kind[0]} {kind[1]}, expected uint8 {shape}")
    findings += [
        f"{name} is {dtype}, expected a floating dtype"
        for name, (dtype, _) in trace.parameters.items()
        if name not in expected and "float" not in dtype
    ]
    return verdict(f"{len(expected)} linear layers are packed, two weights a byte", findings, packed=len(expected))


def refused(error: Exception) -> Verdict:
    """Check that an adapter is refused with an error that is about the packed layers.

    The message must name 4-bit layers or quantization, and must say what is supported. The second condition excludes a
    TypeError of a wrong call that happens to name the layer's class.
    """
    kind = type(error).__name__
    findings = []
    if not re.search("4.?bit|quantiz", str(error), re.IGNORECASE):
        findings.append(f"{kind} names neither the packed layer nor that it is quantized: {error}")
    elif not re.search(r"support|only|must|cannot|requires", str(error), re.IGNORECASE):
        findings.append(f"{kind} says nothing of what is supported: {error}")
    return verdict("a method refuses a packed base and says why", findings, refused=f"{kind}: {error}")


def learns(trace: Trace) -> Verdict:
    """Check that every logged loss is finite, and that every gradient norm is finite and above zero."""
    findings = incomplete(trace)
    if not trace.losses or not trace.grad_norms:
        findings.append("no loss or no gradient norm was logged")
    findings += [
        f"step {step}: loss {loss}, expected a finite one"
        for step, loss in trace.losses.items()
        if not math.isfinite(loss)
    ]
    findings += [
        f"step {step}: gradient norm {norm}, expected a finite one above zero"
        for step, norm in trace.grad_norms.items()
        if not (math.isfinite(norm) and norm > 0)
    ]
    return verdict("losses are finite, gradient norms finite and above zero", findings)


def adapts(trace: Trace, expected: Mapping[str, Sequence[int]]) -> Verdict:
    """Check that exactly these tensors are trained.

    - expected: canonical name -> shape.
    """
    findings = incomplete(trace)
    findings += [f"{name} is trained, unexpected" for name in trace.trainable if name not in expected]
    for name, shape in expected.items():
        if name not in trace.trainable:
            findings.append(f"{name} is not trained")
        elif list(trace.adapter[name].shape) != list(shape):
            findings.append(f"{name} is {list(trace.adapter[name].shape)}, expected {list(shape)}")
    numbers = sum(math.prod(shape) for shape in expected.values())
    return verdict(f"{len(expected)} tensors of {numbers} numbers are trained", findings, numbers=numbers)


def computes_in(trace: Trace, base: str, adapter: str) -> Verdict:
    """Check the dtypes of all parameters that are not packed.

    - base: the dtype that the base's must have.
    - adapter: the dtype that the adapter's must have.
    """
    findings = incomplete(trace)
    counted = 0
    for name, (dtype, _) in trace.parameters.items():
        if dtype in ("uint8", "int8"):
            continue
        expected = adapter if name in trace.trainable else base
        counted += 1
        if dtype != expected:
            findings.append(f"{name} is {dtype}, expected {expected}")
    if not counted:
        findings.append("the model has no parameter that is not packed")
    return verdict(f"the rest of the base is {base}, the adapter {adapter}", findings, parameters=counted)


def state_in_8_bits(trace: Trace, smallest: int = SMALLEST_8BIT) -> Verdict:
    """Check the dtype of both moments of each trained tensor: uint8, or float32 for tensors of fewer numbers.

    - smallest: the fewest numbers of a tensor whose moments are uint8.
    """
    findings = incomplete(trace) + ([] if trace.trainable else ["nothing is trainable"])
    findings += [f"{name} has no optimizer state" for name in trace.trainable if name not in trace.optimizer_state]
    small = 0
    for name, state in trace.optimizer_state.items():
        numbers = trace.adapter[name].numel() if name in trace.adapter else 0
        expected = torch.uint8 if numbers >= smallest else torch.float32
        small += numbers < smallest
        for moment in ("state1", "state2"):
            seen = state.get(moment)
            if seen is None or seen.dtype != expected or seen.numel() != numbers:
                what = "absent" if seen is None else f"{plain(seen.dtype)} of {seen.numel()}"
                findings.append(f"{moment} of {name} is {what}, expected {plain(expected)} of {numbers}")
    tensors = len(trace.optimizer_state)
    return verdict(f"moments are 8-bit from {smallest} numbers on", findings, in_8_bits=tensors - small, in_32=small)


#: bitsandbytes stores the state of smaller tensors in the GPU's own memory (Optimizer8bit.get_state_buffer).
SMALLEST_PAGED = 100_000


def paged(moments: Mapping[str, Sequence[int]], smallest: int = SMALLEST_PAGED) -> Verdict:
    """Check that both moments of each large tensor are in paged memory, and those of smaller tensors are not.

    - moments: parameter -> (how many numbers it has, then for each moment whether it is paged).
    - smallest: the fewest numbers of a tensor whose moments are paged.
    """
    large = [name for name, (numbers, *_) in moments.items() if numbers >= smallest]
    findings = [] if large else [f"no tensor has {smallest} numbers"]
    for name, (numbers, *flags) in moments.items():
        is_paged = [bool(flag) for flag in flags]
        if any(flag != (numbers >= smallest) for flag in is_paged):
            findings.append(
                f"moments of {name}, {numbers} numbers: paged {is_paged}, expected {numbers >= smallest} for each"
            )
    return verdict(
        f"moments are paged from {smallest} numbers on", findings, paged=len(large), not_paged=len(moments) - len(large)
    )


def same_base(resumed: Trace, first: Trace) -> Verdict:
    """Check that the packed base and its quantization state are the same in a run and in the run resumed from it.

    - resumed: its base is compared at the start and at the end.
    - first: the run that saved.
    """
    findings = incomplete(resumed) + incomplete(first)
    states = [name for name in first.base if "quant_state" in name]
    if not states:
        findings.append("the base has no quantization state")
    for when, seen in (("before", resumed.base_before), ("after", resumed.base)):
        for name in sorted(set(first.base) | set(seen)):
            here, there = seen.get(name, "absent"), first.base.get(name, "absent")
            if here != there:
                findings.append(f"{name} {when} the resumed run: digest {here}, expected {there}")
    return verdict("the quantized base is the same, bit for bit", findings, quantization_states=len(states))


def same_model(state: Tensors, logits: torch.Tensor, saved_state: Tensors, saved_logits: torch.Tensor) -> Verdict:
    """Check that a reloaded quantized model is the saved one, bit for bit.

    - state, logits: of the reloaded model; `state` is its state_dict().
    - saved_state, saved_logits: of the model that was saved.
    """
    findings = differences(state, saved_state, 0.0, "state_dict():")
    findings += differences({"logits": logits}, {"logits": saved_logits}, 0.0, "forward:")
    if not any("quant_state" in name for name in saved_state):
        findings.append("the model that was saved has no quantization state")
    return verdict("a reloaded model is the saved one, bit for bit", findings, tensors=len(saved_state))


def plain(dtype: torch.dtype) -> str:
    """Return a dtype's name without "torch."."""
    return str(dtype).removeprefix("torch.")
