"""`peft-harness repro SPEC`: train a RunSpec, or repeat a drawn life, and judge it by every law that applies to any run."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import subjects
from harness.environment import check_device
from harness.errors import UsageError
from harness.laws.several import whole_run
from harness.laws.universal import LAWS_OF_SEVERAL_RUNS, laws_for, why_not_judged
from harness.processes.imports import import_upstream
from harness.progress import screen
from harness.runs.cache import Runs
from harness.runs.lifecycle import VERBS, Judged, Life, describe
from harness.spec import RunSpec, read_json
from harness.subjects.hf_trainer import HFTrainer
from harness.verdict import FAIL, NOT_COMPARABLE, Verdict


def judge_spec(file: Path, subject_name: str, device: str | None) -> int:
    """Print the run, or the actions of the life, and each verdict. Return 0 if all hold, otherwise 1.

    - file: a RunSpec as JSON, or the case file of a drawn run or life.
    - subject_name: who trains, as for --subject.
    - device: cpu or cuda; None for the one that the spec names.

    Raises UsageError if the file is no RunSpec, or if the subject does not train such a spec.
    """
    spec = RunSpec.load(file)
    if device is not None:
        spec = spec.on_device(device)
    check_device(spec.launch.device)
    import_upstream(threads=spec.launch.threads)
    subject = subjects.load(subject_name)
    reason = subject.unsupported(spec)
    if reason is not None:
        raise UsageError(f"{file}: subject {subject.name} does not train such a spec ({reason})")
    body, console, holds = read_json(file), screen(), True
    with tempfile.TemporaryDirectory() as directory:
        runs = Runs(subject, Path(directory), spec.launch.device)
        life = body.get("life")
        for clause, verdict in _repeat_life(file, spec, life, runs, console) if life else _train(spec, runs, console):
            holds &= verdict.outcome != FAIL
            _print(console, clause, verdict)
    return 0 if holds else 1


def _train(spec: RunSpec, runs: Runs, console: Console) -> Iterator[Judged]:
    trace = runs.train(spec)
    steps = Table("step", "loss", "grad_norm", "learning rate", "rows", box=None, pad_edge=False)
    for step in trace.steps:
        loss, norm = trace.losses.get(step.number), trace.grad_norms.get(step.number)
        rows = [batch.rows for batch in step.batches]
        steps.add_row(str(step.number), f"{loss}", f"{norm}", f"{step.learning_rates[0]:.3g}", str(rows))
    console.print(steps)
    console.print(Text(f"spec {spec.hash}, subject {runs.subject.name}: {trace.error or 'completed'}"))
    together = whole_run(trace) if spec.launch.several else trace
    for clause, law in laws_for(together).items():
        if reason := why_not_judged(clause, spec):
            console.print(Text(f"{clause} not judged: {reason}"))
        else:
            yield clause, law(together)
    if spec.resume is None and not spec.launch.several:
        for clause, compare in LAWS_OF_SEVERAL_RUNS.items():
            yield clause, compare(runs.train, spec)


def _repeat_life(file: Path, spec: RunSpec, life: Any, runs: Runs, console: Console) -> Iterator[Judged]:
    if not isinstance(runs.subject, HFTrainer):
        raise UsageError(
            f"{file}: has a life, which only a transformers.Trainer can repeat, not subject {runs.subject.name}"
        )
    if not (isinstance(life, list) and all(isinstance(act, dict) and act.get("do") in VERBS for act in life)):
        raise UsageError(f'{file}, life: expected a list of objects with "do", one of {", ".join(VERBS)}')
    model = Life(runs.subject, spec, runs.directory("life"))
    for act in life:
        arguments = {name: value for name, value in act.items() if name != "do"}
        try:
            inspect.signature(VERBS[act["do"]][0]).bind(model, **arguments)
        except TypeError as error:
            raise UsageError(f"{file}, life: {describe(act)} cannot be done ({error})") from None
        console.print(Text(describe(act)))
        yield from model.do(act["do"], **arguments)


def _print(console: Console, clause: str, verdict: Verdict) -> None:
    if verdict.outcome == NOT_COMPARABLE:
        return
    console.print(Text(f"{clause} {verdict.outcome}: {verdict.expected}"))
    for sentence in verdict.seen:
        console.print(Text(f"    {sentence}"))
