"""Hyperparameter searches: what each trial trains, its objective, what is reported, and the best run.

In all laws `seen` is the search as it was observed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.laws.checkpoint import adapter_only
from harness.laws.equal import equal_runs
from harness.spec import RunSpec
from harness.subjects.hyperparameter_search import Search, Trial
from harness.trace import Trace
from harness.verdict import NOT_COMPARABLE, Unjudged, Verdict, not_finite, spelled, verdict


def as_own_runs(seen: Search, train: Callable[[RunSpec], Trace]) -> Verdict:
    """Check that each trial trains as a separate run with the suggested values does, bit for bit.

    - train: trains the separate run.
    """
    findings = [] if seen.trials else ["there was no trial"]
    for trial in seen.trials:
        own = equal_runs(trial.trace, train(trial.trace.spec))
        kind = Unjudged if own.outcome == NOT_COMPARABLE else str
        findings += [kind(f"{_where(trial)}: {sentence}") for sentence in own.seen]
    return verdict("each trial is a run of its own with the suggested values", findings, trials=len(seen.trials))


def seeded(seen: Search) -> Verdict:
    """Check that torch is seeded with the suggested seed when a trial's training begins."""
    findings = [] if seen.trials else ["there was no trial"]
    for trial in seen.trials:
        if trial.initial_seed != trial.params["seed"]:
            findings.append(
                f"{_where(trial)}: torch.initial_seed() is {trial.initial_seed}, expected {trial.params['seed']}"
            )
    return verdict("each trial begins with the suggested seed", findings, trials=len(seen.trials))


def made_models(seen: Search, ranks: Sequence[int]) -> Verdict:
    """Check that model_init is called once without a trial and once for each trial, and that its models are trained.

    - ranks: the LoRA rank that was suggested to each trial.
    """
    calls = [None, *range(len(ranks))]
    findings = [] if seen.made_for == calls else [f"model_init was called for {seen.made_for}, expected {calls}"]
    for trial, rank in zip(seen.trials, ranks, strict=False):
        found = {shape[0] for name, (_, shape) in trial.trace.parameters.items() if name.endswith("lora_A.weight")}
        if found != {rank}:
            findings.append(f"{_where(trial)}: adapters of rank {sorted(found)}, expected {rank}")
    return verdict("model_init makes the model of each trial", findings, trials=len(seen.trials))


def best_run(seen: Search) -> Verdict:
    """Check that BestRun is the finished trial with the lowest eval_loss.

    It must have the trial's number as a string, its objective, and all of its parameters.
    """
    finished = [trial for trial in seen.trials if trial.state == "COMPLETE" and trial.trace.evaluations]
    if not finished:
        return verdict("the best of the finished trials", ["no trial was finished and evaluated"])
    if unjudged := [s for one in finished for s in not_finite(f"eval_loss of trial {one.number}", _eval_loss(one))]:
        return verdict("the best of the finished trials", unjudged)
    best = min(finished, key=_eval_loss)
    expected = (str(best.number), _eval_loss(best), best.params)
    returned = (seen.best.run_id, seen.best.objective, seen.best.hyperparameters)
    findings = [
        f"{name} is {value!r}, expected {right!r}"
        for name, value, right in zip(("run_id", "objective", "hyperparameters"), returned, expected, strict=True)
        if value != right
    ]
    return verdict("BestRun is the trial with the lowest eval_loss", findings, objectives=_objectives(seen))


def objectives(seen: Search, expected: Callable[[Mapping[str, float]], float]) -> Verdict:
    """Check the objective of each trial.

    - expected: returns the right objective, given the metrics of the trial's last evaluation.
    """
    findings = [] if seen.trials else ["there was no trial"]
    for trial in seen.trials:
        if not trial.trace.evaluations:
            findings.append(f"{_where(trial)}: nothing was evaluated")
            continue
        metrics = trial.trace.evaluations[-1].metrics
        if unjudged := not_finite(f"{_where(trial)}: the objective", trial.value, expected(metrics)):
            findings += unjudged
        elif trial.value != expected(metrics):
            findings.append(
                f"{_where(trial)}: the objective is {_named(trial.value, metrics)}, not {expected(metrics)!r}"
            )
    return verdict("the objective is that of the last evaluation", findings, objectives=_objectives(seen))


def reported(seen: Search) -> Verdict:
    """Check that each evaluation of a trial is reported to the study, with its step and eval_loss."""
    findings = [] if seen.trials else ["there was no trial"]
    for trial in seen.trials:
        expected = {evaluation.step: evaluation.metrics["eval_loss"] for evaluation in trial.trace.evaluations}
        if spelled(trial.reported) != spelled(expected) or not expected:
            findings.append(f"{_where(trial)}: reported {trial.reported}, evaluated {expected}")
        findings += not_finite(f"{_where(trial)}: each eval_loss", *expected.values())
    return verdict("every evaluation is reported to the study", findings, trials=len(seen.trials))


def pruned(seen: Search, number: int, step: int) -> Verdict:
    """Check that one trial is pruned, and that the others finish.

    - number: the pruned trial's.
    - step: its last optimizer step. Its training must end there with a train_end event.
    """
    findings = []
    for trial in seen.trials:
        state = "PRUNED" if trial.number == number else "COMPLETE"
        last = step if trial.number == number else int(trial.trace.spec.arguments["max_steps"])
        made = len(trial.trace.steps)
        if trial.state != state:
            findings.append(f"{_where(trial)}: {trial.state}, expected {state}")
        if made != last:
            findings.append(f"{_where(trial)}: {made} optimizer steps, expected {last}")
        if trial.trace.events[-1:] != ["train_end"] or trial.trace.events.count("train_end") != 1:
            findings.append(f"{_where(trial)}: the last events are {trial.trace.events[-3:]}, expected one train_end")
    return verdict(f"trial {number} ends at step {step} with train_end", findings, trials=len(seen.trials))


def checkpoints(seen: Search, directory: Path, steps: Sequence[int]) -> Verdict:
    """Check that each trial saves to run-<number>/, adapters only, and that trainer_state.json has all suggested values.

    - directory: the search's output directory.
    - steps: the steps at which each trial must save.
    """
    expected = {f"run-{trial.number}/checkpoint-{step}" for trial in seen.trials for step in steps}
    found = {str(path.relative_to(directory)) for path in directory.rglob("checkpoint-*") if path.is_dir()}
    findings = [f"{name} is missing" for name in sorted(expected - found)]
    findings += [f"{name} is there besides" for name in sorted(found - expected)]
    for trial in seen.trials:
        findings += [f"{_where(trial)}: {sentence}" for sentence in adapter_only(trial.trace).seen]
        for name in sorted(found & {f"run-{trial.number}/checkpoint-{step}" for step in steps}):
            state = json.loads((directory / name / "trainer_state.json").read_text())
            if state["trial_params"] != trial.params or not state["is_hyper_param_search"]:
                findings.append(
                    f"{name}/trainer_state.json: trial_params {state['trial_params']}, is_hyper_param_search "
                    f"{state['is_hyper_param_search']}; expected {trial.params}, True"
                )
    return verdict("each trial has checkpoints of its own", findings, checkpoints=len(found))


def _where(trial: Trial) -> str:
    return f"trial {trial.number} ({', '.join(f'{name} {value}' for name, value in trial.params.items())})"


def _named(value: float | None, metrics: Mapping[str, float]) -> str:
    """Return a number as text, with the name of the metric that has this value, if there is one."""
    name = next((f", {name}" for name, metric in metrics.items() if metric == value), "")
    return f"{value!r}{name}"


def _eval_loss(trial: Trial) -> float:
    return trial.trace.evaluations[-1].metrics["eval_loss"]


def _objectives(seen: Search) -> dict[str, Any]:
    return {str(trial.number): trial.value for trial in seen.trials}
