"""`peft-harness coverage`: run the suites, record branches, and print which of those about adapters they reach."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.coverage import record
from harness.coverage.measure import Measured, read
from harness.coverage.table import TIERS, load_reasons
from harness.files import write_figure, write_whole


def coverage(run: Callable[[list[str]], int], whole: bool, out: Path | None, plot: Path | None) -> int:
    """Run the suites under coverage, print and write what they reach, and return the exit code.

    - run: runs the suites with further arguments for pytest, and returns their exit code.
    - whole: whether all clauses are judged.
    - out, plot: files to write; None writes none.

    The exit code is 2 if the suites could not run. It is 1 if a whole run on the pinned stack contradicts reasons.toml:
    more branches without a reason than it allows, or a stale reason. Otherwise it is 0.
    """
    table = load_reasons()
    strict = whole and table.pinned
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        os.environ[record.VARIABLE] = str(Path(directory) / "data")
        code = run(["-p", record.__name__])
        if code not in (0, 1, 3):
            return 2
        measured = read(Path(directory), table.reasons)
    console = Console()
    show(console, measured)
    console.print(f"the suites took {time.perf_counter() - started:.0f} s under coverage and ended with {code}")
    if out is not None:
        write_whole(out, json.dumps(measured.to_json(), indent=1) + "\n")
    if plot is not None:
        draw(measured, plot)
    if not strict:
        print("reasons.toml is checked only if all clauses are judged on the pinned stack")
        return 0
    left = len(measured.unexplained)
    if left != table.open:
        print(f"{left} branches have no reason, reasons.toml says {table.open}: ", end="")
        print("reach them or add reasons" if left > table.open else "lower the number there")
    return 1 if left > table.open or measured.stale else 0


def show(console: Console, measured: Measured) -> None:
    """Print the table of files, then each branch that was not reached, grouped by what it takes to reach it."""
    table = Table(box=None, title="branches of upstream about adapters", title_justify="left")
    table.add_column("file", no_wrap=True)
    for name in ("branches", "reached", "percent"):
        table.add_column(name, justify="right")
    files = [(file.name, file.branches, file.reached) for file in measured.files()]
    files.append(("all", sum(count for _, count, _ in files), sum(reached for _, _, reached in files)))
    for name, count, reached in files:
        table.add_row(name, str(count), str(reached), f"{100 * reached / count:.0f}" if count else "-")
    console.print(table)
    for tier, words in TIERS.items():
        of = [(branch, reason) for branch, reason in measured.unreached if reason and reason.tier == tier]
        if of:
            console.print(f"\nnot reached, needs {words}: {len(of)}", style="bold")
        for branch, reason in of:
            console.print(Text(f"  {branch.name}: {reason.reason}"), soft_wrap=True)
    if measured.unexplained:
        console.print(f"\nnot reached, needs a case on one process: {len(measured.unexplained)}", style="bold")
    for branch in measured.unexplained:
        console.print(Text(f"  {branch.name} in {branch.function}"), soft_wrap=True)
    for stale in measured.stale:
        words = "every branch that it names is reached or gone; delete the entry"
        entry = f"{stale.file} {stale.function} {stale.condition} {stale.outcome}"
        console.print(Text(f"reasons.toml: {entry}: {words}"), soft_wrap=True)


def draw(measured: Measured, file: Path) -> None:
    """Draw a bar for each file: its branches, and how many of them were reached."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    files = list(measured.files())[::-1]
    names = [one.name for one in files]
    figure, axes = pyplot.subplots(figsize=(9, 0.35 * len(files) + 1.2))
    axes.barh(names, [one.branches for one in files], color="#d9d9d9", label="branches")
    bars = axes.barh(names, [one.reached for one in files], color="#3b6ea5", label="reached")
    axes.bar_label(bars, [f" {one.reached} of {one.branches}" for one in files], fontsize=8)
    axes.set_xlabel("branches about adapters")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    write_figure(file, figure)
    pyplot.close(figure)
