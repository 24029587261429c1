"""Resumed runs: whether they equal the uninterrupted run, and whether a run that cannot be resumed says so.

In all laws `resumed` is the resumed run, `whole` the run that was not interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness.laws.checkpoint import under_trained_names
from harness.laws.completion import incomplete
from harness.laws.equal import differences, equal_runs
from harness.trace import Trace
from harness.verdict import FAIL, NOT_COMPARABLE, Verdict, both, not_finite, spelled, verdict


def continues(resumed: Trace, whole: Trace, after: int) -> Verdict:
    """Check that after step `after` the resumed run equals the uninterrupted one.

    Rows, gradients, logs, adapter and optimizer are compared, and at the end the tensors that are not trained (the base,
    other adapters). If the uninterrupted run ends with an error, the verdict is NOT_COMPARABLE.
    """
    if whole.error is not None:
        return _not_comparable("the two runs are equal", whole)
    findings = [] if resumed.error else _base_differences(resumed.base, whole.base)
    equal = equal_runs(resumed, whole, after=after)
    if equal.outcome == FAIL and (lost := _lost(resumed, whole, after)):
        # What a run lost on its way says more than what it computed without it.
        equal = replace(equal, seen=(*lost, *equal.seen))
    return both(equal, verdict("tensors that are not trained end the same", findings))


def _lost(resumed: Trace, whole: Trace, after: int) -> list[str]:
    """Return what a resumed run has not taken from its checkpoint: the optimizer's state, or an adapter tensor."""
    lost = []
    if resumed.optimizer_resumed == 0 and resumed.trainable:
        lost.append(f"the optimizer's state is empty when the run goes on after step {after}")
    saved = next((one.adapter for one in whole.checkpoints if one.step == after), {})
    if saved and resumed.adapter_resumed:
        tensors = under_trained_names(whole, saved)
        lost += differences(resumed.adapter_resumed, tensors, 0.0, f"adapter after loading checkpoint-{after}:")[:1]
    return lost


def steps_to_resume(whole: Trace) -> list[int]:
    """Return the checkpoints from which a run can be resumed and compared, by global step. The last one is its end.

    A checkpoint inside a window of the log is left out: the first mean that a resumed run logs is over the steps that it
    made itself (RES-09).
    """
    logged = whole.losses
    # Releases before 4.50 may write the last one twice (CKPT-12).
    saved = list(dict.fromkeys(checkpoint.step for checkpoint in whole.checkpoints))
    return [saved_at for saved_at in saved[:-1] if saved_at in logged or not any(step > saved_at for step in logged)]


def _base_differences(seen: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    return [
        f"{name}, which is not trained, is another than in the uninterrupted run"
        for name in sorted({*seen, *expected})
        if seen.get(name) != expected.get(name)
    ][:1]


def restored(resumed: Trace, whole: Trace, after: int, count: int) -> Verdict:
    """Check that before its first step a resumed run has every adapter tensor of the checkpoint, bit for bit.

    - after: the checkpoint's global step.
    - count: how many adapter tensors there must be, in the checkpoint and in the model.
    """
    expected = f"{count} of {count} adapter tensors are restored before the first step"
    if whole.error is not None:
        return _not_comparable(expected, whole)
    saved = whole.checkpoint(after)
    findings = incomplete(resumed)
    if len(saved.adapter) != count:
        findings.append(f"checkpoint-{saved.step} holds {len(saved.adapter)} adapter tensors, expected {count}")
    if len(resumed.adapter_resumed) != count:
        findings.append(f"{len(resumed.adapter_resumed)} adapter tensors are trained on, expected {count}")
    tensors = under_trained_names(whole, saved.adapter)
    wrong = differences(resumed.adapter_resumed, tensors, 0.0, f"after loading checkpoint-{saved.step}:")
    return verdict(
        expected,
        findings + wrong,
        saved=len(saved.adapter),
        restored=len(resumed.adapter_resumed) - len(wrong),
    )


def _not_comparable(expected: str, whole: Trace) -> Verdict:
    return Verdict(NOT_COMPARABLE, expected, (f"the uninterrupted run ended with {whole.error}",))


# ---- what is reported ----

#: Parts of the names of log entries that are timings.
_TIMING = ("runtime", "per_second")


def same_log(resumed: Trace, whole: Trace) -> Verdict:
    """Check that log_history equals the uninterrupted run's, entry for entry.

    Timings, and the entry with train_loss that ends each call of train(), are ignored.
    """
    findings = incomplete(resumed)
    ours, theirs = _log(resumed), _log(whole)
    for index in range(max(len(ours), len(theirs))):
        seen = ours[index] if index < len(ours) else None
        expected = theirs[index] if index < len(theirs) else None
        if spelled(seen) != spelled(expected):
            findings.append(f"log_history[{index}] is {seen}, expected {expected}")
            break
    findings += not_finite("each logged loss", *(entry["loss"] for entry in (*ours, *theirs) if "loss" in entry))
    return verdict("log_history is that of the uninterrupted run", findings, entries=len(ours))


def _log(trace: Trace) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in entry.items() if not any(part in name for part in _TIMING)}
        for entry in trace.log_history
        if "train_loss" not in entry
    ]


def same_state(resumed: Trace, whole: Trace) -> Verdict:
    """Check that the last checkpoint's trainer_state.json equals the uninterrupted run's.

    It has counters, totals, the best metric and the callbacks' states.
    """
    findings = incomplete(resumed)
    if not (resumed.checkpoints and whole.checkpoints):
        findings.append("a run saved no checkpoint to compare")
    else:
        seen, expected = (trace.checkpoints[-1].state for trace in (resumed, whole))
        # The log is judged by `same_log`. The best checkpoint's path differs, since each run has a directory of its own.
        names = {*seen, *expected} - {"log_history", "best_model_checkpoint"}
        findings += [
            f"trainer_state.json, {name}: {seen.get(name)!r}, expected {expected.get(name)!r}"
            for name in sorted(names)
            if spelled(seen.get(name)) != spelled(expected.get(name))
        ]
        if seen.get("best_metric") is not None:
            findings += not_finite("best_metric", seen["best_metric"], expected.get("best_metric"))
    return verdict("trainer_state.json is that of the uninterrupted run", findings)


def loss_of_this_call(resumed: Trace) -> Verdict:
    """Check that training_loss and train_steps_per_second cover only the steps of this call of train().

    Each step must have one micro-batch, so that a step adds to the loss what its forward pass returned.
    """
    findings = incomplete(resumed)
    made = len(resumed.steps)
    # As transformers/trainer.py:Trainer._maybe_log_save_evaluate does: losses are summed on the device in float32. At each
    # log the sum is added to a Python float.
    expected, window = 0.0, []
    for step in resumed.steps:
        window += [batch.loss for batch in step.batches]
        if step.number in resumed.losses:
            expected, window = expected + _device_sum(window), []
    expected = (expected + _device_sum(window)) / max(1, made)
    loss = resumed.output.get("training_loss")
    if unjudged := not_finite("training_loss", loss, expected):
        findings += unjudged
    elif not findings and loss != expected:
        findings.append(f"training_loss is {loss!r}, expected {expected!r}, the mean of these {made} steps")
    metrics = resumed.output.get("metrics", {})
    rate, runtime = metrics.get("train_steps_per_second", 0.0), metrics.get("train_runtime", 0.0)
    # Both are rounded, to three and four decimals. That changes the product by far less than half a step.
    if round(rate * runtime) != made:
        findings.append(f"train_steps_per_second {rate} in {runtime} s is {rate * runtime:.1f} steps, expected {made}")
    return verdict("training_loss and throughput are those of the steps of this call", findings)


def first_logged(resumed: Trace, after: int, digits: int | None = None) -> Verdict:
    """Check that the first loss logged after resuming is the mean over the steps made since, not over the whole window.

    - after: the step that the run was resumed from.
    - digits: how many decimals logged losses are rounded to; None if they are not rounded.
    """
    findings = incomplete(resumed)
    logged = min((step for step in resumed.losses if step > after), default=None)
    if logged is None:
        findings.append(f"no loss was logged after step {after}")
    else:
        since = [step for step in resumed.steps if after < step.number <= logged]
        expected = _device_sum([batch.loss for step in since for batch in step.batches]) / max(1, len(since))
        expected = expected if digits is None else round(expected, digits)
        if unjudged := not_finite(f"step {logged}: the logged loss", resumed.losses[logged], expected):
            findings += unjudged
        elif resumed.losses[logged] != expected:
            findings.append(
                f"step {logged}: logged loss {resumed.losses[logged]!r}, expected {expected!r}, "
                f"the mean of the {len(since)} steps since"
            )
    return verdict("the first loss logged after resuming covers the steps since", findings)


def _device_sum(losses: Iterable[float | None]) -> float:
    """Return the sum of the losses, added one by one in float32 as the device does."""
    total = torch.zeros((), dtype=torch.float32)
    for loss in losses:
        total = total + torch.tensor(float("nan") if loss is None else loss, dtype=torch.float32)
    return total.item()


def stays_finished(resumed: Trace, whole: Trace) -> Verdict:
    """Check that resuming a finished run makes no step, keeps the step count and the adapter, and reports a loss of 0."""
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


# ---- what was told to end ----


def one_checkpoint(directory: Path, done: int, ended: int, given_back: bool) -> Verdict:
    """Check that a run that SIGTERM ended saved one whole checkpoint, and gave SIGTERM its handler back.

    - directory: its output_dir.
    - done: how many steps were done when the signal came.
    - ended: how many were done when train() returned.
    - given_back: whether the handler is the one before.
    """
    saved = sorted(path.name for path in directory.glob("checkpoint-*"))
    allowed = [f"checkpoint-{step}" for step in (done, done + 1)]
    findings = [] if len(saved) == 1 and saved[0] in allowed else [f"it saved {saved}, expected one of {allowed}"]
    findings += [f"{path.name} is left in it" for path in directory.glob("checkpoint-*/checkpoint-is-incomplete*")]
    if ended > done + 1:
        findings.append(f"it ended after step {ended}; SIGTERM came after step {done}")
    findings += [] if given_back else ["SIGTERM's handler is not the one before train()"]
    return verdict("SIGTERM ends the run within a step, with one whole checkpoint", findings)


def goes_on(resumed: Trace, whole: Trace, directory: Path) -> Verdict:
    """Check that a run which resumes from the only checkpoint of a directory is the one that was not stopped, log and all."""
    after = min(int(path.name.rpartition("-")[2]) for path in directory.glob("checkpoint-*"))
    return both(continues(resumed, whole, after), same_log(resumed, whole))


# ---- what cannot be resumed ----


def refused(trace: Trace, *kinds: str, words: str | Sequence[str]) -> Verdict:
    """Check that the run ended with an error of what was asked for, before its first step. Any other error is a fault.

    - kinds: types of the error; none for any type.
    - words: words that the error must contain; one of them, if there are several.
    """
    any_of = (words,) if isinstance(words, str) else tuple(words)
    said = " or ".join(map(repr, any_of))
    expected = f"{' or '.join(kinds) or 'an error'} before the first step, saying {said}"
    findings = []
    if trace.error is None:
        findings.append(f"no error: it trained steps {_span(trace)}")
    elif trace.steps:
        findings.append(f"the error came after steps {_span(trace)}: {trace.error}")
    elif (kinds and not trace.error.startswith(tuple(f"{kind}:" for kind in kinds))) or not any(
        word in trace.error for word in any_of
    ):
        findings.append(f"the run ended with {trace.error}")
    return verdict(expected, findings)


def loud(trace: Trace, what: str, words: Iterable[str]) -> Verdict:
    """Check that a faulty checkpoint leads to an error before the first step, or to a warning.

    - what: the fault, for the findings.
    - words: the error or the warning must contain one of them, in upper or lower case.
    """

    def says(text: str) -> bool:
        return any(word.lower() in text.lower() for word in words)

    given = [warning for warning in trace.warnings if says(warning)]
    findings = []
    if trace.error is None and not given:
        findings.append(f"neither an error nor a warning: with {what} it trained steps {_span(trace)}")
    elif trace.error is not None and trace.steps:
        findings.append(f"the error came after steps {_span(trace)}: {trace.error}")
    elif trace.error is not None and not says(trace.error):
        findings.append(f"the run ended with {trace.error}")
    return verdict(f"{what} is an error or a warning", findings)


def warns_of_change(trace: Trace, argument: str, here: Any, there: Any) -> Verdict:
    """Check that a warning names a changed argument and both of its values.

    - here: its value in the resumed run.
    - there: its value in the checkpoint.
    """
    findings = incomplete(trace)
    if not any(all(str(word) in warning for word in (argument, here, there)) for warning in trace.warnings):
        findings.append(f"no warning names {argument}, {here} here and {there} in the checkpoint")
    return verdict(f"a changed {argument} is warned of", findings)


def falls_back(resumed: Trace, whole: Trace, torn: int, complete: int, missing: Iterable[str]) -> Verdict:
    """Check that if the newest checkpoint is torn, the run resumes from the older, complete one, or ends with an error.

    The error must name the torn checkpoint and one of its missing files.

    - torn: step of the torn checkpoint.
    - complete: step of the complete one.
    - missing: files of the torn one that are missing or not whole.
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
        return verdict(expected, [f"it resumed at step {start}, with neither an error nor a warning"])
    return both(verdict(expected, []), equal_runs(resumed, whole, after=complete))


def _span(trace: Trace) -> str:
    return f"{trace.steps[0].number} to {trace.steps[-1].number}" if trace.steps else "none"
