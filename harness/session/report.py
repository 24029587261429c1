"""The report of a run: JSON for machines, a table by chapter for people."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import contract
from harness.environment import peak_bytes
from harness.files import write_whole
from harness.verdict import AMBIGUOUS, FAIL, KNOWN_DEFECT, NOT_COMPARABLE, ORDER, PASS, SKIPPED, UNEXPECTED_PASS, Case

SCHEMA_VERSION = 1


@dataclass
class Effort:
    """What a session cost. runs: training runs made. seconds: of those. peak_bytes: resident memory, per process."""

    runs: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    def measured(self) -> Effort:
        """This, with the memory that the process has used at its peak until now."""
        self.peak_bytes = max(self.peak_bytes, peak_bytes())
        return self

    def add(self, other: Effort) -> None:
        """Take in what another process did."""
        self.runs += other.runs
        self.seconds += other.seconds
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)


def headline(case: Case) -> str:
    """The line that tells most of a failure, or the reason why there is no verdict; stacks of hung ranks are left out."""
    seen = [str(one) for one in case.evidence.get("seen") or []]
    return (seen or [case.reason])[0].partition("\n")[0]


def worst(verdicts: list[str]) -> str:
    """The verdict of several: the worst of them."""
    return min(verdicts, key=ORDER.index)


def by_clause(cases: list[Case]) -> dict[str, list[Case]]:
    """Cases by clause id, in the contract's order."""
    found: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        found[case.clause].append(case)
    order = list(contract.clauses())
    return {clause: found[clause] for clause in sorted(found, key=order.index)}


def to_json(cases: list[Case], environment: dict[str, Any]) -> dict[str, Any]:
    """The report as design and schema (harness/session/report_schema.json) have it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": environment,
        "clauses": [
            {
                "id": clause,
                "verdict": worst([case.verdict for case in judged]),
                "cases": [
                    {
                        "scenario": case.scenario,
                        "verdict": case.verdict,
                        "evidence": {
                            **case.evidence,
                            **({"reason": case.reason} if case.reason else {}),
                            **({"link": case.link} if case.link else {}),
                        },
                        "spec": case.specs[0] if case.specs else None,
                    }
                    for case in judged
                ],
            }
            for clause, judged in by_clause(cases).items()
        ],
    }


def write_json(path: Path, cases: list[Case], environment: dict[str, Any]) -> None:
    """Write the report whole or not at all: readers never see half a file."""
    write_whole(path, json.dumps(to_json(cases, environment), indent=1) + "\n")


@dataclass(frozen=True)
class Unjudged:
    """A clause of which no case was judged.

    - reasons: why its cases were not judged.
    - declared: whether the cause is a need that the clause declares, a limit of the subject, or a missing baseline.
    """

    clause: str
    reasons: tuple[str, ...]
    declared: bool


def unjudged(cases: list[Case]) -> list[Unjudged]:
    """Return the clauses of which every case was skipped or could not be compared, in the contract's order."""
    found = []
    for id, of_clause in by_clause(cases).items():
        if all(case.verdict in (SKIPPED, NOT_COMPARABLE) for case in of_clause):
            clause = contract.clauses()[id]
            declared = all(
                case.unsupported or case.verdict == NOT_COMPARABLE or clause.lacks(case.device) for case in of_clause
            )
            found.append(Unjudged(id, tuple(dict.fromkeys(case.reason for case in of_clause)), declared))
    return found


def decisive(cases: list[Case], named: bool) -> list[Unjudged]:
    """Return the unjudged clauses for which a run ends with 3.

    - named: whether the user named the clauses. Then each of them must be judged. Otherwise a clause may go unjudged
      for a declared cause, as long as any other clause was judged.
    """
    found = unjudged(cases)
    nothing = len(found) == len(by_clause(cases))
    return [one for one in found if named or nothing or not one.declared]


def exit_code(cases: list[Case], named: bool = False) -> int:
    """Return 0 if all hold, known defects included; 1 if a clause fails or passes unexpectedly; 3 if undecided.

    Undecided includes that a clause was not judged (`decisive`). named: whether the user named the clauses.
    """
    # A missing baseline, which has a reason, is the rule on other stacks than the recorded one.
    found = {case.verdict for case in cases if not (case.verdict == NOT_COMPARABLE and case.reason)}
    if found & {FAIL, UNEXPECTED_PASS}:
        return 1
    return 3 if found & {AMBIGUOUS, NOT_COMPARABLE} or decisive(cases, named) else 0


def summary(console: Console, cases: list[Case], effort: Effort, named: bool = False) -> None:
    """Print the table by chapter, known defects with their links, why cases were skipped, and the slowest five.

    named: whether the user named the clauses.
    """
    console.print()
    console.print(_table(cases))
    _known(console, cases)
    if shimmed := sum(case.scenario.endswith("/shimmed") and case.verdict != SKIPPED for case in cases):
        console.print(Text(f"{shimmed} cases /shimmed: FSDP on a CPU, which needs harness/processes/shims.py"))
    skipped = Counter(case.reason for case in cases if case.verdict in (SKIPPED, NOT_COMPARABLE))
    for reason, count in skipped.most_common():
        console.print(Text(f"skipped {count} case{'s' * (count > 1)}: {reason}"))
    _unjudged(console, cases, named)
    slowest = sorted(cases, key=lambda case: -case.seconds)[:5]
    console.print(Text("slowest: " + ", ".join(f"{c.clause}[{c.scenario}] {c.seconds:.1f} s" for c in slowest)))
    rate = f", {60 * effort.runs / effort.seconds:.0f} a minute" if effort.seconds else ""
    memory = f"peak memory {effort.peak_bytes / 2**30:.1f} GiB"
    console.print(Text(f"{effort.runs} training runs in {effort.seconds:.1f} s{rate}; {memory}"))


_COLUMNS = (
    ("held", {PASS}),
    ("failed", {FAIL, UNEXPECTED_PASS}),
    ("known defect", {KNOWN_DEFECT}),
    ("undecided", {AMBIGUOUS}),
    ("skipped", {SKIPPED, NOT_COMPARABLE}),
)


def _table(cases: list[Case]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("chapter", no_wrap=True)
    table.add_column("clauses", justify="right")
    for name, _ in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("cases", justify="right")
    verdicts = {clause: worst([case.verdict for case in judged]) for clause, judged in by_clause(cases).items()}
    counted = Counter(case.clause for case in cases)
    for chapter in contract.chapters():
        ids = [clause.id for clause in chapter.clauses if clause.id in verdicts]
        if ids:
            _row(table, f"{chapter.id} {chapter.title}", ids, verdicts, counted)
    _row(table, "all", list(verdicts), verdicts, counted)
    return table


def _row(table: Table, name: str, ids: list[str], verdicts: dict[str, str], counted: Counter[str]) -> None:
    counts = [sum(verdicts[id] in kinds for id in ids) for _, kinds in _COLUMNS]
    cells = [str(count) if count else "-" for count in counts]
    if counts[1]:
        cells[1] = f"[bold red]{counts[1]}[/]"
    table.add_row(name, str(len(ids)), *cells, str(sum(counted[id] for id in ids)))


def _unjudged(console: Console, cases: list[Case], named: bool) -> None:
    found = unjudged(cases)
    by_reason: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for one in found:
        by_reason[one.reasons].append(one.clause)
    parts = [f"{', '.join(ids)} ({'; '.join(reasons)})" for reasons, ids in by_reason.items()]
    if parts:
        console.print(Text(f"not judged: {len(found)} clause{'s' * (len(found) > 1)}: {'; '.join(parts)}"))
    if undecided := decisive(cases, named):
        ids = ", ".join(one.clause for one in undecided)
        console.print(Text(f"undecided: no case was judged of {ids}, which this run was asked for", style="yellow"))


def _known(console: Console, cases: list[Case]) -> None:
    known = [case for case in cases if case.verdict == KNOWN_DEFECT]
    for reason in dict.fromkeys(case.reason for case in known):
        same = [case for case in known if case.reason == reason]
        ids = ", ".join(dict.fromkeys(case.clause for case in same))
        console.print(Text.assemble((f"known defect {ids}", "yellow"), f": {reason} {same[0].link}".rstrip()))
