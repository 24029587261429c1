"""Commands to look around: clauses, defects, train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Clauses, Device, Json, clause_ids, subject_names
from harness.cli.outputs import file_option


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


def defects(
    clause: Clauses = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A report (check --json): says of each defect whether it was seen."),
    ] = None,
    markdown: Annotated[Path | None, file_option("Write the table as Markdown.")] = None,
    html: Annotated[Path | None, file_option("Write the table as one page that needs no network.")] = None,
    json: Json = None,
    script: Annotated[
        str | None, typer.Option(metavar="NAME", help="Print this script of the table, and nothing else.")
    ] = None,
) -> None:
    """List the known defects of upstream: clause, versions, thread, script, and whether a report has seen them."""
    from harness.upstream import command

    command.defects(clause or [], report, markdown, html, json, script)


def train(
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A model saved by save_pretrained, with its tokenizer.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSONL with question/answer, prompt/completion, messages or text."),
    ] = None,
    output: Annotated[
        Path | None, file_option("A new directory for checkpoints, adapters and logs.", "directory", "DIR")
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", min=2, max=1_000_000, help="Optimizer steps.")] = 16,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, max=65_536, help="Rows in each step.")] = 4,
    length: Annotated[
        int, typer.Option(metavar="N", min=8, max=1_048_576, help="Tokens in each row; longer rows are cut.")
    ] = 80,
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
        int,
        typer.Option(metavar="N", min=0, max=1024, help="Threads of torch within one operation; 0: one for each core."),
    ] = 0,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Random seed of the run.")] = 42,
    qlora: Annotated[bool, typer.Option("--qlora", help="Train rank 64 on a base in NF4 (bitsandbytes).")] = False,
) -> None:
    """Train LoRA on a real model and real text, side by side.

    The Trainer and the reference train the same rows, and the results are compared.

    Exit code 0 only if every check was judged and holds; 3 if one was not, such as losses that are all NaN. On a GPU,
    equality bit for bit is measured and not judged, which is no 3.
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
