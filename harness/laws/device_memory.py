"""Peak GPU memory of a training run of a Llama: a bound by formula, base model included."""

from __future__ import annotations

import math

from harness.laws.completion import incomplete
from harness.laws.schedule import number
from harness.trace import Trace
from harness.verdict import Verdict, verdict

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "int8": 1}

#: Bytes for the workspaces of cuBLAS and cuBLASLt (32 MiB each on Hopper), and for the allocator's rounding.
WORKSPACES = 128 << 20

#: Bytes for each logit: in half precision, in float32, shifted, its log-softmax, and gradients in both dtypes.
_LOGITS = 2 + 4 + 4 + 4 + 4 + 2


def peak_within_bound(trace: Trace) -> Verdict:
    """Check that the peak of allocated memory is at most what `parts` adds up to."""
    findings, counted = incomplete(trace), parts(trace)
    bound = sum(counted.values())
    terms = ", ".join(f"{size / 2**30:.2f} for {part}" for part, size in counted.items())
    if not 0 < trace.memory_bytes <= bound:
        findings.append(
            f"{trace.memory_bytes / 2**30:.2f} GiB at the peak, expected {bound / 2**30:.2f} at most: {terms}"
        )
    return verdict(
        f"at most {bound / 2**30:.2f} GiB at the peak ({terms})",
        findings,
        peak_bytes=trace.memory_bytes,
        most_bytes=bound,
    )


def parts(trace: Trace) -> dict[str, int]:
    """Return the bytes of each part of a run's peak memory.

    The formula holds for a Llama with LoRA on some of its linear layers, under autocast.
    """
    base = {name: kind for name, kind in trace.parameters.items() if name not in trace.trainable}
    weights = sum(_BYTES[dtype] * math.prod(shape) for dtype, shape in base.values())
    packed = sum(math.prod(shape) for dtype, shape in base.values() if dtype == "uint8")
    numbers = sum(math.prod(trace.parameters[name][1]) for name in trace.trainable)
    return {
        # NF4 has a scale of one byte for each 64 weights (32 bytes), a float32 for each 256 scales, offsets and tables.
        "the base": weights + packed // 32 + packed // 1024 + 1024 * sum(d == "uint8" for d, _ in base.values()),
        # In float32: values, a gradient, two moments, and temporaries of clipping and of the update.
        "the adapter": 4 * 5 * numbers,
        "activations": activations(trace),
        "workspaces": WORKSPACES,
    }


def activations(trace: Trace) -> int:
    """Return the bytes of all outputs of one micro-batch's forward pass.

    Under activation checkpointing: the bytes of all layers' inputs, and of the outputs of one layer.
    """
    spec = trace.spec
    config = spec.model.config
    h, f, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    tokens = int(number(spec, "per_device_train_batch_size")) * spec.data.length
    adapted = sum(name.endswith("lora_A.weight") for name in trace.trainable) / layers
    # Bytes for each token, by operation: norms (float32, cast back), projections, rotary embedding, attention, output and
    # residuals, feed-forward.
    layer = 2 * 16 * h + 6 * h + 16 * h + 4 * h + 8 * h + 8 * f
    # LoRA adds for each adapted module: the input in float32, after dropout with its mask, cast back; then the outputs of
    # A and B, scaled and added.
    layer += int(adapted * (11 * h + 2 * spec.adapter.config["r"] + 6 * h))
    outside = 4 * h + 16 * h + _LOGITS * config["vocab_size"]
    checkpointed = bool(spec.arguments.get("activation_checkpointing"))
    if not checkpointed:
        # The backward pass holds the gradients of one layer at a time.
        return int(tokens * ((layers + 1) * layer + outside))
    # A base prepared for k-bit training computes norms and residuals in float32, which is twice as wide. The gradients of
    # a layer come on top of its outputs.
    unpacked = 3 * 2 * h * f if spec.model.quantization else 0
    return int(tokens * (4 * h * layers + 2 * 2 * layer + outside) + unpacked)


def tokens_per_second(trace: Trace) -> float:
    """Return the tokens per second of the fastest step after the first. The run was observed, which costs time."""
    rates = [
        sum(len(batch.rows) for batch in step.batches) * trace.spec.data.length / step.seconds
        for step in trace.steps[1:]
        if step.seconds > 0
    ]
    return round(max(rates, default=0.0), 1)


def throughput(trace: Trace) -> Verdict:
    """Measure tokens per second and peak memory. Only that steps were timed is judged."""
    return verdict(
        "steps are timed",
        [] if tokens_per_second(trace) > 0 else [*incomplete(trace), "no step after the first was timed"],
        tokens_per_second=tokens_per_second(trace),
        peak_gib=round(trace.memory_bytes / 2**30, 2),
    )
