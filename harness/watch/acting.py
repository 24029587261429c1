"""What Watch does about a finding: it warns, stops the run, or raises `Violation`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.files import check_writable
from harness.user_code import quoted
from harness.watch.book import Finding, log

ACTIONS = ("warn", "stop", "raise")


class Violation(RuntimeError):
    """What `on_violation="raise"` raises.

    - findings: what was found (`harness.watch.book.Finding`).
    """

    def __init__(self, findings: list[Finding]):
        super().__init__("; ".join(map(str, findings)))
        self.findings = findings


def check_options(on_violation: Any, every: Any, json: Any) -> Path | None:
    """Return the file of the certificate, None if none is asked for. UsageError for options that Watch does not have."""
    if on_violation not in ACTIONS:
        raise UsageError(f'Watch: on_violation={on_violation!r} is none of "warn", "stop" and "raise"')
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise UsageError(f"Watch: every={every!r}; expected a whole number from 1 on, or None")
    if json is None:
        return None
    if not isinstance(json, (str, os.PathLike)):
        raise UsageError(f"Watch: json={quoted(json)}; expected the path of a file, or None")
    return check_writable("Watch: json", Path(json).absolute())


class Safe:
    """What never ends the user's run by an error of its own."""

    #: What failed in Watch itself; "" if nothing did.
    _failure = ""

    def _safely(self, work: Callable[[], Any]) -> None:
        """Do some work. An error of Watch's own is said once, and ends the watching, not the run."""
        try:
            work()
        except Exception as error:
            self._failure = f"Watch failed with {type(error).__name__}: {error}"
            log.warning("not judged: %s", self._failure)
            log.debug("Watch failed", exc_info=error)
            with contextlib.suppress(Exception):
                self._release()

    def _release(self) -> None:
        """Take everything off the model."""


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
