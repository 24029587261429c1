"""Commands about many stacks: map, bounds, propose, ask."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.cache_use import use_cache
from harness.cli.options import REQUIREMENTS, Clauses, Device, Html, Json, Specs, TrustCode
from harness.cli.outputs import file_option
from harness.files import check_writable_directory

On = Annotated[
    str,
    typer.Option(
        metavar="ENGINE", help="Where: local, slurm, kubernetes, or a FILE.py with a parsl.Config named config."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, max=10_000, help="How many at a time. [one a core, or a GPU; 4 jobs of a cluster]"
    ),
]
Table = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A table that map --json wrote. [the one that comes with the harness]"),
]
Campaign = Annotated[
    Path | None,
    file_option("The campaign's directory, which has what was judged. [.peft-harness/map]", "directory", "DIR"),
]


def _campaign(directory: Path | None, judges: bool) -> Path:
    """Return the campaign's directory. The usual one need not be writable if nothing is judged."""
    if directory is not None:
        return directory
    usual = Path(".peft-harness/map")
    if judges:
        check_writable_directory("--directory", usual)
    return usual


def _texts(specs: list[Path] | None, trust_code: bool) -> list[tuple[str, str]]:
    if not specs:
        return []
    from harness.session.specs import load_all

    return [(one.name, json_.dumps(one.spec.to_json())) for one in load_all(specs, trust_code)]


def map_(
    matrix: Annotated[
        Path | None,
        typer.Argument(metavar="[MATRIX]", help="A TOML file of releases and clauses. [a matrix of our own]"),
    ] = None,
    size: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=100_000, help="Judge until N stacks are judged; 0: nothing is judged."),
    ] = 40,
    on: On = "local",
    workers: Workers = None,
    directory: Campaign = None,
    clause: Clauses = None,
    spec: Specs = None,
    trust_code: TrustCode = False,
    merge: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Join the table with this one. Repeatable.")
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Judge again what was judged.")] = False,
    json: Annotated[Path | None, file_option("Write the table as JSON.")] = None,
    html: Html = None,
    markdown: Annotated[Path | None, file_option("Write the table as Markdown.")] = None,
    csv: Annotated[Path | None, file_option("Write the table as CSV, a row for each stack and clause.")] = None,
) -> None:
    """Judge many stacks: which releases work together?

    What was judged is not judged again; an interrupted campaign goes on. With --merge and --size 0, joins and writes tables.
    Exit codes: 0 each judged stack holds, 1 one does not, 2 could not run, 3 a stack was undecided or not judged.
    """
    use_cache()
    from harness.map import command

    outputs = {"json": json, "html": html, "markdown": markdown, "csv": csv}
    where = _campaign(directory, bool(size))
    raise typer.Exit(
        command.map_(
            matrix, size, on, workers, where, clause or [], _texts(spec, trust_code), merge or [], anew, outputs
        )
    )


def bounds(
    table: Table = None,
    clause: Clauses = None,
    spec: Specs = None,
    trust_code: TrustCode = False,
    package: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this package. Repeatable. [all that differ]")
    ] = None,
    device: Device = "cpu",
    json: Json = None,
) -> None:
    """Between which releases of each package do my clauses hold?

    Prints lines for a requirement file, with the reason at each end. Reads a table, and judges nothing. Exit codes: 0 found,
    2 could not run, 3 no judged stack holds.
    """
    from harness.map import command

    run = "suites"
    if spec:
        from harness.map import campaign, matrix_file

        run = campaign.run_name(_texts(spec, trust_code), matrix_file.Matrix("", {}))
    raise typer.Exit(command.bounds(table, clause or [], package or [], run, device, json))


def propose(
    baseline: Annotated[str, typer.Option(metavar="REQS", help=f"The pins in use: {REQUIREMENTS}")],
    want: Annotated[
        list[str],
        typer.Option(metavar="REQUIREMENT", help="What it must have, such as 'transformers>=5.20'. Repeatable."),
    ],
    table: Table = None,
    clause: Clauses = None,
    spec: Specs = None,
    trust_code: TrustCode = False,
    device: Device = "cpu",
    table_only: Annotated[
        bool, typer.Option("--table-only", help="Judge nothing: answer from the table, without a network.")
    ] = False,
    tries: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="Judge at most N stacks.")] = 4,
    directory: Campaign = None,
    json: Json = None,
) -> None:
    """What is the smallest change of my pins that has what I want?

    Nothing may break that held before. Stacks of the table are tried first, then others are judged. Exit codes: 0 proposed,
    1 nothing that was judged holds, 2 could not run, 3 too little was judged.
    """
    use_cache()
    from harness.map import command

    specs, where = _texts(spec, trust_code), _campaign(directory, not table_only)
    raise typer.Exit(
        command.propose(baseline, want, table, clause or [], specs, device, table_only, tries, where, json)
    )


def ask(
    stack: Annotated[
        str, typer.Argument(metavar="STACK", help="Releases, such as 'transformers==4.57.6 peft==0.18.1'.")
    ],
    table: Table = None,
    clause: Clauses = None,
    device: Device = "cpu",
    json: Json = None,
) -> None:
    """What is known of this stack?

    Its known defects, from a table, without a network. If it was not judged: its nearest judged neighbours. Exit codes: 0 it
    holds, 1 it fails, 2 could not run, 3 it was not judged.
    """
    from harness.map import command

    raise typer.Exit(command.ask(stack, table, clause or [], device, json))
