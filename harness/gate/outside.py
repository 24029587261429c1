"""List what is outside of a --scope. It is not judged, and blocks nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from harness import contract
from harness.gate import cells
from harness.gate.scope import Scope
from harness.session.concerns import OUTSIDE
from harness.verdict import Case
from harness.words import counted

#: Names that a sentence lists. The report has all.
_NAMED = 6


def to_json(judged: Scope, cases: Iterable[Case]) -> dict[str, Any]:
    """Return what is outside: clauses, cases by what puts them outside, and runs that both sides would have trained."""
    chosen = contract.select(list(judged.clauses))
    reasons = Counter(case.reason.removeprefix(OUTSIDE) for case in cases if case.outside)
    whole = judged.file and not judged.specs
    return {
        "scope": judged.file,
        "clauses": [id for id in contract.clauses() if id not in chosen] if judged.file else [],
        "cases": dict(reasons.most_common()),
        "runs": [name for name, spec in cells.cells().items() if judged.concerns.outside(spec)] if whole else [],
    }


def sentence(judged: Scope, cases: Iterable[Case]) -> str:
    """Say what is outside of the scope; "" if there is no scope."""
    if not judged.file:
        return ""
    found = to_json(judged, cases)
    parts = [
        _named(found["clauses"], "clause"),
        _named(
            [f"{reason}: {count}" for reason, count in found["cases"].items()], "case", sum(found["cases"].values())
        ),
        _named(found["runs"], "run"),
    ]
    return f"outside of {judged.file}, not judged: {'; '.join(part for part in parts if part) or 'nothing'}"


def clauses_sentence(judged: Scope) -> str:
    """Say which clauses are outside of the scope; "" if none is. The cases say themselves that they are outside."""
    found = _named(to_json(judged, [])["clauses"], "clause")
    return f"outside of {judged.file}, not judged: {found}" if found else ""


def _named(names: list[str], noun: str, number: int | None = None) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > _NAMED else ""
    return f"{counted(len(names) if number is None else number, noun)} ({', '.join(names[:_NAMED])}{more})"
