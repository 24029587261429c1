"""Memory: how much a run may hold, by a formula of its spec, and what must be freed when the run is over."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any
from weakref import ReferenceType

from harness.fixtures import models
from harness.laws.plan import plan
from harness.laws.schedule import number
from harness.spec import RunSpec
from harness.throughput.memory_probe import Memory
from harness.verdict import Verdict, verdict

#: Bytes allowed for step counters, the running loss, norms and masks of a row. Measured on a CPU: 16 bytes.
SCALARS = 1024
#: The same on a GPU. CUDA's allocator rounds each of these tensors, and every other tensor of a step, up to 512 bytes.
ROUNDED = 256 * 512
_FLOAT, _LONG = 4, 8


def within_bound(memory: Memory, spec: RunSpec) -> Verdict:
    """Check the peak memory of each step, beyond the model itself.

    The bound is: the adapter's gradients and Adam state, one micro-batch's activations, and batches. The base model is
    allocated before the measurement, so it does not count. A copy of it, its gradients or its optimizer state would.
    """
    # A gradient, two moments, and temporaries of clipping and of the update.
    states, passing, rows = 4 * adapter(spec), activations(spec), batches(spec)
    bound = states + passing + rows + small(spec)
    findings = [] if memory.peaks else ["no step was measured"]
    for step, peak in enumerate(memory.peaks, start=1):
        if peak > bound:
            findings.append(
                f"step {step}: {peak} bytes at the peak, expected {bound} at most: {states} for the adapter's gradients "
                f"and states, {passing} for activations, {rows} for batches"
            )
    return verdict(f"at most {bound} bytes beyond the model", findings, peak=max(memory.peaks, default=0), most=bound)


def held_between_steps(memory: Memory, spec: RunSpec) -> Verdict:
    """Check that between steps only Adam's two moments of each trainable tensor are held, and batches loaded ahead."""
    moments = 2 * adapter(spec)
    bound = moments + batches(spec) + small(spec)
    findings = [] if memory.held else ["no step was measured"]
    for step, held in enumerate(memory.held, start=1):
        if not moments <= held <= bound:
            findings.append(f"after step {step}: {held} bytes, expected {moments} (Adam's moments) to {bound}")
    return verdict(f"{moments} to {bound} bytes between steps", findings, held=max(memory.held, default=0))


def does_not_grow(memory: Memory, spec: RunSpec) -> Verdict:
    """Check that memory does not grow: no step exceeds the steps of the first epoch and the step after it.

    The bound comes from a whole epoch, since the first step creates Adam's state, and the number of batches loaded ahead
    differs from step to step.
    """
    settled = len(plan(spec).windows) + 1
    findings = [] if len(memory.held) > settled else [f"{len(memory.held)} steps were measured"]
    for what, values in (("held", memory.held), ("at the peak", memory.peaks)):
        most = max(values[:settled], default=0)
        grown = [(step, value) for step, value in enumerate(values, start=1) if value > most]
        findings += [
            f"step {step}: {value} bytes {what}, expected {most} at most, as until step {settled}"
            for step, value in grown[:1]
        ]
    return verdict("memory does not grow with the steps", findings, steps=len(memory.held))


def adapter(spec: RunSpec) -> int:
    """Return the bytes of LoRA's A and B on q_proj and v_proj of each layer, in float32."""
    config, r = _config(spec), spec.adapter.config["r"]
    h = config["hidden_size"]
    return int(_FLOAT * config["num_hidden_layers"] * r * ((h + h) + (h + _keys(config))))


def activations(spec: RunSpec) -> int:
    """Return the bytes of the outputs of all operations in one forward pass of a Llama with LoRA on q_proj and v_proj.

    The backward pass saves some of these outputs. Its own temporaries are no larger than the rest.
    """
    config, r, length = _config(spec), spec.adapter.config["r"], spec.data.length
    h, f, kv = config["hidden_size"], config["intermediate_size"], _keys(config)
    norm = 3 * h  # squares, normalised, weighted
    projections = h + 2 * kv
    lora = (2 * h + r + 3 * h) + (2 * h + r + 3 * kv)  # dropout and its mask, A, B, scaled, added
    rotary = 9 * (h + kv) // 2  # half negated, both halves joined, two products, their sum
    attention = 2 * h + 3 * config["num_attention_heads"] * length + 2 * h  # keys and values repeated, scores, output
    layer = 2 * norm + projections + lora + rotary + attention + 2 * h + 4 * f + 2 * h
    outside = h + norm + 4 * config["vocab_size"]  # embeddings, last norm; logits, shifted, their log-softmax, gradient
    tokens = int(number(spec, "per_device_train_batch_size")) * length
    return int(_FLOAT * tokens * (config["num_hidden_layers"] * layer + outside))


def small(spec: RunSpec) -> int:
    """Return the bytes allowed for small tensors on the spec's device."""
    return SCALARS if spec.launch.device == "cpu" else ROUNDED


def batches(spec: RunSpec) -> int:
    """Return the bytes of the window that is trained and one micro-batch loaded ahead, times two.

    A row has three int64 tensors of its length. While rows are collated, the rows and their batch are held at once: hence
    times two.
    """
    rows = int(number(spec, "per_device_train_batch_size")) * (int(number(spec, "gradient_accumulation_steps")) + 1)
    return 2 * rows * 3 * spec.data.length * _LONG


def _config(spec: RunSpec) -> dict[str, Any]:
    return models.config_of(spec.model)


def _keys(config: Mapping[str, Any]) -> int:
    """Return the width of a token's keys, which is that of its values, too."""
    return int(config["hidden_size"] * config["num_key_value_heads"] // config["num_attention_heads"])


def collected(references: Mapping[str, ReferenceType[Any]]) -> Verdict:
    """Check that objects are freed once Python's garbage collector has run.

    - references: name -> weak reference to an object that the caller no longer holds.
    """
    gc.collect()
    findings = [] if references else ["nothing was referred to"]
    for name, reference in references.items():
        left = reference()
        if left is not None:
            findings.append(
                f"the {name} is still there, held by {', '.join(_holders(left)) or 'nothing Python knows of'}"
            )
        del left
    return verdict("what was dropped is collected", findings, objects=len(references))


def _holders(left: Any) -> list[str]:
    """Return the types of up to four objects that refer to `left`. Through a dict, list or tuple, those that hold it."""
    found: dict[str, None] = {}
    for holder in gc.get_referrers(left):
        if type(holder).__name__ == "frame":
            continue
        owners = gc.get_referrers(holder) if isinstance(holder, (dict, list, tuple)) else [holder]
        for owner in owners:
            if type(owner).__name__ not in ("frame", "list_iterator", "dict", "list", "tuple"):
                found[f"a {type(owner).__module__}.{type(owner).__name__}"] = None
    return list(found)[:4]
