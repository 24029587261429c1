"""How many steps and epochs a run makes, and what clipping and AdamW compute.

The expected values follow from the spec, by formulas written out here.
"""

from __future__ import annotations

import math

import torch

from harness.laws.completion import incomplete
from harness.laws.equal import differences
from harness.laws.plan import NotModelled, if_planned, plan, positions, resumed_from
from harness.spec import RunSpec
from harness.tolerance import ADAMW, ORACLE, scaled
from harness.trace import Tensors, Trace
from harness.verdict import Unjudged, Verdict, not_finite, verdict

#: Defaults of TrainingArguments.
DEFAULTS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "learning_rate": 5e-5,
    "warmup_steps": 0,
    "lr_scheduler_type": "linear",
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
}


def argument(spec: RunSpec, name: str) -> float | str | None:
    """Return a TrainingArguments value of a spec, or its default."""
    value: float | str | None = spec.arguments.get(name, DEFAULTS[name])
    return value


def number(spec: RunSpec, name: str) -> float:
    """Return a TrainingArguments value that is a number."""
    value = argument(spec, name)
    assert value is not None and not isinstance(value, str)
    return value


@if_planned
def all_steps(trace: Trace) -> Verdict:
    """Check that the run makes exactly the optimizer steps, and begins exactly the epochs, that its spec asks for."""
    planned, resumed = plan(trace.spec), trace.spec.resume is not None
    per_epoch = len(planned.windows)
    numbers = [step.number for step in trace.steps]
    first = numbers[0] if resumed and numbers else 1
    findings = incomplete(trace)
    if numbers != list(range(first, planned.total + 1)):
        findings.append(
            f"made {len(numbers)} optimizer steps, {numbers[:1]} to {numbers[-1:]}; expected {first} to {planned.total}"
        )
    if trace.output.get("global_step") != planned.total:
        findings.append(f"TrainOutput.global_step is {trace.output.get('global_step')}, expected {planned.total}")
    begun = trace.events.count("epoch_begin")
    epochs = planned.epochs - (first - 1) // per_epoch
    if trace.spec.arguments.get("ignore_data_skip") and resumed:
        epochs = math.ceil((planned.total - first + 1) / per_epoch)
    # Where a pass over a dataset without a length ends is not known to a run that resumes, nor if its window is short.
    if begun != epochs and not planned.leftover and not (resumed and trace.spec.data.iterable):
        findings.append(f"began {begun} epochs, expected {epochs}")
    return verdict(f"{planned.total} optimizer steps in {planned.epochs} epochs", findings, steps=len(numbers))


@if_planned
def epochs(trace: Trace) -> Verdict:
    """Check that the epoch logged for a step is the finished epochs plus the share of this epoch's micro-batches."""
    planned, findings = plan(trace.spec), incomplete(trace)
    if planned.leftover:
        raise NotModelled("a pass over the IterableDataset ends in a short window, which ACC-02 judges")
    place = positions(trace)
    if trace.spec.data.iterable and resumed_from(trace):
        raise NotModelled("a run that resumes on an IterableDataset does not know how many passes there were (RES-01)")
    logged = {entry["step"]: entry["epoch"] for entry in trace.log_history if "loss" in entry}
    if not logged:
        findings.append("no step was logged")
    for step, epoch in logged.items():
        expected = planned.epoch(place.get(step, step))
        if epoch != expected:
            findings.append(f"step {step}: epoch {epoch!r}, expected {expected!r}")
    return verdict("state.epoch counts micro-batches", findings, logged=len(logged))


def _rounding(gradients: Tensors) -> float:
    """Return the relative error allowed for a norm that is computed in half precision; 0 if no gradient is."""
    return max((torch.finfo(g.dtype).eps for g in gradients.values() if g.dtype.itemsize == 2), default=0.0)


def clipping(trace: Trace) -> Verdict:
    """Check that grad_norm is logged before clipping, and that the optimizer gets gradients of norm max_grad_norm at most.

    Gradients with a smaller norm must not change. max_grad_norm=0 turns clipping off; the norm is still logged.
    """
    # Releases before 5.0 take null, too, and log a norm nowhere then.
    findings = incomplete(trace)
    if argument(trace.spec, "max_grad_norm") is None:
        return verdict(
            "nothing is clipped", [*findings, Unjudged("max_grad_norm is null, so that no norm is computed")]
        )
    limit = number(trace.spec, "max_grad_norm")
    unlogged = sorted(set(trace.losses) - set(trace.grad_norms))
    every = float(trace.spec.arguments.get("logging_steps", 500))
    by_step = trace.spec.arguments.get("logging_strategy", "steps") == "steps"
    if unlogged or (not trace.losses and by_step and any(step.number % every == 0 for step in trace.steps)):
        findings.append(f"no gradient norm was logged {f'at step {unlogged[0]}' if unlogged else ''}".rstrip())
    for step in trace.steps:
        norm = total_norm(step.gradients)
        logged = trace.grad_norms.get(step.number, norm)
        rounding = _rounding(step.gradients)
        if unjudged := not_finite(f"step {step.number}: the norm of the gradients, as logged,", logged, norm):
            findings += unjudged
            continue
        if not abs(logged - norm) <= scaled(ORACLE.gradient, norm) + rounding * norm:
            findings.append(f"step {step.number}: logged grad_norm {logged:.9g}, expected {norm:.9g}, of the gradients")
        # torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm, so that a norm of zero does not divide by zero.
        factor = min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
        expected = {name: (g.double() * factor).to(g.dtype) for name, g in step.gradients.items()}
        bound = 0.0 if factor == 1.0 else ORACLE.gradient
        # In half precision the factor is rounded twice (as a norm, and as a quotient), and the product once.
        share = 0.0 if factor == 1.0 else 2 * rounding
        findings += differences(step.clipped, expected, bound, f"step {step.number}: clipped gradient of", share)
    if trace.steps and not any(step.gradients for step in trace.steps):
        findings.append(Unjudged("no gradient was observed, so none was compared"))
    norms = [total_norm(step.gradients) for step in trace.steps]
    return verdict(
        f"gradients are clipped to norm {limit:g}, and the norm before that is logged"
        if limit
        else "nothing is clipped",
        findings,
        largest_norm=max(norms, default=0.0),
    )


def total_norm(tensors: Tensors) -> float:
    """Return the L2 norm over all elements of all tensors."""
    return math.sqrt(sum(float((tensor.double() ** 2).sum()) for tensor in tensors.values()))


def adamw(trace: Trace) -> Verdict:
    """Check the adapter at the end against AdamW in float64.

    It starts with the adapter's initial values, and uses the clipped gradients and the learning rates of the trace.
    """
    findings = incomplete(trace) + _missing(trace)
    if findings:
        return verdict("every update is AdamW's", findings)
    beta1, beta2 = number(trace.spec, "adam_beta1"), number(trace.spec, "adam_beta2")
    epsilon = number(trace.spec, "adam_epsilon")
    decay = {name: group.settings["weight_decay"] for group in trace.groups for name in group.names}
    adapter = {name: trace.adapter_before[name].double() for name in decay}
    first = {name: torch.zeros_like(value) for name, value in adapter.items()}
    second = {name: torch.zeros_like(value) for name, value in adapter.items()}
    for done, step in enumerate(trace.steps, start=1):
        rate = step.learning_rates[0]
        for name, gradient in step.clipped.items():
            g = gradient.double()
            first[name] = beta1 * first[name] + (1 - beta1) * g
            second[name] = beta2 * second[name] + (1 - beta2) * g**2
            mean, spread = first[name] / (1 - beta1**done), second[name] / (1 - beta2**done)
            adapter[name] = adapter[name] * (1 - rate * decay[name]) - rate * mean / (spread.sqrt() + epsilon)
    expected = {name: value.to(trace.adapter[name].dtype) for name, value in adapter.items()}
    findings = differences({n: trace.adapter[n] for n in expected}, expected, ADAMW.adapter, "adapter at the end:")
    return verdict("every update is AdamW's", findings, steps=len(trace.steps))


def _missing(trace: Trace) -> list[str]:
    """Return why AdamW cannot be recomputed: no parameter is optimized, or a gradient is not in the trace."""
    if not any(group.names for group in trace.groups):
        return ["the optimizer holds no parameter"]
    grouped = [name for group in trace.groups for name in group.names]
    return [
        f"step {step.number}: no gradient for {name}"
        for step in trace.steps
        for name in grouped
        if name not in step.clipped
    ]
