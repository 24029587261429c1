"""The faults of the past, put to the test: their clauses fail on the releases that had them, and hold on others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from harness.contract.releases import RELEASES, Release
from harness.errors import UsageError
from harness.gate.probe import Prober, Seen, targets
from harness.gate.scope import Scope


@dataclass(frozen=True)
class Told:
    """What came of a release. caught: on how many cases its clause fails on the bad stack and holds on each good one."""

    release: Release
    caught: int
    seen: str


def chosen(ids: Iterable[str]) -> list[Release]:
    """The releases of these ids, all of them where none is given. UsageError for an unknown one."""
    wanted, known = list(ids), list(dict.fromkeys(one.id for one in RELEASES))
    for id in wanted:
        if id not in known:
            raise UsageError(f"history {id}: no such entry; there are {', '.join(known)}")
    return sorted((one for one in RELEASES if not wanted or one.id in wanted), key=lambda one: int(one.id[1:]))


def put_to_the_test(release: Release, judged: Scope, ask: Callable[[list[str]], list[Seen]] | None = None) -> Told:
    """Judge the clause on the bad stack and on the good ones. ask: as `Prober.ask`, in its place."""
    ask = ask or Prober(release.clause, judged).ask
    bad, *good = ask([release.bad, *release.good])
    caught = set(bad.cases)
    for one in good:
        caught &= set(targets(one, bad))
    if caught:
        return Told(release, len(caught), bad.told(sorted(caught)))
    whys = [f"{seen.stack}: {seen.told(seen.cases) or 'holds'}" for seen in (bad, *good)]
    return Told(release, 0, "; ".join(whys))
