"""Since which release a clause fails: the packages along whose releases its failures form whole ranges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from harness.map import results_table
from harness.map.results_table import FAILS, HOLDS


@dataclass(frozen=True)
class Defect:
    """A clause that fails in some judged stacks.

    - stacks: in how many of those that judged it.
    - judged: how many judged it.
    - sentence: the first finding, or the cause that most of the failing stacks name.
    - where: one sentence for each package that explains it: "transformers 5.3.0 (holds in 5.2.0 and in 5.4.0)".
      Empty if the releases of no single package do.
    """

    clause: str
    stacks: int
    judged: int
    sentence: str
    where: tuple[str, ...]


def defects(cells: Sequence[Mapping[str, Any]], packages: Sequence[str]) -> list[Defect]:
    """Return the clauses that fail in a judged stack, those that fail in most first.

    A package explains a failure if no release of it both fails and holds, and some fail and some hold.
    """
    found = []
    for clause in sorted({clause for cell in cells for clause in cell["clauses"]}):
        says = [
            (cell, results_table.state(cell["clauses"][clause]["verdict"]))
            for cell in cells
            if clause in cell["clauses"]
        ]
        failing = [cell for cell, one in says if one == FAILS]
        if not failing:
            continue
        decided = [(cell, one) for cell, one in says if one in (FAILS, HOLDS)]
        where = tuple(words for package in packages if (words := _along(decided, package)))
        found.append(Defect(clause, len(failing), len(decided), _sentence(failing, clause), where))
    return sorted(found, key=lambda one: (-one.stacks, one.clause))


def _sentence(failing: Sequence[Mapping[str, Any]], clause: str) -> str:
    counts: dict[str, int] = defaultdict(int)
    for cell in failing:
        named = [cause["sentence"] for cause in cell["causes"] if clause in cause["clauses"]]
        for sentence in named[:1] or [cell["clauses"][clause]["seen"]]:
            counts[sentence] += 1
    return max(counts, key=lambda sentence: counts[sentence])


def _along(decided: Sequence[tuple[Mapping[str, Any], str]], package: str) -> str:
    """Return the ranges of a package's releases that fail; "" if the package does not explain the failures."""
    of: dict[Version, set[str]] = defaultdict(set)
    for cell, says in decided:
        if package in cell["stack"]:
            of[Version(cell["stack"][package].partition("+")[0])].add(says)
    states = [(version, of[version]) for version in sorted(of)]
    if any(len(said) > 1 for _, said in states) or {FAILS} not in of.values() or {HOLDS} not in of.values():
        return ""
    ranges, at = [], 0
    while at < len(states):
        if states[at][1] == {HOLDS}:
            at += 1
            continue
        end = at
        while end + 1 < len(states) and states[end + 1][1] == {FAILS}:
            end += 1
        first, last = states[at][0], states[end][0]
        words = f"{first}" if first == last else f"{first} to {last}"
        around = [f"in {states[at - 1][0]}" if at else "", f"in {states[end + 1][0]}" if end + 1 < len(states) else ""]
        held = " and ".join(word for word in around if word)
        ranges.append(f"{words} (holds {held})")
        at = end + 1
    return f"{package} {', '.join(ranges)}"
