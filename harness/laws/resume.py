"""Whether a resumed run is the run that was interrupted, and whether one that cannot be says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from harness.laws.completion import incomplete
from harness.laws.equal import differences, equal_runs
from harness.trace import Trace
from harness.verdict import NOT_COMPARABLE, Verdict, both, verdict


def continues(resumed: Trace, whole: Trace, after: int) -> Verdict:
    """From step `after` on, the resumed run is the uninterrupted one: rows, gradients, logs, adapter, optimizer.

    Tensors that are not trained (the base, other adapters) end as they do there, too. Not comparable where the
    uninterrupted run itself ends with an error.
    """
    if whole.error is not None:
        return _not_comparable("the two runs are equal", whole)
    findings = [] if resumed.error else _base_differences(resumed.base, whole.base)
    return both(equal_runs(resumed, whole, after=after), verdict("tensors that are not trained end the same", findings))


def _base_differences(seen: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    return [
        f"{name}, which is not trained, is another than in the uninterrupted run"
        for name in sorted({*seen, *expected})
        if seen.get(name) != expected.get(name)
    ][:1]


def restored(resumed: Trace, whole: Trace, after: int, count: int) -> Verdict:
    """Before the first step every adapter tensor is the checkpoint's, bit for bit, and there are `count` of them."""
    expected = f"{count} of {count} adapter tensors are restored before the first step"
    if whole.error is not None:
        return _not_comparable(expected, whole)
    saved = whole.checkpoint(after)
    findings = incomplete(resumed)
    if len(saved.adapter) != count:
        findings.append(f"checkpoint-{saved.step} holds {len(saved.adapter)} adapter tensors, expected {count}")
    if len(resumed.adapter_resumed) != count:
        findings.append(f"{len(resumed.adapter_resumed)} adapter tensors are trained on, expected {count}")
    wrong = differences(resumed.adapter_resumed, saved.adapter, 0.0, f"after loading checkpoint-{saved.step}:")
    return verdict(
        expected,
        findings + wrong,
        saved=len(saved.adapter),
        restored=len(resumed.adapter_resumed) - len(wrong),
    )


def _not_comparable(expected: str, whole: Trace) -> Verdict:
    return Verdict(NOT_COMPARABLE, expected, (f"the uninterrupted run ended with {whole.error}",))


# ---- what is reported ----

#: Parts of the names of log entries that tell the time.
_TIMING = ("runtime", "per_second")


def same_log(resumed: Trace, whole: Trace) -> Verdict:
    """log_history is the uninterrupted run's, entry for entry, timings and the summary of the call left out."""
    findings = incomplete(resumed)
    ours, theirs = _log(resumed), _log(whole)
    for index in range(max(len(ours), len(theirs))):
        seen = ours[index] if index < len(ours) else None
        expected = theirs[index] if index < len(theirs) else None
        if seen != expected:
            findings.append(f"log_history[{index}] is {seen}, expected {expected}")
            break
    return verdict("log_history is that of the uninterrupted run", findings, entries=len(ours))


def _log(trace: Trace) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in entry.items() if not any(part in name for part in _TIMING)}
        for entry in trace.log_history
        if "train_loss" not in entry
    ]


def same_state(resumed: Trace, whole: Trace) -> Verdict:
    """The last checkpoint's trainer_state.json says the same: counters, totals, best metric, callbacks' states."""
    findings = incomplete(resumed)
    if not (resumed.checkpoints and whole.checkpoints):
        findings.append("a run saved no checkpoint to compare")
    else:
        seen, expected = (trace.checkpoints[-1].state for trace in (resumed, whole))
        # The log has a law of its own, and the best checkpoint's path begins with the run's own directory.
        names = {*seen, *expected} - {"log_history", "best_model_checkpoint"}
        findings += [
            f"trainer_state.json, {name}: {seen.get(name)!r}, expected {expected.get(name)!r}"
            for name in sorted(names)
            if seen.get(name) != expected.get(name)
        ]
    return verdict("trainer_state.json is that of the uninterrupted run", findings)


def loss_of_this_call(resumed: Trace) -> Verdict:
    """training_loss is the mean over the steps of this call, and the throughput counts them alone.

    The steps have one micro-batch each: what a step adds to the loss is what its forward pass returned.
    """
    findings = incomplete(resumed)
    made = len(resumed.steps)
    # At each log the device's sum is added to one on the host, in double precision.
    expected, window = 0.0, []
    for step in resumed.steps:
        window += [batch.loss for batch in step.batches]
        if step.number in resumed.losses:
            expected, window = expected + _device_sum(window), []
    expected = (expected + _device_sum(window)) / max(1, made)
    loss = resumed.output.get("training_loss")
    if not findings and loss != expected:
        findings.append(f"training_loss is {loss!r}, expected {expected!r}, the mean of these {made} steps")
    metrics = resumed.output.get("metrics", {})
    rate, runtime = metrics.get("train_steps_per_second", 0.0), metrics.get("train_runtime", 0.0)
    # Both are rounded (three and four digits), which moves the product by far less than half a step.
    if round(rate * runtime) != made:
        findings.append(f"train_steps_per_second {rate} in {runtime} s are {rate * runtime:.1f} steps, expected {made}")
    return verdict("training_loss and throughput are those of the steps of this call", findings)


def first_logged(resumed: Trace, after: int, digits: int | None = None) -> Verdict:
    """The first loss logged after resuming at step `after` is the mean over the steps made since, not over its window.

    digits: how many the Trainer rounds logged losses to, None for not at all.
    """
    findings = incomplete(resumed)
    logged = min((step for step in resumed.losses if step > after), default=None)
    if logged is None:
        findings.append(f"no loss was logged after step {after}")
    else:
        since = [step for step in resumed.steps if after < step.number <= logged]
        expected = _device_sum([batch.loss for step in since for batch in step.batches]) / max(1, len(since))
        expected = expected if digits is None else round(expected, digits)
        if resumed.losses[logged] != expected:
            wanted = f"{expected!r}, the mean of the {len(since)} steps since"
            findings.append(f"step {logged}: logged loss {resumed.losses[logged]!r}, expected {wanted}")
    return verdict("the first loss logged after resuming covers the steps since", findings)


def _device_sum(losses: Iterable[float | None]) -> float:
    """The losses, added up one by one in float32 as the device does."""
    total = torch.zeros((), dtype=torch.float32)
    for loss in losses:
        total = total + torch.tensor(float("nan") if loss is None else loss, dtype=torch.float32)
    return total.item()


def stays_finished(resumed: Trace, whole: Trace) -> Verdict:
    """Resuming a finished run makes no step, keeps the step count and the adapter, and reports a loss of 0."""
    if resumed.error is not None:
        return verdict("a finished run stays finished", incomplete(resumed))
    end = whole.output["global_step"]
    findings = [f"it trained step {step.number}, past the last step {end}" for step in resumed.steps[:1]]
    if resumed.output["global_step"] != end:
        findings.append(f"global_step is {resumed.output['global_step']}, expected {end}")
    if not resumed.steps and resumed.output["training_loss"] != 0.0:
        findings.append(f"training_loss is {resumed.output['training_loss']}, expected 0.0")
    findings += differences(resumed.adapter, whole.adapter, 0.0, "adapter at the end:")
    return verdict("a finished run stays finished", findings)


# ---- what cannot be resumed ----


def refused(trace: Trace, *kinds: str, words: str = "") -> Verdict:
    """The run ended with an error of one of these kinds (any, if none is given), saying `words`, before any step."""
    expected = f"{' or '.join(kinds) or 'an error'} before the first step" + (f", saying {words!r}" if words else "")
    findings = []
    if trace.error is None:
        findings.append(f"no error: it trained steps {_span(trace)}")
    elif trace.steps:
        findings.append(f"the error came after steps {_span(trace)}: {trace.error}")
    elif (kinds and not trace.error.startswith(tuple(f"{kind}:" for kind in kinds))) or words not in trace.error:
        findings.append(f"the run ended with {trace.error}")
    return verdict(expected, findings)


def loud(trace: Trace, what: str, words: Iterable[str]) -> Verdict:
    """`what` (a fault of the checkpoint) is an error before the first step, or a warning with one of `words` in it."""
    told = [one for one in trace.warnings if any(word.lower() in one.lower() for word in words)]
    findings = []
    if trace.error is None and not told:
        findings.append(f"neither an error nor a warning: with {what} it trained steps {_span(trace)}")
    elif trace.error is not None and trace.steps:
        findings.append(f"the error came after steps {_span(trace)}: {trace.error}")
    return verdict(f"{what} is an error or a warning", findings)


def warns_of_change(trace: Trace, argument: str, here: Any, there: Any) -> Verdict:
    """A warning names the argument, its value here and its value in the checkpoint."""
    findings = incomplete(trace)
    if not any(all(str(word) in one for word in (argument, here, there)) for one in trace.warnings):
        findings.append(f"no warning names {argument}, {here} here and {there} in the checkpoint")
    return verdict(f"a changed {argument} is warned of", findings)


def falls_back(resumed: Trace, whole: Trace, torn: int, complete: int, missing: Iterable[str]) -> Verdict:
    """Of a torn checkpoint and an older complete one, the complete one is taken, or the error says what is missing.

    torn, complete: their steps. missing: files of the torn one that are not there, or not whole.
    """
    expected = f"it resumes at step {complete}, or says which file of checkpoint-{torn} is missing"
    if resumed.error is not None:
        named = f"checkpoint-{torn}" in resumed.error and any(name in resumed.error for name in missing)
        return verdict(
            expected,
            [] if named else [f"names no missing file of checkpoint-{torn}: the run ended with {resumed.error}"],
        )
    start = resumed.steps[0].number - 1 if resumed.steps else None
    if start != complete:
        return verdict(expected, [f"it went on from step {start} without a word"])
    return both(verdict(expected, []), equal_runs(resumed, whole, after=complete))


def _span(trace: Trace) -> str:
    return f"{trace.steps[0].number} to {trace.steps[-1].number}" if trace.steps else "none"
