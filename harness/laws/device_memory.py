"""What a whole training run of a Llama may hold on a GPU at its peak, by formula, the base model counted."""

from __future__ import annotations

import math

from harness.laws.completion import incomplete
from harness.laws.schedule import number
from harness.trace import Trace
from harness.verdict import Verdict, verdict

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "int8": 1}

#: cuBLAS's and cuBLASLt's workspaces (32 MiB each on Hopper), and what the allocator rounds.
WORKSPACES = 128 << 20

#: Bytes of a token beside a row of logits: half, float32, shifted, log-softmax, and a gradient in either.
_LOGITS = 2 + 4 + 4 + 4 + 4 + 2


def peak_within_bound(trace: Trace) -> Verdict:
    """The peak of allocated memory is that of base, adapter with gradient and Adam's state, and activations at most."""
    findings, counted = incomplete(trace), parts(trace)
    bound = sum(counted.values())
    told = ", ".join(f"{size / 2**30:.2f} for {part}" for part, size in counted.items())
    if not 0 < trace.memory_bytes <= bound:
        findings.append(
            f"{trace.memory_bytes / 2**30:.2f} GiB at the peak, expected {bound / 2**30:.2f} at most: {told}"
        )
    return verdict(
        f"at most {bound / 2**30:.2f} GiB at the peak ({told})",
        findings,
        peak_bytes=trace.memory_bytes,
        most_bytes=bound,
    )


def parts(trace: Trace) -> dict[str, int]:
    """Bytes by part. The formula is that of a Llama with LoRA on some of its linear layers, under autocast."""
    base = {name: kind for name, kind in trace.parameters.items() if name not in trace.trainable}
    weights = sum(_BYTES[dtype] * math.prod(shape) for dtype, shape in base.values())
    packed = sum(math.prod(shape) for dtype, shape in base.values() if dtype == "uint8")
    numbers = sum(math.prod(trace.parameters[name][1]) for name in trace.trainable)
    return {
        # NF4 keeps a scale of one byte for 64 weights (32 bytes), and a float32 for 256 of these, offsets and tables.
        "the base": weights + packed // 32 + packed // 1024 + 1024 * sum(d == "uint8" for d, _ in base.values()),
        # A gradient, two moments, and what clipping and the update make in passing.
        "the adapter": 4 * 5 * numbers,
        "activations": activations(trace),
        "workspaces": WORKSPACES,
    }


def activations(trace: Trace) -> int:
    """Bytes of all outputs of one micro-batch's forward pass; under checkpointing of the layers' inputs and one layer."""
    spec = trace.spec
    config = spec.model.config
    h, f, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    tokens = int(number(spec, "per_device_train_batch_size")) * spec.data.length
    adapted = sum(name.endswith("lora_A.weight") for name in trace.trainable) / layers
    # Bytes of a token. Norms (float32, cast back), projections, rotary, attention, output and residuals, feed-forward.
    layer = 2 * 16 * h + 6 * h + 16 * h + 4 * h + 8 * h + 8 * f
    # Beside an adapted layer: its input in float32, dropped out with a mask, cast back; A, B, scaled, added.
    layer += int(adapted * (11 * h + 2 * spec.adapter.config["r"] + 6 * h))
    outside = 4 * h + 16 * h + _LOGITS * config["vocab_size"]
    checkpointed = bool(spec.arguments.get("activation_checkpointing"))
    if not checkpointed:
        # The backward pass has gradients of one layer at a time.
        return tokens * ((layers + 1) * layer + outside)
    # A prepared base computes norms and residuals in float32, twice as wide; beside a layer are its gradients.
    unpacked = 3 * 2 * h * f if spec.model.quantization else 0
    return tokens * (4 * h * layers + 2 * 2 * layer + outside) + unpacked


def tokens_per_second(trace: Trace) -> float:
    """Tokens trained in a second by the fastest step after the first, observed as it was."""
    rates = [
        sum(len(batch.rows) for batch in step.batches) * trace.spec.data.length / step.seconds
        for step in trace.steps[1:]
        if step.seconds > 0
    ]
    return round(max(rates, default=0.0), 1)


def throughput(trace: Trace) -> Verdict:
    """Tokens a second and peak memory, shown and not judged."""
    return verdict(
        "steps are timed",
        [] if tokens_per_second(trace) > 0 else [*incomplete(trace), "no step after the first was timed"],
        tokens_per_second=tokens_per_second(trace),
        peak_gib=round(trace.memory_bytes / 2**30, 2),
    )
