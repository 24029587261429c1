"""Propose: the smallest change of a set of pins that has what is wanted, and under which nothing breaks that held before."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from harness.environment import STACK
from harness.errors import UsageError
from harness.gate import environments, locks
from harness.map import ask, results_table
from harness.map.ask import Pins
from harness.map.results_table import FAILS, GOOD, HOLDS
from harness.reading import shown

#: Packages that may move along.
_MOVING = ("peft", "accelerate", "transformers", "bitsandbytes", "torch")


@dataclass
class Answer:
    """What was found.

    - baseline: the pins as they are.
    - asked: the packages that are wanted.
    - clauses: what held on the baseline, so must hold; all that was judged if the baseline was not.
    - baseline_judged: whether the table has the baseline.
    - proposal: the cell that is proposed; None if there is none.
    - in_the_way: (requirements, reason) of judged stacks that have what is wanted and do not hold.
    - undecided: requirements of stacks that have it, and were not judged or not decided.
    """

    baseline: Pins
    asked: tuple[str, ...]
    clauses: tuple[str, ...]
    baseline_judged: bool
    proposal: Mapping[str, Any] | None = None
    in_the_way: list[tuple[str, str]] = field(default_factory=list)
    undecided: list[tuple[str, str]] = field(default_factory=list)

    def moved(self) -> Pins:
        """Return the releases of the proposal, of the packages that are pinned or wanted."""
        stack = {} if self.proposal is None else _named(self.proposal)
        return {name: version for name, version in stack.items() if name in self.baseline or name in self.asked}

    def changes(self) -> list[str]:
        """Return what moves, such as "peft 0.18.1 -> 0.21.2", in the order of the stack."""
        return [
            f"{name} {self.baseline.get(name, 'not pinned')} -> {version}"
            for name, version in self.moved().items()
            if name not in self.baseline or Version(self.baseline[name]) != Version(version)
        ]

    def pins(self) -> list[str]:
        """Return the lines of a requirement file."""
        return [f"{name}=={version}" for name, version in (self.baseline | self.moved()).items()]

    def beside(self) -> list[str]:
        """Return the releases that the proposal was judged with, of packages that are not pinned."""
        stack = {} if self.proposal is None else _named(self.proposal)
        return [f"{name} {version}" for name, version in stack.items() if name not in self.moved()]


def wanted(words: Iterable[str]) -> list[Requirement]:
    """Return what --want asks for. Raises UsageError for what is no requirement."""
    found = []
    for word in words:
        try:
            found.append(Requirement(word))
        except InvalidRequirement:
            raise UsageError(
                f"--want {shown(word)}: is no requirement; write one such as 'transformers>=5.20'"
            ) from None
        if not found[-1].specifier:
            raise UsageError(f"--want {shown(word)}: names no release; write one such as '{found[-1].name}>=5.20'")
    return found


def baseline(words: str, offline: bool = False) -> Pins:
    """Return the releases that requirements make. They are resolved if they do not name one of each package of the stack.

    - offline: raise UsageError instead.
    """
    question = ask.asked(words)
    found: Pins = {name: version for name, limits in question.items() if (version := ask.pin(limits))}
    loose = [f"{name}{limits}" for name, limits in question.items() if name in STACK and name not in found]
    if not loose and any(name in STACK for name in found):
        return found
    if offline:
        missing = f"{', '.join(loose)}: is no release" if loose else f"names none of {', '.join(STACK)}"
        raise UsageError(
            f"--baseline {shown(words)}: {missing}; write ==, or leave --table-only away, and it is resolved"
        )
    locked = {entry.name: entry.version or "" for entry in locks.entries(environments.resolve(words))}
    return {name: locked[name].partition("+")[0] for name in STACK if locked.get(name)}


def propose(
    pins: Pins,
    want: Sequence[Requirement],
    cells: Sequence[Mapping[str, Any]],
    clauses: Sequence[str] = (),
    judge: Callable[[Pins], Mapping[str, Any] | None] | None = None,
    more: Iterable[Pins] = (),
) -> Answer:
    """Return the smallest change of pins that has what is wanted and does not break a clause.

    - cells: the judged stacks; those that have what is wanted are tried first.
    - clauses: what must hold. If none is named, what holds on the baseline; if that was not judged, all that was.
    - judge: judges a stack that is not in the table; None if nothing may be judged.
    - more: stacks to judge if the table has no answer.
    """
    own = {name: version for name, version in pins.items() if any(name in cell["stack"] for cell in cells)}
    before = next((cell for cell in ask.exactly(cells, own) if cell["state"] == "judged"), None) if own else None
    if not clauses and before is not None:
        clauses = [one for one in before["clauses"] if results_table.state(before["clauses"][one]["verdict"]) == HOLDS]
    asked = tuple(str(canonicalize_name(one.name)) for one in want)
    answer = Answer(pins, asked, tuple(clauses), before is not None)
    having = [cell for cell in cells if _has(_named(cell), want)]
    for cell in sorted(having, key=lambda cell: _change(pins, _named(cell), cells)):
        if _tried(answer, cell):
            return answer
    if judge is not None:
        judged = {tuple(sorted(_named(cell).items())) for cell in cells}
        for stack in more:
            if tuple(sorted(stack.items())) in judged:
                continue
            found = judge(stack)
            if found is not None and _tried(answer, found):
                return answer
    return answer


def _tried(answer: Answer, cell: Mapping[str, Any]) -> bool:
    """Note what a judged stack says. Returns whether it is the proposal."""
    says = results_table.of_cell(cell, answer.clauses)
    if says in GOOD:
        answer.proposal = cell
    elif says == FAILS:
        answer.in_the_way.append((cell["requirements"], results_table.reason(cell, answer.clauses)))
    else:
        answer.undecided.append((cell["requirements"], results_table.reason(cell, answer.clauses)))
    return says in GOOD


def _named(cell: Mapping[str, Any]) -> Pins:
    """Return the releases that a cell was asked for, without those that the resolver added."""
    return ask.pins(cell["requirements"])


def _has(stack: Pins, want: Sequence[Requirement]) -> bool:
    return all(
        (name := str(canonicalize_name(one.name))) in stack and one.specifier.contains(stack[name], prereleases=True)
        for one in want
    )


def _change(pins: Pins, stack: Pins, cells: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return how much a stack changes pins: the packages that move, and how many known releases they move past."""
    moved = [name for name in stack if name in pins and Version(pins[name]) != Version(stack[name])]
    apart = 0
    for name in moved:
        low, high = sorted((Version(pins[name]), Version(stack[name])))
        known = {Version(str(cell["stack"][name]).partition("+")[0]) for cell in cells if name in cell["stack"]}
        apart += sum(low < one <= high for one in known)
    return len(moved), apart


def candidates(pins: Pins, want: Sequence[Requirement]) -> Iterator[Pins]:
    """Yield stacks that have what is wanted, the smallest changes first, as uv resolves them.

    What moves along is tried in growing sets. Yields nothing for a set that does not resolve. Raises Unresolvable, with the
    resolver's sentence, if nothing resolves at all.
    """
    names = {str(canonicalize_name(one.name)) for one in want}
    others = [name for name in _MOVING if name in pins and name not in names]
    seen: set[tuple[tuple[str, str], ...]] = set()
    last: environments.Unresolvable | None = None
    for size in range(len(others) + 1):
        for free in itertools.combinations(others, size):
            words = [*map(str, want), *(f"{name}=={pins[name]}" for name in others if name not in free)]
            words += [f"{name}>={pins[name]}" for name in free]
            try:
                lock = environments.resolve(" ".join(word.replace(" ", "") for word in words), extras=())
            except environments.Unresolvable as error:
                last = error
                continue
            found = {entry.name: (entry.version or "").partition("+")[0] for entry in locks.entries(lock)}
            stack = {name: found[name] for name in {**pins, **dict.fromkeys(names)} if found.get(name)}
            if (key := tuple(sorted(stack.items()))) not in seen:
                seen.add(key)
                yield stack
    if not seen and last is not None:
        raise last
