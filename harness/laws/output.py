"""TrainOutput: global_step, training_loss and the metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping

from harness.laws.completion import incomplete
from harness.laws.plan import plan
from harness.laws.schedule import number
from harness.tolerance import LOSSES, SUMMATION, scaled
from harness.trace import Trace
from harness.verdict import Verdict, not_finite, verdict

METRICS = (
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "total_flos",
    "train_loss",
    "epoch",
)


def metrics(trace: Trace) -> Verdict:
    """Check that TrainOutput has exactly the METRICS, and that they fit each other and the spec.

    Upstream rounds rates to three decimals, and the runtime in seconds to four. Their products may be off by that much.
    """
    findings = incomplete(trace)
    seen, planned = trace.output.get("metrics", {}), plan(trace.spec)
    findings += [f"metrics lack {name}" for name in METRICS if name not in seen]
    findings += [f"metrics have {name} besides" for name in seen if name not in METRICS]
    if trace.output.get("global_step") != planned.total:
        findings.append(f"global_step is {trace.output.get('global_step')}, expected {planned.total}")
    loss = trace.output.get("training_loss")
    if unjudged := not_finite("training_loss", seen.get("train_loss"), loss):
        findings += unjudged
    elif "train_loss" in seen and seen["train_loss"] != loss:
        findings.append(f"train_loss is {seen['train_loss']!r}, training_loss {loss!r}")
    if "epoch" in seen and seen["epoch"] != planned.epoch(planned.total):
        findings.append(f"epoch is {seen['epoch']!r}, expected {planned.epoch(planned.total)!r}")
    runtime = seen.get("train_runtime", 0.0)
    for name, amount in (("train_steps_per_second", planned.total), ("train_samples_per_second", samples(trace))):
        if name in seen and runtime > 0:
            rounding = 0.5e-3 * (runtime + 0.5e-4) + 0.5e-4 * seen[name]
            if not abs(seen[name] * runtime - amount) <= rounding:
                findings.append(f"{name} is {seen[name]} over {runtime} s, expected {amount:g} / runtime")
    return verdict(f"TrainOutput has global_step, training_loss and metrics {', '.join(METRICS)}", findings)


def samples(trace: Trace) -> float:
    """Return how many samples train_samples_per_second counts: full batches with max_steps, else the epochs' rows."""
    spec, planned = trace.spec, plan(trace.spec)
    if number(spec, "max_steps") > 0:
        return planned.total * max(planned.windows) * number(spec, "per_device_train_batch_size")
    return spec.data.rows * number(spec, "num_train_epochs")


def training_loss(trace: Trace) -> Verdict:
    """Check that training_loss is the mean over optimizer steps of each window's loss, as the model returned it.

    If the model was given num_items_in_batch, its losses are shares of the window's mean, and are added. Otherwise they
    are means, and are averaged.
    """
    findings = incomplete(trace)
    losses = []
    for step in trace.steps:
        missing = [batch for batch in step.batches if batch.loss is None]
        if missing:
            findings.append(f"step {step.number}: the model returned no loss")
            break
        total = sum(batch.loss for batch in step.batches if batch.loss is not None)
        losses.append(total if step.batches[0].num_items is not None else total / len(step.batches))
    seen = trace.output.get("training_loss")
    expected = sum(losses) / max(1, len(losses))
    if unjudged := not_finite("training_loss", seen, expected):
        findings += unjudged
    elif not findings and (seen is None or not abs(seen - expected) <= scaled(SUMMATION.loss, abs(expected), LOSSES)):
        findings.append(f"training_loss is {seen!r}, expected {expected!r}, the mean over {len(losses)} steps")
    return verdict("training_loss is the mean loss of the optimizer steps", findings, training_loss=seen)


def same_training_loss(traces: Mapping[str, Trace]) -> Verdict:
    """Check that runs which differ only in logging have the same training_loss.

    - traces: how a run logs -> its trace.
    """
    findings = [f"{name}: {reason}" for name, trace in traces.items() for reason in incomplete(trace)]
    seen = {name: trace.output.get("training_loss", math.nan) for name, trace in traces.items()}
    # NaN first: max() and min() of values with NaN depend on their order.
    gap = math.nan if any(map(math.isnan, seen.values())) else max(seen.values()) - min(seen.values())
    if unjudged := not_finite("training_loss of each run", *seen.values()):
        findings += unjudged
    elif not findings and not gap <= SUMMATION.loss:
        values = ", ".join(f"{value!r} ({name})" for name, value in seen.items())
        findings.append(f"training_loss {values}, expected the same")
    return verdict("training_loss does not depend on what is logged", findings, largest_difference=gap)


def flos(trace: Trace) -> Verdict:
    """Check that total_flos = 6 * tokens fed * parameters, with adapters and without embeddings (`parameters`).

    It is read from the last log entry that has it, since TrainOutput may lack it.
    """
    findings = incomplete(trace)
    tokens = sum(len(batch.rows) for step in trace.steps for batch in step.batches) * trace.spec.data.length
    expected = 6 * tokens * parameters(trace)
    seen = next((entry["total_flos"] for entry in reversed(trace.log_history) if "total_flos" in entry), None)
    if seen != expected:
        findings.append(f"total_flos is {seen}, expected 6 * {tokens} tokens * {parameters(trace)} = {expected}")
    return verdict("total_flos counts 6 per token and parameter", findings, total_flos=seen)


def parameters(trace: Trace) -> int:
    """Return how many numbers all parameters but the embeddings have. A byte of a 4-bit base counts as two."""
    total = 0
    for name, (dtype, shape) in trace.parameters.items():
        if name.endswith(_EMBEDDINGS):
            continue
        packed = 2 if dtype == "uint8" and trace.spec.model.four_bit else 1
        size = packed
        for length in shape:
            size *= length
        total += size
    return total


_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "wpe.weight", "_embeddings.weight")
