"""What a mutant's cases say, beside the same cases without it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.mutants.catalogue import Mutant
from harness.mutants.child import Record
from harness.verdict import AMBIGUOUS, FAIL, KNOWN_DEFECT, NOT_COMPARABLE, PASS, SKIPPED, UNEXPECTED_PASS, Case

#: How a law says that a run is no evidence, as it ended with an error (`harness.laws.completion.incomplete`).
_ERROR = re.compile(r"(\([^)]*\) )?the (uninterrupted )?run ended with ")

#: What a law expects of a run that must end with an error: there the error's words are what is judged.
_ABOUT_ERRORS = ("before the first step", "is an error or a warning")

KILLED, ERROR, CHANGED, UNDECIDED, HELD = "killed", "error", "changed", "undecided", "held"


@dataclass(frozen=True)
class Seen:
    """A case under a mutant. outcome: KILLED, ERROR (it fails only since training raised an error), CHANGED (a known
    defect that fails in other words or no longer), UNDECIDED or HELD. sentence: the first that was seen.
    """

    clause: str
    scenario: str
    outcome: str
    sentence: str


@dataclass
class Outcome:
    """What became of a mutant. fate: how its process ended before all cases had, "" where it did not.

    - usual: check of `harness.mutants.usual_checks` -> whether it would have caught the mutant.
    - equivalent: whether every run of its cells and of the scenario table was bit-equal; None if that was not asked.
    - differs: runs that were not bit-equal.
    """

    mutant: Mutant
    seen: list[Seen] = field(default_factory=list)
    fate: str = ""
    usual: dict[str, bool] = field(default_factory=dict)
    equivalent: bool | None = None
    differs: str = ""
    seconds: float = 0.0

    def count(self, outcome: str) -> dict[str, int]:
        """Clause -> how many of its cases ended so."""
        found: dict[str, int] = {}
        for one in self.seen:
            if one.outcome == outcome:
                found[one.clause] = found.get(one.clause, 0) + 1
        return found

    @property
    def status(self) -> str:
        """ "killed", "crashed", "equivalent" or "survived"."""
        if self.count(KILLED):
            return "killed"
        if self.fate:
            return "crashed"
        return "equivalent" if self.equivalent else "survived"


def by_error(case: Case) -> bool:
    """Whether a failed case says only that an error was raised, by a clause that is about something else."""
    seen = [str(one) for one in case.evidence.get("seen", [])]
    expected = str(case.evidence.get("expected", ""))
    if expected == "the case runs to its end":
        return True
    return any(map(_ERROR.match, seen)) and not any(words in expected for words in _ABOUT_ERRORS)


def judge(mutant: Mutant, baseline: Mapping[tuple[str, str], Case], record: Record) -> Outcome:
    """Compare each case with what it was without the mutant; one that did not hold there says nothing here.

    baseline: (nodeid, clause) -> the case without the mutant.
    """
    outcome = Outcome(mutant, seconds=record.seconds)
    for case in record.cases:
        before = baseline.get((case.nodeid, case.clause))
        if before is None or before.verdict not in (PASS, KNOWN_DEFECT):
            continue
        sentences = case.evidence.get("seen") or [case.reason]
        outcome.seen.append(Seen(case.clause, case.scenario, _outcome(before, case), str(sentences[0])))
    return outcome


def _outcome(before: Case, case: Case) -> str:
    if case.verdict in (AMBIGUOUS, NOT_COMPARABLE, SKIPPED):
        return UNDECIDED
    if before.verdict == KNOWN_DEFECT:
        return CHANGED if case.verdict in (UNEXPECTED_PASS, FAIL) else HELD
    if case.verdict == FAIL:
        return ERROR if by_error(case) else KILLED
    return HELD
