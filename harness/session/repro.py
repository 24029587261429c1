"""`peft-harness repro FILE`: train a spec, or repeat a drawn life, and judge it by every law that applies to any run.

1. `judge_spec` reads the file, and refuses what it may not name (`harness.trust`).
2. The run is trained. If it ends before its first step is done, the spec cannot be trained, and nothing is judged.
3. Each law is applied. A law that raises an error has judged nothing: that is a fault of the harness, not of the run.
4. Verdicts are printed as they come, and laws that do not apply with the reason. `Tally.code` is the exit code.
"""

from __future__ import annotations

import inspect
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import subjects, trust
from harness.environment import check_device
from harness.errors import UsageError
from harness.laws.several import whole_run
from harness.laws.universal import LAWS_OF_SEVERAL_RUNS, laws_for, left_out, why_not_judged
from harness.processes import ranks
from harness.processes.imports import import_upstream
from harness.progress import screen
from harness.runs.cache import Runs
from harness.runs.lifecycle import VERBS, Judged, Life, describe
from harness.session import case_file
from harness.session.case_file import CaseFile
from harness.spec import RunSpec
from harness.subjects import from_file
from harness.subjects.hf_trainer import HFTrainer
from harness.trace import Trace
from harness.verdict import FAIL, NOT_COMPARABLE, PASS, Unjudged, Verdict

#: How the error of a run begins if one of its processes, and not upstream, was at fault (`harness.processes.ranks`).
_DIED = re.compile(r"rank \d+ of \d+ (was killed|ended with)|the \d+ ranks had not ended")


@dataclass
class Tally:
    """How many laws hold and fail, and how many of those that apply to the run have judged nothing."""

    hold: int = 0
    fail: int = 0
    undecided: int = 0

    def add(self, verdict: Verdict) -> None:
        """Count a verdict. A law that does not apply to the spec is not counted."""
        if verdict.outcome == PASS:
            self.hold += 1
        elif verdict.outcome == FAIL:
            self.fail += 1
        elif verdict.outcome != NOT_COMPARABLE or any(isinstance(sentence, Unjudged) for sentence in verdict.seen):
            self.undecided += 1

    @property
    def code(self) -> int:
        """The exit code: 1 if a law fails, 3 if one that applies judged nothing, or if none judged anything; else 0."""
        return 1 if self.fail else 3 if self.undecided or not self.hold else 0


def judge_spec(
    file: Path | CaseFile, subject_name: str | None = None, device: str | None = None, trusted: bool = False
) -> int:
    """Print the run, or the actions of the life, and each verdict. Return the exit code (`Tally.code`).

    - file: a RunSpec as JSON, or the case file of a drawn run or life; its path, or what was read from it.
    - subject_name: who trains, as for --subject; None for the one that the file names, or else hf-trainer.
    - device: cpu or cuda; None for the one that the spec names.
    - trusted: whether code that the file names may run (--trust-code).

    Raises UsageError if the file is no RunSpec, if it names what it may not name, or if such a spec cannot be trained.
    """
    case = file if isinstance(file, CaseFile) else case_file.load(file)
    spec, name = case.spec, subject_name or case.subject or "hf-trainer"
    if spec is None:
        raise UsageError(f"{case.where}: has no spec")
    trust.check_case(case.subject if subject_name is None else None, case.preload, case.where, trusted)
    spec, notes = from_file.as_run(spec, case.where)
    trust.check(spec, case.where, trusted)
    for note in notes:
        screen().print(Text(f"{case.where}: {note}"))
    if device is not None:
        spec = spec.on_device(device)
    check_device(spec.launch.device)
    import_upstream(list(case.preload), threads=spec.launch.threads)
    ranks.settings.preloads = case.preload
    subject = subjects.load(name)
    reason = subjects.unsupported(subject, spec)
    if reason is not None:
        raise UsageError(f"{case.where}: subject {subject.name} does not train such a spec ({reason})")
    console, tally = screen(), Tally()
    with tempfile.TemporaryDirectory() as directory:
        runs = Runs(subject, Path(directory), spec.launch.device)
        judged = _train(case, spec, runs, console) if case.life is None else _repeat_life(case, spec, runs, console)
        for clause, verdict in judged:
            tally.add(verdict)
            _print(console, clause, verdict)
    undecided = f", {tally.undecided} could not be judged" if tally.undecided else ""
    console.print(Text(f"{tally.hold} hold, {tally.fail} fail{undecided}"))
    return tally.code


def _train(case: CaseFile, spec: RunSpec, runs: Runs, console: Console) -> Iterator[Judged]:
    trace = _trained(case, spec, runs, console)
    steps = Table("step", "loss", "grad_norm", "learning rate", "rows", box=None, pad_edge=False)
    for step in trace.steps:
        loss, norm = trace.losses.get(step.number), trace.grad_norms.get(step.number)
        rate = ", ".join(f"{rate:.3g}" for rate in step.learning_rates[:1])
        steps.add_row(str(step.number), f"{loss}", f"{norm}", rate, str([batch.rows for batch in step.batches]))
    console.print(steps)
    console.print(Text(f"spec {spec.hash}, subject {runs.subject.name}: {trace.error or 'completed'}"))
    together = whole_run(trace) if spec.launch.several else trace
    for clause, reason in left_out(together).items():
        yield clause, _not_judged(reason)
    for clause, law in laws_for(together).items():
        reason_of_ranks = why_not_judged(clause, spec)
        yield clause, _not_judged(reason_of_ranks) if reason_of_ranks else _judged(law, together)
    several = "it compares runs of one process" if spec.launch.several else "it compares runs that resume nothing"
    for clause, compare in LAWS_OF_SEVERAL_RUNS.items():
        if spec.resume is None and not spec.launch.several:
            yield clause, _judged(compare, runs.train, spec)
        else:
            yield clause, _not_judged(several)


def _trained(case: CaseFile, spec: RunSpec, runs: Runs, console: Console) -> Trace:
    """Return the run's trace. Raises UsageError if the spec cannot be trained.

    The file of a case that failed (it names a clause) was trained by the suites. How its run ends is judged.
    """
    who = "upstream" if isinstance(runs.subject, HFTrainer) else f"subject {runs.subject.name}"
    try:
        trace = runs.train(spec)
    except (Exception, SystemExit) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{case.where}: {who} cannot train it ({_cause(error)})") from None
    if trace.error is not None:
        first, *rest = trace.error.splitlines() or ["an error without words"]
        if _DIED.match(first):
            console.print(Text("\n".join(rest)))
            raise UsageError(f"{case.where}: could not be trained: {first}")
        if not _made_a_step(trace) and case.clause is None:
            raise UsageError(f"{case.where}: {who} refuses it: {first}")
    return trace


def _made_a_step(trace: Trace) -> bool:
    """Return whether an optimizer step came to its end. A subject of the user's may record steps and no events."""
    return "step_end" in trace.events or ("step_begin" not in trace.events and bool(trace.steps))


def _repeat_life(case: CaseFile, spec: RunSpec, runs: Runs, console: Console) -> Iterator[Judged]:
    subject = runs.subject
    if not isinstance(subject, HFTrainer):
        raise UsageError(
            f"{case.where}: has a life, which only a transformers.Trainer can repeat, not subject {subject.name}"
        )
    for act in case.life or ():
        arguments = {name: value for name, value in act.items() if name != "do"}
        try:
            inspect.signature(VERBS[act["do"]][0]).bind(None, **arguments)
        except TypeError as error:
            raise UsageError(f"{case.where}, life: {describe(act)} cannot be done ({error})") from None
    try:
        model = Life(subject, spec, runs.directory("life"))
    except Exception as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{case.where}: upstream refuses it: {_cause(error)}") from None
    for act in case.life or ():
        console.print(Text(describe(act)))
        try:
            yield from model.do(act["do"], **{name: value for name, value in act.items() if name != "do"})
        except Exception as error:
            if isinstance(error, UsageError):
                raise
            yield VERBS[act["do"]][1], _broken(error)
            return


def _judged(law: Callable[..., Verdict], *arguments: object) -> Verdict:
    """Return what a law decides. If it raises an error, it has judged nothing."""
    try:
        return law(*arguments)
    except UsageError as error:
        return _not_judged(Unjudged(f"a run to compare with cannot be trained: {error}"))
    except Exception as error:
        return _broken(error)


def _broken(error: Exception) -> Verdict:
    return _not_judged(
        Unjudged(f"the law failed with {_cause(error)}; this is a fault of peft-harness: please report it")
    )


def _not_judged(reason: str) -> Verdict:
    return Verdict(NOT_COMPARABLE, "the law applies to the run", (reason,))


def _cause(error: BaseException) -> str:
    """Return an exception in one line, with the place that raised it."""
    words = next(iter(str(error).strip().splitlines()), "")
    frames = traceback.extract_tb(error.__traceback__)
    place = f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{f': {words}' if words else ''}{place}"


def _print(console: Console, clause: str, verdict: Verdict) -> None:
    if verdict.outcome == NOT_COMPARABLE:
        console.print(Text(f"{clause} not judged: {'; '.join(verdict.seen)}"))
        return
    console.print(Text(f"{clause} {verdict.outcome}: {verdict.expected}"))
    for sentence in verdict.seen:
        console.print(Text(f"    {sentence}"))
