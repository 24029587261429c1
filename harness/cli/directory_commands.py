"""Commands that look at a directory of somebody's own run: adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Json


def adapter(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="An adapter's directory, a checkpoint, or a directory with checkpoints."),
    ],
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The base's directory, for shapes and for the effect.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(metavar="JSONL", help="Rows with input_ids, for the effect; drawn if none are given.")
    ] = None,
    json: Json = None,
) -> None:
    """Look at an adapter: is it whole, and who can serve it?

    No pickle is loaded, and nothing is looked up on a network. Exit codes: 0 whole, 1 torn, 2 no adapter lies there.
    """
    from harness.serving import command

    raise typer.Exit(command.run(directory, model, tokens, json))
