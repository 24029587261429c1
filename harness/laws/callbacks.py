"""Callback events, computed from the spec: their order, when early stopping stops, what callbacks are given."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.laws.best import greater_is_better, metric_name
from harness.laws.completion import incomplete
from harness.laws.evaluation import batches
from harness.laws.plan import plan
from harness.spec import RunSpec
from harness.trace import Checkpoint, Trace
from harness.verdict import Verdict, not_finite, verdict

#: Defaults of TrainingArguments: (strategy, steps).
_DEFAULTS = {"logging": ("steps", 500), "eval": ("no", 500), "save": ("steps", 500)}


def event_order(trace: Trace) -> Verdict:
    """Check that the callback events are those that the spec asks for, in their order.

    A resumed run is judged from its first step on.
    """
    expected = list(events(trace.spec))
    findings = [f"the run ended with {trace.error}"] if trace.error else []
    for index, (seen, event) in enumerate(zip(trace.events, expected, strict=False)):
        if seen != event:
            before = ", ".join(expected[max(0, index - 3) : index])
            findings.append(f"event {index + 1} is {seen}, expected {event}, after {before}")
            break
    else:
        if len(trace.events) < len(expected):
            findings.append(f"the events end after {len(trace.events)}, expected {expected[len(trace.events)]} next")
        findings += [f"{seen} comes after the last event" for seen in trace.events[len(expected) :][:1]]
    return verdict("callback events in the order of the training loop", findings, events=len(trace.events))


def events(spec: RunSpec) -> Iterator[str]:
    """Yield the events of a run of this spec, on one device and without early stopping.

    The order is that of transformers/trainer.py: Trainer._inner_training_loop, _run_epoch and _maybe_log_save_evaluate.
    """
    planned = plan(spec)
    first = 0 if spec.resume is None else int(spec.resume.checkpoint)
    in_epoch = len(planned.windows)
    yield from ("init_end", "train_begin")
    logged = first
    for epoch in range(first // in_epoch, planned.epochs):
        yield "epoch_begin"
        for number in range(max(epoch * in_epoch, first) + 1, min((epoch + 1) * in_epoch, planned.total) + 1):
            yield "step_begin"
            yield from ["substep_end"] * (planned.window(number) - 1)
            yield from ("pre_optimizer_step", "optimizer_step", "step_end")
            last = number == planned.total
            if due(spec, "logging", number) or (number == 1 and spec.arguments.get("logging_first_step")):
                logged = number
                yield "log"
            yield from _evaluation(spec) if due(spec, "eval", number, last) else ()
            yield from ["save"] if due(spec, "save", number, last) else ()
        yield "epoch_end"
        if strategy(spec, "logging") == "epoch" and logged < number:
            logged = number
            yield "log"
        yield from _evaluation(spec) if strategy(spec, "eval") == "epoch" else ()
        yield from ["save"] if strategy(spec, "save") == "epoch" else ()
    yield from ("log", "train_end")


def strategy(spec: RunSpec, kind: str) -> str:
    """Return when a run logs, evaluates or saves: "no", "steps" or "epoch".

    - kind: "logging", "eval" or "save".
    """
    return str(spec.arguments.get(f"{kind}_strategy", _DEFAULTS[kind][0]))


def due(spec: RunSpec, kind: str, number: int, last: bool = False) -> bool:
    """Return whether a run with strategy "steps" logs, evaluates or saves after a step.

    - kind: "logging", "eval" or "save".
    - number: the 1-based global step.
    - last: whether it is the run's last step, after which it saves and evaluates in any case.
    """
    every: Any = spec.arguments.get(f"{kind}_steps", _DEFAULTS[kind][1])
    if kind == "eval" and "eval_steps" not in spec.arguments:
        every = spec.arguments.get("logging_steps", every)
    every = math.ceil(every * plan(spec).total) if every < 1 else int(every)
    return strategy(spec, kind) == "steps" and (last or number % every == 0)


def _evaluation(spec: RunSpec) -> list[str]:
    return [*["prediction_step"] * len(batches(spec)), "log", "evaluate"]


def stops_early(
    trace: Trace, patience: int, threshold: float = 0.0, before: Trace | None = None, counter_restored: bool = False
) -> Verdict:
    """Check that early stopping ends the run at the right evaluation, and that each checkpoint has the right counter.

    The counter grows at each evaluation that does not improve the metric by more than the threshold. At `patience` the run
    ends. The best metric is updated by any improvement, even one below the threshold.

    - patience, threshold: of EarlyStoppingCallback.
    - before: the run that wrote the checkpoint which this run resumes from; None if it does not resume.
    - counter_restored: whether the counter continues from the checkpoint's value, and not from zero.
    """
    first = 0 if trace.spec.resume is None else int(trace.spec.resume.checkpoint)
    earlier = [evaluation for evaluation in (before.evaluations if before else []) if evaluation.step <= first]
    name, upwards = metric_name(trace.spec), greater_is_better(trace.spec)
    counter, best, expected = 0, None, plan(trace.spec).total
    counters: dict[int, int] = {}
    for evaluation in [*earlier, *trace.evaluations]:
        metric = evaluation.metrics[name]
        gain = math.inf if best is None else (metric - best if upwards else best - metric)
        if evaluation.step > first and not counters and not counter_restored:
            counter = 0
        counter = 0 if gain > threshold else counter + 1
        best = metric if gain > 0 else best
        if evaluation.step > first:
            counters[evaluation.step] = counter
            if counter >= patience:
                expected = evaluation.step
                break
    findings = incomplete(trace)
    if not findings and not trace.evaluations:
        findings.append("nothing was evaluated")
    findings += not_finite(f"each {name}", *(evaluation.metrics[name] for evaluation in trace.evaluations))
    made = trace.steps[-1].number if trace.steps else first
    if not findings and made != expected:
        counts = ", ".join(f"{count} at step {step}" for step, count in counters.items())
        findings.append(f"the last step is {made}, expected {expected}: patience is {patience}, the count {counts}")
    for checkpoint in trace.checkpoints:
        saved = checkpoint.state.get("stateful_callbacks", {}).get("EarlyStoppingCallback", {})
        count = saved.get("attributes", {}).get("early_stopping_patience_counter")
        if count != counters.get(checkpoint.step):
            findings.append(
                f"checkpoint-{checkpoint.step}: the counter is {count}, expected {counters.get(checkpoint.step)}"
            )
    return verdict(
        "early stopping counts the evaluations without an improvement", findings, last_step=made, counters=counters
    )


def stops_at(trace: Trace, step: int) -> Verdict:
    """Check that the run's last optimizer step is `step`."""
    findings = incomplete(trace)
    made = trace.steps[-1].number if trace.steps else 0
    if not findings and made != step:
        findings.append(f"the run stopped at step {made}, expected {step}")
    return verdict(f"the run stops at step {step}", findings, last_step=made)


def states_saved(checkpoint: Checkpoint, name: str, expected: Sequence[Mapping[str, Any]]) -> Verdict:
    """Check that trainer_state.json holds the current state of each callback of a class, in order, and no other state.

    - name: the class's name.
    - expected: one state for each callback, as {"args": ..., "attributes": ...}.
    """
    where = f"checkpoint-{checkpoint.step}/trainer_state.json"
    saved = checkpoint.state.get("stateful_callbacks", {}).get(name, [])
    states = saved if isinstance(saved, list) else [saved]
    findings = []
    if len(states) != len(expected):
        findings.append(f"{where} holds {len(states)} states of {name}, expected {len(expected)}")
    for index, (seen, current) in enumerate(zip(states, expected, strict=False)):
        if seen != current:
            findings.append(f"{where}: state {index + 1} of {name} is {seen}, expected {current}")
    return verdict(f"{where} holds the current state of each {name}", findings, states=len(states))


def given_to_callbacks(seen: Sequence[tuple[str, Mapping[str, Any]]], expected: Mapping[str, Any]) -> Verdict:
    """Check that callbacks are given the run's own objects as keyword arguments, at each event.

    - seen: (event, keyword arguments of the callback) in order.
    - expected: name of the argument -> the object that must be given.
    """
    findings = [] if seen else ["no event was seen"]
    for name, own in expected.items():
        wrong = [(event, given.get(name)) for event, given in seen if given.get(name) is not own]
        if wrong:
            event, other = wrong[0]
            same = "another " if type(other) is type(own) else ""
            findings.append(
                f"{name} is {same}{type(other).__name__} at {len(wrong)} of {len(seen)} events, {event} first; "
                f"expected the run's {type(own).__name__}"
            )
    return verdict(f"callbacks are given the run's own {', '.join(expected)}", findings, events=len(seen))
