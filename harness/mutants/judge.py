"""Compare a mutant's cases with the same cases without it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.mutants.catalogue import Mutant
from harness.mutants.child import Record
from harness.mutants.watched import Watched
from harness.verdict import AMBIGUOUS, FAIL, KNOWN_DEFECT, NOT_COMPARABLE, PASS, SKIPPED, UNEXPECTED_PASS, Case

#: The sentence of a law for a run that ended with an error (`harness.laws.completion.incomplete`).
_ERROR = re.compile(r"(\([^)]*\) )?the (uninterrupted )?run ended with ")

#: What a law expects if it judges the error itself.
_ABOUT_ERRORS = ("before the first step", "is an error or a warning")

KILLED, ERROR, CHANGED, UNDECIDED, HELD = "killed", "error", "changed", "undecided", "held"


@dataclass(frozen=True)
class MutatedCase:
    """A case that was judged with a mutant.

    - outcome: KILLED: it fails with the mutant and holds without it. ERROR: it fails only because training raised an
      error. CHANGED: a known defect fails in other words, or holds. UNDECIDED: it was not decided. HELD: it holds.
    - sentence: the first sentence of what was seen.
    """

    clause: str
    scenario: str
    outcome: str
    sentence: str


@dataclass
class Outcome:
    """What became of a mutant.

    - cases: its cases that hold, or are known defects, without it.
    - fate: how its process ended before all cases were judged, "" if all were.
    - usual: whether each check of `harness.mutants.usual_checks` would have caught it, by name.
    - equivalent: whether every run of its cells and of the scenario table is bit-equal; None if that was not compared.
    - differs: runs that are not bit-equal, in words.
    - seconds: how long its process ran.
    - watched: what Watch saw of it; None if that was not measured.
    """

    mutant: Mutant
    cases: list[MutatedCase] = field(default_factory=list)
    fate: str = ""
    usual: dict[str, bool] = field(default_factory=dict)
    equivalent: bool | None = None
    differs: str = ""
    seconds: float = 0.0
    watched: Watched | None = None

    def count(self, outcome: str) -> dict[str, int]:
        """Return how many cases ended with this outcome, by clause."""
        counts: dict[str, int] = {}
        for case in self.cases:
            if case.outcome == outcome:
                counts[case.clause] = counts.get(case.clause, 0) + 1
        return counts

    @property
    def status(self) -> str:
        """ "killed", "crashed", "equivalent" or "survived"."""
        if self.count(KILLED):
            return "killed"
        if self.fate:
            return "crashed"
        return "equivalent" if self.equivalent else "survived"


def by_error(case: Case) -> bool:
    """Return whether a failed case says only that an error was raised, although its clause is about something else."""
    from harness.session.decide import RUNS_TO_ITS_END

    sentences = [str(sentence) for sentence in case.evidence.get("seen", [])]
    expected = str(case.evidence.get("expected", ""))
    if expected == RUNS_TO_ITS_END:
        return True
    return any(map(_ERROR.match, sentences)) and not any(words in expected for words in _ABOUT_ERRORS)


def judge(mutant: Mutant, baseline: Mapping[tuple[str, str], Case], record: Record) -> Outcome:
    """Compare each case of a record with the same case without the mutant.

    - baseline: the cases without the mutant, by (nodeid, clause). A case that fails there is left out.
    - record: what the process with the mutant wrote.
    """
    outcome = Outcome(mutant, seconds=record.seconds)
    for case in record.cases:
        before = baseline.get((case.nodeid, case.clause))
        if before is None or before.verdict not in (PASS, KNOWN_DEFECT):
            continue
        sentences = case.evidence.get("seen") or [case.reason]
        outcome.cases.append(MutatedCase(case.clause, case.scenario, _outcome(before, case), str(sentences[0])))
    return outcome


def _outcome(before: Case, case: Case) -> str:
    if case.verdict in (AMBIGUOUS, NOT_COMPARABLE, SKIPPED):
        return UNDECIDED
    if before.verdict == KNOWN_DEFECT:
        return CHANGED if case.verdict in (UNEXPECTED_PASS, FAIL) else HELD
    if case.verdict == FAIL:
        return ERROR if by_error(case) else KILLED
    return HELD
