"""Options that several commands have, and what the shell offers to complete them."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.outputs import file_option

if TYPE_CHECKING:
    from harness.gate.scope import Scope


def clause_ids(incomplete: str) -> list[str]:
    """Return the clause ids that begin with what was typed."""
    from harness import contract

    return [id for id in contract.clauses() if id.startswith(incomplete.upper())]


def subject_names(incomplete: str) -> list[str]:
    """Return the built-in subjects that begin with what was typed."""
    from harness import subjects

    return [name for name in subjects.NAMES if name.startswith(incomplete)]


def devices(incomplete: str) -> list[str]:
    """Return the devices that begin with what was typed."""
    return [name for name in ("cpu", "cuda") if name.startswith(incomplete)]


#: Seconds: the most that an option takes.
DAY = 24 * 60 * 60


def finite(value: float | None) -> float | None:
    """Return a number. Raises BadParameter for NaN, which is neither too small nor too large."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter("expected a finite number")
    return value


def _turn_patches_off(unpatched: bool) -> None:
    if unpatched:
        from harness import patches

        patches.turn_off()


Subject = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Who is judged: hf-trainer, reference or module:factory.", autocompletion=subject_names
    ),
]
Device = Annotated[str, typer.Option(metavar="cpu|cuda", help="Where to train.", autocompletion=devices)]
Clauses = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB", help="Judge these clauses only, such as 'RES-*'. Repeatable.", autocompletion=clause_ids
    ),
]
Preload = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODULE", help="Import this module before upstream is used, in every process that trains. Repeatable."
    ),
]
Unpatched = Annotated[
    bool,
    typer.Option(
        "--unpatched",
        callback=_turn_patches_off,
        help="Run upstream as it is, without the changes that the harness makes to it for speed.",
    ),
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Give the judged stacks this environment variable, too: NAME or NAME=VALUE. They get a few only. Repeatable.",
    ),
]
Build = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PACKAGE",
        help="Build this package from source, which runs its code. Others are installed from wheels only. Repeatable.",
    ),
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Run code that the file names, such as a model's factory. Read the file first if somebody sent it.",
    ),
]
Specs = Annotated[
    list[Path] | None,
    typer.Option(
        "--spec",
        metavar="FILE",
        help="Judge the run of this RunSpec, and nothing else, by each clause that applies to any run. Repeatable.",
    ),
]
ScopeFile = Annotated[
    Path | None,
    typer.Option(
        "--scope",
        metavar="FILE",
        help="Judge what concerns you only: a pyproject.toml with [tool.peft-harness], or a TOML file with its keys.",
    ),
]
Json = Annotated[Path | None, file_option("Write the report as JSON.")]
Html = Annotated[Path | None, file_option("Write the report as a page of HTML, one file that needs no network.")]
Plot = Annotated[Path | None, file_option("Write a plot as PNG or SVG.", "plot")]

On = Annotated[
    str | None,
    typer.Option(
        metavar="ENGINE",
        help="Judge there: local, slurm, kubernetes or a FILE.py with a parsl.Config (see map). [here]",
    ),
]
Places = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=1, max=1000, help="With --on: how many at a time.")
]


def require_engine(on: str | None, workers: int | None) -> None:
    """Raise UsageError for --workers without --on."""
    if workers is not None and on is None:
        from harness.errors import UsageError

        raise UsageError("--workers: is for --on; name an engine, too")


#: The help of an option that takes a stack.
REQUIREMENTS = "a requirements or lock file, 'current', or releases such as 'transformers==5.1.0 peft==0.18.1'."


def scope(
    subject: str = "hf-trainer",
    device: str = "cpu",
    clause: list[str] | None = None,
    preload: list[str] | None = None,
    env: list[str] | None = None,
    build: list[str] | None = None,
    spec: list[Path] | None = None,
    trust_code: bool = False,
    silent: bool = False,
    file: Path | None = None,
) -> Scope:
    """Return what these options choose to judge. What is changed in a --spec is said on stderr, unless `silent`.

    - file: that of --scope. An option of the command line takes the place of what the file says.

    Raises UsageError at once for a name that does not exist, or for a --spec that cannot be read or is not trusted.
    """
    from harness import contract, subjects
    from harness.errors import UsageError
    from harness.gate import variables
    from harness.gate.scope import Scope

    ours = Scope()
    if file is not None:
        from harness.contract import expectations
        from harness.gate import scope_file
        from harness.reading import read_text
        from harness.session import concerns

        said = scope_file.read(file)
        subject = said.subject if said.subject and subject == ours.subject else subject
        device = said.device if said.device and device == ours.device else device
        clause, spec = clause or list(said.clauses), spec or list(said.specs)
        for path in said.known_defects:
            concerns.check_clauses(expectations.load_own(path))  # raises
        # Each has a name of its own in the directory of a side.
        defects = tuple((f"{number}-{path.name}", read_text(path)) for number, path in enumerate(said.known_defects, 1))
        ours = Scope(concerns=said.concerns, defects=defects, file=said.where, slower=said.slower, larger=said.larger)
    contract.select(clause or [])
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device!r} is neither cpu nor cuda")
    if ":" not in subject and subject not in subjects.NAMES:
        subjects.load(subject)  # raises
    added = variables.named(env or ())
    specs: tuple[tuple[str, str], ...] = ()
    if spec:
        from harness.session.specs import load_all

        brought = load_all(spec, trust_code)
        specs = tuple((one.name, json.dumps(one.spec.to_json(), indent=1)) for one in brought)
        for sentence in [f"{one.where}: {sentence}" for one in brought for sentence in one.said if not silent]:
            print(sentence, file=sys.stderr)
    return dataclasses.replace(
        ours,
        subject=subject,
        device=device,
        clauses=tuple(clause or ()),
        preloads=tuple(preload or ()),
        added=added,
        build=tuple(build or ()),
        specs=specs,
    )
