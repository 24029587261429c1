"""Commands that measure: speed, coverage, mutants, crash."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.options import DAY, Clauses, Device, On, Places, Plot, Subject, TrustCode, finite, require_engine
from harness.cli.outputs import file_option
from harness.cli.pytest_process import run_pytest
from harness.errors import UsageError


def speed(
    subject: Subject = "hf-trainer",
    device: Device = "cpu",
    shape: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Measure this shape of model and batch. Repeatable.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="S", min=1, max=DAY, callback=finite, help="Time each pair for this many seconds."),
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
    spec: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measure the run of this RunSpec, as it is, instead of a shape.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Your run's adapter_config.json, or a directory that has one.")
    ] = None,
    arguments: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your run's TrainingArguments: JSON, YAML, or a run's directory."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR|FAMILY", help="Your run's model: a directory with a config.json, or a family."),
    ] = None,
    trust_code: TrustCode = False,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Also show where a step's time goes, by kind of kernel.")
    ] = False,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Compare with this only: reference, compiled, captured, merged, tuned or fp8. Repeatable.",
        ),
    ] = None,
    fp8: Annotated[
        bool, typer.Option("--fp8", help="Also compare with a base in FP8, and say how far that is from float32.")
    ] = False,
    advise: Annotated[
        bool, typer.Option("--advise", help="Try arguments that may make the run faster, and name the best five.")
    ] = False,
    json: Annotated[Path | None, file_option("Write the figures as JSON.")] = None,
    plot: Plot = None,
) -> None:
    """Measure the Trainer's speed beside the reference's.

    Also measures the reference compiled, and the device's own limit.
    """
    from harness.throughput import command

    brought = {"spec_file": spec, "adapter": adapter, "arguments": arguments, "model": model}
    own = next((f"--{name.removesuffix('_file')}" for name, value in brought.items() if value is not None), "")
    _require_that_each_option_counts(
        [
            (own, own, "--shape", bool(shape)),
            (own, own, "--rates", rates),
            ("--kernels", kernels, "--rates", rates),
            ("--kernels", kernels, "--ranks", ranks is not None),
            ("--kernels", kernels, "--advise", advise),
            ("--advise", advise, "--rates", rates),
            ("--advise", advise, "--ranks", ranks is not None),
            ("--plot", plot, "--advise", advise),
            *(
                (option, value, other, there)
                for option, value in (("--beside", beside), ("--fp8", fp8))
                for other, there in (("--rates", rates), ("--ranks", ranks is not None), ("--advise", advise))
            ),
            ("--strategy", strategy, "one process; name --ranks N, too", ranks is None),
            ("--seconds", seconds, "--ranks", ranks is not None),
            ("--rates", rates, "--ranks", ranks is not None),
            ("--rates", rates, "a second --shape", len(shape or ()) > 1),
            ("--rates", rates, "--subject", subject != "hf-trainer"),
        ]
    )
    if ranks is not None:
        raise typer.Exit(command.scaling(subject, device, shape or [], ranks, tuple(strategy or ()), json, plot))
    if rates:
        raise typer.Exit(command.rates(device, shape or ["tiny"], seconds, json, plot))
    chosen = _chosen_shapes(shape or [], device, brought, trust_code)
    if advise:
        raise typer.Exit(command.advice(subject, device, chosen, seconds, json))
    raise typer.Exit(command.speed(subject, device, chosen, seconds, json, plot, kernels, beside, fp8))


def _chosen_shapes(names: list[str], device: str, brought: dict[str, Any], trust_code: bool) -> list[Any]:
    """Return the shapes of these names, or that of the run that the user brought, which is taken as it is."""
    from harness import brought as reading
    from harness.throughput import shapes

    if not any(value is not None for value in brought.values()):
        return shapes.chosen(names, device)
    read = reading.read(**brought, as_is=True, trust_code=trust_code)
    for sentence in [*read.sentences, *(f"not looked at: {name} ({why})" for name, why in read.not_looked_at.items())]:
        typer.echo(sentence, err=True)
    return [shapes.own(read.spec, read.where)]


def _require_that_each_option_counts(rules: list[tuple[str, object, str, bool]]) -> None:
    """Raise UsageError if an option would have no effect. rules: option, its value, the other, whether both are there."""
    for option, value, other, is_wrong in rules:
        if value and is_wrong:
            raise UsageError(f"{option}: does not go with {other}")


def coverage(
    context: typer.Context,
    clause: Clauses = None,
    json: Annotated[Path | None, file_option("Write the branches as JSON.")] = None,
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
        return run_pytest([str(SUITES)], "hf-trainer", "cpu", clause or [], [], None, rest)

    raise typer.Exit(command.coverage(run, not clause and not context.args, json, plot))


def mutants(
    mutant: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Try these mutants only. Repeatable.")
    ] = None,
    module: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Try the mutants of this Python file instead.")
    ] = None,
    on: On = None,
    workers: Places = None,
    json: Annotated[Path | None, file_option("Write the kill matrix as JSON.")] = None,
    html: Annotated[Path | None, file_option("Write the kill matrix as a page of HTML.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Also run the cells with Watch: what does it see?")] = False,
) -> None:
    """Put faults into upstream: do the suites catch them?

    Exit codes: 0 every mutant is caught, 1 one is not, 2 could not run.
    """
    require_engine(on, workers)
    _require_that_each_option_counts([("--watch", watch, "--on", on is not None)])
    from harness.mutants import command

    raise typer.Exit(command.mutants(mutant or [], module, json, html, watch, on, workers))


def crash(
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Judge these saves, such as plain, 'limit-*' or ddp-2. Repeatable; all of one process by default.",
        ),
    ] = None,
    states: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=1_000_000, help="Judge a sample of N states of each save; all by default."
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="What stops: process, machine or both.", show_default=True)
    ] = "both",
    at_end: Annotated[
        bool,
        typer.Option("--at-end", help="Of a machine's stops, judge only those right after the save: the likeliest."),
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Random seed of the sample.")] = 0,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=256, help="Processes; one for each core by default.")
    ] = None,
    subject: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Whose saves: hf-trainer, trl-sft, MODULE:CLASS of a Trainer's subclass, or MODULE:FACTORY of a subject.",
        ),
    ] = "hf-trainer",
    safe: Annotated[
        bool, typer.Option("--safe", help="Judge the saves of the Trainer with harness.SafeCheckpoints.")
    ] = False,
    callback: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE:CLASS", help="A TrainerCallback that each run has. Repeatable."),
    ] = None,
    resume_with: Annotated[
        str,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Called with output_dir, returns what is passed as resume_from_checkpoint in place of True.",
        ),
    ] = "",
    json: Annotated[Path | None, file_option("Write every state and its outcome as JSON.")] = None,
    html: Annotated[Path | None, file_option("Write the result as one page that needs no network.")] = None,
    plot: Plot = None,
) -> None:
    """Stop a save at every point: does what is left resume?

    A save's file operations are recorded. Every state that a killed process or a stopped machine may leave is made of them,
    resumed, loaded for inference and loaded as the best model.

    Exit code 0 if each state goes on bit for bit or is refused with the checkpoint to use, 1 if one does not.
    """
    import os

    from harness.crash import command
    from harness.crash.parallel import Sample

    if kind not in command.KINDS:
        raise UsageError(f"--kind {kind!r} is none of {', '.join(command.KINDS)}")
    count = workers or len(os.sched_getaffinity(0))
    sample = Sample(states, command.KINDS[kind], seed, at_end)
    raise typer.Exit(
        command.crash(scenario or [], sample, count, callback or [], resume_with, json, html, plot, subject, safe)
    )
