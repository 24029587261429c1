"""The state of one session of `suites/`, and the keys by which its plugin and its fixtures find it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from _pytest.outcomes import Skipped

from harness import contract, environment, patches, paths
from harness.causes.cause import Cause
from harness.causes.group import by_root, group
from harness.contract import expectations
from harness.runs.cache import Runs
from harness.session import concerns, report, specs
from harness.session.complete import Complete
from harness.session.journal import Journal
from harness.subjects import Subject, Traits, traits
from harness.verdict import NOT_COMPARABLE, Case, Refused, Unjudged, Verdict

#: The cases that a test judges, in the test's stash.
CASES = pytest.StashKey[list[Case]]()
#: The verdicts that a test has recorded with `judge`, in the test's stash.
VERDICTS = pytest.StashKey[list[Verdict]]()
#: The session's `State`, in the stash of pytest's configuration.
STATE = pytest.StashKey["State"]()


class DrawnFailure(AssertionError):
    """Ends a drawn run that breaks a clause. hypothesis needs an exception to shrink the run; no other test raises it."""

    def __init__(self, verdict: Verdict, clause: str):
        super().__init__("\n".join([verdict.expected, *verdict.seen]))
        self.verdict = verdict
        self.clause = clause


class NotComparable(Skipped):
    """Skips a case in which there is nothing to compare; the message says why. Its clause does not hold by other cases."""


class RefusedByUpstream(Skipped):
    """Skips a case that upstream refuses in words; the message has them. Its clause is judged by its other cases."""


class NotTrained(Skipped):
    """Skips a case whose run, which the user brought, cannot be trained; the message says why."""


class Outside(Skipped):
    """Skips a case whose run is outside of the user's scope; the message says which part of it."""


class Unsupported(Skipped):
    """Skips a case that the subject cannot run on this machine and stack; the message says why."""


def skip_if(reason: str | None) -> None:
    """Skip a case that cannot run on this machine, on this stack or with this subject. None: it can run."""
    if reason is not None:
        raise Unsupported(reason)


def skip_uncompared(verdict: Verdict) -> Verdict:
    """Return a verdict. If its law found nothing to compare, or upstream refused it in words, skip the case instead."""
    if verdict.outcome == NOT_COMPARABLE and not any(isinstance(sentence, Unjudged) for sentence in verdict.seen):
        refused = any(isinstance(sentence, Refused) for sentence in verdict.seen)
        raise (RefusedByUpstream if refused else NotComparable)("; ".join(verdict.seen))
    return verdict


def has_pytest_html(config: pytest.Config) -> bool:
    """Return whether the plugin pytest-html is there, whose option --html has the same name as ours."""
    return config.pluginmanager.hasplugin("html")


class State:
    """The options of the session, the clauses and known defects that apply, and the cases judged so far."""

    #: Whether the cases are tests of somebody's own session (`harness.session.conformance`).
    in_theirs = False

    def __init__(self, config: pytest.Config):
        self.subject: str = config.getoption("--subject")
        self.device: str = config.getoption("--device")
        self.json: str | None = config.getoption("--json")
        self.html: str | None = None if has_pytest_html(config) else config.getoption("--html", None)
        self.preload: list[str] = config.getoption("--preload")
        self.torchrun: bool = config.getoption("--torchrun")
        #: The commit of the harness, if figures are recorded (--record).
        self.commit = ""
        self.clauses = contract.select(config.getoption("--clause"))
        #: Whether the user named clauses, so that each of them must be judged.
        self.named = bool(config.getoption("--clause"))
        #: The runs of --spec. Only these are judged, if there are any.
        self.brought = specs.load_all(config.getoption("--spec"), config.getoption("--trust-code"))
        #: The routes, methods and launches whose cases are judged.
        self.concerns = concerns.read(*(config.getoption(option) for option in ("--route", "--method", "--launch")))
        # The user's own come first: they know their cases better.
        own = [one for file in config.getoption("--known-defects") for one in expectations.load_own(Path(file))]
        self.expectations = [*own, *expectations.load(paths.SUITES / "expectations")]
        concerns.check_clauses(self.expectations)
        #: What decides which clauses judge the subject (`know`).
        self.traits = Traits()
        self.effort = report.Effort()
        #: The training runs of this process, once a test needed them.
        self.runs: Runs | None = None
        #: What could not be written although it was asked for, in sentences.
        self.unwritten: list[str] = []
        #: Mistakes in the suites that xdist's workers reported.
        self.errors: list[str] = []
        #: Under xdist, the controller passes its journal's path, beside which a worker writes the collected cases.
        worker = getattr(config, "workerinput", None)
        chosen = worker["peft_harness_journal"] if worker else config.getoption("--journal")
        run = [self.subject, self.device, *sorted(self.clauses), *self.preload]
        run += [patches.names(self.device), environment.describe(self.device)]
        run += [[one.name, one.spec.hash] for one in self.brought]
        run += [self.concerns.options(), [repr(one) for one in own]] if own or not self.concerns.all else []
        # A worker that replaces a dead one must collect what the others have, so what ended meanwhile does not count.
        known = worker["peft_harness_journal_cases"] if worker else None
        self.journal = Journal.open(chosen, run, writes=worker is None, known=known)
        self.cases: list[Case] = list(self.journal.cases)
        self.complete = Complete(self.journal.ended)
        self._called: str = config.getoption("--called")

    def know(self, subject: Subject) -> None:
        """Take in what the subject says of itself. What it is built on has known defects, which are then not its own."""
        self.traits = traits(subject)
        self.expectations = expectations.inherited(self.expectations, self.subject, self.traits.built_on)

    def causes(self) -> list[Cause]:
        """Return why cases do not hold, the largest cause first."""
        words = [self._called]
        for option, value, usual in (("--subject", self.subject, "hf-trainer"), ("--device", self.device, "cpu")):
            words += [] if value == usual else [f"{option} {shlex.quote(value)}"]
        words += [f"--preload {shlex.quote(module)}" for module in self.preload]
        found = group(self.cases, check=" ".join(words))
        if self.traits.foreign:
            found = by_root(found, self.cases)
        if " --with " not in self._called:
            return found
        # `repro` takes the installed stack, on which the case may hold.
        repeats = {case.repeat for case in self.cases}
        return [replace(cause, next=tuple(word for word in cause.next if word not in repeats)) for cause in found]
