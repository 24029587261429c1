"""What a long command shows while it works: bars in a terminal, plain lines at least every ten seconds elsewhere.

`screen` makes the console for results: in a pipe it never wraps a line and writes no escape codes.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import rich.progress
    from rich.console import Console

#: Seconds between two plain lines. CI systems show only whole lines, and end jobs that print none for long.
INTERVAL = 10.0

#: Characters in a line where nothing limits it: wide enough that no line is ever wrapped.
_UNLIMITED = 100_000


class Progress:
    """Shows on stderr how far a job is, as a context manager.

    - total: how many steps the job has; None if that is not known (yet).
    - what: the job's name, the first words of its line. If it is empty, there is no task until `add` is called.
    - forks: whether this process forks while the job runs. Then no thread is started, since a fork would copy the locks
      that the thread holds; lines are printed by `advance`, `update` and `tick` alone.

    Usage:

        with Progress(len(mutants), "mutants") as progress:
            for mutant in mutants:
                progress.advance(1, f"{mutant.name} killed")
    """

    def __init__(self, total: int | None = None, what: str = "", *, forks: bool = False):
        self._forks = forks
        self._tasks: list[Task] = []
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._printed_at = time.monotonic()
        self._has_printed = False
        # The stream of now: a caller may redirect sys.stderr while the job runs, to hide what others print.
        self._stream = sys.stderr
        self._bars = _bars(self._stream, auto_refresh=not forks) if is_terminal(self._stream) else None
        if what:
            self.add(what, total)

    def add(self, what: str, total: int | None = None) -> Task:
        """Start a further task, with a bar or a line of its own."""
        with self._lock:
            task = Task(self, what, total)
            self._tasks.append(task)
            return task

    def advance(self, n: int = 1, text: str = "") -> None:
        """Count `n` more steps of the first task. text: what was done last."""
        self._tasks[0].advance(n, text)

    def update(self, done: int | None = None, total: int | None = None, text: str = "") -> None:
        """Set how far the first task is. What is not given stays."""
        self._tasks[0].update(done, total, text)

    def tick(self) -> None:
        """Print the lines, if it is time. Only needed with `forks`, in loops that wait."""
        with self._lock:
            if self._bars is not None:
                if self._forks:
                    self._bars.refresh()
            elif time.monotonic() - self._printed_at >= INTERVAL:
                self._print([task for task in self._tasks if not task.finished or task.changed])

    def __enter__(self) -> Progress:
        self._printed_at = time.monotonic()
        if self._bars is not None:
            self._bars.start()
        elif not self._forks:
            self._thread = threading.Thread(target=self._keep_printing, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        if self._bars is not None:
            self._bars.stop()
        elif self._has_printed:
            # The last state, so that a log does not end at "47 of 48".
            self._print([task for task in self._tasks if task.changed])

    def _keep_printing(self) -> None:
        while not self._stopped.wait(max(0.05, self._printed_at + INTERVAL - time.monotonic())):
            self.tick()

    def _print(self, tasks: list[Task]) -> None:
        self._printed_at = time.monotonic()
        for task in tasks:
            print(task.line(), file=self._stream, flush=True)
            task.changed = False
            self._has_printed = True


class Task:
    """One bar or line of a `Progress`. total: how many steps it has, None if that is not known."""

    def __init__(self, progress: Progress, what: str, total: int | None):
        self.what = what
        self.total = total
        self.done = 0
        self.text = ""
        #: Whether something has happened since the last plain line.
        self.changed = True
        self._began = time.monotonic()
        self._progress = progress
        self._bar = progress._bars.add_task(what, total=total, text="") if progress._bars is not None else None

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.total is not None and self.done >= self.total

    def advance(self, n: int = 1, text: str = "") -> None:
        """Count `n` more steps. text: what was done last."""
        self.update(self.done + n, text=text)

    def update(self, done: int | None = None, total: int | None = None, text: str = "") -> None:
        """Set how far the task is. What is not given stays."""
        progress = self._progress
        with progress._lock:
            self.done = self.done if done is None else done
            self.total = self.total if total is None else total
            self.text = text or self.text
            self.changed = True
            if progress._bars is not None and self._bar is not None:
                progress._bars.update(self._bar, completed=self.done, total=self.total, text=self.text)
        progress.tick()

    def line(self) -> str:
        """The task as a plain line: "mutants: 12 of 48, acc-twice killed (40 s)"."""
        count = f"{self.done} of {self.total}" if self.total is not None else str(self.done) if self.done else ""
        facts = ", ".join(fact for fact in (count, self.text) if fact)
        return f"{self.what}{': ' if facts else ''}{facts} ({time.monotonic() - self._began:.0f} s)"


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which lines can be drawn over."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def screen(stream: TextIO | None = None, **options: Any) -> Console:
    """The console for results, on stdout unless another stream is given.

    If the stream is no terminal, lines are as long as what they say, so that `grep` finds whole names, and they do not
    end in the spaces with which a table fills its cells. Brackets and colons in a text are no markup, since paths and
    failures have them. options: of rich.console.Console.
    """
    from rich.console import Console

    stream = stream or sys.stdout
    options = {"highlight": False, "markup": False, "emoji": False, **options}
    if stream.isatty():
        return Console(file=stream, **options)
    trimmed: Any = _Trimmed(stream)
    return Console(file=trimmed, width=_UNLIMITED, force_terminal=False, **options)


class _Trimmed:
    """A text stream without spaces at the ends of lines."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(re.sub(r" +$", "", text, flags=re.MULTILINE))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _bars(stream: TextIO, auto_refresh: bool) -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn(
            "{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
        console=Console(file=stream),
        auto_refresh=auto_refresh,
        transient=True,
    )
