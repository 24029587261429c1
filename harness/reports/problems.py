"""What is wrong, by a report: one problem for each cause. What CI systems show is made from these."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.reports import kinds
from harness.reports.kinds import fields, items, objects, text, texts
from harness.reports.pins import Place, place_of
from harness.verdict import AMBIGUOUS, FAIL, UNEXPECTED_PASS
from harness.words import counted

ERROR, WARNING = "error", "warning"

#: Rules: id -> level, and what it means.
RULES = {
    "broken-by-the-upgrade": (ERROR, "It held on the baseline and does not hold on the candidate."),
    "not-judged-any-more": (WARNING, "It held on the baseline and cannot be judged on the candidate."),
    "clause-fails": (ERROR, "A clause of the contract does not hold."),
    "unexpected-pass": (ERROR, "A known defect is gone, so its entry in suites/expectations/ must go, too."),
    "undecided": (WARNING, "It could not be decided whether a clause holds."),
    "run-violates": (ERROR, "A check of Watch found that a training run does what it must not."),
    "fault-not-caught": (ERROR, "A fault that was put into upstream on purpose makes no clause fail."),
}

#: The parts of a gate's sentences that say in which cases a clause fails now, or cannot be judged.
_CASES = re.compile(r" \(held before, .*|^held before and cannot be judged now in [\d,]+ cases? \(.*?\): ")


#: What a gate's finding or cause means -> the rule.
_MEANS = {"broken": "broken-by-the-upgrade", "lost": "not-judged-any-more"}


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    - rule: one of RULES.
    - sentence: what went wrong, in one line.
    - clauses: the clauses that do not hold because of it. Empty if it is about no clause.
    - cases: how many cases have it.
    - packages: the packages that can be to blame. Empty if that is not known.
    - next: commands to type next.
    - place: the line of the requirements file at which it is shown; None if no file is known.
    """

    rule: str
    sentence: str
    clauses: tuple[str, ...] = ()
    cases: int = 1
    packages: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    place: Place | None = None

    @property
    def level(self) -> str:
        return RULES[self.rule][0]

    @property
    def fingerprint(self) -> str:
        """The same for the same problem in another report, so that CI systems know it again. Counts are no part of it."""
        words = "\n".join([self.rule, self.sentence, *self.packages])
        return hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()[:32]

    @property
    def words(self) -> str:
        """The sentence, with the clauses and the number of cases."""
        named = ", ".join(self.clauses[:6]) + (f" and {len(self.clauses) - 6} more" if len(self.clauses) > 6 else "")
        many = counted(self.cases, "case") if self.cases > 1 else ""
        about = ": ".join(part for part in (named, many) if part)
        return f"{self.sentence} ({about})" if about else self.sentence


def of(report: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of a report of any command, errors first. An empty list: nothing is wrong.

    Raises UsageError if it is no report.
    """
    found = list(_BY_KIND[kinds.kind(report)](report))
    order = {ERROR: 0, WARNING: 1}
    return sorted(found, key=lambda problem: (order[problem.level], -problem.cases))


def _of_causes(report: Mapping[str, Any], rule: str) -> Iterator[Problem]:
    """Yield a problem for each cause. rule: of a cause that does not say what it means."""
    for cause in objects(report.get("causes")):
        packages = texts(cause.get("packages"))
        yield Problem(
            _MEANS.get(text(cause.get("means")), rule),
            text(cause.get("sentence")) or "a cause without a sentence",
            texts(cause.get("clauses")),
            _count(cause.get("cases")),
            packages,
            texts(cause.get("next")),
            place_of(packages, report),
        )


def _count(value: Any) -> int:
    found = kinds.number(value)
    return max(1, int(found)) if found is not None else 1


def _of_gate(report: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each cause, and for the findings that have none. Equal sentences are one problem."""
    known = list(_of_causes(report, _MEANS["broken"]))
    yield from known
    covered = {(problem.rule, clause) for problem in known for clause in problem.clauses}
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for finding in objects(report.get("findings")):
        rule = _MEANS.get(text(finding.get("means")))
        of_cause = finding.get("about") == "clause" and (rule, text(finding.get("where"))) in covered
        if rule is None or of_cause or items(fields(finding.get("details")).get("causes")):
            continue
        sentence = _CASES.sub("", text(finding.get("sentence")))
        groups.setdefault((rule, sentence), []).append(finding)
    for (rule, sentence), findings in groups.items():
        wheres = [(text(one.get("about")), text(one.get("where"))) for one in findings]
        others = list(dict.fromkeys(f"{about} {where}" for about, where in wheres if about != "clause"))
        cases = sum(max(1, len(items(fields(one.get("details")).get("scenarios")))) for one in findings)
        clauses = tuple(dict.fromkeys(where for about, where in wheres if about == "clause"))
        named = f"{', '.join(others[:3])}: {sentence}" if others and not clauses else sentence
        yield Problem(rule, named, clauses, cases, place=place_of((), report))


def _of_suites(report: Mapping[str, Any]) -> Iterator[Problem]:
    causes = list(_of_causes(report, "clause-fails"))
    yield from causes
    rules = {FAIL: "clause-fails", UNEXPECTED_PASS: "unexpected-pass", AMBIGUOUS: "undecided"}
    if causes:
        del rules[FAIL]
    found = []
    for clause in objects(report.get("clauses")):
        for case in objects(clause.get("cases")):
            rule = rules.get(text(case.get("verdict")))
            if rule is not None:
                found.append((rule, finding_of(case), text(clause.get("id"))))
    yield from _grouped(found, report)


def finding_of(case: Mapping[str, Any]) -> str:
    """Return the first thing that was seen in a case of a report by clause, or the reason why there is no verdict."""
    evidence = fields(case.get("evidence"))
    seen = items(evidence.get("seen"))
    return text(seen[0].partition("\n")[0] if seen and isinstance(seen[0], str) else evidence.get("reason"))


def _of_judge(report: Mapping[str, Any]) -> Iterator[Problem]:
    rules = {FAIL: "clause-fails", AMBIGUOUS: "undecided"}
    laws = [law for law in objects(report.get("laws")) if text(law.get("verdict")) in rules]
    found = [(rules[text(law["verdict"])], _seen(law), text(law.get("clause"))) for law in laws]
    yield from _grouped(found, report)


def _seen(law: Mapping[str, Any]) -> str:
    return (texts(law.get("seen")) or (text(law.get("reason")),))[0]


def _of_sweep(report: Mapping[str, Any]) -> Iterator[Problem]:
    for cause in objects(report.get("causes")):
        clauses = objects(cause.get("clauses"))
        seen = next((sentence for one in clauses if (sentence := text(one.get("seen")))), "")
        changed = ", ".join(f"{text(name)}={text(value)}" for name, value in fields(cause.get("fields")).items())
        rule = "undecided" if cause.get("kind") == "undecided" else "clause-fails"
        ids = tuple(id for one in clauses if (id := text(one.get("clause"))))
        words = f"{seen} (with {changed})" if changed else seen
        yield Problem(rule, words, ids, _count(cause.get("configurations")), place=place_of((), report))


def _of_mutants(report: Mapping[str, Any]) -> Iterator[Problem]:
    for mutant in objects(report.get("mutants")):
        if mutant.get("status") in ("survived", "crashed"):
            sentence = f"{text(mutant.get('name'))}: {text(mutant.get('says'))}"
            yield Problem("fault-not-caught", sentence, place=place_of((), report))


def _of_watch(report: Mapping[str, Any]) -> Iterator[Problem]:
    for check in objects(report.get("checks")):
        first = next(iter(objects(check.get("findings"))), {})
        if text(check.get("verdict")) == "fails":
            sentence = f"{text(check.get('check'))}: {text(first.get('sentence'))}"
            yield Problem("run-violates", sentence, place=place_of((), report))


def _grouped(found: Iterable[tuple[str, str, str]], report: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each sentence. found: rule, sentence and clause of each case."""
    groups: dict[tuple[str, str], list[str]] = {}
    for rule, sentence, clause in found:
        groups.setdefault((rule, sentence), []).append(clause)
    for (rule, sentence), clauses in groups.items():
        place = place_of((), report)
        yield Problem(rule, sentence, tuple(dict.fromkeys(clauses)), len(clauses), place=place)


_BY_KIND = {
    kinds.GATE: _of_gate,
    kinds.SUITES: _of_suites,
    kinds.JUDGE: _of_judge,
    kinds.SWEEP: _of_sweep,
    kinds.MUTANTS: _of_mutants,
    kinds.WATCH: _of_watch,
}
