"""Commands that look at a directory of somebody's own run: adapter, checkpoint."""

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


def checkpoint(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A checkpoint, or an output_dir with many. An adapter alone is one, too."),
    ],
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The base's directory, for the shapes of the adapter's tensors.")
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Move torn checkpoints aside: each is renamed to torn-NAME, nothing is deleted."),
    ] = False,
    json: Json = None,
) -> None:
    """Look at a run's checkpoints: which are whole?

    The Trainer's and TRL's, those of accelerate's save_state, FSDP's and DeepSpeed's. No pickle is loaded, and nothing is
    looked up on a network. Exit codes: 0 whole, 1 torn, 2 no checkpoint that can be read.
    """
    from harness.checkpoints import command

    raise typer.Exit(command.run(directory, model, repair, json))
