"""Evaluations: what they report, and that they do not change the run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from harness.fixtures import data
from harness.laws.completion import incomplete
from harness.laws.equal import differences, equal_runs
from harness.laws.plan import NotModelled, if_planned, plan
from harness.laws.recompute import Recomputed, obstacles
from harness.laws.resume import continues
from harness.laws.rotation import epoch_ends
from harness.spec import RunSpec
from harness.tolerance import ORACLE
from harness.trace import Evaluation, MicroBatch, Tensors, Trace
from harness.verdict import NOT_COMPARABLE, Unjudged, Verdict, both, not_finite, verdict

#: Default of TrainingArguments.per_device_eval_batch_size.
EVAL_BATCH_SIZE = 8


def batches(spec: RunSpec) -> list[list[int]]:
    """Return the rows of each batch of an evaluation: all evaluation rows, in order.

    The first evaluation row has the number after the last training row.
    """
    size = int(spec.arguments.get("per_device_eval_batch_size", EVAL_BATCH_SIZE))
    rows = list(range(spec.data.rows, spec.data.rows + spec.data.eval_rows))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@if_planned
def losses(trace: Trace) -> Verdict:
    """Check each eval_loss against one that is recomputed in float64 from the spec and the rows.

    Each batch's loss is the mean over the labels of the batch. eval_loss is the mean of these, weighted by rows.

    An evaluation is judged only if the adapter's values at that time are in the trace: before the first step, and if a
    checkpoint was saved at the same step. Without any such evaluation the verdict is NOT_COMPARABLE.
    """
    expected = "eval_loss is the mean, weighted by rows, of each batch's mean over its labels"
    reasons = [reason for reason in obstacles(trace.spec) if "dropout" not in reason]  # evaluations have no dropout
    grouped = trace.spec.arguments.get("train_sampling_strategy") == "group_by_length"
    if grouped or trace.spec.arguments.get("group_by_length"):
        reasons.append("group_by_length puts the evaluation rows into other batches")
    adapters = {0: trace.adapter_before} | {checkpoint.step: checkpoint.adapter for checkpoint in trace.checkpoints}
    judged = [evaluation for evaluation in trace.evaluations if evaluation.step in adapters]
    findings = incomplete(trace)
    if reasons or not (judged or findings):
        return Verdict(NOT_COMPARABLE, expected, tuple(reasons) or ("no evaluation has a checkpoint beside it",))
    recomputed, gaps, others = _RecomputedLosses(trace.spec, trace.adapter_before), [0.0], []
    for evaluation in judged:
        where = f"evaluation at step {evaluation.step}"
        if evaluation.rows != batches(trace.spec):
            findings.append(f"{where}: batches of rows {evaluation.rows}, expected {batches(trace.spec)}")
            continue
        by_rows, by_tokens = recomputed.means(adapters[evaluation.step])
        seen = evaluation.metrics.get("eval_loss", math.nan)
        others.append(abs(by_rows - by_tokens))
        if unjudged := not_finite(f"{where}: eval_loss, as recomputed,", seen, by_rows):
            findings += unjudged
        elif not abs(seen - by_rows) <= ORACLE.loss:
            findings.append(
                f"{where}: eval_loss {seen:.9g}, expected {by_rows:.9g} (weighted by tokens {by_tokens:.9g})"
            )
        else:
            gaps.append(abs(seen - by_rows))
    return verdict(
        expected,
        findings,
        evaluations=len(judged),
        largest_loss_difference=max(gaps),
        # How far the mean over all tokens is from the expected mean. If it is 0, this run cannot tell the two apart.
        largest_distance_of_the_token_mean=max(others, default=0.0),
    )


@if_planned
def evaluated_when_due(trace: Trace) -> Verdict:
    """Check that a run evaluates at exactly the steps that its arguments ask for, once at each."""
    expected = due(trace)
    seen = [evaluation.step for evaluation in trace.evaluations]
    findings = incomplete(trace)
    findings += [f"no evaluation at step {step}" for step in expected if step not in seen]
    findings += [f"an evaluation at step {step}, unexpected" for step in seen if step not in expected]
    findings += [
        f"two evaluations at step {step}" for step in sorted(set(seen)) if seen.count(step) > expected.count(step) > 0
    ]
    strategy = trace.spec.arguments.get("eval_strategy", "no")
    return verdict(f"eval_strategy {strategy!r} evaluates at steps {expected}", findings, evaluated=seen)


def due(trace: Trace) -> list[int]:
    """Return the steps at which a run must evaluate, from its arguments and the ends of its epochs.

    By eval_strategy:
    - "steps": each multiple of eval_steps (logging_steps, if it is not given), and the last step. Below 1 it is a share of
      all steps, rounded up. None before step eval_delay.
    - "epoch": the last step of each epoch, the last epoch included if it is cut short. None before eval_delay epochs are
      done.
    - "no": none.

    With eval_on_start there is one more, before the first step. Raises NotModelled if epochs must be known and are not.
    """
    arguments, total = trace.spec.arguments, trace.output.get("global_step", 0)
    first = total - trace.events.count("step_end")  # the step that a resumed run starts from
    strategy, delay = arguments.get("eval_strategy", "no"), arguments.get("eval_delay") or 0
    steps: list[int] = []
    if strategy == "steps":
        every = arguments.get("eval_steps") or arguments.get("logging_steps", 500)
        every = math.ceil(total * every) if every < 1 else int(every)
        steps = [step for step in range(first + 1, total + 1) if step >= delay and (step % every == 0 or step == total)]
    elif strategy == "epoch":
        steps = epoch_ends(trace)
        if delay > 0:
            planned = plan(trace.spec)
            if planned.leftover:
                raise NotModelled("a pass over the IterableDataset ends in a short window, so its epochs are not known")
            steps = [step for step in steps if planned.epoch(step) >= delay]
    return [first] * bool(arguments.get("eval_on_start")) + steps


class _RecomputedLosses:
    """Evaluation losses of a spec in float64, for any values of its adapter."""

    def __init__(self, spec: RunSpec, adapter: Tensors):
        self.spec = spec
        self.recomputed = Recomputed(spec, adapter)
        self.recomputed.rows = [row for part in data.rows(spec.data) for row in part]

    def means(self, adapter: Tensors) -> tuple[float, float]:
        """Return the mean of the batches' losses weighted by rows, and the mean weighted by labels."""
        with torch.no_grad():
            for name, parameter in self.recomputed.parameters.items():
                parameter.copy_(adapter[name])
        smoothing = self.spec.arguments.get("label_smoothing_factor", 0.0)
        made = [MicroBatch(rows, tokens=0) for rows in batches(self.spec)]
        means = [self.recomputed.window([batch], smoothing=smoothing)[0] for batch in made]
        tokens = [self.recomputed.tokens([batch]) for batch in made]
        return _weighted(means, [len(batch.rows) for batch in made]), _weighted(means, tokens)


def _weighted(values: list[float], weights: list[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def leaves_no_trace(evaluated: Trace, plain: Trace) -> Verdict:
    """Check that a run with evaluations equals the run without them, bit for bit.

    - evaluated: the run with evaluations.
    - plain: the same run without.
    """
    expected = "evaluations leave the run as it is"
    if not evaluated.error and not evaluated.evaluations:
        return verdict(expected, ["nothing was evaluated"])
    return both(verdict(expected, [], evaluations=len(evaluated.evaluations)), continues(evaluated, plain, after=0))


def draws_one_number(evaluated: Trace, drawn: Trace, passes: int) -> Verdict:
    """Check that each evaluation draws exactly one random number.

    Both runs have dropout, so each number drawn changes all masks after it.

    - evaluated: the run with evaluations.
    - drawn: a run that draws one number at each point at which the other evaluates.
    - passes: how many evaluations there must be.
    """
    findings = incomplete(evaluated)
    if len(evaluated.evaluations) != passes:
        findings.append(f"{len(evaluated.evaluations)} evaluations, expected {passes}")
    return both(verdict("an evaluation draws one number", findings), equal_runs(evaluated, drawn))


def reported(trace: Trace, steps: list[int], *names: str) -> Verdict:
    """Check that there is an evaluation at each of `steps`, with a finite eval_loss.

    - names: the other metrics that each must have, and no more. Timings and the epoch are ignored.
    """
    findings = incomplete(trace)
    if [evaluation.step for evaluation in trace.evaluations] != steps:
        findings.append(f"evaluations at steps {[e.step for e in trace.evaluations]}, expected {steps}")
    for evaluation in trace.evaluations:
        findings += [f"evaluation at step {evaluation.step}: {finding}" for finding in _metrics(evaluation, names)]
    return verdict(f"evaluations report eval_loss{', '.join(['', *names])}", findings, evaluations=len(steps))


def _metrics(evaluation: Evaluation, names: tuple[str, ...]) -> list[str]:
    seen = plain_metrics(evaluation.metrics)
    found = [f"no {name} among {', '.join(seen) or 'no metrics'}" for name in ("eval_loss", *names) if name not in seen]
    found += [f"{name} besides" for name in seen if name not in ("eval_loss", *names)]
    if not math.isfinite(seen.get("eval_loss", 0.0)):
        found.append(f"eval_loss is {seen['eval_loss']}")
    return found


def plain_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics without timings and the epoch."""
    return {
        name: value
        for name, value in metrics.items()
        if name != "epoch" and not name.endswith(("_runtime", "_per_second"))
    }


def counted(trace: Trace) -> Verdict:
    """Check that compute_metrics was given every evaluation row and label.

    The run computes the metrics of `harness.fixtures.metrics.counts`.
    """
    rows = data.rows(trace.spec.data)[1]
    labels = sum(label != data.IGNORED for row in rows for label in row["labels"])
    findings = incomplete(trace) + ([] if trace.evaluations else ["nothing was evaluated"])
    for evaluation in trace.evaluations:
        for name, expected in (("eval_rows", len(rows)), ("eval_labels", labels)):
            if evaluation.metrics.get(name) != expected:
                seen = evaluation.metrics.get(name, "absent")
                findings.append(f"evaluation at step {evaluation.step}: {name} is {seen}, expected {expected}")
    return verdict("compute_metrics is given all rows and labels", findings, rows=len(rows), labels=labels)


def same_predictions(seen: Tensors, expected: Tensors) -> Verdict:
    """Check that compute_metrics was given what the model returns, batch by batch, bit for bit.

    - seen: what compute_metrics was given.
    - expected: what the model returned.
    """
    findings = differences(seen, expected, 0.0, "")
    if not (seen or expected):
        findings.append(Unjudged("nothing was predicted, so nothing was compared"))
    return verdict("all predictions and labels, in the order of the rows", findings)


def ended_with(trace: Trace, kind: str, *words: str) -> Verdict:
    """Check that the run ended with an error.

    - kind: the error's type.
    - words: each must be in the error's message.
    """
    findings = []
    if trace.error is None:
        findings.append(f"no error: it made {len(trace.steps)} steps")
    elif not trace.error.startswith(f"{kind}:"):
        findings.append(f"the run ended with {trace.error}")
    else:
        findings += [f"{word!r} is not in the message: {trace.error}" for word in words if word not in trace.error]
    return verdict(f"{kind} saying {', '.join(words)}", findings)
