"""What a session of `suites/` prints beside pytest's own output: its summary, FAILED lines, and progress in pipes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from harness import progress
from harness.causes.root import normal
from harness.session import failure, report
from harness.session.state import STATE

#: FAILED lines without -v. The causes above them say what the cases have in common.
_MOST_FAILED = 30


#: Reasons of ERROR lines without -v.
_MOST_ERRORS = 8


class Terminal:
    """A pytest plugin for the process that prints. reporter: pytest's TerminalReporter."""

    def __init__(self, config: pytest.Config, reporter: Any):
        self._config = config
        self._reporter = reporter
        self._ended = self._total = 0
        self._began = self._printed_at = time.monotonic()

    def pytest_runtest_logfinish(self) -> None:
        """In a pipe, print a line every ten seconds: CI systems show pytest's dots only once their line is full."""
        self._ended += 1
        now = time.monotonic()
        if self._reporter.isatty or now - self._printed_at < progress.INTERVAL:
            return
        self._printed_at = now
        # After a worker has died, xdist's number is that of the tests that were left to it.
        self._total = max(self._total, self._reporter._session.testscollected)
        failed = len(self._reporter.stats.get("failed", ()))
        if self._reporter._width_of_current_line:
            self._reporter.line("")
        self._reporter.write_line(f"{self._ended} of {self._total} tests, {failed} failed ({now - self._began:.0f} s)")

    # Outermost, so that this comes before pytest prints the failures and after it prints its short summary.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self) -> Generator[None, None, None]:
        """Print each clause's statement once, and FAILED lines that have the first finding.

        pytest's own FAILED lines are cut at 80 columns, also in a pipe, and a test's id takes most of these.
        """
        failed = self._reporter.stats.get("failed", [])
        failure.drop_repeated_statements(failed)
        chosen = self._reporter.reportchars
        self._reporter.reportchars = chosen.replace("f", "")
        yield
        self._reporter.reportchars = chosen
        if failed and "f" in chosen:
            self._reporter.write_sep("=", "short test summary info", cyan=True, bold=True)
            most = len(failed) if self._config.option.verbose > 0 else _MOST_FAILED
            for test in failed[:most]:
                # pytest 9 takes the id as an object.
                id = self._config.cwd_relative_nodeid(getattr(test, "id", test.nodeid))
                self._reporter.write("FAILED", red=True)
                self._reporter.write_line(f" {id} - {failure.headline_of(test)}")
            if len(failed) > most:
                self._reporter.write_line(f"and {len(failed) - most} more: -v, or --json FILE, has them all")


def print_summary(reporter: Any, config: pytest.Config) -> None:
    """Print the suites' own errors and the report's summary. reporter: pytest's TerminalReporter."""
    state = config.stash[STATE]
    for error in state.errors:
        reporter.write_line(f"ERROR: {error}", red=True)
    if state.errors:
        return
    verbose = config.option.verbose > 0
    reasons = list(dict.fromkeys(case.reason for case in state.cases if case.misused or case.refused))
    most = len(reasons) if verbose else _MOST_ERRORS
    for reason in reasons[:most]:
        reporter.write_line(f"ERROR: {reason}", red=True)
    if len(reasons) > most:
        reporter.write_line(f"ERROR: {len(reasons) - most} more reasons: -v, or --json FILE, has all", red=True)
    for sentence in _outside(reporter.stats.get("error", [])):
        reporter.write_line(f"ERROR: {sentence}", red=True)
    if config.option.collectonly:
        reporter.write_line("nothing was judged: --collect-only")
    elif not (state.complete.asked or state.cases or reporter.stats.get("error")):
        reporter.write_line("ERROR: nothing was judged: --spec, --clause, -k and the like leave no test over", red=True)
    for sentence in (state.complete.sentence(), *state.unwritten):
        if sentence:
            reporter.write_line(f"ERROR: {sentence}", red=True)
    if any(not case.refused for case in state.cases):
        console = progress.screen(reporter._tw._file, no_color=not reporter.hasmarkup)
        report.summary(console, state.cases, state.effort, state.named, state.causes(), verbose)


def _outside(errors: Sequence[Any]) -> list[str]:
    """Return a sentence for each reason why files could not be read, or why a test failed after it had judged its case.

    Such errors belong to no case. errors: pytest's reports of them.
    """
    by_reason: dict[str, list[str]] = defaultdict(list)
    for one in errors:
        if getattr(one, "when", None) == "setup":
            continue  # the case has it
        lines = [line.strip() for line in str(one.longrepr or "").splitlines() if line.strip()]
        crash = getattr(getattr(one, "longrepr", None), "reprcrash", None)
        last = crash.message.partition("\n")[0] if crash is not None else lines[-1] if lines else "an error"
        by_reason[normal(last)].append(f"{one.nodeid}\n{last.removeprefix('E   ').strip()}")
    sentences = []
    for found in by_reason.values():
        id, _, last = found[0].partition("\n")
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        sentences.append(f"{id}{more}: {last}")
    return sentences
