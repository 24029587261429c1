"""`peft-harness clauses`: the contract as a table, or some of its clauses in full."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import contract
from harness.errors import UsageError
from harness.progress import screen
from harness.register import entries
from harness.register.entries import Entry


def explain(ids: list[str]) -> None:
    """Print all clauses by chapter or, if ids or globs are given, each of these in full.

    Raises UsageError if one matches no clause.
    """
    console = screen()
    if not ids:
        _list(console)
        return
    try:
        chosen = contract.select(ids)
    except UsageError as error:
        raise UsageError(str(error).replace("--clause ", "")) from None
    register = entries.entries()
    for clause in chosen.values():
        console.print(Text(clause.id, style="bold"), Text(clause.statement))
        facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        facts.add_column(no_wrap=True)
        facts.add_column(overflow="fold")
        for name, text in _facts(register[clause.id]):
            facts.add_row(f"  {name}", Text(text))
        console.print(facts)


def _facts(entry: Entry) -> Iterator[tuple[str, str]]:
    clause = entry.clause
    yield "upstream", clause.source
    yield "profile", clause.profile
    yield "tier", ", needs ".join([clause.tier, *clause.needs])
    for test in entry.judged_by:
        yield "judged by", f"suites/{test}"
    for defect in entry.defects:
        yield "fails on", f"{defect.scenario} with {', '.join(defect.versions)}: {defect.reason}"
        if defect.link:
            yield "", defect.link
    for release in entry.releases:
        yield "broken in", f"{release.bad} (holds in {'; '.join(release.good)}): {release.seen}"
    for fault in entry.faults:
        yield "fails if", f"{fault['fault']} ({fault['test']})"


def _list(console: Console) -> None:
    for chapter in contract.chapters():
        table = Table(box=None, show_header=False, title=f"{chapter.id}: {chapter.title}", title_justify="left")
        table.add_column(no_wrap=True)
        table.add_column()
        for clause in chapter.clauses:
            table.add_row(clause.id, Text(clause.statement))
        console.print(table)
