"""One configuration of the sweep, tried: trained and judged as `peft-harness judge` does it, in a worker's process."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness import defaults, subjects
from harness.contract.expectations import Expectation
from harness.errors import OutOfSpace, UsageError
from harness.files import require_space
from harness.runs import fewest, fields, judging
from harness.runs.cache import Runs
from harness.runs.judging import Refused
from harness.runs.pairs import Row
from harness.subjects import Subject
from harness.verdict import AMBIGUOUS, FAIL, NOT_COMPARABLE, PASS

HOLDS, FAILS, KNOWN, REFUSED = "holds", "fails", "known defect", "refused"
UNDECIDED, ALONE, BROKEN, ENDED = "undecided", "compared with no other run", "harness fault", "did not end"

#: What can become of a configuration.
OUTCOMES = {
    HOLDS: "every law that applies holds",
    FAILS: "a law fails, and no known defect explains it",
    KNOWN: "laws fail, and known defects explain all of that",
    UNDECIDED: "a law is undecided",
    ALONE: "no run could be compared with another one",
    REFUSED: "upstream, or the installation, does not train it",
    BROKEN: "a law, or the harness, raised an error",
    ENDED: "its process hung or died",
}


#: What became of a law, its clause, and its first finding.
Finding = tuple[str, str, str]


@dataclass
class Outcome:
    """What became of a configuration.

    - row: the configuration.
    - kind: a key of `OUTCOMES`.
    - findings: (kind, clause, first finding) of each law that fails, is undecided or raised an error, and of a process that
      ended. The clause is "" if no law did it.
    - known: clause -> the reason, for known defects.
    - refused: why it was not trained, in one sentence.
    - laws: verdict -> how many laws had it.
    - equal: whether the run is the independent reference's.
    - seconds: how long it took.
    """

    row: Row
    kind: str
    findings: list[Finding] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)
    refused: str = ""
    laws: dict[str, int] = field(default_factory=dict)
    equal: bool = False
    seconds: float = 0.0


def unsupported(subject: Subject, row: Row) -> str:
    """Return why a row cannot be trained with what is installed; "" if nothing speaks against it. Nothing is trained."""
    try:
        spec = fields.spec(row)
        return subjects.unsupported(subject, spec) or ""
    except UsageError as error:
        return str(error)


class Trial:
    """Judges configurations of one subject.

    - expected: known defects.
    """

    def __init__(self, subject: Subject, expected: list[Expectation]):
        self._subject, self._expected = subject, expected

    def judge(self, row: Row) -> Outcome:
        """Judge a configuration by every law that applies. No exception leaves this but OutOfSpace."""
        try:
            with self._runs() as runs:
                judged = judging.judge(fields.spec(row), runs, self._expected, "the run")
        except Refused as error:
            if error.known:
                return Outcome(row, KNOWN, known={judging.COMPLETES: error.known})
            if judging.NOT_TRAINED in str(error):
                return Outcome(row, ENDED, [(ENDED, "", str(error))])
            return Outcome(row, REFUSED, refused=str(error))
        except OutOfSpace:
            raise
        except UsageError as error:
            return Outcome(row, REFUSED, refused=str(error))
        except Exception as error:
            require_space(error)
            return Outcome(row, BROKEN, [(BROKEN, "", judging.cause(error))])
        laws: dict[str, int] = {}
        for verdict in judged.laws.values():
            laws[verdict.outcome] = laws.get(verdict.outcome, 0) + 1
        oracle = judged.laws.get("GEN-01")
        kind, findings = _kind(judged)
        equal = oracle is not None and oracle.outcome == PASS
        return Outcome(row, kind, findings, judged.known, laws=laws, equal=equal)

    def refused(self, row: Row) -> str:
        """Train a configuration. Return why it was refused, "" if it was not. Raises OutOfSpace."""
        try:
            with self._runs() as runs:
                spec = runs.on_device(fields.spec(row))
                if reason := subjects.unsupported(self._subject, spec):
                    return reason
                judging.trained(spec, runs, "the run")
        except OutOfSpace:
            raise
        except UsageError as error:
            return str(error)
        return ""

    def found(self, row: Row, clause: str) -> str:
        """Judge a configuration by one clause. Return its first finding, "" if it does not fail.

        - clause: "" for what no law has found: the process hung or died, or the harness raised an error.
        """
        if unsupported(self._subject, row):
            return ""
        if not clause:
            return next((words for _, _, words in self.judge(row).findings), "")
        try:
            with self._runs() as runs:
                spec = runs.on_device(defaults.plain(fields.spec(row)))
                trace = judging.trained(spec, runs, "the run")
                for id, applied in judging.laws_of(spec, trace, runs):
                    if id == clause:
                        verdict = judging.decided(applied)
                        if judging.explained(id, verdict, spec, self._subject.name, self._expected) is None:
                            judged = judging.Judgement(spec, self._subject.name, trace, {id: verdict})
                            return next((words for _, _, words in _kind(judged)[1]), "")
        except Exception as error:
            require_space(error)
        return ""

    # ---- what workers are given ----

    def refusals(self, rows: list[Row]) -> list[str]:
        """Train each row. Return why it was refused, "" for one that was not."""
        return [self.refused(row) for row in rows]

    def fewest(self, row: Row, clause: str, words: str) -> Row:
        """Return the fewest fields with which a clause fails in the same words (`harness.runs.fewest.cause`)."""
        return self._fewest(row, lambda part: self.found(part, clause), words)

    def forbidden(self, row: Row, sentence: str, trained: bool = True) -> Row:
        """Return the fields of a row that are refused together.

        - sentence: why the row is refused.
        - trained: whether training shows it; otherwise `unsupported` does.
        """
        why: Callable[[Row], str] = self.refused if trained else lambda part: unsupported(self._subject, part)
        why = _once(why)
        found = self._fewest(row, why, sentence)
        whole = fewest.with_defaults(found, lambda part: not why(part), fields.names(), fields.GROUPS)
        # The row may have other values than the defaults that have a part in it. It is refused with those.
        return {name: row.get(name, value) for name, value in whole.items()}

    def _fewest(self, row: Row, why: Callable[[Row], str], sentence: str) -> Row:
        same = fewest.cause(sentence)
        why = _once(why)
        changed: Row = fields.changed(row)
        # Several ranks take ten times as long. If one process fails in the same way, they are left out first.
        alone = {name: value for name, value in changed.items() if name != "launch"}
        if len(alone) < len(changed) and fewest.cause(why(alone)) == same:
            changed = alone
        return fewest.fewest(changed, lambda part: fewest.cause(why(part)) == same, fields.GROUPS)

    @contextlib.contextmanager
    def _runs(self) -> Iterator[Runs]:
        """Yield a cache in a directory of its own. What upstream changes in this process is undone afterwards."""
        import torch

        before = dict(os.environ)
        try:
            with tempfile.TemporaryDirectory() as directory:
                yield Runs(self._subject, Path(directory))
        finally:
            os.environ.clear()
            os.environ.update(before)
            torch.use_deterministic_algorithms(False)  # full_determinism turns it on


def _once(why: Callable[[Row], str]) -> Callable[[Row], str]:
    """Return a function that asks `why` once for the same fields, since each answer is a training run."""
    known: dict[frozenset[tuple[str, str]], str] = {}

    def asked(row: Row) -> str:
        key = frozenset(row.items())
        if key not in known:
            known[key] = why(row)
        return known[key]

    return asked


def _kind(judged: judging.Judgement) -> tuple[str, list[Finding]]:
    """Return what became of a judged run, and what speaks for that."""
    undecided = judged.undecided
    broken = {
        clause: verdict
        for clause, verdict in undecided.items()
        if verdict.outcome == NOT_COMPARABLE and any("the law failed with" in sentence for sentence in verdict.seen)
    }
    kinds = {
        FAILS: judged.having(FAIL),
        BROKEN: broken,
        UNDECIDED: {clause: verdict for clause, verdict in undecided.items() if verdict.outcome == AMBIGUOUS},
    }
    findings = [
        (kind, clause, verdict.seen[0] if verdict.seen else verdict.expected)
        for kind, laws in kinds.items()
        for clause, verdict in laws.items()
    ]
    if findings:
        return findings[0][0], findings
    if judged.known:
        return KNOWN, []
    return (HOLDS if judged.compared else ALONE), []
