"""Commands that judge one stack, one run or many: check, soak, judge, repro, sweep."""

from __future__ import annotations

import sys
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.cache_use import use_cache
from harness.cli.options import (
    DAY,
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
    devices,
    finite,
    require_engine,
    scope,
    subject_names,
)
from harness.cli.outputs import file_option
from harness.cli.pytest_process import html_words, run_pytest
from harness.errors import UsageError

Limit = Annotated[
    float | None,
    typer.Option(
        metavar="S", min=0, max=DAY, callback=finite, help="End a run that does nothing for S seconds. 0: never. [600]"
    ),
]


def check(
    context: typer.Context,
    subject: Subject = "hf-trainer",
    device: Device = "cpu",
    clause: Clauses = None,
    spec: Specs = None,
    scope_file: ScopeFile = None,
    trust_code: TrustCode = False,
    preload: Preload = None,
    unpatched: Unpatched = False,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="REQUIREMENT",
            help="Judge a new environment with this release, such as peft==0.20.0, or with a requirements file. "
            "Repeatable.",
        ),
    ] = None,
    json: Json = None,
    html: Html = None,
    env: Env = None,
    build: Build = None,
) -> None:
    """Judge the installed stack, or one --with other releases.

    Runs the tests of suites/; with --spec only those that judge your run. Arguments after -- go to pytest.
    """
    if not with_ and (env or build):
        raise UsageError("--env and --build are for stacks that are installed; name one --with")
    # pytest says what is changed in a --spec.
    judged = scope(subject, device, clause, preload, env, build, spec, trust_code, silent=True, file=scope_file)
    from harness.gate import command
    from harness.paths import SUITES

    defects: tuple[Path, ...] = ()
    if scope_file is not None:
        from harness.gate import outside
        from harness.gate import scope_file as files

        said = files.read(scope_file)
        defects, spec = said.known_defects, spec or list(said.specs)
        if sentence := outside.clauses_sentence(judged):
            print(f"peft-harness: {sentence}", file=sys.stderr)
    # Their own files, not the copies that `Scope` has: messages name the files.
    brought = ["--trust-code"] * trust_code + [word for file in spec or [] for word in ("--spec", str(file.absolute()))]
    brought += [word for file in defects for word in ("--known-defects", str(file.absolute()))]
    if with_:
        use_cache()
        raise typer.Exit(command.check(with_, judged, json, html, [*brought, *context.args]))
    rest = [
        *command.workers(judged, context.args),
        *judged.concerns.options(),
        *brought,
        *html_words(html),
        *context.args,
    ]
    clauses = list(judged.clauses)
    raise typer.Exit(run_pytest([str(SUITES)], judged.subject, judged.device, clauses, preload or [], json, rest))


def soak(
    context: typer.Context,
    times: Annotated[int, typer.Option(metavar="N", min=2, max=10_000, help="How many times to run the suites.")] = 20,
    subject: Subject = "hf-trainer",
    device: Device = "cpu",
    clause: Clauses = None,
    preload: Preload = None,
    unpatched: Unpatched = False,
    on: On = None,
    workers: Places = None,
    json: Annotated[Path | None, file_option("Write each run's time and differences as JSON.")] = None,
) -> None:
    """Run the suites many times and compare the verdicts.

    Each run has another hash seed and another order of cases. Arguments after -- go to pytest.
    """
    judged = scope(subject, device, clause, preload)
    require_engine(on, workers)
    from harness.gate.soak import soak

    raise typer.Exit(soak(times, judged, context.args, json, on=on, places=workers))


def judge(
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="The file of a RunSpec. The options change or replace it.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="PATH", help="adapter_config.json, or a directory that has one.")
    ] = None,
    arguments: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TrainingArguments: JSON of to_dict(), YAML, training_args.bin, or the directory of a run.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="DIR|FAMILY", help="The directory of a model, or a family of the suites.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="JSONL", help="Rows to train on.")] = None,
    launch: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="single, ddp, fsdp1, fsdp2, zero2 or zero3, over two processes; or a file of accelerate launch.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="YAML", help="A configuration of TRL, LLaMA-Factory or axolotl.")
    ] = None,
    config_kind: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of --config: trl, llama-factory or axolotl, if its fields do not say it."),
    ] = None,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Train the model, rows and steps as given, and make nothing smaller.")
    ] = False,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Read training_args.bin, a pickle, which can run code.")
    ] = False,
    trust_code: TrustCode = False,
    subject: Subject = "hf-trainer",
    preload: Preload = None,
    limit: Limit = None,
    save_spec: Annotated[
        Path | None, file_option("Write the run as a RunSpec, which check, gate and bisect take with --spec.")
    ] = None,
    json: Json = None,
) -> None:
    """Judge one run: yours.

    The first lines say what came out, and how strong that is. Exit codes: 0 all laws that apply hold, 1 one fails, 2 the
    run cannot be trained, 3 it could not be compared with any other run.
    """
    given: dict[str, Any] = {
        "adapter": adapter,
        "arguments": arguments,
        "model": model,
        "data": data,
        "launch": launch,
        "config": config,
        "config_kind": config_kind,
    }
    if spec is None and not any(value is not None for value in given.values()):
        raise UsageError("name what to judge: a SPEC, or one of --adapter, --arguments, --model, --data, --config")
    from harness import brought
    from harness.processes import apart
    from harness.session.repro import judge_run

    read = brought.read(spec, as_is=as_is, trust_pickle=trust_pickle, trust_code=trust_code, **given)
    said = [*read.sentences, *(f"not looked at: {name} ({why})" for name, why in read.not_looked_at.items())]
    if save_spec is not None:
        from harness.files import write_whole

        write_whole(save_spec, dumps(read.spec.to_json(), indent=1) + "\n")
    patience = limit if limit is not None else 0.0 if as_is else apart.LIMIT

    def work() -> int:
        return judge_run(read.spec, read.where, said, subject, tuple(preload or ()), json)

    raise typer.Exit(apart.judged(work, read.where, patience))


def repro(
    file: Annotated[
        Path, typer.Argument(metavar="CASE|SPEC", help="The case file that a failure names, or the file of a RunSpec.")
    ],
    subject: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another subject than the case file names.", autocompletion=subject_names),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="cpu|cuda", help="Another device than the file names.", autocompletion=devices),
    ] = None,
    trust_code: TrustCode = False,
    limit: Limit = None,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="REQUIREMENT", help="Repeat it in a new environment with this release. Repeatable."
        ),
    ] = None,
    script: Annotated[
        Path | None, file_option("Write a standalone Python file that shows the fault, and run nothing.")
    ] = None,
    issue: Annotated[Path | None, file_option("Run that file, and write the text of a report to upstream.")] = None,
    clause: Annotated[
        str | None, typer.Option(metavar="ID", help="The clause that the file judges, if CASE does not name it.")
    ] = None,
    bisect: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What bisect --json wrote, for the report to upstream.")
    ] = None,
    json: Json = None,
) -> None:
    """Repeat one failed case, or train one RunSpec and judge it. Or make a script for upstream of it.

    A RunSpec is judged as `judge` does it. Exit codes: 0 all laws that apply hold, 1 one fails, 2 it cannot be trained,
    3 one was undecided, or the run could not be compared with any other.
    """
    if script is not None or issue is not None:
        from harness.upstream import command as upstream

        upstream.write(file, script, issue, clause, bisect, trust_code)
        return
    if clause is not None or bisect is not None:
        raise UsageError("--clause and --bisect are for --script and --issue")
    from harness import trust
    from harness.processes import apart
    from harness.session import case_file

    case = case_file.load(file)
    if with_:
        from harness.gate import command

        use_cache()
        words = ["--trust-code"] if trust_code else []
        for option, value in (("--subject", subject), ("--device", device), ("--limit", limit), ("--json", json)):
            words += [] if value is None else [option, str(value)]
        raise typer.Exit(command.repro(with_, file, words))
    if case.test is None:
        from harness.session.repro import judge_spec

        def work() -> int:
            return judge_spec(case, subject, device, trust_code, json)

        raise typer.Exit(apart.judged(work, case.where, apart.LIMIT if limit is None else limit))
    trust.check_case(case.subject if subject is None else None, case.preload, case.where, trust_code)
    chosen = (subject or case.subject or "", device or case.device or "")
    raise typer.Exit(run_pytest([case_file.path_of(case)], *chosen, [], list(case.preload), json, []))


def sweep(
    minutes: Annotated[
        float, typer.Option(metavar="N", min=0.1, max=DAY / 60, callback=finite, help="How long it may take.")
    ] = 30.0,
    seed: Annotated[
        int, typer.Option(metavar="S", min=0, max=2**32 - 1, help="Another seed, other configurations.")
    ] = 0,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=256, help="Configurations judged at a time; as many as there are cores."),
    ] = None,
    directory: Annotated[
        Path, file_option("Write the spec of each cause into this directory.", "directory", "DIR")
    ] = Path(".peft-harness/sweep"),
    on: On = None,
    subject: Subject = "hf-trainer",
    json: Json = None,
    html: Html = None,
) -> None:
    """Judge many configurations: each pair of settings.

    Settings are of training arguments, adapter, model, data and launch.
    What fails is shrunk to the fewest fields, and printed by cause. Exit codes: 0 all laws hold, 1 one fails that no known
    defect explains, 3 a law could not decide, or the time was over before 95 % of the pairs were covered.
    """
    scope(subject)
    from harness.session.sweep import sweep

    raise typer.Exit(sweep(minutes, seed, workers, directory, json, html, subject, on))
