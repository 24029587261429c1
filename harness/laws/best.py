"""load_best_model_at_end: which evaluated checkpoint is the best, and whether its adapter is in the model at the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from harness.laws.completion import incomplete
from harness.laws.equal import differences
from harness.spec import RunSpec
from harness.trace import Trace
from harness.verdict import NOT_COMPARABLE, Unjudged, Verdict, not_finite, verdict


def metric_name(spec: RunSpec) -> str:
    """Return the metric that a spec compares checkpoints by, with the prefix "eval_"."""
    name = str(spec.arguments.get("metric_for_best_model", "loss"))
    return name if name.startswith("eval_") else f"eval_{name}"


def greater_is_better(spec: RunSpec) -> bool:
    """Return whether a greater metric is better. Without the argument, it is if the metric's name does not end in "loss"."""
    return bool(spec.arguments.get("greater_is_better", not metric_name(spec).endswith("loss")))


def best_evaluation(trace: Trace) -> tuple[int, float] | None:
    """Return step and metric of the best evaluation whose adapter was saved, the first of equal ones; None without any."""
    saved = {checkpoint.step for checkpoint in trace.checkpoints}
    name = metric_name(trace.spec)
    seen = [(e.step, e.metrics[name]) for e in trace.evaluations if e.step in saved and name in e.metrics]
    choose: Any = max if greater_is_better(trace.spec) else min
    best: tuple[int, float] | None = choose(seen, key=lambda pair: pair[1], default=None)
    return best


def best_loaded(trace: Trace) -> Verdict:
    """Check that the adapter at the end is the best evaluated checkpoint's, bit for bit, and that TrainerState says so.

    If the best checkpoint is of the last step, the verdict is NOT_COMPARABLE: loading it would change nothing.
    """
    expected = "the adapter at the end is that of the best evaluated checkpoint"
    findings, best = incomplete(trace), best_evaluation(trace)
    if findings or best is None:
        return verdict(expected, findings or [f"no checkpoint was evaluated by {metric_name(trace.spec)}"])
    step, metric = best
    if unjudged := not_finite(f"{metric_name(trace.spec)} of the best checkpoint", metric):
        return verdict(expected, unjudged)
    last = trace.steps[-1].number if trace.steps else 0
    measured = {"best_step": step, "last_step": last, "best_metric": metric}
    if step == last:
        reason = f"the best checkpoint is of the last step, {step}, so loading it would change nothing"
        return Verdict(NOT_COMPARABLE, expected, (reason,), measured)
    if trace.best["metric"] != metric:
        findings.append(f"best_metric is {trace.best['metric']!r}, expected {metric!r}, that of checkpoint-{step}")
    if Path(trace.best["checkpoint"] or "none").name != f"checkpoint-{step}":
        findings.append(f"best_model_checkpoint is {trace.best['checkpoint']}, expected checkpoint-{step}")
    wrong = differences(trace.adapter, trace.checkpoint(step).adapter, 0.0, "")
    if wrong and all(isinstance(sentence, Unjudged) for sentence in wrong):
        findings += wrong
    elif wrong:
        instead = [c.step for c in trace.checkpoints if not differences(trace.adapter, c.adapter, 0.0, "")]
        whose = f"but that of checkpoint-{instead[0]}" if instead else f"nor that of any other:{wrong[0]}"
        findings.append(f"the adapter at the end is not that of checkpoint-{step}, {whose}")
    return verdict(expected, findings, **measured)


def evaluates_to_best(again: float | None, best_metric: float | None, evaluations: dict[int, float]) -> Verdict:
    """Check that an evaluation after training returns best_metric, to the last digit.

    - again: the metric of that evaluation.
    - best_metric: that of TrainerState.
    - evaluations: step -> the metric that was logged there.
    """
    expected = "an evaluation after training returns best_metric"
    finite = [value for value in evaluations.values() if math.isfinite(value)]
    if best_metric is None or not math.isfinite(best_metric) or len(set(finite)) < 2:
        return Verdict(NOT_COMPARABLE, expected, (f"best_metric is {best_metric!r}, evaluations were {evaluations}",))
    where = [step for step, value in evaluations.items() if value == best_metric]
    findings = (
        []
        if again == best_metric
        else [f"after training it returns {again!r}, expected best_metric {best_metric!r} of steps {where}"]
    )
    return verdict(expected, findings, best_metric=best_metric)


def ready_for_inference(training: list[str], before: list[str], after: list[str]) -> Verdict:
    """Check that no module is in training mode, and that the same parameters require gradients as before.

    - training: names of the modules in training mode.
    - before: names of the parameters that required gradients before training.
    - after: names of those that require gradients now.
    """
    findings = [f"{len(training)} modules are in training mode, {training[0] or 'the model'} first"] if training else []
    if not before:
        findings.append("no parameter required gradients before training")
    findings += [f"{name} no longer requires gradients" for name in before if name not in after]
    findings += [f"{name} requires gradients now" for name in after if name not in before]
    return verdict("the model is in eval mode, and what was trainable still is", findings, trainable=len(after))
