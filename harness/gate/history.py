"""Past faults of upstream: check that their clauses fail on the releases that had them, and hold on other releases."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from harness.contract.releases import RELEASES, Release
from harness.errors import UsageError
from harness.gate.probe import Prober, StackResult, targets
from harness.gate.scope import Scope


@dataclass(frozen=True)
class Result:
    """Whether a past fault was caught.

    - release: the fault, its clause and its stacks.
    - caught: the number of cases that fail on the bad stack and hold on each good one.
    - seen: the first failure on the bad stack, or why nothing was caught.
    """

    release: Release
    caught: int
    seen: str


def chosen(ids: Iterable[str]) -> list[Release]:
    """Return the entries with these ids, or all entries if there are none. Raises UsageError for an unknown id."""
    wanted, available = list(ids), list(dict.fromkeys(release.id for release in RELEASES))
    for id in wanted:
        if id not in available:
            raise UsageError(f"history {id}: no such entry; there are {', '.join(available)}")
    return sorted(
        (release for release in RELEASES if not wanted or release.id in wanted), key=lambda release: int(release.id[1:])
    )


def judge(release: Release, judged: Scope, ask: Callable[[list[str]], list[StackResult]] | None = None) -> Result:
    """Judge an entry's clause on its bad stack and on its good ones. `ask` replaces `Prober.ask`."""
    ask = ask or Prober(replace(judged, clauses=(release.clause,))).ask
    bad, *good = ask([release.bad, *release.good])
    caught = set(bad.cases)
    for result in good:
        caught &= set(targets(result, bad))
    if caught:
        return Result(release, len(caught), bad.summary(sorted(caught)))
    reasons = [f"{result.stack}: {result.summary(result.cases) or 'holds'}" for result in (bad, *good)]
    return Result(release, 0, "; ".join(reasons))
