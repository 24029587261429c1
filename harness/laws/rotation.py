"""When checkpoints are written, and which of them stay."""

from __future__ import annotations

import math
from pathlib import Path

from harness.laws.completion import incomplete
from harness.trace import Trace
from harness.verdict import Verdict, verdict


def saved_when_due(trace: Trace) -> Verdict:
    """Checkpoints were written at the steps that save_strategy names, each once, and at no other."""
    expected = due(trace)
    seen = [checkpoint.step for checkpoint in trace.checkpoints]
    findings = incomplete(trace)
    findings += [f"no checkpoint at step {step}" for step in expected if step not in seen]
    findings += [f"a checkpoint at step {step}, unexpected" for step in seen if step not in expected]
    findings += [
        f"the checkpoint at step {step} was written twice" for step in sorted(set(seen)) if seen.count(step) > 1
    ]
    strategy = trace.spec.arguments.get("save_strategy", "steps")
    return verdict(f"save_strategy {strategy!r} saves at steps {expected}", findings, saved=seen)


def due(trace: Trace) -> list[int]:
    """The steps at which a run of this spec saves, from its arguments, its epochs and what its evaluations found.

    "steps": each multiple of save_steps (below 1: a share of all steps, rounded up) and the last step. "epoch": the
    last step of each epoch, and of a last epoch that is cut short. "best": each evaluation that beats all before it.
    """
    arguments, total = trace.spec.arguments, trace.output.get("global_step", 0)
    strategy = arguments.get("save_strategy", "steps")
    if strategy == "best":
        return [step for step, is_best in _records(trace) if is_best]
    if strategy == "no" or not total:
        return []
    if strategy == "epoch":
        return _epoch_ends(trace)
    every = arguments.get("save_steps", 500)
    every = math.ceil(total * every) if every < 1 else int(every)
    return sorted({*range(every, total + 1, every), total})


def rotated(trace: Trace) -> Verdict:
    """After each save, save_total_limit checkpoints are left: the newest, the best so far, and the youngest others.

    A limit of 1 still keeps two, the newest and the best, where these differ.
    """
    limit = trace.spec.arguments.get("save_total_limit")
    findings = incomplete(trace)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    there: list[int] = []
    best = None
    for checkpoint in trace.checkpoints:
        there.append(checkpoint.step)
        best = max((step for step, is_best in _records(trace) if is_best and step <= checkpoint.step), default=None)
        if limit:
            kept = {checkpoint.step} | ({best} & set(there))
            for step in reversed(there):
                if len(kept) < limit:
                    kept.add(step)
            there = [step for step in there if step in kept]
        if checkpoint.siblings != there:
            findings.append(
                f"after the save at step {checkpoint.step}: {checkpoint.siblings} are left, expected {there}"
            )
    return verdict(f"save_total_limit {limit} leaves the newest and the best", findings, best=best, left=there)


def left_at_the_end(trace: Trace) -> list[int]:
    """The steps of the checkpoint directories that lie in the run's directory now."""
    return sorted(int(path.name[11:]) for path in Path(trace.directory).glob("checkpoint-*") if path.is_dir())


def _epoch_ends(trace: Trace) -> list[int]:
    """The global step at the end of each epoch, by the events of the run."""
    step = trace.output.get("global_step", 0) - trace.events.count("step_end")
    ends = []
    for event in trace.events:
        step += event == "step_end"
        if event == "epoch_end":
            ends.append(step)
    return ends


def _records(trace: Trace) -> list[tuple[int, bool]]:
    """(step, whether it was the best so far) of each evaluation, by metric_for_best_model; empty where it is unset."""
    metric = trace.spec.arguments.get("metric_for_best_model")
    if metric is None:
        return []
    sign = 1 if trace.spec.arguments.get("greater_is_better", not metric.endswith("loss")) else -1
    records, best = [], -math.inf
    for evaluation in trace.evaluations:
        value = sign * evaluation.metrics[metric if metric.startswith("eval_") else f"eval_{metric}"]
        records.append((evaluation.step, value > best))
        best = max(best, value)
    return records
