"""What a session of `suites/` knows, and where its plugin, its fixtures and its verdicts find it."""

from __future__ import annotations

import pytest
from _pytest.outcomes import Skipped

from harness import contract, environment, paths
from harness.contract import expectations
from harness.session import report
from harness.session.journal import Journal
from harness.verdict import Case, Verdict

#: The cases that a test judges.
CASES = pytest.StashKey[list[Case]]()
#: The session's `State`, in its config.
STATE = pytest.StashKey["State"]()


class ClauseFailure(AssertionError):
    """A verdict on a clause that is no pass."""

    def __init__(self, verdict: Verdict, clause: str):
        super().__init__("\n".join([verdict.expected, *verdict.seen]))
        self.verdict = verdict
        self.clause = clause


class NotComparable(Skipped):
    """What was recorded was recorded elsewhere: there is nothing to compare with, and the reason is told."""


class Unsupported(Skipped):
    """Skips a case that the subject cannot run on this machine and stack; the message says why."""


class State:
    """What the session knows: options, chosen clauses, expectations, and the cases judged so far."""

    def __init__(self, config: pytest.Config):
        self.subject: str = config.getoption("--subject")
        self.device: str = config.getoption("--device")
        self.json: str | None = config.getoption("--json")
        self.preload: list[str] = config.getoption("--preload")
        self.torchrun: bool = config.getoption("--torchrun")
        #: Of the harness, where figures are recorded.
        self.commit = ""
        self.clauses = contract.select(config.getoption("--clause"))
        #: Whether the user named clauses, so that each of them must be judged.
        self.named = bool(config.getoption("--clause"))
        self.expectations = expectations.load(paths.SUITES / "expectations")
        self.effort = report.Effort()
        #: What is wrong with the suites, told by workers of xdist.
        self.errors: list[str] = []
        #: Under xdist a worker is told where the cases that it collects are written down, for when it crashes.
        worker = getattr(config, "workerinput", None)
        chosen = worker["peft_harness_journal"] if worker else config.getoption("--journal")
        run = [self.subject, self.device, *sorted(self.clauses), *self.preload, environment.describe(self.device)]
        self.journal = Journal.open(chosen, run, writes=worker is None)
        self.cases: list[Case] = list(self.journal.cases)
