"""`peft-harness clauses`: the contract as a table, or some of its clauses in full."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import contract, expectations
from harness.errors import UsageError
from harness.paths import SUITES


def explain(ids: list[str]) -> None:
    """Print all clauses as a table by chapter; or, for ids and globs, each clause in full. UsageError: no match."""
    console = Console()
    if not ids:
        _list(console)
        return
    try:
        chosen = contract.select(ids)
    except UsageError as error:
        raise UsageError(str(error).replace("--clause ", "")) from None
    defects = expectations.load(SUITES / "expectations")
    for clause in chosen.values():
        console.print(Text(clause.id, style="bold"), Text(clause.statement))
        console.print(Text(f"  upstream  {clause.source}"))
        console.print(Text(f"  tier      {clause.tier}{''.join(', needs ' + one for one in clause.needs)}"))
        for defect in (one for one in defects if one.clause == clause.id):
            console.print(Text(f"  fails     {defect.scenario} with {', '.join(defect.versions)}: {defect.reason}"))
            if defect.link:
                console.print(Text(f"            {defect.link}"))


def _list(console: Console) -> None:
    for chapter in contract.chapters():
        table = Table(box=None, show_header=False, title=f"{chapter.id}: {chapter.title}", title_justify="left")
        table.add_column(no_wrap=True)
        table.add_column()
        for clause in chapter.clauses:
            table.add_row(clause.id, Text(clause.statement))
        console.print(table)
