"""What a run may hold in memory, by a formula of its spec, and what must be let go of when it is over."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any
from weakref import ReferenceType

from harness.fixtures.models import FAMILIES
from harness.laws.schedule import number, plan
from harness.spec import RunSpec
from harness.throughput.memory_probe import Memory
from harness.verdict import Verdict, verdict

#: Step counters, the running loss, norms, masks of a row: what is held besides states and batches. Measured: 16 bytes.
SCALARS = 1024
#: CUDA's allocator rounds each of them, and each other tensor of a step, up to 512 bytes.
ROUNDED = 256 * 512
_FLOAT, _LONG = 4, 8


def within_bound(memory: Memory, spec: RunSpec) -> Verdict:
    """No step holds more than gradients and Adam's state of the adapter, one micro-batch's activations, and batches.

    The base model is there before and is not counted: a copy of it, its gradients or its optimizer state would be.
    """
    # A gradient, two moments, and what clipping and the update make in passing.
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
    """Between steps nothing is held but Adam's two moments of each trainable tensor, and batches on their way."""
    moments = 2 * adapter(spec)
    bound = moments + batches(spec) + small(spec)
    findings = [] if memory.held else ["no step was measured"]
    for step, held in enumerate(memory.held, start=1):
        if not moments <= held <= bound:
            findings.append(f"after step {step}: {held} bytes, expected {moments} (Adam's moments) to {bound}")
    return verdict(f"{moments} to {bound} bytes between steps", findings, held=max(memory.held, default=0))


def does_not_grow(memory: Memory, spec: RunSpec) -> Verdict:
    """No step holds more, or peaks higher, than those of the first epoch and the one after it did.

    The first step makes Adam's state, and what is loaded ahead differs from step to step of an epoch.
    """
    settled = len(plan(spec).windows) + 1
    findings = [] if len(memory.held) > settled else [f"{len(memory.held)} steps were measured"]
    for what, values in (("held", memory.held), ("at the peak", memory.peaks)):
        most = max(values[:settled], default=0)
        grown = [(step, value) for step, value in enumerate(values, start=1) if value > most]
        findings += [f"step {step}: {value} bytes {what}, {most} until step {settled}" for step, value in grown[:1]]
    return verdict("memory does not grow with the steps", findings, steps=len(memory.held))


def adapter(spec: RunSpec) -> int:
    """Bytes of LoRA's A and B on q_proj and v_proj of each layer, in float32."""
    config, r = _config(spec), spec.adapter.config["r"]
    h = config["hidden_size"]
    return _FLOAT * config["num_hidden_layers"] * r * ((h + h) + (h + _keys(config)))


def activations(spec: RunSpec) -> int:
    """Bytes of the outputs of all operations of one forward pass of a Llama with LoRA on q_proj and v_proj.

    What the backward pass keeps is some of these, and what it makes in passing is no more than the rest.
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
    return _FLOAT * tokens * (config["num_hidden_layers"] * layer + outside)


def small(spec: RunSpec) -> int:
    """Bytes of what is held besides, on the device of the spec."""
    return SCALARS if spec.launch.device == "cpu" else ROUNDED


def batches(spec: RunSpec) -> int:
    """Bytes of two windows of micro-batches, the one that is trained and what is loaded ahead, and as much again.

    A row is three times its length in int64; collating holds rows and the batch made of them at once.
    """
    rows = int(number(spec, "per_device_train_batch_size")) * (int(number(spec, "gradient_accumulation_steps")) + 1)
    return 2 * rows * 3 * spec.data.length * _LONG


def _config(spec: RunSpec) -> dict[str, Any]:
    return {**FAMILIES[spec.model.family].config, **spec.model.config}


def _keys(config: Mapping[str, Any]) -> int:
    """The width of a token's keys, and of its values."""
    return config["hidden_size"] * config["num_key_value_heads"] // config["num_attention_heads"]


def collected(references: Mapping[str, ReferenceType[Any]]) -> Verdict:
    """Nothing is left of what these refer to, once the collector has run.

    references: name -> weak reference, of objects that the caller has let go of.
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
    """Who refers to an object, one step further where that is a plain container."""
    found: dict[str, None] = {}
    for holder in gc.get_referrers(left):
        if type(holder).__name__ == "frame":
            continue
        owners = gc.get_referrers(holder) if isinstance(holder, (dict, list, tuple)) else [holder]
        for owner in owners:
            if type(owner).__name__ not in ("frame", "list_iterator", "dict", "list", "tuple"):
                found[f"a {type(owner).__module__}.{type(owner).__name__}"] = None
    return list(found)[:4]
