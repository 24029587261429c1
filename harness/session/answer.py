"""The first lines of a session's summary: whether the contract holds, and the causes if it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from harness.causes.cause import Cause
from harness.verdict import FAIL, KNOWN_DEFECT, PASS, UNEXPECTED_PASS, Case
from harness.words import counted

#: Lines for causes, without -v.
_LINES = 30


def sentence(cases: Sequence[Case], causes: Sequence[Cause], code: int) -> str:
    """Return the answer in one line. code: of `report.exit_code`."""
    judged = Counter(case.verdict for case in cases)
    clauses = counted(len({case.clause for case in cases}), "clause")
    known = judged[KNOWN_DEFECT]
    held = f"{counted(judged[PASS], 'case')} of {clauses} hold{'s' * (judged[PASS] == 1)}"
    held += f", {counted(known, 'case')} failing by known defects of upstream" if known else ""
    wrong = judged[FAIL] + judged[UNEXPECTED_PASS]
    if wrong:
        why = f"for {counted(len(causes), 'cause')}" if causes else ""
        return f"fails: {wrong:,} of {counted(len(cases), 'case')} {why}".rstrip() + f"; {held}"
    if code == 0:
        return f"holds: {held}"
    return f"undecided: {held}, and not all that was asked for was judged"


def show(console: Console, answer: str, causes: Sequence[Cause], verbose: bool) -> None:
    """Print the answer and its causes: each with what it reaches, an example and what to type next.

    - verbose: whether to print all causes. Otherwise they have 30 lines.
    """
    style = {"holds": "bold green", "fails": "bold red"}.get(answer.partition(":")[0], "bold yellow")
    console.print(Text(answer, style=style))
    left = _LINES
    for number, cause in enumerate(causes, start=1):
        lines = _lines(number, cause)
        if not verbose and len(lines) > left:
            rest = causes[number - 1 :]
            count = sum(len(one.members) for one in rest)
            console.print(
                Text(f"and {counted(len(rest), 'more cause')} of {counted(count, 'case')}: -v, or --json FILE, has all")
            )
            break
        left -= len(lines)
        for line in lines:
            console.print(line, soft_wrap=True)
    if causes:
        console.print()


def _lines(number: int, cause: Cause) -> list[Text]:
    clauses = list(dict.fromkeys(clause for clause, _ in cause.members))
    size = f"{counted(len(cause.members), 'case')} of {counted(len(clauses), 'clause')}"
    named = f" ({', '.join(clauses)})" if len(clauses) <= 4 else ""
    lines = [Text.assemble((f"{number}. ", "bold"), cause.sentence)]
    blamed = f"; to blame: {' or '.join(cause.packages)}" if cause.packages else ""
    lines.append(Text(f"   {size}{named}{blamed}"))
    lines += [Text(f"   reaches {cause.reaches}")] if cause.reaches else []
    lines.append(Text(f"   e.g. {cause.example}"))
    lines += [Text(f"   $ {command}", style="cyan") for command in cause.next]
    return lines
