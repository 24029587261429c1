"""From releases to stacks: which releases are judged together, and in which order."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date

from packaging.version import Version

from harness.errors import UsageError
from harness.gate.index import dated
from harness.map.matrix_file import ALL, CONTEMPORARIES, COVERING, Matrix

#: (package, release) for each package, in the order of the matrix.
Stack = tuple[tuple[str, str], ...]


def planned(matrix: Matrix, refused: Iterable[Mapping[str, str]] = ()) -> list[Stack]:
    """Return the stacks of a matrix, without any twice, at most `matrix.stacks`.

    - refused: releases that are known not to resolve together; the covering array leaves such stacks out.
    """
    refused = list(refused)
    found: dict[Stack, None] = dict.fromkeys(matrix.first)
    for way in matrix.pairing:
        makes: Callable[[], Iterable[Stack]] = {
            CONTEMPORARIES: lambda: contemporaries(matrix.releases, {name: dated(name) for name in matrix.releases}),
            COVERING: lambda: covering(matrix.releases, refused),
            ALL: lambda: every(matrix.releases),
        }[way]
        for stack in makes():
            if len(found) >= matrix.stacks:
                break
            found.setdefault(stack)
    return list(found)


def every(releases: Mapping[str, Sequence[str]]) -> Iterable[Stack]:
    """Yield each combination, the newest first."""
    for versions in itertools.product(*(list(reversed(known)) for known in releases.values())):
        yield tuple(zip(releases, versions, strict=True))


def contemporaries(releases: Mapping[str, Sequence[str]], days: Mapping[str, Mapping[str, date | None]]) -> list[Stack]:
    """Return, for each release of each package, the stack of it and the newest of the others on its day, newest first.

    Of a package that had none yet, the oldest is taken. A package with one release has no say in the days.
    """
    moving = [name for name, known in releases.items() if len(known) > 1] or list(releases)
    found: dict[Stack, tuple[date, ...]] = {}
    for package in moving:
        for release in releases[package]:
            day = _day(days, package, release)
            stack = tuple(
                (
                    name,
                    release
                    if name == package
                    else next(
                        (one for one in reversed(known) if len(known) == 1 or _day(days, name, one) <= day), known[0]
                    ),
                )
                for name, known in releases.items()
            )
            found.setdefault(stack, (day,))
    return sorted(found, key=lambda stack: (found[stack], rank(stack)), reverse=True)


def _day(days: Mapping[str, Mapping[str, date | None]], package: str, release: str) -> date:
    by_version = {Version(one): day for one, day in days[package].items()}
    day = by_version.get(Version(release))
    if day is None:
        raise UsageError(f"the index gives no date for {package} {release}; pair by 'covering' or 'all' in the matrix")
    return day


def covering(releases: Mapping[str, Sequence[str]], refused: Sequence[Mapping[str, str]] = ()) -> list[Stack]:
    """Return stacks in which each pair of releases of two packages occurs, the newest first.

    - refused: releases that must not all occur in one stack.
    """
    moving = {name: known for name, known in releases.items() if len(known) > 1}
    fixed = {name: known[0] for name, known in releases.items() if len(known) == 1}
    if len(moving) < 2:
        return list(every(releases))
    try:
        from allpairspy import AllPairs
    except ImportError:
        raise UsageError(
            "allpairspy, which makes the covering array, is not installed; pip install 'peft-harness[scale]'"
        ) from None
    names = list(moving)

    def allowed(row: Sequence[str]) -> bool:
        stack = fixed | dict(zip(names, row, strict=False))
        return not any(one.items() <= stack.items() for one in refused)

    # Its rows are named tuples, and a package's name may be no name in Python.
    table = OrderedDict((f"p{at}", list(reversed(moving[name]))) for at, name in enumerate(names))
    rows = [fixed | dict(zip(names, tuple(row), strict=True)) for row in AllPairs(table, filter_func=allowed)]
    stacks = [tuple((name, row[name]) for name in releases) for row in rows]
    return sorted(stacks, key=rank, reverse=True)


def rank(stack: Stack) -> tuple[Version, ...]:
    """Return a key that sorts stacks from the oldest to the newest."""
    return tuple(Version(release) for _, release in stack)


def requirements(stack: Iterable[tuple[str, str]]) -> str:
    """Return a stack as requirements, such as "transformers==5.1.0 peft==0.18.1"."""
    return " ".join(f"{name}=={release}" for name, release in stack)


def following(
    ahead: Sequence[Stack], judged: Mapping[Stack, object], count: int, first: Sequence[Stack] = ()
) -> list[Stack]:
    """Return the stacks to judge next.

    - ahead: all stacks, in the order of the plan (newest first).
    - judged: stack -> something that is equal for stacks with the same verdicts; None while a stack is being judged.
    - count: how many.
    - first: stacks that go before all others.

    Then the newest stack, and those with the oldest release of each package. Then, on the line of each package, the
    middle between two judged neighbours with other verdicts: so a break is found without judging all between. Then the
    rest, newest first.
    """
    chosen: list[Stack] = []

    def open_(stack: Stack) -> bool:
        return stack not in judged and stack not in chosen

    packages = list(dict.fromkeys(name for stack in ahead for name, _ in stack))
    lines = {package: sorted(ahead, key=lambda stack: _along(stack, package)) for package in packages}
    ends = [*first, *ahead[len(first) : len(first) + 1], *(lines[package][0] for package in packages)]
    for stack in ends:
        if len(chosen) < count and open_(stack):
            chosen.append(stack)
    gaps: list[tuple[int, Stack]] = []
    for line in lines.values():
        known = [at for at, stack in enumerate(line) if judged.get(stack) is not None]
        for low, high in itertools.pairwise(known):
            # What is being judged between them will say which half matters.
            inside = line[low + 1 : high]
            if inside and judged[line[low]] != judged[line[high]] and all(map(open_, inside)):
                gaps.append((len(inside), inside[len(inside) // 2]))
    for _, stack in sorted(gaps, key=lambda gap: gap[0], reverse=True):
        if len(chosen) < count and open_(stack):
            chosen.append(stack)
    for stack in ahead:
        if len(chosen) < count and open_(stack):
            chosen.append(stack)
    return chosen


def _along(stack: Stack, package: str) -> tuple[Version, tuple[Version, ...]]:
    return Version(dict(stack).get(package, "0")), rank(stack)
