"""When checkpoints are written, and which of them rotation leaves."""

from __future__ import annotations

import math
from pathlib import Path

from harness.laws.completion import incomplete
from harness.laws.rates import PLATEAU
from harness.trace import Trace
from harness.verdict import Verdict, verdict


def saved_when_due(trace: Trace) -> Verdict:
    """Check that checkpoints are written at exactly the steps that save_strategy asks for, each once."""
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
    """Return the steps at which a run must save, from its arguments, its epochs and its evaluations.

    By save_strategy:
    - "steps": each multiple of save_steps, and the last step. A save_steps below 1 is a share of all steps, rounded up.
    - "epoch": the last step of each epoch, the last epoch included if it is cut short.
    - "best": each evaluation that is better than all before it.
    - "no": none.
    """
    arguments, total = trace.spec.arguments, trace.output.get("global_step", 0)
    strategy = arguments.get("save_strategy", "steps")
    if strategy == "best":
        return [step for step, is_best in _records(trace) if is_best]
    if strategy == "no" or not total:
        return []
    if strategy == "epoch":
        return epoch_ends(trace)
    every = arguments.get("save_steps", 500)
    every = math.ceil(total * every) if every < 1 else int(every)
    return sorted({*range(every, total + 1, every), total})


def rotated(trace: Trace) -> Verdict:
    """Check which checkpoints are left after each save: the newest, the best so far, then others, newest first.

    There are save_total_limit of them. With a limit of 1 there are two if the newest and the best differ.
    """
    limit = trace.spec.arguments.get("save_total_limit")
    findings = incomplete(trace)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    left: list[int] = []
    best = None
    for checkpoint in trace.checkpoints:
        left.append(checkpoint.step)
        best = max((step for step, is_best in _records(trace) if is_best and step <= checkpoint.step), default=None)
        if limit:
            protected = {checkpoint.step} | ({best} & set(left))
            for step in reversed(left):
                if len(protected) < limit:
                    protected.add(step)
            left = [step for step in left if step in protected]
        if checkpoint.siblings != left:
            findings.append(
                f"after the save at step {checkpoint.step}: {checkpoint.siblings} are left, expected {left}"
            )
    return verdict(f"save_total_limit {limit} leaves the newest and the best", findings, best=best, left=left)


def left_at_the_end(trace: Trace) -> list[int]:
    """Return the steps of the checkpoints that are in the run's directory now."""
    return sorted(int(path.name[11:]) for path in Path(trace.directory).glob("checkpoint-*") if path.is_dir())


def epoch_ends(trace: Trace) -> list[int]:
    """Return the global step at the end of each epoch, from the run's events."""
    step = trace.output.get("global_step", 0) - trace.events.count("step_end")
    ends = []
    for event in trace.events:
        step += event == "step_end"
        if event == "epoch_end":
            ends.append(step)
    return ends


def _records(trace: Trace) -> list[tuple[int, bool]]:
    """Return (step, whether it was the best so far) of each evaluation; an empty list without a metric_for_best_model.

    It is "loss" if it is not set, but needed: training_args.py:TrainingArguments.__post_init__.
    """
    arguments = trace.spec.arguments
    metric = arguments.get("metric_for_best_model")
    if metric is None:
        if not arguments.get("load_best_model_at_end") and arguments.get("lr_scheduler_type") not in (
            PLATEAU,
            "greedy",
        ):
            return []
        metric = "loss"
    sign = 1 if arguments.get("greater_is_better", not metric.endswith("loss")) else -1
    records, best = [], -math.inf
    for evaluation in trace.evaluations:
        if evaluation.step == 0:
            continue  # eval_on_start: trainer.py:_evaluate alone compares no metric
        value = sign * evaluation.metrics[metric if metric.startswith("eval_") else f"eval_{metric}"]
        records.append((evaluation.step, value > best))
        best = max(best, value)
    return records
