"""The gradient scaler of fp16=True: its file, the steps that it skips, and clipping of unscaled gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from harness.laws.completion import incomplete
from harness.laws.equal import differences
from harness.laws.optimizer_file import load_state
from harness.laws.rates import learning_rate
from harness.laws.schedule import number
from harness.tolerance import HALF, LOSSES, scaled
from harness.trace import Step, Tensors, Trace
from harness.verdict import Unjudged, Verdict, not_finite, verdict

FILE = "scaler.pt"

#: The settings of torch.amp.GradScaler with which accelerate creates it.
INITIAL, GROWTH, BACKOFF, INTERVAL = 65536.0, 2.0, 0.5, 2000

#: Step -> the content of its checkpoint's scaler.pt.
States = Mapping[int, Mapping[str, float]]


def states(trace: Trace) -> dict[int, dict[str, float]]:
    """Return the content of each checkpoint's scaler.pt, by step. Checkpoints without one are left out."""
    return {c.step: load_state(c, FILE) for c in trace.checkpoints if FILE in c.files}


def skipped(trace: Trace) -> list[int]:
    """Return the global steps whose gradient overflowed: those with a logged grad_norm that is not finite.

    Optimizer calls do not show it: a fused optimizer is called at such a step, too, with found_inf set.
    """
    return [step for step, norm in trace.grad_norms.items() if not math.isfinite(norm)]


def state_at(step: int, without: Iterable[int]) -> dict[str, float]:
    """Return what scaler.pt must hold after a global step.

    - without: the global steps that were skipped.
    """
    scale, since = INITIAL, 0
    for n in range(1, step + 1):
        scale, since = (scale * BACKOFF, 0) if n in without else (scale, since + 1)
        if since == INTERVAL:
            scale, since = scale * GROWTH, 0
    return {
        "scale": scale,
        "growth_factor": GROWTH,
        "backoff_factor": BACKOFF,
        "growth_interval": INTERVAL,
        "_growth_tracker": since,
    }


def saved(trace: Trace, seen: States) -> Verdict:
    """Check that each checkpoint's scaler.pt holds the scaler's state after that step.

    - seen: what `states` returned.
    """
    findings = incomplete(trace) + ([] if trace.checkpoints else ["no checkpoint was written"])
    without = skipped(trace)
    for checkpoint in trace.checkpoints:
        where, state = f"checkpoint-{checkpoint.step}/{FILE}", seen.get(checkpoint.step)
        if state is None:
            findings.append(f"{where} is missing")
            continue
        expected = state_at(checkpoint.step, without)
        findings += [
            f"{where}: {name} is {state.get(name)}, expected {expected.get(name, 'no such entry')}"
            for name in sorted({*state, *expected})
            if state.get(name) != expected.get(name)
        ]
    return verdict(f"each checkpoint has the scaler's state in {FILE}", findings, skipped=without)


def overflow_skipped(trace: Trace, seen: States, at: int) -> Verdict:
    """Check that a step whose gradient overflows halves the scale, counts as a step, and changes nothing else.

    - trace: a run that saves at each step.
    - seen: what `states` returned.
    - at: the global step that overflows.
    """
    findings = incomplete(trace)
    if skipped(trace) != [at]:
        findings.append(f"the logged grad_norm is not finite at steps {skipped(trace)}, expected [{at}]")
    adapters = {c.step: c.adapter for c in trace.checkpoints} | {0: trace.adapter_before}
    if at not in adapters or at - 1 not in adapters:
        findings.append(f"no checkpoint of step {at} or {at - 1}")
    else:
        findings += differences(adapters[at], adapters[at - 1], 0.0, f"over step {at}:")[:1]
    before = seen.get(at - 1, {"scale": INITIAL})["scale"]
    after = seen.get(at, {}).get("scale")
    if after != before * BACKOFF:
        findings.append(f"the scale is {after} after step {at}, expected half of {before}")
    for step in trace.steps:
        if step.number == at:
            continue
        expected = learning_rate(trace.spec, step.number - (step.number > at))
        if any(rate != expected for rate in step.learning_rates):
            findings.append(f"step {step.number}: learning rates {step.learning_rates}, expected {expected!r}")
    return verdict(f"step {at} overflows and is skipped: adapter and schedule stay, the scale is halved", findings)


def clips_unscaled(trace: Trace, seen: States) -> Verdict:
    """Check that the logged norm is that of the unscaled gradient, and that clipping brings it to max_grad_norm.

    The unscaled gradient is the gradient divided by the scale.

    - seen: what `states` returned.
    """
    findings, most = incomplete(trace), number(trace.spec, "max_grad_norm")
    for step in trace.steps:
        scale = seen.get(step.number - 1, {"scale": INITIAL})["scale"]
        gradient = {name: tensor.double() / scale for name, tensor in step.gradients.items()}
        norm, logged = _norm(gradient), trace.grad_norms.get(step.number)
        if unjudged := not_finite(f"step {step.number}: the norm of the gradient", logged, norm):
            findings += unjudged
            continue
        if logged is None or not math.isclose(logged, norm, rel_tol=_FLOAT32):
            findings.append(f"step {step.number}: logged grad_norm {logged}, that of the unscaled gradient is {norm}")
        clipped, expected = _norm(step.clipped), min(norm, most) if most > 0 else norm
        if not math.isclose(clipped, expected, rel_tol=_FLOAT32):
            findings.append(f"step {step.number}: the norm after clipping is {clipped}, expected {expected}")
    norms = list(trace.grad_norms.values())
    return verdict("norm and clipping are of unscaled gradients", findings, largest_norm=max(norms, default=0.0))


#: Relative error allowed for a norm: float32 sums of the squares of some thousand numbers, compared with float64, and the
#: 1e-6 that clip_grad_norm_ adds to the norm.
_FLOAT32 = 1e-5


def _norm(tensors: Tensors) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def rounds_only(trace: Trace, plain: Trace) -> Verdict:
    """Check that a run in half precision or TF32 logs what the run in float32 does, within rounding, but differs from it.

    Both runs have learning_rate=0, so that their adapters stay the same, and each step computes the same in both.

    - trace: the run in half precision or TF32.
    - plain: the run in float32.
    """
    findings = incomplete(trace) + [f"(the run in float32) {reason}" for reason in incomplete(plain)]
    largest = {}
    for what, ours, theirs, bound, usual in (
        ("loss", trace.losses, plain.losses, HALF.loss, LOSSES),
        ("grad_norm", trace.grad_norms, plain.grad_norms, HALF.gradient, 1.0),
    ):
        findings += not_finite(f"each logged {what}", *ours.values(), *theirs.values())
        if not (ours or theirs):
            findings.append(Unjudged(f"no {what} was logged, so none was compared"))
        if sorted(ours) != sorted(theirs):
            findings.append(f"{what} is logged at steps {sorted(ours)}, expected {sorted(theirs)}")
        gaps = {n: abs(ours[n] - theirs[n]) for n in ours if n in theirs and not not_finite("", ours[n], theirs[n])}
        findings += [
            f"step {n}: logged {what} {ours[n]!r}, expected {theirs[n]!r} within {scaled(bound, theirs[n], usual):.3g}"
            for n, gap in gaps.items()
            if not gap <= scaled(bound, theirs[n], usual)
        ][:1]
        largest[f"largest_{what}_difference"] = max(gaps.values(), default=0.0)
    if not findings and _same(trace.steps, plain.steps):
        findings.append("every gradient is that of the run in float32, bit for bit, so lower precision had no effect")
    return verdict(f"the run is that in float32 but for rounding ({HALF.name})", findings, **largest)


def _same(steps: list[Step], others: list[Step]) -> bool:
    return len(steps) == len(others) and all(
        torch.equal(a.clipped[name], b.clipped[name])
        for a, b in zip(steps, others, strict=True)
        for name in a.clipped
        if name in b.clipped
    )
