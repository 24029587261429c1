"""Logs: entries of log_history, TensorBoard's event files, the console. Expected values follow from spec and steps."""

from __future__ import annotations

import ast
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.fixtures import data
from harness.laws.callbacks import due, strategy
from harness.laws.completion import incomplete
from harness.laws.plan import plan
from harness.spec import RunSpec
from harness.tolerance import SUMMATION
from harness.trace import Trace
from harness.verdict import Verdict, not_finite, spelled, verdict

ENTRY = ("loss", "grad_norm", "learning_rate", "epoch", "step")
LAST_ENTRY = (
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "total_flos",
    "train_loss",
    "epoch",
    "step",
)
TOKENS = "num_input_tokens_seen"


def logging_steps(spec: RunSpec) -> list[int]:
    """Return the optimizer steps after which a run logs the training loss. The run must not be resumed."""
    planned, kind = plan(spec), strategy(spec, "logging")
    in_epoch = len(planned.windows)
    return [
        number
        for number in range(1, planned.total + 1)
        if due(spec, "logging", number)
        or (number == 1 and spec.arguments.get("logging_first_step"))
        or (kind == "epoch" and (number % in_epoch == 0 or number == planned.total))
    ]


def entries(trace: Trace, digits: int | None = None, also: Sequence[str] = ()) -> Verdict:
    """Check that the log has an entry for each logging step, with the right keys and the mean loss since the last entry.

    - digits: how many decimals the logged loss is rounded to; None if it is not rounded.
    - also: keys that each entry must have besides ENTRY.
    """
    findings, expected = incomplete(trace), logging_steps(trace.spec)
    keys = {*ENTRY, *also}
    seen = [entry for entry in trace.log_history if "loss" in entry]
    if [entry["step"] for entry in seen] != expected:
        findings.append(f"logged after steps {[entry['step'] for entry in seen]}, expected {expected}")
    losses, before = {step.number: _loss(step.batches) for step in trace.steps}, 0
    rounding = 0.0 if digits is None else 0.5 * 10.0**-digits
    for entry in seen:
        where = f"entry of step {entry['step']}"
        findings += [f"{where} lacks {key}" for key in keys if key not in entry]
        findings += [f"{where} has {key} besides" for key in entry if key not in keys]
        window = [loss for number, loss in losses.items() if before < number <= entry["step"]]
        mean = sum(window) / max(1, len(window))
        if unjudged := not_finite(f"{where}: the loss", entry["loss"], mean):
            findings += unjudged
        elif not abs(entry["loss"] - mean) <= SUMMATION.loss + rounding:
            findings.append(f"{where}: loss {entry['loss']!r}, the mean of its {len(window)} steps is {mean!r}")
        before = entry["step"]
    return verdict(f"an entry after steps {expected}, with the mean loss of its steps", findings, entries=len(seen))


def _loss(batches: Iterable[Any]) -> float:
    """Return a window's loss.

    If the model was given num_items_in_batch, the micro-batches' losses are shares of it, otherwise means.
    """
    window = list(batches)
    total = sum(math.nan if batch.loss is None else batch.loss for batch in window)
    return total if window[0].num_items is not None else total / len(window)


def tokens(trace: Trace, padding: bool = True) -> Verdict:
    """Check that num_input_tokens_seen of every log entry counts the tokens of all rows fed until then.

    - padding: whether padding tokens are counted.
    """
    findings = incomplete(trace)
    rows = data.rows(trace.spec.data)[0]
    fed, total = {0: 0}, 0
    for step in trace.steps:
        for row in (row for batch in step.batches for row in batch.rows):
            total += trace.spec.data.length if padding else sum(rows[row]["attention_mask"])
        fed[step.number] = total
    for entry in trace.log_history:
        if entry.get(TOKENS) != fed[entry["step"]]:
            kind = "training" if "loss" in entry else "evaluation" if "eval_loss" in entry else "last"
            findings.append(
                f"{kind} entry of step {entry['step']}: {TOKENS} {entry.get(TOKENS, 'absent')}, "
                f"expected {fed[entry['step']]}"
            )
    return verdict(f"{TOKENS} counts the tokens fed", findings, tokens=total)


def last_entry(trace: Trace) -> Verdict:
    """Check that the last entry is of the last step, and has the metrics of TrainOutput."""
    findings, total = incomplete(trace), plan(trace.spec).total
    last = trace.log_history[-1] if trace.log_history else {}
    findings += [f"the last entry lacks {key}" for key in LAST_ENTRY if key not in last]
    findings += [f"the last entry has {key} besides" for key in last if key not in LAST_ENTRY]
    if last.get("step", total) != total:
        findings.append(f"the last entry is of step {last['step']}, expected {total}")
    for key, value in trace.output.get("metrics", {}).items():
        if key in last and (unjudged := not_finite(key, last[key], value)):
            findings += unjudged
        elif key in last and last[key] != value:
            findings.append(f"the last entry's {key} is {last[key]!r}, that of TrainOutput {value!r}")
    return verdict("the log ends with the metrics of training", findings, entries=len(trace.log_history))


# ---- TensorBoard ----


def tensorboard(trace: Trace, directory: Path) -> Verdict:
    """Check that TensorBoard's event file holds every number of log_history, and the texts "args" and "model_config".

    Scalars are float32 in the file, so each must be the float32 nearest to the number of log_history.

    - directory: where the event file is looked for; there must be exactly one below it.
    """
    findings = incomplete(trace)
    files = sorted(directory.rglob("events.out.tfevents.*"))
    if len(files) != 1:
        findings.append(f"{len(files)} event files below {directory.name}/, expected 1")
    scalars, texts = read_events(files[0]) if files else ({}, [])
    expected: dict[str, list[tuple[int, float]]] = {}
    for entry in trace.log_history:
        for key, value in entry.items():
            if key != "step":
                expected.setdefault(tag(key), []).append((entry["step"], _float32(value)))
    findings += [f"no scalar {name}" for name in expected if name not in scalars]
    findings += [f"a scalar {name}, which is not in log_history" for name in scalars if name not in expected]
    for name, points in expected.items():
        other = [(a, b) for a, b in zip(scalars.get(name, []), points, strict=False) if spelled(a) != spelled(b)]
        if other:
            findings.append(f"{name}: {other[0][0]} (step, value), log_history has {other[0][1]}")
        elif name in scalars and len(scalars[name]) != len(points):
            findings.append(f"{name}: {len(scalars[name])} points, log_history has {len(points)}")
        findings += not_finite(f"each {name}", *(value for _, value in points))
    if texts != ["args", "model_config"]:
        findings.append(f"texts {', '.join(texts) or 'none'}, expected args, model_config")
    return verdict("TensorBoard has what log_history has", findings, scalars=len(scalars))


def tag(key: str) -> str:
    """Return TensorBoard's name for a key of log_history."""
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"


def read_events(file: Path) -> tuple[dict[str, list[tuple[int, float]]], list[str]]:
    """Return the scalars of an event file (tag -> [(step, value)] in order), and the names of its texts, sorted."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # 0 reads every point; by default the reader takes samples.
    events = EventAccumulator(str(file), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    names = events.Tags()
    scalars = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names["scalars"]}
    return scalars, sorted(name.removesuffix("/text_summary") for name in names["tensors"])


def _float32(value: float) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


# ---- the console ----


def console(log_history: Sequence[Mapping[str, Any]], text: str) -> Verdict:
    """Check that standard output shows each log entry once, in order, as a dict without the step and total_flos.

    - log_history: the entries.
    - text: standard output.
    """
    findings, shown = [], list(_dicts(text))
    if len(shown) != len(log_history):
        findings.append(f"{len(shown)} entries on standard output, log_history has {len(log_history)}")
    for number, (seen, entry) in enumerate(zip(shown, log_history, strict=False), start=1):
        expected = {key: value for key, value in entry.items() if key not in ("step", "total_flos")}
        findings += [f"entry {number} shows no {key}" for key in expected if key not in seen]
        findings += [f"entry {number} shows {key} besides" for key in seen if key not in expected]
        findings += [
            f"entry {number} shows {key} {seen[key]}, log_history has {value!r}"
            for key, value in expected.items()
            if key in seen and not _shows(seen[key], value)
        ]
        if "loss" in expected:
            findings += not_finite(f"the loss of entry {number}", expected["loss"])
    return verdict("the console shows each entry of log_history", findings, entries=len(shown))


def _dicts(text: str) -> Iterable[dict[str, Any]]:
    for line in text.replace("\r", "\n").splitlines():
        if line.strip().startswith("{"):
            # Some releases print NaN and infinity without quotes, which is no Python literal.
            yield ast.literal_eval(_NOT_FINITE.sub(r"'\g<0>'", line.strip()))


_NOT_FINITE = re.compile(r"(?<=[:\[,] )-?(?:nan|inf)(?=[,}\]])")


def _shows(seen: Any, value: float) -> bool:
    """Return whether a number, or its text, is the value, or the value rounded to four significant digits."""
    return spelled(float(seen)) in (spelled(value), float(f"{value:.4g}"))
