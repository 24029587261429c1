"""The command line `peft-harness`. Imports neither torch nor pytest until a command needs it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import harness
from harness.cli import cache_command
from harness.cli.options import (
    REQUIREMENTS,
    Clauses,
    Device,
    Json,
    Plot,
    Preload,
    Subject,
    Unpatched,
    clause_ids,
    devices,
    scope,
    subject_names,
)
from harness.errors import UsageError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Check that a stack of torch, transformers, peft, accelerate and bitsandbytes trains adapters as the contract "
    "says.\n\nExit codes of every command: 0 all clauses hold, 1 a clause fails, 2 wrong usage or could not run, "
    "3 undecided.",
)
app.add_typer(cache_command.app, name="cache")

#: For commands that pass the arguments after -- on to pytest.
_PASSES_ARGUMENTS = {"allow_extra_args": True}


def _print_versions(asked: bool) -> None:
    if asked:
        from harness.environment import PACKAGES
        from harness.environment import version as installed

        stack = ", ".join(f"{name} {installed(name) or 'not installed'}" for name in PACKAGES)
        print(f"peft-harness {harness.__version__} ({stack})")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_versions, help="Show versions and exit.")
    ] = False,
) -> None:
    pass


# ---- judge a stack ----


@app.command(context_settings=_PASSES_ARGUMENTS)
def check(
    context: typer.Context,
    subject: Subject = "hf-trainer",
    device: Device = "cpu",
    clause: Clauses = None,
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
) -> None:
    """Judge the installed stack, or one --with other releases.

    Runs the tests of suites/. Arguments after -- go to pytest.
    """
    from harness.gate import command
    from harness.paths import SUITES

    judged = scope(subject, device, clause, preload)
    if with_:
        raise typer.Exit(command.check(with_, judged, json, context.args))
    rest = [*command.workers(judged, context.args), *context.args]
    raise typer.Exit(_pytest([str(SUITES)], subject, device, clause or [], preload or [], json, rest))


@app.command(context_settings=_PASSES_ARGUMENTS)
def soak(
    context: typer.Context,
    times: Annotated[int, typer.Option(metavar="N", help="How many times to run the suites.")] = 20,
    subject: Subject = "hf-trainer",
    device: Device = "cpu",
    clause: Clauses = None,
    preload: Preload = None,
    unpatched: Unpatched = False,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write each run's time and differences as JSON.")
    ] = None,
) -> None:
    """Run the suites many times and compare the verdicts.

    Each run has another hash seed and another order of cases. Arguments after -- go to pytest.
    """
    from harness.gate.soak import soak

    judged = scope(subject, device, clause, preload)
    raise typer.Exit(soak(times, judged, context.args, json))


@app.command()
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
) -> None:
    """Repeat one failed case, or train one RunSpec and judge it.

    A RunSpec is judged by every law that applies to any run.
    """
    from harness.spec import read_json

    body = read_json(file)
    if isinstance(body, dict) and "test" in body:
        from harness.paths import SUITES

        test = SUITES / str(body["test"])
        # The case file may be somebody else's, and pytest runs any file: only those of the suites are taken.
        if str(body["test"]).partition("::")[0] not in {path.name for path in SUITES.glob("test_*.py")}:
            raise UsageError(f"{file}: names the test {body['test']!r}, which this release does not have")
        chosen = (subject or body["subject"], device or body["device"])
        raise typer.Exit(_pytest([str(test)], *chosen, [], body["preload"], None, []))
    from harness.session.repro import judge_spec

    raise typer.Exit(judge_spec(file, subject or "hf-trainer", device))


# ---- compare stacks ----


@app.command()
def gate(
    baseline: Annotated[str, typer.Option(metavar="REQS", help=f"The stack in use: {REQUIREMENTS}")],
    candidate: Annotated[str, typer.Option(metavar="REQS", help="The stack to move to, given in the same way.")],
    subject: Subject = "hf-trainer",
    device: Device = "cpu",
    clause: Clauses = None,
    preload: Preload = None,
    unpatched: Unpatched = False,
    candidate_preload: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Import this module before upstream in the candidate only. Repeatable."),
    ] = None,
    json: Json = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a summary for a pull request as Markdown.")
    ] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Judge all of the baseline again, whatever earlier gates have cached.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Judge on the baseline only the cases that fail on the candidate.")
    ] = False,
) -> None:
    """Compare two stacks: is the upgrade safe?

    Compares clauses, numbers, checkpoints, throughput and memory. Exit codes: 0 safe, 1 unsafe, 2 could not run,
    3 inconclusive. If a gate was interrupted, the same command continues it.
    """
    from harness import contract
    from harness.gate import command

    contract.select(clause or [])
    judged = scope(subject, device, clause, preload)
    raise typer.Exit(
        command.gate(baseline, candidate, judged, json, markdown, tuple(candidate_preload or ()), anew, quick)
    )


@app.command()
def bisect(
    clause: Annotated[str, typer.Option(metavar="ID", help="The clause that broke.", autocompletion=clause_ids)],
    good: Annotated[str, typer.Option(metavar="REQS", help=f"A stack on which it holds: {REQUIREMENTS}")],
    bad: Annotated[str, typer.Option(metavar="REQS", help="A stack on which it fails, given in the same way.")],
    subject: Subject = "hf-trainer",
    device: Device = "cpu",
    preload: Preload = None,
    unpatched: Unpatched = False,
    json: Json = None,
) -> None:
    """Find the release that broke a clause.

    Exit codes: 0 found, 2 could not run, 3 only a range of releases was found.
    """
    from harness.gate import command

    raise typer.Exit(command.bisect(clause, good, bad, scope(subject, device, None, preload), json))


@app.command()
def history(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Faults such as H3; all of them if none is given.")
    ] = None,
) -> None:
    """Check that the clauses catch faults of past releases.

    For each fault, its clause must fail on the release that had it and hold on another. Exit codes: 0 all are caught,
    1 one is not, 2 could not run.
    """
    from harness.gate import command

    raise typer.Exit(command.history(ids or [], scope()))


# ---- measure ----


@app.command()
def speed(
    subject: Subject = "hf-trainer",
    device: Device = "cpu",
    shape: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Measure this shape of model and batch. Repeatable.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="S", min=1, help="Time each pair for this many seconds.")
    ] = None,
    rates: Annotated[
        bool, typer.Option("--rates", help="Measure the detection rate and the false-alarm rate of the timing instead.")
    ] = False,
    ranks: Annotated[
        int | None,
        typer.Option(metavar="N", help="Compare N processes with one: speed, memory and bytes that they exchange."),
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="How --ranks spreads a run; ddp and fsdp2 by default.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures as JSON.")] = None,
    plot: Plot = None,
) -> None:
    """Measure the Trainer's speed beside the reference's.

    Also measures the reference compiled, and the device's own limit.
    """
    from harness.throughput import command

    if ranks is not None:
        raise typer.Exit(command.scaling(subject, device, shape or [], ranks, tuple(strategy or ()), json, plot))

    if rates:
        raise typer.Exit(command.rates(device, shape or ["tiny"], seconds, json, plot))
    raise typer.Exit(command.speed(subject, device, shape or [], seconds, json, plot))


@app.command(context_settings=_PASSES_ARGUMENTS)
def coverage(
    context: typer.Context,
    clause: Clauses = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the branches as JSON.")] = None,
    plot: Plot = None,
) -> None:
    """Measure which branches of upstream's adapter code run.

    Lists the branches that the suites do not reach, with the reason. Arguments after -- go to pytest.
    """
    try:
        from harness.coverage import command
    except ImportError:
        raise UsageError("coverage: the package coverage is not installed; pip install coverage") from None
    from harness import contract
    from harness.paths import SUITES

    contract.select(clause or [])

    def run(arguments: list[str]) -> int:
        rest = ["-n", "auto", "--maxprocesses", "4", *arguments, *context.args]
        return _pytest([str(SUITES)], "hf-trainer", "cpu", clause or [], [], None, rest)

    raise typer.Exit(command.coverage(run, not clause and not context.args, json, plot))


@app.command()
def mutants(
    mutant: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Try these mutants only. Repeatable.")
    ] = None,
    module: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Try the mutants of this Python file instead.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the kill matrix as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the kill matrix as a page.")] = None,
) -> None:
    """Put faults into upstream: do the suites catch them?

    Exit codes: 0 every mutant is caught, 1 one is not, 2 could not run.
    """
    from harness.mutants import command

    raise typer.Exit(command.mutants(mutant or [], module, json, html))


# ---- look ----


@app.command()
def clauses(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Clause ids or globs, such as 'RES-*'.", autocompletion=clause_ids),
    ] = None,
    write: Annotated[
        bool,
        typer.Option(
            "--write", help="Write suites/CONTRACT.md and harness/contract/proofs.json again (checkout only)."
        ),
    ] = False,
) -> None:
    """List the clauses of the contract, or explain some.

    Explains a clause by its source, its tests, its known defects, the releases that broke it, and the faults that make
    it fail.
    """
    if write:
        from harness.register.write import write as write_register

        for path in write_register():
            print(f"wrote {path}")
        return
    from harness.register.explain import explain

    explain(ids or [])


@app.command()
def train(
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A model saved by save_pretrained, with its tokenizer.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSONL with question/answer, prompt/completion, messages or text."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new directory for checkpoints, adapters and logs.")
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", min=2, help="Optimizer steps.")] = 16,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Rows in each step.")] = 4,
    length: Annotated[int, typer.Option(metavar="N", min=8, help="Tokens in each row; longer rows are cut.")] = 80,
    subject: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Who trains, once or twice; hf-trainer and reference by default.",
            autocompletion=subject_names,
        ),
    ] = None,
    device: Device = "cpu",
    threads: Annotated[
        int, typer.Option(metavar="N", min=0, help="Threads of torch within one operation; 0 means one for each core.")
    ] = 0,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Random seed of the run.")] = 42,
    qlora: Annotated[bool, typer.Option("--qlora", help="Train rank 64 on a base in NF4 (bitsandbytes).")] = False,
) -> None:
    """Train LoRA on a real model and real text, side by side.

    The Trainer and the reference train the same rows, and the results are compared.
    """
    from harness.real import command

    code = command.train(
        model=model,
        data=data,
        output=output,
        steps=steps,
        batch_size=batch_size,
        length=length,
        subject=subject or (),
        device=device,
        threads=threads,
        seed=seed,
        qlora=qlora,
    )
    raise typer.Exit(code)


# ---- run ----


def _pytest(
    tests: list[str],
    subject: str,
    device: str,
    clauses: list[str],
    preloads: list[str],
    json: Path | None,
    rest: list[str],
) -> int:
    from harness.gate.scope import Scope
    from harness.paths import OUR_SETTINGS, SAFE_PATH

    arguments = Scope(subject, device, tuple(clauses), tuple(preloads)).options()
    if json is not None:
        arguments += ["--json", str(json)]
    cache = Path.cwd() / ".pytest_cache"
    command = [
        sys.executable,
        *SAFE_PATH,
        "-m",
        "pytest",
        *OUR_SETTINGS,
        *tests,
        *arguments,
        "-o",
        f"cache_dir={cache}",
        *rest,
    ]
    code = subprocess.run(command, check=False).returncode
    # pytest returns 4 for wrong usage and 5 for no tests.
    return 2 if code in (4, 5) else code


def main() -> None:
    """Run a command. An error of the user is one sentence on stderr and exit code 2, never a traceback."""
    # As Ctrl-C, so that what a command has started is ended also if CI cancels it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
    except UsageError as error:
        code = _fail(str(error), 2)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if not isinstance(error, _CLICK_ERROR):
            raise
        code = _wrong_usage(error)
    # typer returns 130 for an interrupt, and None for a command that returns nothing.
    if code == 130:
        _fail("interrupted; if it was a gate, the same command continues it", code)
    sys.exit(code)


#: The base class of the parser's errors. Some releases of typer come with a click of their own.
_CLICK_ERROR = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def _wrong_usage(error: Any) -> int:
    """Print how the command is used and what is wrong. Return the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return 2
    context = getattr(error, "ctx", None)
    if context is not None:
        print(f"{context.get_usage()}\nTry '{context.command_path} -h' for help.\n", file=sys.stderr)
    return _fail(error.format_message(), error.exit_code)


def _fail(sentence: str, code: int) -> int:
    print(f"peft-harness: {sentence}", file=sys.stderr)
    return code
