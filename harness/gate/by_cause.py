"""Group the findings of a gate by cause, so that a fault that breaks a hundred clauses is one thing to act on.

1. The cases that held and fail now are grouped across clauses (`harness.causes.group`), together with the runs that are no
   longer trained, resumed, loaded or computed as before: each such finding takes part as a case with its words.
2. A case that cannot be judged any more because of an error that is a cause follows from it.
3. Findings about speed and memory, and what cannot be judged any more for another reason, are grouped by their reason.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.causes.cause import Cause
from harness.causes.group import group
from harness.gate.clauses import FAILED, UNTESTED, Change
from harness.gate.findings import BROKEN, LOST, ORDER, Finding
from harness.session.report import headline
from harness.spec import RunSpec
from harness.verdict import FAIL, Case

#: (clause, scenario)
Name = tuple[str, str]


@dataclass(frozen=True)
class GateCause:
    """One cause of what changed between two stacks.

    - cause: its members are the cases that held on the baseline, and fail on the candidate or cannot be judged there.
    - means: BROKEN or LOST.
    - elsewhere: the other findings that it explains, as (about, where), such as ("cell", "plain/add_adapter").
    - follows: cases that cannot be judged, or could not be judged before and fail now, because of it.
    """

    cause: Cause
    means: str
    elsewhere: tuple[Name, ...] = ()
    follows: tuple[Name, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            **self.cause.to_json(),
            "means": self.means,
            "elsewhere": [{"about": about, "where": where} for about, where in self.elsewhere],
            "follows": [{"clause": clause, "scenario": scenario} for clause, scenario in self.follows],
        }


def by_cause(
    findings: Sequence[Finding],
    changes: Iterable[Change],
    cases: Sequence[Case],
    packages: Sequence[str],
    specs: Mapping[str, RunSpec],
) -> list[GateCause]:
    """Return the causes of all that is BROKEN or LOST: gravest first, then by the number of their cases.

    Each case that fails now, and each other finding, belongs to exactly one cause. Findings get the numbers of their causes
    ("causes" in their details, from 1).

    - findings: of the gate.
    - changes: of the clauses; the findings are about these.
    - cases: all of the candidate.
    - packages: those that differ between the two stacks.
    - specs: the cells, by name.
    """
    changed = _Changed.of(changes)
    besides = [finding for finding in findings if finding.means == BROKEN and finding.about != "clause"]
    measured = [finding for finding in besides if _is_measured(finding)]
    stand_ins = [
        (finding, _as_case(finding, number, specs))
        for number, finding in enumerate(besides)
        if not _is_measured(finding)
    ]
    need = {id(case) for case in (*changed.broken, *changed.late, *(case for _, case in stand_ins))}
    found = group(
        [*cases, *(case for _, case in stand_ins)], failing=lambda case: id(case) in need, changed=list(packages)
    )
    finding_of = {(case.clause, case.scenario): finding for finding, case in stand_ins}
    # A scenario's name may come twice in a clause. So they are counted.
    left = {kind: Counter(map(_name, cases)) for kind, cases in changed.kinds().items()}
    causes = []
    for cause in found:
        names = {kind: tuple(_taken(cause.members, counter)) for kind, counter in left.items()}
        elsewhere = [finding_of[name] for name in cause.members if name in finding_of]
        if names["broken"] or elsewhere:
            causes.append(_gate_cause(cause, names, elsewhere, changed, packages))
        else:
            for kind, counter in left.items():
                counter.update(names[kind])
    causes += _speed(measured, packages)
    causes += _lost(findings, changed, left["lost"])
    causes.sort(key=lambda one: (ORDER.index(one.means), -len(one.cause.members), -len(one.elsewhere)))
    _number(findings, causes)
    return causes


@dataclass(frozen=True)
class _Changed:
    """Cases of the candidate by how they changed.

    - broken: they held or were undecided before, and fail now.
    - late: they could not be judged before, and fail now.
    - lost: they held before and cannot be judged now; with the case on the candidate, if there is one.
    """

    broken: list[Case]
    late: list[Case]
    lost: list[tuple[Case, Case | None]]

    @classmethod
    def of(cls, changes: Iterable[Change]) -> _Changed:
        changes = list(changes)
        fail = [(change.was, new) for change in changes if change.now == FAILED for _, new in change.pairs]
        return cls(
            [new for was, new in fail if new is not None and was != UNTESTED],
            [new for was, new in fail if new is not None and was == UNTESTED],
            [pair for change in changes for pair in change.lost],
        )

    def kinds(self) -> dict[str, list[Case]]:
        return {"broken": self.broken, "late": self.late, "lost": [old for old, _ in self.lost]}


def _name(case: Case) -> Name:
    return case.clause, case.scenario


def _taken(names: Iterable[Name], left: Counter[Name]) -> Iterator[Name]:
    """Yield the names that are left, and take them."""
    for name in names:
        if left[name] > 0:
            left[name] -= 1
            yield name


def _gate_cause(
    cause: Cause,
    names: Mapping[str, tuple[Name, ...]],
    elsewhere: Sequence[Finding],
    changed: _Changed,
    packages: Sequence[str],
) -> GateCause:
    members, example = names["broken"], cause.example
    if not members:
        example = _example((elsewhere[0].about, elsewhere[0].where), _words(elsewhere[0])[0])
    elif not any(example.startswith(f"{clause} [{scenario}]") for clause, scenario in members):
        example = next(_example(_name(case), headline(case)) for case in changed.broken if _name(case) == members[0])
    own = dataclasses.replace(
        cause, members=members, example=example, packages=_to_blame(cause.packages, packages), next=()
    )
    return GateCause(own, BROKEN, tuple((one.about, one.where) for one in elsewhere), (*names["lost"], *names["late"]))


def _number(findings: Iterable[Finding], causes: Iterable[GateCause]) -> None:
    """Write the numbers of their causes into the details of findings."""
    numbers: dict[Name, list[int]] = defaultdict(list)
    for number, one in enumerate(causes, start=1):
        for name in dict.fromkeys([*one.cause.members, *one.elsewhere, *one.follows]):
            numbers[name].append(number)
    for finding in findings:
        if finding.about == "clause":
            names = [(finding.where, scenario) for scenario in finding.details.get("scenarios", ())]
        else:
            names = [(finding.about, finding.where)]
        if found := sorted({number for name in names for number in numbers[name]}):
            finding.details["causes"] = found


def _is_measured(finding: Finding) -> bool:
    """Return whether a finding has a measurement of speed or memory, rather than an error."""
    return finding.about == "throughput" and finding.details.get("counters") != {}


def _words(finding: Finding) -> list[str]:
    seen = finding.details.get("seen")
    return [str(one) for one in seen] if isinstance(seen, list) and seen else [finding.sentence]


def _as_case(finding: Finding, number: int, specs: Mapping[str, RunSpec]) -> Case:
    """Return a finding as a failed case. number: makes its scenario unique."""
    spec = specs.get(finding.where)
    words = [_first_difference(finding)] if finding.about == "numbers" else _words(finding)
    made = Case(finding.about, f"{finding.where} {number}", "", "", verdict=FAIL, evidence={"seen": words})
    made.specs = [] if spec is None else [spec.to_json()]
    if raised := finding.details.get("raised"):
        made.raised = [{**raised, "run": 0}]
    return made


def _first_difference(finding: Finding) -> str:
    """Return what differs first in the numbers of a run, without the name of the tensor: runs have different ones."""
    if "times what it was" in finding.sentence:
        return finding.sentence
    return f"the numbers of a run differ, first in the {str(finding.details.get('what', '')).partition(' of ')[0]}"


def _example(name: Name, seen: str) -> str:
    return f"{name[0]} [{name[1]}]: {seen}"


def _to_blame(named: tuple[str, ...], packages: Sequence[str]) -> tuple[str, ...]:
    """Return the packages that can be to blame. If only one differs between the stacks, it is."""
    return tuple(packages) if len(packages) == 1 else named


def _speed(findings: Iterable[Finding], packages: Sequence[str]) -> list[GateCause]:
    """Return a cause for more memory and one for more time."""
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        groups["memory" if "counters" in finding.details else "time"].append(finding)
    return [
        GateCause(
            Cause(
                f"a training step takes more {kind}: {ones[0].sentence}", (), f"measured in {_listed(ones)}",
                _to_blame((), packages), (), _example((ones[0].about, ones[0].where), ones[0].sentence),
            ),
            BROKEN,
            tuple((one.about, one.where) for one in ones),
        )
        for kind, ones in groups.items()
    ]  # fmt: skip


def _listed(findings: Iterable[Finding]) -> str:
    return ", ".join(finding.where for finding in findings)


def _lost(findings: Iterable[Finding], changed: _Changed, left: Counter[Name]) -> list[GateCause]:
    """Return a cause for each reason why something cannot be judged any more.

    - left: the cases that do not follow from another cause.
    """
    members: dict[str, list[Name]] = defaultdict(list)
    elsewhere: dict[str, list[Name]] = defaultdict(list)
    for old, new in changed.lost:
        if list(_taken([_name(old)], left)):
            members["no such case" if new is None else headline(new)].append(_name(old))
    for finding in findings:
        if finding.means == LOST and finding.about != "clause":
            elsewhere[_words(finding)[0]].append((finding.about, finding.where))
        elif finding.means == LOST and finding.details.get("own"):
            members[finding.sentence] += [(finding.where, scenario) for scenario in finding.details["scenarios"]]
    return [
        GateCause(
            Cause(reason, tuple(members[reason]), example=_example((members[reason] or elsewhere[reason])[0], reason)),
            LOST,
            tuple(elsewhere[reason]),
        )
        for reason in dict.fromkeys([*members, *elsewhere])
    ]


def changed_packages(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the packages that both stacks have, in different versions. Parameters: package -> version."""
    return sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
