"""`peft-harness mutants`: which faults of upstream the suites catch, and which they miss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from harness.errors import UsageError
from harness.mutants import catalogue, in_parts, show
from harness.mutants.matrix import measure
from harness.processes import engine
from harness.progress import Progress, screen


def mutants(
    globs: Sequence[str],
    module: Path | None,
    json: Path | None,
    html: Path | None,
    watch: bool = False,
    on: str | None = None,
    places: int | None = None,
) -> int:
    """Run the mutants, print the matrix, and return the exit code.

    - globs: names of the mutants to run; all if there is none.
    - module: a user's file of mutants, in place of the harness's own.
    - json, html: files to write the matrix to.
    - watch: whether it is measured, too, which mutants Watch sees.
    - on, places: the engine that measures parts of it, and how many at a time; None: this process
      (`harness.processes.engine`).

    The code is 0 if every mutant that changes a run is killed, and 1 if one survives or crashes. Raises UsageError if
    the arguments are wrong or the mutants cannot be run.
    """
    available = catalogue.load(module) if module is not None else catalogue.mutants()
    chosen = catalogue.select(available, globs)
    runnable = [mutant for mutant in chosen if mutant.device == "cpu"]
    console = screen()
    for mutant in chosen:
        if mutant.device != "cpu":
            how = f"pytest suites/ --device {mutant.device} --preload harness.mutants.preload.{mutant.name}"
            console.print(Text(f"{mutant.name} shows on {mutant.device} only: {how}"))
    if not runnable:
        raise UsageError("none of these mutants can run on a CPU")
    if on is not None:
        engine.check(on)
        with engine.opened(on, places, Path(".peft-harness") / "mutants") as at, Progress() as progress:
            matrix = in_parts.measured(runnable, module, at, progress)
    else:
        # This process forks all others, so no thread may print.
        with Progress(forks=True) as progress:
            matrix = measure(runnable, progress, watch=watch)
    show.show(console, matrix)
    if json is not None:
        show.write_json(matrix, json)
    if html is not None:
        show.write_html(matrix, html)
    return int(any(outcome.status in ("survived", "crashed") for outcome in matrix.outcomes))
