"""Check: one thing that Watch judges. A check says which events it wants by having a method of that name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.verdict import Verdict

if TYPE_CHECKING:
    from harness.watch.book import Book
    from harness.watch.seen import MicroPass, Seen


class Check:
    """Judges one thing, or several that belong together.

    - seen: what is known of the run; the same object for all checks.
    - book: where verdicts go.

    A check gets an event if its class has a method of that name. The Trainer's events have its names. Besides them:
    """

    #: Its name, a key of `harness.watch.book.CHECKS`.
    id = ""

    def __init__(self, seen: Seen, book: Book):
        self.seen = seen
        self.book = book

    def why_not(self) -> str | None:
        """Return why this run is not judged at all; None if it is. Called once, when training begins."""
        return None

    if TYPE_CHECKING:

        def forward(self, batch: MicroPass, inputs: dict[str, Any], output: Any) -> None:
            """A forward pass that trains has ended."""

        def backward(self, batch: MicroPass) -> None:
            """A backward pass has ended, at a sampled step."""

        def saved(self, path: Path) -> None:
            """A checkpoint was written."""

    def judge(self, findings: list[str], check: str = "") -> None:
        """Note that it was judged at the present step, and what was found."""
        self.book.judge(check or self.id, self.seen.number, findings)

    def take(self, verdict: Verdict, check: str = "") -> None:
        """Note the verdict of a law at the present step."""
        self.book.take(check or self.id, self.seen.number, verdict)

    def skip(self, reason: str, check: str = "") -> None:
        """Note why something was not judged."""
        self.book.skips(check or self.id, reason)
