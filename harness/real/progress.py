"""Live progress of training runs: a bar for each run, and their losses side by side for each step."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from harness.trace import Step, Trace

#: How many steps are shown while a run trains. The table at the end has all of them.
_STEPS_SHOWN = 12


class LiveRuns:
    """Shows runs while they train: a bar for each and one for all together. It gets `subjects.observer.listeners` events.

    - console: where it is shown
    - runs: label -> optimizer steps, in order of training
    """

    def __init__(self, console: Console, runs: dict[str, int]):
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
        )
        self._tasks: dict[str, TaskID] = {
            label: self._progress.add_task(label, total=steps, start=False, loss="") for label, steps in runs.items()
        }
        self._all = self._progress.add_task("together", total=sum(runs.values()), loss="")
        self._losses: dict[str, dict[int, float]] = {label: {} for label in runs}
        self._label = ""

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Draw until the block ends. If the console is no terminal, each step is printed as a line instead."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, get_renderable=self._render, refresh_per_second=4, transient=True):
            yield

    @contextlib.contextmanager
    def run(self, label: str) -> Iterator[None]:
        """Show the run that is observed in this block under that label."""
        from harness.subjects.observer import listeners

        self._label = label
        self._progress.start_task(self._tasks[label])
        listeners.append(self._event)
        try:
            yield
        finally:
            listeners.remove(self._event)
            self._progress.stop_task(self._tasks[label])

    def _event(self, trace: Trace, name: str) -> None:
        if name != "step_end" or not trace.steps:
            return
        step = trace.steps[-1]
        loss = step_loss(step)
        self._losses[self._label][step.number] = loss
        task = self._tasks[self._label]
        self._progress.update(task, advance=1, loss=f"loss {loss:.4f}")
        self._progress.update(self._all, advance=1)
        if not self.console.is_terminal:
            self.console.print(
                f"{self._label}: step {step.number}, loss {loss:.4f}, {step.seconds:.1f} s", highlight=False
            )

    def _render(self) -> Group:
        table = Table(box=None, padding=(0, 2))
        table.add_column("step", justify="right")
        for label in self._losses:
            table.add_column(label, justify="right")
        # list(): this runs in a thread of its own, while steps are being added.
        numbers = sorted({number for losses in self._losses.values() for number in list(losses)})
        # The newest step of the current run and those before it are shown, also if an earlier run went further.
        newest = max(self._losses.get(self._label, {}), default=0)
        for number in [n for n in numbers if n <= max(newest, _STEPS_SHOWN)][-_STEPS_SHOWN:]:
            cells = (losses.get(number) for losses in self._losses.values())
            table.add_row(str(number), *("" if loss is None else f"{loss:.4f}" for loss in cells))
        return Group(self._progress, table)


def step_loss(step: Step) -> float:
    """Return the loss of one optimizer step, from what the model returned; NaN if it returned none.

    If each micro-batch was divided by the tokens of the whole window (num_items), the losses add up. Otherwise it is
    their mean.
    """
    losses = [batch.loss for batch in step.batches if batch.loss is not None]
    if not losses:
        return float("nan")
    divided_by_window = all(batch.num_items is not None for batch in step.batches)
    return sum(losses) if divided_by_window else sum(losses) / len(losses)


@contextlib.contextmanager
def output_redirected(log: Path | None) -> Iterator[None]:
    """Append what others print in this block (logs, progress bars, warnings) to a file, so that it spoils no display.

    - log: the file; None: throw it away

    A console goes on printing only if it was made with `file=sys.stdout` before.
    """
    from harness.subjects.hf_trainer import recorded_warnings

    warned: list[str] = []
    with open(os.devnull if log is None else log, "a", encoding="utf-8") as file:
        try:
            with recorded_warnings(warned), contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            file.writelines(f"{line}\n" for line in warned)
