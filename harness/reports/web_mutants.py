"""The page of `mutants`: which clause kills which mutant, and what each mutant does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from harness import contract
from harness.reports.kinds import fields, number, objects, text, texts
from harness.reports.web_model import BAD, GOOD, Cell, Page, Rows, Section, environment_sentence, stack_section
from harness.words import counted

#: The order of the rows: the worst first.
ORDER = ("survived", "crashed", "equivalent", "killed")


def page(report: Mapping[str, Any]) -> Page:
    """Return the page of a kill matrix."""
    mutants = sorted(objects(report.get("mutants")), key=_rank)
    became = Counter(text(one.get("status"), 40) for one in mutants)
    missed = became["survived"] + became["crashed"]
    answer = ", ".join(f"{became[status]:,} {status}" for status in ORDER if became[status])
    answer = f"{counted(len(mutants), 'mutant')}: {answer or 'none'}"
    found = Page(f"peft-harness mutants: {answer}", answer, BAD if missed else GOOD, causes=[])
    seconds, cases = number(report.get("seconds")) or 0.0, number(report.get("cases")) or 0
    found.said = [
        "A mutant is a fault put into upstream on purpose. A clause kills it if a case of the clause holds without the "
        "mutant and fails with it.",
        f"{counted(int(cases), 'case')} without a mutant, {seconds:.0f} s.",
        environment_sentence(report.get("environment")),
    ]
    if unfit := objects(report.get("unfit")):
        named = ", ".join(f"{text(one.get('clause'), 40)} {text(one.get('scenario'), 200)}" for one in unfit[:20])
        found.said.insert(2, f"Fail without a mutant, and so judge none: {named}.")
    found.rows = Rows("mutant")
    for one in mutants:
        _add(found.rows, one)
    found.sections = [
        _usual(mutants, texts(report.get("usual"))),
        _matrix(mutants),
        stack_section({"": fields(fields(report.get("environment")).get("versions"))}),
    ]
    return found


def _rank(mutant: Mapping[str, Any]) -> int:
    status = mutant.get("status")
    return ORDER.index(status) if status in ORDER else 0


def _add(rows: Rows, mutant: Mapping[str, Any]) -> None:
    name = text(mutant.get("name"), 200)
    killed = {text(clause, 40): count for clause, count in fields(mutant.get("killed_by")).items()}
    rows.describe(name, text(mutant.get("says")), text(mutant.get("thread"), 300))
    seen = [
        f"{text(case.get('clause'), 40)} {text(case.get('scenario'), 200)} ({text(case.get('outcome'), 40)}): "
        f"{text(case.get('sentence'), 400)}"
        for case in objects(mutant.get("cases"))
    ]
    usual = [text(check, 100) for check, caught in fields(mutant.get("usual")).items() if caught is True]
    evidence = {
        "seen": seen,
        **({"reason": text(mutant.get("why"))} if mutant.get("why") else {}),
        "killed by (cases)": killed,
        "usual checks that catch it, too": usual,
        "cases that hold with it": number(mutant.get("held")),
    }
    rows.add(name, ", ".join(killed), [text(mutant.get("status"), 40)], [evidence])


def _usual(mutants: list[Mapping[str, Any]], checks: tuple[str, ...]) -> Section:
    """Return how many mutants the clauses catch, and how many each usual check does."""
    counted_ones = [one for one in mutants if one.get("status") != "equivalent"]

    def row(name: str, caught: int) -> list[str | Cell]:
        return [name, str(caught), str(len(counted_ones) - caught)]

    body = [row("the clauses", sum(one.get("status") == "killed" for one in counted_ones))]
    body += [row(check, sum(fields(one.get("usual")).get(check) is True for one in counted_ones)) for check in checks]
    return Section("usual", "Beside what is usually checked", ("what is checked", "caught", "missed"), body)


def _matrix(mutants: list[Mapping[str, Any]]) -> Section:
    """Return a row for each mutant, a column for each clause that killed one."""
    killed = [fields(one.get("killed_by")) for one in mutants]
    named = {clause for one in killed for clause in one}
    clauses = [id for id in contract.clauses() if id in named] + sorted(named - set(contract.clauses()))
    body: list[list[str | Cell]] = []
    for mutant, by in zip(mutants, killed, strict=True):
        cells = [str(int(number(by.get(clause)) or 0) or "") for clause in clauses]
        body.append([text(mutant.get("name"), 200), text(mutant.get("says"), 300), *cells])
    note = "A number is how many cases of the clause kill the mutant."
    head = ("mutant", "what it does", *(text(clause, 40) for clause in clauses))
    return Section("matrix", "The matrix", head, body, note, open=len(mutants) <= 40, kind="matrix")
