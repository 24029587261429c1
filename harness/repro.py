"""`peft-harness repro SPEC` for a bare run spec: train it, and judge the trace by every universal law."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness import subjects
from harness.errors import UsageError
from harness.laws.several import as_one, silent
from harness.laws.universal import laws_for
from harness.runs import Runs
from harness.spec import RunSpec
from harness.verdict import FAIL
from harness.warm import warm


def judge_spec(file: Path, subject_name: str, device: str | None) -> int:
    """Print the run and the verdict of each law. Returns 0 where all hold, 1 otherwise.

    UsageError where the file is no run spec or the subject does not train such a spec.
    """
    spec = RunSpec.load(file)
    if device is not None:
        spec = dataclasses.replace(spec, launch=dataclasses.replace(spec.launch, device=device))
    warm(threads=spec.launch.threads)
    subject = subjects.load(subject_name)
    reason = subject.unsupported(spec)
    if reason is not None:
        raise UsageError(f"{file}: subject {subject.name} does not train such a spec ({reason})")
    with tempfile.TemporaryDirectory() as directory:
        trace = Runs(subject, Path(directory), spec.launch.device).train(spec)
        console = Console()
        steps = Table("step", "loss", "grad_norm", "learning rate", "rows", box=None)
        for step in trace.steps:
            loss, norm = trace.losses.get(step.number), trace.grad_norms.get(step.number)
            rows = [batch.rows for batch in step.batches]
            steps.add_row(str(step.number), f"{loss}", f"{norm}", f"{step.learning_rates[0]:.3g}", str(rows))
        console.print(steps)
        console.print(f"spec {spec.hash}, subject {subject.name}: {trace.error or 'completed'}")
        holds = trace.error is None
        together = as_one(trace) if spec.launch.several else trace
        for clause, law in laws_for(together).items():
            if reason := silent(clause, spec):
                console.print(f"{clause} not judged: {reason}", highlight=False)
                continue
            verdict = law(together)
            holds &= verdict.outcome != FAIL
            console.print(f"{clause} {verdict.outcome}: {verdict.expected}", highlight=False)
            for sentence in verdict.seen:
                console.print(f"    {sentence}", highlight=False)
    return 0 if holds else 1
