"""What Watch does about a finding: it warns, stops the run, or raises `Violation`."""

from __future__ import annotations

from collections.abc import Callable

from harness.errors import UsageError
from harness.watch.book import Finding, log

ACTIONS = ("warn", "stop", "raise")


class Violation(RuntimeError):
    """What `on_violation="raise"` raises.

    - findings: what was found (`harness.watch.book.Finding`).
    """

    def __init__(self, findings: list[Finding]):
        super().__init__("; ".join(map(str, findings)))
        self.findings = findings


def check_options(on_violation: str, every: int | None) -> None:
    """Raise UsageError for options that Watch does not have."""
    if on_violation not in ACTIONS:
        raise UsageError(f'Watch: on_violation={on_violation!r} is none of "warn", "stop" and "raise"')
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise UsageError(f"Watch: every={every!r}; expected a whole number from 1 on, or None")


def act(fresh: list[Finding], on_violation: str, stop: Callable[[], None], before_raising: Callable[[], None]) -> None:
    """Say what was found since the last event, and do what `on_violation` asks for.

    - fresh: the findings. The list is emptied.
    - stop: ends training after the step.
    - before_raising: called before `Violation` is raised.
    """
    found, fresh[:] = list(fresh), []
    for finding in found:
        log.warning("Watch: %s", finding)
    if found and on_violation == "stop":
        stop()
    if found and on_violation == "raise":
        before_raising()
        raise Violation(found)
