"""Bounds: for each package, the lowest and the highest release between which clauses hold, with the reason at each end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from harness.map import results_table
from harness.map.results_table import FAILS, GOOD, HOLDS


@dataclass(frozen=True)
class Bound:
    """The releases of a package with which the clauses hold.

    - low, high: the first and the last of them.
    - without: releases between these with which none of the judged stacks holds.
    - undecided: releases between these that were judged only in stacks which cannot be made or refuse each other, or whose
      clauses are undecided. Other stacks with them may hold.
    - below, above: why the range ends there.
    - shown_by: the newest stack with `high` in which the clauses hold, and the one with `low`.
    """

    package: str
    low: str
    high: str
    without: tuple[str, ...]
    below: str
    above: str
    shown_by: tuple[str, str]
    undecided: tuple[str, ...] = ()

    def line(self) -> str:
        """Return the line of a requirement file."""
        left_out = "".join(f",!={release}" for release in self.without)
        return f"{self.package}>={self.low},<={self.high}{left_out}"


def bounds(cells: Sequence[Mapping[str, Any]], clauses: Sequence[str], packages: Iterable[str]) -> list[Bound]:
    """Return the bounds of packages. A package of which no release holds has none.

    A release holds if the clauses hold in one judged stack with it, and does not hold if they fail in every one that can be
    made and whose packages do not refuse each other. If no clause is named, nothing may fail but known defects.
    """
    return [found for package in packages if (found := _bound(cells, clauses, package)) is not None]


def _bound(cells: Sequence[Mapping[str, Any]], clauses: Sequence[str], package: str) -> Bound | None:
    of: dict[Version, list[Mapping[str, Any]]] = defaultdict(list)
    for cell in cells:
        if package in cell["stack"]:
            of[Version(cell["stack"][package].partition("+")[0])].append(cell)
    states = {version: _state(members, clauses) for version, members in of.items()}
    judged = sorted(states)
    holding = [version for version in judged if states[version] == HOLDS]
    if not holding:
        return None
    low, high = holding[0], holding[-1]
    before = [version for version in judged if version < low]
    after = [version for version in judged if version > high]
    without = tuple(str(one) for one in judged if low < one < high and states[one] == FAILS)
    return Bound(
        package,
        str(low),
        str(high),
        without,
        _why(before[-1:], of, clauses, "older"),
        _why(after[:1], of, clauses, "newer"),
        (_holds(of[low], clauses), _holds(of[high], clauses)),
        tuple(str(one) for one in judged if low < one < high and states[one] not in (FAILS, HOLDS)),
    )


def _state(members: Sequence[Mapping[str, Any]], clauses: Sequence[str]) -> str:
    # A stack that cannot be made, or whose packages refuse each other, says nothing of a release in other company.
    states = {
        results_table.of_cell(cell, clauses) for cell in members if cell["state"] == "judged" and not cell["requires"]
    }
    return HOLDS if states & set(GOOD) else FAILS if states == {FAILS} else results_table.UNDECIDED


def _holds(members: Sequence[Mapping[str, Any]], clauses: Sequence[str]) -> str:
    found = [cell["requirements"] for cell in members if results_table.of_cell(cell, clauses) in GOOD]
    return str(max(found))


def _why(
    at: Sequence[Version], of: Mapping[Version, list[Mapping[str, Any]]], clauses: Sequence[str], word: str
) -> str:
    if not at:
        return f"no {word} release was judged"
    members = of[at[0]]
    cell = next((one for one in members if results_table.of_cell(one, clauses) == FAILS), members[0])
    reason = results_table.reason(cell, clauses) or "not judged"
    more = f" (in {len(members)} stacks)" if len(members) > 1 else ""
    return f"{at[0]}{more}: {reason}"
