"""The report of a run: JSON for machines, a table by chapter for people."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import contract
from harness.causes import root
from harness.causes.cause import Cause
from harness.causes.group import index
from harness.crash import show as crash_states
from harness.environment import peak_bytes
from harness.files import write_whole
from harness.session import answer, specs
from harness.session.concerns import OUTSIDE
from harness.verdict import AMBIGUOUS, FAIL, KNOWN_DEFECT, NOT_COMPARABLE, ORDER, PASS, SKIPPED, UNEXPECTED_PASS, Case
from harness.words import counted

SCHEMA_VERSION = 1


@dataclass
class Effort:
    """What a session cost.

    - runs: how many training runs were made.
    - seconds: the time that these took together.
    - peak_bytes: the most resident memory that any one process used.
    """

    runs: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    def measured(self) -> Effort:
        """Update `peak_bytes` with this process's peak until now, and return self."""
        self.peak_bytes = max(self.peak_bytes, peak_bytes())
        return self

    def add(self, other: Effort) -> None:
        """Add what another process did."""
        self.runs += other.runs
        self.seconds += other.seconds
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)


def headline(case: Case) -> str:
    """Return the first line of the first finding, or the reason why there is no verdict.

    If a run of a case that fails ended with an error of upstream that the finding does not quote, it is added: the finding
    may be as little as "[]". Further lines, such as the stacks of hung ranks, are left out.
    """
    first = root.sentences(case)[0].partition("\n")[0]
    error = next((one for one in root.recorded(case) if one.package), None)
    if case.verdict != FAIL or error is None or root.quotes(first, error):
        return first
    return f"{first} (a run of it ended with {error.kind}: {error.message.partition(chr(10))[0]})"


def worst(verdicts: list[str]) -> str:
    """Return the worst of several verdicts."""
    return min(verdicts, key=ORDER.index)


def by_clause(cases: list[Case]) -> dict[str, list[Case]]:
    """Return cases by clause id, in the contract's order."""
    found: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        found[case.clause].append(case)
    order = list(contract.clauses())
    return {clause: found[clause] for clause in sorted(found, key=order.index)}


def to_json(
    cases: list[Case],
    environment: dict[str, Any],
    facts: Mapping[str, Any] | None = None,
    causes: Sequence[Cause] | None = None,
) -> dict[str, Any]:
    """Return the report as harness/session/report_schema.json describes it.

    - facts: see `complete.facts`.
    - causes: of the cases that do not hold. None: the report has no entry for them.
    """
    numbers = index(causes or ())
    return {
        "schema_version": SCHEMA_VERSION,
        **(facts or {}),
        "environment": environment,
        **({} if causes is None else {"causes": [cause.to_json() for cause in causes]}),
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
                        **({"raised": case.raised} if case.raised else {}),
                        **({"repeat": case.repeat} if case.repeat else {}),
                        **({"whose": case.whose} if case.whose else {}),
                        **({"cause": number} if (number := numbers.get((clause, case.scenario))) is not None else {}),
                    }
                    for case in judged
                ],
            }
            for clause, judged in by_clause(cases).items()
        ],
    }


def write_json(
    path: Path,
    cases: list[Case],
    environment: dict[str, Any],
    facts: Mapping[str, Any] | None = None,
    causes: Sequence[Cause] | None = None,
) -> None:
    """Write the report in one step, so that readers never see half a file."""
    write_whole(path, json.dumps(to_json(cases, environment, facts, causes), indent=1) + "\n")


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

    - named: whether the user named the clauses. Then each of them must be judged, unless all of its cases are outside of
      the scope. Otherwise a clause may go unjudged for a declared cause, as long as any other clause was judged.
    """
    found = unjudged(cases)
    nothing = len(found) == len(by_clause(cases))
    inside = {case.clause for case in cases if not case.outside}
    return [one for one in found if nothing or (one.clause in inside and (named or not one.declared))]


def exit_code(cases: list[Case], named: bool = False) -> int:
    """Return 0 if all hold, known defects included; 1 if a clause fails or passes unexpectedly; 3 if undecided.

    Undecided includes that a clause was not judged (`decisive`), and that a run of --spec was compared with no other
    (`specs.uncompared`). named: whether the user named the clauses.
    """
    # A missing baseline, which has a reason, is the rule on other stacks than the recorded one.
    found = {case.verdict for case in cases if not (case.verdict == NOT_COMPARABLE and case.reason)}
    if found & {FAIL, UNEXPECTED_PASS}:
        return 1
    undecided = found & {AMBIGUOUS, NOT_COMPARABLE} or specs.uncompared(cases) or decisive(cases, named)
    return 3 if undecided else 0


def _crash_states(console: Console, cases: Sequence[Case], whole: bool) -> None:
    """Print how many crash states were judged, and their outcomes. whole: whether to print the table."""
    rows = {case.scenario: case.evidence["outcomes"] for case in cases if "outcomes" in case.evidence}
    if not rows:
        return
    states = sum(max(sum(counts.values()) for counts in ways.values()) for ways in rows.values() if ways)
    more = "" if whole else "; -v, or --json FILE, has their outcomes"
    console.print(Text(f"{counted(states, 'crash state')} of {counted(len(rows), 'save')} judged{more}"))
    if whole:
        console.print(crash_states.table(rows.items()))


def summary(
    console: Console,
    cases: list[Case],
    effort: Effort,
    named: bool = False,
    causes: Sequence[Cause] = (),
    verbose: bool = False,
) -> None:
    """Print the answer, its causes, the table by chapter, why cases were skipped, and the slowest five.

    - named: whether the user named the clauses.
    - causes: why cases do not hold, the largest first.
    - verbose: whether to print all causes, all reasons, and each known defect with its link.
    """
    console.print()
    answer.show(console, answer.sentence(cases, causes, exit_code(cases, named)), causes, verbose)
    console.print(_table(cases, console.width))
    _known_defects(console, cases, verbose)
    _crash_states(console, cases, named or verbose)
    if shimmed := sum(case.scenario.endswith("/shimmed") and case.verdict != SKIPPED for case in cases):
        console.print(
            Text(f"{counted(shimmed, 'case')} /shimmed: FSDP on a CPU, which needs harness/processes/shims.py")
        )
    for name, strength in specs.strengths(cases).items():
        console.print(Text(f"{name}: {strength}"))
    for name, reasons in specs.not_judged(cases).items():
        parts = [f"{', '.join(clauses)} ({reason})" for reason, clauses in reasons.items()]
        console.print(Text(f"{name}: not judged: {'; '.join(parts)}"))
    # The first lines say why a run of --spec was refused.
    cases = [case for case in cases if not case.refused]
    outside = Counter(case.reason.removeprefix(OUTSIDE) for case in cases if case.outside)
    if outside:
        why = ", ".join(f"{reason} ({count})" for reason, count in outside.most_common())
        console.print(Text(f"skipped {counted(outside.total(), 'case')}: {OUTSIDE}{why}"))
    cases = [case for case in cases if not case.outside]
    skipped = Counter(case.reason for case in cases if case.reason and case.verdict in (SKIPPED, NOT_COMPARABLE))
    shown = skipped.most_common(None if verbose else _REASONS)
    for reason, count in shown:
        console.print(Text(f"skipped {counted(count, 'case')}: {reason}"))
    if more := skipped.total() - sum(count for _, count in shown):
        console.print(Text(f"skipped {counted(more, 'case')} for other reasons: -v, or --json FILE, has them"))
    _unjudged(console, cases, named, verbose)
    slowest = sorted(cases, key=lambda case: -case.seconds)[:5]
    console.print(Text("slowest: " + ", ".join(f"{c.clause}[{c.scenario}] {c.seconds:.1f} s" for c in slowest)))
    rate = f", {60 * effort.runs / effort.seconds:.0f} a minute" if effort.seconds else ""
    memory = f"peak memory {effort.peak_bytes / 2**30:.1f} GiB"
    console.print(Text(f"{counted(effort.runs, 'training run')} in {effort.seconds:.1f} s{rate}; {memory}"))


_COLUMNS = (
    ("held", {PASS}),
    ("failed", {FAIL, UNEXPECTED_PASS}),
    ("known defect", {KNOWN_DEFECT}),
    ("undecided", {AMBIGUOUS}),
    ("skipped", {SKIPPED, NOT_COMPARABLE}),
)


#: Reasons of skipped cases, clauses in a sentence, and known defects, of which each is printed without -v.
_REASONS, _IDS, _DEFECTS = 12, 8, 3

#: Characters that the table's numbers and gaps take: usually, and with single gaps and "known defect" on two lines.
_WIDE, _NARROW = 64, 51


def _table(cases: list[Case], width: int) -> Table:
    """Return the table by chapter. If it does not fit into the width, it is set closer and long titles are cut."""
    verdicts = {clause: worst([case.verdict for case in judged]) for clause, judged in by_clause(cases).items()}
    chapters = ((f"{chapter.id} {chapter.title}", chapter.clauses) for chapter in contract.chapters())
    rows = [(name, [clause.id for clause in clauses if clause.id in verdicts]) for name, clauses in chapters]
    narrow = width < max(len(name) for name, ids in rows if ids) + _WIDE
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0) if narrow else (0, 1))
    most = max(len("chapter"), width - _NARROW) if narrow else None
    table.add_column("chapter", no_wrap=True, overflow="ellipsis", max_width=most)
    for name in ("clauses", *(name for name, _ in _COLUMNS), "cases"):
        table.add_column(name.replace(" ", "\n") if narrow else name, justify="right", no_wrap=True)
    sizes = Counter(case.clause for case in cases)
    for name, ids in rows:
        if ids:
            _row(table, name, ids, verdicts, sizes)
    _row(table, "all", list(verdicts), verdicts, sizes)
    return table


def _row(table: Table, name: str, ids: list[str], verdicts: dict[str, str], sizes: Counter[str]) -> None:
    counts = [sum(verdicts[id] in kinds for id in ids) for _, kinds in _COLUMNS]
    cells: list[str | Text] = [str(count) if count else "-" for count in counts]
    if counts[1]:
        cells[1] = Text(str(counts[1]), "bold red")
    table.add_row(name, str(len(ids)), *cells, str(sum(sizes[id] for id in ids)))


def _unjudged(console: Console, cases: list[Case], named: bool, verbose: bool) -> None:
    found = unjudged(cases)
    by_reason: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for one in found:
        by_reason[one.reasons if verbose else one.reasons[:1]].append(one.clause)
    parts = [f"{_named(ids, verbose)} ({'; '.join(reasons)})" for reasons, ids in by_reason.items()]
    if parts:
        console.print(Text(f"not judged: {counted(len(found), 'clause')}: {'; '.join(parts)}"))
    if undecided := decisive(cases, named):
        ids = _named([one.clause for one in undecided], verbose)
        console.print(Text(f"undecided: no case was judged of {ids}, which this run was asked for", style="yellow"))

    for name in specs.uncompared(cases):
        console.print(Text(f"undecided: {name} could not be compared with any other run", style="yellow"))


def _named(ids: Sequence[str], verbose: bool) -> str:
    """Return the clauses in a sentence: all if `verbose`, otherwise the first few and how many more."""
    if verbose or len(ids) <= _IDS + 1:
        return ", ".join(ids)
    return f"{', '.join(ids[:_IDS])} and {len(ids) - _IDS} more"


def _known_defects(console: Console, cases: list[Case], verbose: bool) -> None:
    defects = [case for case in cases if case.verdict == KNOWN_DEFECT]
    reasons = {case.reason for case in defects}
    if len(reasons) > _DEFECTS and not verbose:
        clauses = len({case.clause for case in defects})
        console.print(
            Text(
                f"{counted(len(reasons), 'known defect')} of upstream in {counted(len(defects), 'case')} of "
                f"{counted(clauses, 'clause')}: `peft-harness defects` and -v list them",
                style="yellow",
            )
        )
        return
    for reason in dict.fromkeys(case.reason for case in defects):
        same = [case for case in defects if case.reason == reason]
        ids = ", ".join(dict.fromkeys(case.clause for case in same))
        console.print(Text.assemble((f"known defect {ids}", "yellow"), f": {reason} {same[0].link}".rstrip()))
