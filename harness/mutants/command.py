"""`peft-harness mutants`: which faults of upstream do the suites catch, and which would pass unseen?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from harness.errors import UsageError
from harness.mutants import catalogue, show
from harness.mutants.judge import Outcome
from harness.mutants.matrix import measure


def mutants(globs: Sequence[str], module: Path | None, json: Path | None, html: Path | None) -> int:
    """The exit code: 0 where every mutant that changes a run is killed, 1 where one survives.

    module: a user's file of mutants, instead of the register's. UsageError for what cannot be run.
    """
    for file in (json, html):
        if file is not None and (file.is_dir() or not file.resolve().parent.is_dir()):
            raise UsageError(f"{file}: name a file in a directory that exists")
    available = catalogue.load(module) if module is not None else catalogue.mutants()
    chosen = catalogue.select(available, globs)
    runnable = [one for one in chosen if one.device == "cpu"]
    console = Console(soft_wrap=False, width=None if sys.stdout.isatty() else 150)
    for one in chosen:
        if one.device != "cpu":
            how = f"pytest suites/ --device {one.device} --preload harness.mutants.preload.{one.name}"
            console.print(Text(f"{one.name} shows on {one.device} only: {how}"))
    if not runnable:
        raise UsageError("no mutant is left to run on a CPU")
    matrix = measure(runnable, _progress(len(runnable)))
    show.show(console, matrix)
    if json is not None:
        show.write_json(matrix, json)
    if html is not None:
        show.write_html(matrix, html)
    return int(any(one.status in ("survived", "crashed") for one in matrix.outcomes))


def _progress(total: int) -> Callable[[Outcome], None]:
    done = 0

    def told(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            print(f"\r\033[K{done} of {total}: {outcome.mutant.name} {outcome.status}", end="", file=sys.stderr)
            if done == total:
                print("\r\033[K", end="", file=sys.stderr)

    return told
