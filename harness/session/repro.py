"""`peft-harness judge` and `peft-harness repro`: train one run, or repeat a drawn life, and say what was judged.

1. `judge_spec` reads the file, and refuses what it may not name (`harness.trust`). `judge_run` is given a spec.
2. The run is trained and judged (`harness.runs.judging`). A life is repeated act by act.
3. The first lines say what came out, and how strong that is. A table has all laws, those not judged with their reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from json import dumps
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import subjects, trust
from harness.contract import expectations
from harness.environment import check_device, describe
from harness.errors import UsageError
from harness.files import require_space, write_whole
from harness.paths import SUITES
from harness.processes import apart, ranks
from harness.processes.imports import import_upstream
from harness.progress import Progress, screen
from harness.runs import cache, judging
from harness.runs.cache import Runs
from harness.runs.judging import Judgement, Refused
from harness.runs.lifecycle import VERBS, Judged, Life
from harness.runs.lifecycle import describe as act_in_words
from harness.session import case_file
from harness.session.case_file import CaseFile
from harness.spec import RunSpec
from harness.subjects import from_file
from harness.subjects.hf_trainer import HFTrainer
from harness.trace import Trace
from harness.verdict import AMBIGUOUS, FAIL, KNOWN_DEFECT, NOT_COMPARABLE, PASS, Verdict
from harness.words import counted

#: Verdict -> what the table calls it, in the order in which laws are shown.
WORDS = {
    FAIL: "fails",
    AMBIGUOUS: "undecided",
    KNOWN_DEFECT: "known defect",
    PASS: "holds",
    NOT_COMPARABLE: "not judged",
}


def judge_spec(
    file: Path | CaseFile,
    subject_name: str | None = None,
    device: str | None = None,
    trusted: bool = False,
    json: Path | None = None,
) -> int:
    """Print the run, or the actions of the life, and each verdict. Return the exit code (`Judgement.code`).

    - file: a RunSpec as JSON, or the case file of a drawn run or life; its path, or what was read from it.
    - subject_name: who trains, as for --subject; None for the one that the file names, or else hf-trainer.
    - device: cpu or cuda; None for the one that the spec names.
    - trusted: whether code that the file names may run (--trust-code).
    - json: where to write the judgement; None: nowhere.

    Raises UsageError if the file is no RunSpec, if it names what it may not name, or if such a spec cannot be trained.
    """
    case = file if isinstance(file, CaseFile) else case_file.load(file)
    if case.spec is None:
        raise UsageError(f"{case.where}: has no spec")
    trust.check_case(case.subject if subject_name is None else None, case.preload, case.where, trusted)
    spec, said = from_file.as_run(case.spec, case.where)
    trust.check(spec, case.where, trusted)
    case = dataclasses.replace(case, spec=spec)
    if case.life is not None:
        if json is not None:
            raise UsageError(f"--json: {case.where} has a life, which is repeated and not reported")
        with _prepared(case, subject_name, device) as (placed, runs):
            return _show_life(case, placed, runs)
    return _judge_case(case, subject_name, device, said, json)


def judge_run(
    spec: RunSpec,
    where: str,
    said: Sequence[str] = (),
    subject_name: str = "hf-trainer",
    preload: tuple[str, ...] = (),
    json: Path | None = None,
) -> int:
    """Judge a run that somebody brought, and print what was found. Return the exit code (`Judgement.code`).

    - spec: what to train; what it names is trusted.
    - where: what messages call it.
    - said: sentences about what was changed and what was not looked at. They are printed before the table.
    - subject_name: who trains, as for --subject.
    - preload: modules to import before upstream is used.
    - json: where to write the judgement; None: nowhere.
    """
    return _judge_case(CaseFile(where, spec, preload=preload), subject_name, None, said, json)


def _judge_case(
    case: CaseFile, subject_name: str | None, device: str | None, said: Sequence[str], json: Path | None
) -> int:
    with _silent(), _prepared(case, subject_name, device) as (placed, runs):
        judged = _judged(placed, runs, case.where, case.clause)
    show(judged, screen(), said)
    if json is not None:
        write_json(json, judged)
    return judged.code


def write_json(path: Path, judged: Judgement) -> None:
    """Write a judgement as session/judge_schema.json describes it."""
    body = judging.to_json(judged, describe(judged.spec.launch.device))
    write_whole(path, dumps(body, indent=1) + "\n")


@contextlib.contextmanager
def _prepared(case: CaseFile, subject_name: str | None, device: str | None) -> Iterator[tuple[RunSpec, Runs]]:
    """Yield the spec on its device, and the runs of the subject that trains it."""
    assert case.spec is not None
    spec = case.spec if device is None else case.spec.on_device(device)
    check_device(spec.launch.device)
    import_upstream(list(case.preload), threads=spec.launch.threads)
    ranks.settings.preloads = case.preload
    subject = subjects.load(subject_name or case.subject or "hf-trainer")
    reason = subjects.unsupported(subject, spec)
    if reason is not None:
        raise UsageError(f"{case.where}: subject {subject.name} does not train such a spec ({reason})")
    with tempfile.TemporaryDirectory() as directory:
        yield spec, Runs(subject, Path(directory), spec.launch.device)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep off the screen what a Trainer prints, and what upstream warns of. The first line is the answer."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _judged(spec: RunSpec, runs: Runs, where: str, clause: str | None) -> Judgement:
    def trained(subject: str, trace: Trace) -> None:
        apart.alive()

    cache.listeners.append(trained)
    try:
        with Progress(what="laws", forks=True) as progress:

            def decided(id: str, verdict: Verdict) -> None:
                apart.alive()
                progress.advance(text=f"{id} {WORDS[verdict.outcome]}")

            known = expectations.load(SUITES / "expectations")
            return judging.judge(spec, runs, known, where, judged=decided, always=clause)
    except Refused as error:
        if error.output:
            screen(sys.stderr).print(Text(error.output))
        raise
    finally:
        cache.listeners.remove(trained)


# ---- what is printed ----


def show(judged: Judgement, console: Console, said: Sequence[str] = ()) -> None:
    """Print a judgement: the answer, what was changed and not judged, all laws, and the run's steps.

    - said: sentences about the input.
    """
    counts = {outcome: len(judged.having(outcome)) for outcome in WORDS}
    answer = {0: "holds", 1: "fails", 3: "undecided"}[judged.code]
    rest = ", ".join(f"{number} {WORDS[outcome]}" for outcome, number in counts.items() if number)
    console.print(Text(f"{answer}: {judged.strength}"))
    console.print(Text(f"{counted(len(judged.laws), 'law')}: {rest}"))
    if judged.code == 3 and not judged.undecided:
        console.print(Text("no run could be compared with another one, so that little was judged"))
    for clause, reason in judged.known.items():
        console.print(Text(f"{clause} is a known fault of upstream that this run has: {reason}"))
    for sentence in said:
        console.print(Text(sentence))
    laws = [(outcome, id, verdict) for outcome in WORDS for id, verdict in judged.having(outcome).items()]
    if judged.code == 0:  # what was not judged is said before what holds
        laws.sort(key=lambda law: law[0] != NOT_COMPARABLE)
    table = Table("clause", "", "what must hold, and what was seen", box=None, pad_edge=False)
    for outcome, id, verdict in laws:
        lines = [verdict.expected, *verdict.seen] if outcome != NOT_COMPARABLE else list(verdict.seen)
        table.add_row(id, WORDS[outcome], Text("\n".join(lines)))
    console.print(table)
    console.print(_steps(judged.trace))
    end = judged.trace.error or "completed"
    console.print(Text(f"spec {judged.spec.hash}, subject {judged.subject}: {end}"))


def _steps(trace: Trace) -> Table:
    steps = Table("step", "loss", "grad_norm", "learning rate", "rows", box=None, pad_edge=False)
    for step in trace.steps:
        loss, norm = trace.losses.get(step.number), trace.grad_norms.get(step.number)
        rate = ", ".join(f"{rate:.3g}" for rate in step.learning_rates[:1])
        steps.add_row(str(step.number), f"{loss}", f"{norm}", rate, str([batch.rows for batch in step.batches]))
    return steps


# ---- lives ----


def _show_life(case: CaseFile, spec: RunSpec, runs: Runs) -> int:
    console, outcomes = screen(), []
    for clause, verdict in _repeat_life(case, spec, runs, console):
        outcomes.append(verdict.outcome)
        console.print(Text(f"{clause} {WORDS[verdict.outcome]}: {verdict.expected}"))
        for sentence in verdict.seen:
            console.print(Text(f"    {sentence}"))
    rest = ", ".join(f"{outcomes.count(outcome)} {WORDS[outcome]}" for outcome in WORDS if outcome in outcomes)
    console.print(Text(rest or "nothing was judged"))
    return 1 if FAIL in outcomes else 0 if set(outcomes) == {PASS} else 3


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
            raise UsageError(f"{case.where}, life: {act_in_words(act)} cannot be done ({error})") from None
    try:
        model = Life(subject, spec, runs.directory("life"))
    except Exception as error:
        if isinstance(error, UsageError):
            raise
        require_space(error)
        raise UsageError(f"{case.where}: upstream refuses it: {judging.cause(error)}") from None
    for act in case.life or ():
        console.print(Text(act_in_words(act)))
        try:
            yield from model.do(act["do"], **{name: value for name, value in act.items() if name != "do"})
        except Exception as error:
            if isinstance(error, UsageError):
                raise
            require_space(error)
            yield VERBS[act["do"]][1], judging.broken(error)
            return
