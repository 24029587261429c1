"""What changed over many nights: verdicts of clauses, and numbers, with the nights between which they changed.

A number that is the same whenever the versions are the same is exact. Each of its changes is one. A number that varies is
measured. Whether it drifts is decided by the rank correlation with time (Mann-Kendall): over a whole directory of nights in
which nothing changes, the chance of a false alarm is at most `FALSE_ALARMS`. How much it drifted is the Theil-Sen slope.
README.md has how often a drift is found.
"""

from __future__ import annotations

import itertools
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.errors import UsageError
from harness.reports.nights import Night

#: The chance of a false alarm, over all measured numbers of a kind of report together.
FALSE_ALARMS = 0.01

#: The share by which an exact number may grow or shrink in all before that is a drift: the margin of a gate's timing. So a
#: drift is what each gate lets pass, and all of them together would not.
MARGIN = 0.01

#: Nights that a measured number needs. With fewer, even values in perfect order are no evidence (chance 2 / 5! = 1.7 %).
FEWEST = 6

EXACT, MEASURED = "exact", "measured"


@dataclass(frozen=True)
class Change:
    """Two neighbouring nights that differ. before, after: their positions; was, is_: what was found there."""

    before: int
    after: int
    was: Any
    is_: Any


@dataclass
class Series:
    """A number over the nights.

    - positions, values: the nights that have it.
    - kind: EXACT or MEASURED.
    - changes: of an exact number, each one. Of a measured one that drifts, the two nights that part the lower values from
      the higher ones best.
    - total: the share by which it has grown, from the first night to the last. None if it began with zero.
    - low, high: the 99 % interval of `total`; both `total` for an exact number.
    - chance: how probable such an order of values is by chance; 0 for an exact number that changed.
    - drifts: whether it counts as a drift.
    """

    name: str
    positions: list[int]
    values: list[float]
    kind: str = EXACT
    changes: list[Change] = field(default_factory=list)
    total: float | None = 0.0
    low: float | None = 0.0
    high: float | None = 0.0
    chance: float = 1.0
    drifts: bool = False


@dataclass
class Track:
    """The nights of one kind of report and one device.

    - nights: oldest first.
    - clauses: clause -> its changes, for those that changed.
    - series: the numbers that changed or vary, drifting ones first.
    - steady: how many numbers were the same in all nights.
    """

    kind: str
    device: str
    nights: list[Night]
    clauses: dict[str, list[Change]]
    series: list[Series]
    steady: int


def tracks(nights: Sequence[Night]) -> list[Track]:
    """Return a track for each kind of report and device. nights: oldest first."""
    groups: dict[tuple[str, str], list[Night]] = defaultdict(list)
    for night in nights:
        groups[night.kind, night.device].append(night)
    return [_track(kind, device, found) for (kind, device), found in groups.items()]


def _track(kind: str, device: str, nights: list[Night]) -> Track:
    ids = dict.fromkeys(id for night in nights for id in night.clauses)
    clauses = {id: _changes(list(range(len(nights))), [night.clauses.get(id) for night in nights]) for id in ids}
    names = dict.fromkeys(name for night in nights for name in night.numbers)
    series, seen = [], set()
    for name in names:
        found = [(at, night.numbers[name]) for at, night in enumerate(nights) if name in night.numbers]
        # Two clauses may count the same; one line is enough.
        same = (name.partition(" ")[2], tuple(found))
        if same not in seen:
            seen.add(same)
            series.append(Series(name, [at for at, _ in found], [value for _, value in found]))
    moving = [one for one in series if len(set(one.values)) > 1]
    for one in moving:
        one.kind = EXACT if _is_exact(one, nights) else MEASURED
    measured = [one for one in moving if one.kind == MEASURED and len(one.values) >= FEWEST]
    for one in moving:
        if one.kind == EXACT:
            _judge_exact(one)
        elif one in measured:
            judge(one, FALSE_ALARMS / len(measured))
        else:
            one.total = one.low = one.high = None
    moving.sort(key=lambda one: (not one.drifts, -abs(one.total or 0.0)))
    kept = {id: changes for id, changes in clauses.items() if changes}
    return Track(kind, device, nights, kept, moving, len(series) - len(moving))


def _changes(positions: Sequence[int], values: Sequence[Any]) -> list[Change]:
    """Return the changes between neighbours. Nights that lack the value (None) are passed over."""
    found = [(at, value) for at, value in zip(positions, values, strict=True) if value is not None]
    pairs = itertools.pairwise(found)
    return [Change(before, after, was, is_) for (before, was), (after, is_) in pairs if was != is_]


def _is_exact(one: Series, nights: Sequence[Night]) -> bool:
    """Return whether a number is the same whenever the versions are. Without two such nights: whether it is whole."""
    by_versions: dict[tuple[tuple[str, str], ...], list[float]] = defaultdict(list)
    for at, value in zip(one.positions, one.values, strict=True):
        by_versions[tuple(sorted(nights[at].versions.items()))].append(value)
    repeated = [values for values in by_versions.values() if len(values) > 1]
    if repeated:
        return all(len(set(values)) == 1 for values in repeated)
    return all(float(value).is_integer() for value in one.values)


def _judge_exact(one: Series) -> None:
    one.changes, one.chance = _changes(one.positions, one.values), 0.0
    first, last = one.values[0], one.values[-1]
    one.total = one.low = one.high = (last - first) / abs(first) if first else None
    one.drifts = one.total is None or abs(one.total) >= MARGIN


def judge(one: Series, false_alarms: float) -> None:
    """Set what is known of a measured number. false_alarms: the chance of one that is allowed.

    Raises UsageError if scipy is missing.
    """
    try:
        from scipy import stats
    except ImportError:
        raise UsageError("trend: scipy is not installed; pip install 'peft-harness[trend]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are nearly all equal
        one.chance = float(stats.kendalltau(one.positions, one.values).pvalue)
        slope, _, low, high = stats.theilslopes(one.values, one.positions, alpha=0.99)
    if one.chance != one.chance:
        one.chance = 1.0
    middle = sorted(one.values)[len(one.values) // 2]
    span = (one.positions[-1] - one.positions[0]) / abs(middle) if middle else 0.0
    one.total, one.low, one.high = (float(each) * span for each in (slope, low, high))
    one.drifts = one.chance <= false_alarms
    if one.drifts:
        at = _split(stats.rankdata(one.values))
        before, after = (sorted(part)[len(part) // 2] for part in (one.values[:at], one.values[at:]))
        one.changes = [Change(one.positions[at - 1], one.positions[at], before, after)]


def _split(ranks: Sequence[float]) -> int:
    """Return before which value the ranks change most (Pettitt 1979)."""
    count = len(ranks)
    sums = itertools.accumulate(ranks)
    distances = [abs(2 * total - at * (count + 1)) for at, total in enumerate(sums, start=1)]
    return 1 + distances[:-1].index(max(distances[:-1]))


def moved(before: Night, after: Night) -> str:
    """Return which packages differ between two nights, such as "transformers 5.23.0 -> 5.24.0"; "" for none."""
    names = dict.fromkeys([*before.versions, *after.versions])
    pairs = [(name, before.versions.get(name, "-"), after.versions.get(name, "-")) for name in names]
    return ", ".join(f"{name} {was} -> {is_}" for name, was, is_ in pairs if was != is_)
