"""The command line `peft-harness`. Imports neither torch nor pytest until a command needs it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import harness
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.gate.scope import Scope

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Does this stack of torch, transformers, peft, accelerate and bitsandbytes still train adapters as the "
    "contract says? Exit codes: 0 all hold, 1 a clause fails, 2 used wrongly or could not run, 3 undecided.",
)

Subject = Annotated[str, typer.Option(help="Who is judged: hf-trainer, reference or module:factory.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Clauses = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Judge these clauses only.")]
Preload = Annotated[list[str] | None, typer.Option(metavar="MODULE", help="Import this before upstream is used.")]


def _leave_unpatched(unpatched: bool) -> None:
    if unpatched:
        from harness import patches

        patches.turn_off()


Unpatched = Annotated[
    bool,
    typer.Option(
        "--unpatched", callback=_leave_unpatched, help="Leave upstream without the harness's patches for speed."
    ),
]


def _judged(subject: str, device: str, clause: list[str] | None, preload: list[str] | None) -> Scope:
    from harness.gate.scope import Scope

    return Scope(subject, device, tuple(clause or ()), tuple(preload or ()))


def _print_versions(wanted: bool) -> None:
    if wanted:
        from harness.environment import PACKAGES
        from harness.environment import version as installed

        stack = ", ".join(f"{name} {installed(name) or 'not installed'}" for name in PACKAGES)
        print(f"peft-harness {harness.__version__} ({stack})")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_versions, help="Print versions and leave.")
    ] = False,
) -> None:
    pass


@app.command(context_settings={"allow_extra_args": True})
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
            "--with", metavar="REQUIREMENT", help="Judge a stack made of this, such as peft==0.20.0; or a file."
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as JSON.")] = None,
) -> None:
    """Judge the installed stack, or one --with other releases, by `suites/`. Arguments after -- go to pytest."""
    from harness.gate import command
    from harness.paths import SUITES

    judged = _judged(subject, device, clause, preload)
    if with_:
        raise typer.Exit(command.check(with_, judged, json, context.args))
    rest = [*command.workers(judged, context.args), *context.args]
    raise typer.Exit(_pytest([str(SUITES)], subject, device, clause or [], preload or [], json, rest))


Requirements = typer.Option(
    metavar="REQS", help="A requirements or lock file, 'current', or 'transformers==5.1.0 peft==0.18.1'."
)


@app.command(context_settings={"allow_extra_args": True})
def soak(
    context: typer.Context,
    times: Annotated[int, typer.Option(help="How many times.")] = 20,
    subject: Subject = "hf-trainer",
    device: Device = "cpu",
    clause: Clauses = None,
    preload: Preload = None,
    unpatched: Unpatched = False,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what each run took and judged as JSON.")
    ] = None,
) -> None:
    """Judge many times over, under other hash seeds and in other orders: do verdicts stay? Words after -- go to pytest."""
    from harness.gate.soak import soak

    judged = _judged(subject, device, clause, preload)
    raise typer.Exit(soak(times, judged, context.args, json))


@app.command()
def gate(
    baseline: Annotated[str, Requirements],
    candidate: Annotated[str, Requirements],
    subject: Subject = "hf-trainer",
    device: Device = "cpu",
    clause: Clauses = None,
    preload: Preload = None,
    unpatched: Unpatched = False,
    candidate_preload: Annotated[
        list[str] | None, typer.Option(metavar="MODULE", help="The candidate imports this before upstream, too.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a summary for a pull request.")] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Judge the baseline again where an earlier gate has.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Judge the baseline only in cases that do not hold under the candidate.")
    ] = False,
) -> None:
    """Is it safe to go from one stack to another? 0 safe, 1 unsafe, 2 could not run, 3 inconclusive."""
    from harness import contract
    from harness.gate import command

    contract.select(clause or [])
    judged = _judged(subject, device, clause, preload)
    raise typer.Exit(
        command.gate(baseline, candidate, judged, json, markdown, tuple(candidate_preload or ()), anew, quick)
    )


@app.command()
def bisect(
    clause: Annotated[str, typer.Option(metavar="ID", help="The clause that broke.")],
    good: Annotated[str, Requirements],
    bad: Annotated[str, Requirements],
    subject: Subject = "hf-trainer",
    device: Device = "cpu",
    preload: Preload = None,
    unpatched: Unpatched = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the answer as JSON.")] = None,
) -> None:
    """Which release of which package broke a clause? 0 found, 2 could not run, 3 only a range is found."""
    from harness.gate import command

    raise typer.Exit(command.bisect(clause, good, bad, _judged(subject, device, None, preload), json))


@app.command()
def history(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Such as H3; all where none is given.")
    ] = None,
) -> None:
    """Put faults of the past to the test: their clauses fail on the releases that had them, and hold on others."""
    from harness.gate import command

    raise typer.Exit(command.history(ids or [], _judged("hf-trainer", "cpu", None, None)))


@app.command()
def speed(
    subject: Subject = "hf-trainer",
    device: Device = "cpu",
    shape: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Of these shapes; may be repeated.")] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="Of timing, for each pair.")] = None,
    rates: Annotated[
        bool, typer.Option("--rates", help="Measure how often a slowdown is found, and how often one is seen in vain.")
    ] = False,
    ranks: Annotated[
        int | None, typer.Option(help="Beside one process, in so many: speed, memory of each, what they exchange.")
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="How --ranks spreads a run: ddp and fsdp2 unless named.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw them as PNG or SVG.")] = None,
) -> None:
    """How fast is the Trainer, beside the reference, the reference compiled, and what the device can do?"""
    from harness.throughput import command

    if ranks is not None:
        raise typer.Exit(command.scaling(subject, device, shape or [], ranks, tuple(strategy or ()), json, plot))

    if rates:
        raise typer.Exit(command.rates(device, shape or ["tiny"], seconds, json, plot))
    raise typer.Exit(command.speed(subject, device, shape or [], seconds, json, plot))


@app.command(context_settings={"allow_extra_args": True})
def coverage(
    context: typer.Context,
    clause: Clauses = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what was measured as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it, a bar for each file of upstream.")] = None,
) -> None:
    """Which branches of upstream about adapters the suites reach, and why not the rest. -- is followed by pytest's."""
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
def repro(
    file: Annotated[Path, typer.Argument(metavar="SPEC", help="A case file that a failure named, or a run spec.")],
    subject: Annotated[str | None, typer.Option(help="Another subject than the case file names.")] = None,
    device: Annotated[str | None, typer.Option(help="Another device than the case file names.")] = None,
) -> None:
    """Repeat just one case of a failure; or train a run spec and judge it by every universal law."""
    from harness.spec import read_json

    body = read_json(file)
    if isinstance(body, dict) and "test" in body:
        from harness.paths import SUITES

        test = SUITES / str(body["test"])
        if not Path(str(test).partition("::")[0]).is_file():
            raise UsageError(f"{file}: names the test {body['test']!r}, which this release does not have")
        chosen = (subject or body["subject"], device or body["device"])
        raise typer.Exit(_pytest([str(test)], *chosen, [], body["preload"], None, []))
    from harness.session.repro import judge_spec

    raise typer.Exit(judge_spec(file, subject or "hf-trainer", device))


@app.command()
def clauses(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids or globs, such as 'RES-*'.")] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write suites/CONTRACT.md anew, and what tests/ prove of each clause.")
    ] = False,
) -> None:
    """List the clauses of the contract, or explain some: source, tests, known defects, bad releases, what fails them."""
    if write:
        from harness.register.write import write as write_register

        for path in write_register():
            print(f"wrote {path}")
        return
    from harness.register.explain import explain

    explain(ids or [])


@app.command()
def mutants(
    mutant: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="These mutants only.")] = None,
    module: Annotated[Path | None, typer.Option(metavar="FILE", help="Your own mutants instead.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the matrix as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the matrix as a page.")] = None,
) -> None:
    """Can the suites fail? Put faults into upstream, one at a time. 0 all are caught, 1 one is not, 2 could not run."""
    from harness.mutants import command

    raise typer.Exit(command.mutants(mutant or [], module, json, html))


@app.command()
def train(
    model: Annotated[Path | None, typer.Option(help="A model directory (save_pretrained) with a tokenizer.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="JSONL: question/answer, prompt/completion, messages, text.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A new directory for what is written.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps.")] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a step.")] = 4,
    length: Annotated[int, typer.Option(min=8, help="Tokens a row; longer ones are cut.")] = 80,
    subject: Annotated[list[str] | None, typer.Option(help="One or two; default hf-trainer and reference.")] = None,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="torch's intra-op threads; 0: all cores.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training run.")] = 42,
    qlora: Annotated[bool, typer.Option("--qlora", help="Pack the base to NF4 (bitsandbytes); r=64.")] = False,
) -> None:
    """See the path work: LoRA on a real model and real text, by the Trainer and by the reference, side by side."""
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
    return 2 if code in (4, 5) else code  # pytest calls wrong usage 4 and no test 5


def main() -> None:
    """Entry point. A UsageError is one sentence on stderr and exit code 2, never a traceback."""
    # As Ctrl-C: what a command has started is ended, also where CI cancels it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except UsageError as error:
        print(f"peft-harness: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("peft-harness: interrupted; a gate goes on where it stopped when it is asked again", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
