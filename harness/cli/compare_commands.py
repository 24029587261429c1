"""Commands that compare stacks: gate, bisect, history."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.cache_use import use_cache
from harness.cli.options import (
    REQUIREMENTS,
    Build,
    Clauses,
    Device,
    Env,
    Html,
    Json,
    On,
    Places,
    Preload,
    ScopeFile,
    Specs,
    Subject,
    TrustCode,
    Unpatched,
    clause_ids,
    require_engine,
    scope,
)
from harness.cli.outputs import file_option
from harness.cli.report_commands import Annotate, CodeQuality, JUnit, Sarif, written_by
from harness.errors import UsageError
from harness.files import check_writable_directory


def gate(
    baseline: Annotated[str, typer.Option(metavar="REQS", help=f"The stack in use: {REQUIREMENTS}")],
    candidate: Annotated[str, typer.Option(metavar="REQS", help="The stack to move to, given in the same way.")],
    subject: Subject = "hf-trainer",
    device: Device = "cpu",
    clause: Clauses = None,
    spec: Specs = None,
    scope_file: ScopeFile = None,
    trust_code: TrustCode = False,
    preload: Preload = None,
    unpatched: Unpatched = False,
    candidate_preload: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Import this module before upstream in the candidate only. Repeatable."),
    ] = None,
    json: Json = None,
    markdown: Annotated[Path | None, file_option("Write a summary for a pull request as Markdown.")] = None,
    html: Html = None,
    sarif: Sarif = None,
    junit: JUnit = None,
    code_quality: CodeQuality = None,
    annotate: Annotate = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Judge all of the baseline again, whatever earlier gates have cached.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Judge on the baseline only the cases that fail on the candidate.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Print all causes and findings, not only what fits on one screen.")
    ] = False,
    env: Env = None,
    build: Build = None,
) -> None:
    """Compare two stacks: is the upgrade safe?

    Compares clauses, numbers, checkpoints, throughput and memory; with --spec the clauses, numbers and checkpoints of your
    run. Exit codes: 0 safe, 1 unsafe, 2 could not run,
    3 inconclusive. If a gate was interrupted, the same command continues it.
    """
    results = Path(".peft-harness").absolute()
    check_writable_directory("the gate's results in", results, "change to a directory that you can write to")
    use_cache()
    judged = scope(subject, device, clause, preload, env, build, spec, trust_code, file=scope_file)
    from harness.gate import command

    others = written_by({"html": html, "sarif": sarif, "junit": junit, "code_quality": code_quality})
    preloads = tuple(candidate_preload or ())
    raise typer.Exit(
        command.gate(baseline, candidate, judged, json, markdown, preloads, anew, quick, full, others, annotate)
    )


def bisect(
    good: Annotated[str, typer.Option(metavar="REQS", help=f"A stack on which it holds: {REQUIREMENTS}")],
    bad: Annotated[str, typer.Option(metavar="REQS", help="A stack on which it fails, given in the same way.")],
    clause: Annotated[
        str | None, typer.Option(metavar="ID", help="The clause that broke.", autocompletion=clause_ids)
    ] = None,
    spec: Specs = None,
    scope_file: ScopeFile = None,
    trust_code: TrustCode = False,
    subject: Subject = "hf-trainer",
    device: Device = "cpu",
    preload: Preload = None,
    unpatched: Unpatched = False,
    on: On = None,
    workers: Places = None,
    json: Json = None,
    env: Env = None,
    build: Build = None,
) -> None:
    """Find the release that broke a clause, or your run (--spec).

    Exit codes: 0 found, 2 could not run, 3 only a range of releases was found.
    """
    from harness.gate import command

    judged = scope(subject, device, None, preload, env, build, spec, trust_code, file=scope_file)
    if clause is None and not judged.specs:
        raise UsageError("name what broke: --clause ID, or --spec FILE")
    require_engine(on, workers)
    use_cache()
    raise typer.Exit(command.bisect(clause, good, bad, judged, json, on, workers))


def where(
    a: Annotated[str, typer.Argument(metavar="A", help="One side: words that name what it is; see below.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other side, in the same way.")],
    spec: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What sides train that name no spec; the default run otherwise.")
    ] = None,
    trust_code: TrustCode = False,
    subject: Subject = "hf-trainer",
    device: Device = "cpu",
    preload: Preload = None,
    b_preload: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Import this module before upstream in B only. Repeatable."),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Runs part at the first bit that differs, not beyond rounding.")
    ] = False,
    steps: Annotated[
        int, typer.Option(metavar="N", min=0, help="Record modules in the first N optimizer steps only; 0: in all.")
    ] = 0,
    json: Json = None,
    env: Env = None,
    build: Build = None,
) -> None:
    """Find the first module and operation at which two runs part.

    A and B are each one or more words in quotes: a RunSpec (FILE.json), a subject, cpu or cuda, a launch (ddp:2), a setting
    (lora.r=4), or a stack ('transformers==5.1.0', a requirements file). Exit codes: 0 equal, but for rounding, 1 they part,
    2 could not run.
    """
    from harness.spec import RunSpec
    from harness.where import command, sides

    judged = scope(subject, device, env=env, build=build)
    plain = RunSpec()
    said: list[str] = []
    if spec is not None:
        from harness.session import specs

        plain, said = specs.load(spec, trust_code)
    shared = tuple(preload or ())
    one = sides.read(a, "A", plain, subject, device, trust_code, shared)
    other = sides.read(b, "B", plain, subject, device, trust_code, (*shared, *(b_preload or ())))
    for sentence in said:
        print(sentence, file=sys.stderr)
    if one.stack or other.stack:
        use_cache()
        from harness.gate import where as in_stacks

        raise typer.Exit(in_stacks.where(one, other, exact, steps, json, judged))
    make = lambda side, directory: command.in_forks(side, directory, steps)  # noqa: E731
    raise typer.Exit(command.where(one, other, exact, json, make))


def history(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Faults such as H3; all of them if none is given.")
    ] = None,
    env: Env = None,
) -> None:
    """Check that the clauses catch faults of past releases.

    For each fault, its clause must fail on the release that had it and hold on another. Exit codes: 0 all are caught,
    1 one is not, 2 could not run.
    """
    from harness.gate import command

    use_cache()
    raise typer.Exit(command.history(ids or [], scope(env=env)))
