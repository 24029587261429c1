"""Find the first mark at which two runs part by more than rounding explains.

How far rounding gets is measured at the same mark: the distance between a run and the same run with every module's output
changed in the last bit (`harness.where.marks`). Two runs are apart at a mark if their distance is more than FACTOR times
that, and more than two last places of the coarser of the two numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch

from harness.where import timeline
from harness.where.marks import ACCUMULATION, BACKWARD, BETWEEN, GRADIENT, INPUT, PARAMETER
from harness.where.timeline import LOG, LOSS, Mark, Run

#: How many times farther than the changed runs two runs must be apart. See README.md for the measurement.
FACTOR = 10.0

#: Places of the path that a report holds.
MOST = 200

#: Logged losses of transformers before 5.0 have four digits (`harness.tolerance.STACKS`).
_LOGGED = 6e-5


@dataclass
class Distance:
    """How far two values are from each other.

    - largest: the largest difference of two elements; inf if they cannot be compared, such as two shapes.
    - length: the root of the sum of squares of the differences.
    - size: the largest element of either.
    - place: sizes of finite last places: the distance that two neighbouring numbers have at `size`.
    - index: where the largest difference is. values: both values there.
    """

    largest: float
    length: float
    size: float
    place: float
    index: tuple[int, ...] | None
    values: tuple[Any, Any]


@dataclass
class Place:
    """A mark at which two runs differ. explained: the largest difference that rounding explains there."""

    mark: Mark
    module: str
    stage: str
    detail: str
    distance: Distance
    explained: float

    def to_json(self) -> dict[str, Any]:
        found = self.distance
        return {
            "stage": self.stage,
            "module": self.module,
            "detail": self.detail,
            "step": self.mark.step,
            "micro_batch": self.mark.micro_batch,
            "rank": self.mark.rank,
            "row": None if self.mark.row < 0 else self.mark.row,
            "index": None if found.index is None else list(found.index),
            "values": [_plain(value) for value in found.values],
            "difference": _plain(found.largest),
            "size": _plain(found.size),
            "explained": _plain(self.explained),
        }

    def when(self) -> str:
        """Return when it is, in words."""
        words = []
        if self.mark.micro_batch:
            words.append(f"micro-batch {self.mark.micro_batch}")
        if self.mark.row >= 0:
            words.append(f"row {self.mark.row}")
        if self.mark.step:
            words.append(f"step {self.mark.step}")
        if self.mark.rank:
            words.append(f"rank {self.mark.rank}")
        return ", ".join(words) or "before the first step"

    def sentence(self) -> str:
        """Return where it is, in one line."""
        where = f"{self.module}, {self.stage}" if self.module else self.stage
        return f"{where}, {self.when()}" + (f" ({self.detail})" if self.detail else "")

    def seen(self) -> str:
        """Return both values, how far they are apart, and what rounding explains."""
        one, other = (_short(value) for value in self.distance.values)
        found = f"{one} and {other}"
        if self.distance.index:
            found += f" at {list(self.distance.index)}"
        if not math.isfinite(self.distance.largest):
            return found
        return f"{found}; difference {self.distance.largest:.3g}, rounding explains {self.explained:.3g}"


@dataclass
class Found:
    """What a comparison found.

    - first: where the runs part; None if they do not. bit: where they first differ at all.
    - path: the places at which they are apart from there on, at most MOST of them.
    - compared: how many marks were compared, exactly or not. alone: stage -> how many only one of the runs has.
    - nearest: of the marks before `first`, the largest share of what rounding explains.
    - notes: sentences about what was not compared.
    """

    first: Place | None = None
    bit: Place | None = None
    path: list[Place] = field(default_factory=list)
    compared: int = 0
    alone: dict[str, int] = field(default_factory=dict)
    nearest: float = 0.0
    notes: list[str] = field(default_factory=list)


def compare(one: Run, other: Run, noise: Sequence[tuple[Run, Run]] | None, dtypes: bool = True) -> Found:
    """Compare two runs.

    - dtypes: whether two tensors of the same values in two dtypes differ, too.

    - noise: pairs of a run and the same run changed in the last bit; None: compare bit for bit.
    """
    by_row = timeline.cut_otherwise(one, other)
    ours, theirs = timeline.timeline(one, by_row), {mark.key: mark for mark in timeline.timeline(other, by_row)}
    rounding = _Rounding(noise or (), by_row)
    found, kinds = Found(), one.recordings[0].kinds if one.recordings else {}
    versions = one.trace.environment.get("versions") != other.trace.environment.get("versions")
    for mark in ours:
        match = theirs.pop(mark.key, None)
        if mark.what == timeline.DTYPE and not dtypes:
            continue
        if match is None and mark.what == PARAMETER and mark.stage == BACKWARD and _passed_back(mark, theirs, other):
            match = dataclasses.replace(mark, value="no gradient")
        if match is None:
            found.alone[mark.stage] = found.alone.get(mark.stage, 0) + 1
            continue
        found.compared += 1
        gap = distance(mark, match, dtypes)
        if not gap.largest and not gap.length:
            continue
        explained = 0.0 if noise is None else rounding.explains(mark, gap)
        if versions and mark.stage == LOG:
            explained = max(explained, _LOGGED)
        place = Place(mark, *_whose(mark, kinds), gap, explained)
        found.bit = found.bit or place
        if noise is not None and not rounding.apart(mark, gap, explained):
            if found.first is None and explained:
                found.nearest = max(found.nearest, gap.largest / explained)
            continue
        found.first = found.first or place
        found.path.append(place)
        if len(found.path) == MOST:
            found.notes.append(f"the path ends after {MOST} places; {len(ours)} were recorded")
            return found
    for mark in theirs.values():
        found.alone[mark.stage] = found.alone.get(mark.stage, 0) + 1
    return found


def _passed_back(mark: Mark, theirs: Mapping[tuple[Any, ...], Mark], other: Run) -> bool:
    """Return whether the other run trains a parameter, and has passed back to others in the same micro-batch."""
    if mark.name not in other.trace.trainable or mark.call:
        return False
    place = (mark.step, mark.micro_batch, mark.rank)
    return any(one.what == PARAMETER and (one.step, one.micro_batch, one.rank) == place for one in theirs.values())


class _Rounding:
    """What rounding explains at each mark."""

    def __init__(self, pairs: Sequence[tuple[Run, Run]], by_row: set[int]):
        self._pairs = [
            tuple({mark.key: mark for mark in timeline.timeline(run, by_row)} for run in pair) for pair in pairs
        ]
        self._found: dict[tuple[Any, ...], tuple[float, float]] = {}

    def _noise(self, mark: Mark) -> tuple[float, float]:
        """Return the largest distances that changed runs have at a mark: of an element, and of all of them."""
        if mark.key not in self._found:
            largest = length = 0.0
            for plain, changed in self._pairs:
                if mark.key in plain and mark.key in changed:
                    gap = distance(plain[mark.key], changed[mark.key])
                    largest, length = max(largest, gap.largest), max(length, gap.length)
            self._found[mark.key] = (largest, length)
        return self._found[mark.key]

    def explains(self, mark: Mark, gap: Distance) -> float:
        """Return the largest difference of two elements that rounding explains at a mark."""
        return FACTOR * self._noise(mark)[0] + 2 * gap.place

    def apart(self, mark: Mark, gap: Distance, explained: float) -> bool:
        count = mark.value.numel() if isinstance(mark.value, torch.Tensor) else 1
        length = FACTOR * self._noise(mark)[1] + 2 * gap.place * math.sqrt(count)
        return gap.largest > explained or gap.length > max(length, explained)


def distance(one: Mark, other: Mark, dtypes: bool = False) -> Distance:
    """Return how far the values of two marks are from each other. dtypes: as for `compare`."""
    ours, theirs = one.value, other.value
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        if dtypes and ours.dtype != theirs.dtype:
            return Distance(math.inf, 0.0, 0.0, 0.0, None, (_shape(ours), _shape(theirs)))
        return _between(ours, theirs, one.norm, other.norm)
    numbers = [value for value in (ours, theirs) if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) == 2 and all(map(math.isfinite, numbers)):
        gap, size = abs(ours - theirs), max(abs(ours), abs(theirs))
        # Losses and norms are sums in float32, of whose last places two runs in three show no noise at all.
        place = (4 * torch.finfo(torch.float32).eps if one.stage in (LOSS, LOG, timeline.EVALUATION) else 4e-16) * size
        return Distance(gap, gap, size, place, None, (ours, theirs))
    same = ours == theirs or repr(ours) == repr(theirs)
    return Distance(0.0 if same else math.inf, 0.0, 0.0, 0.0, None, (ours, theirs))


def _between(ours: torch.Tensor, theirs: torch.Tensor, norm: float | None, other: float | None) -> Distance:
    if ours.shape != theirs.shape:
        # Batches of other rows are padded to another length. What both have comes first.
        if ours.dim() != theirs.dim() or ours.dim() == 0:
            return Distance(math.inf, 0.0, 0.0, 0.0, None, (_shape(ours), _shape(theirs)))
        least = [slice(min(a, b)) for a, b in zip(ours.shape, theirs.shape, strict=True)]
        if sum(a != b for a, b in zip(ours.shape, theirs.shape, strict=True)) > 1:
            return Distance(math.inf, 0.0, 0.0, 0.0, None, (_shape(ours), _shape(theirs)))
        ours, theirs = ours[tuple(least)], theirs[tuple(least)]
    if ours.dtype == theirs.dtype and torch.equal(ours, theirs) and norm == other:
        return Distance(0.0, 0.0, 0.0, 0.0, None, (None, None))
    dtypes = [tensor.dtype for tensor in (ours, theirs) if tensor.is_floating_point()]
    # numpy takes a fifth of torch's time for tensors of this size.
    a, b = ours.double().numpy(), theirs.double().numpy()
    if not a.size:
        return Distance(0.0, 0.0, 0.0, 0.0, None, (None, None))
    with numpy.errstate(invalid="ignore"):
        gap = numpy.abs(a - b)
    if not numpy.isfinite(gap).all():
        alike = (numpy.isnan(a) & numpy.isnan(b)) | (a == b)
        gap = numpy.where(alike, 0.0, numpy.nan_to_num(gap, nan=math.inf, posinf=math.inf))
    index = numpy.unravel_index(int(gap.argmax()), gap.shape)
    finite = [part[numpy.isfinite(part)] for part in (a, b)]
    size = max((float(numpy.abs(part).max()) for part in finite if part.size), default=0.0)
    eps = max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
    largest, length = float(gap.max()), float(numpy.sqrt((gap * gap).sum()))
    if norm is not None and other is not None and largest == 0:
        largest = length = abs(norm - other)  # they differ in elements that were not kept
    place = tuple(int(part) for part in index) if gap.ndim else None
    return Distance(largest, length, size, eps * size, place, (float(a[index]), float(b[index])))


def _whose(mark: Mark, kinds: Mapping[str, str]) -> tuple[str, str, str]:
    """Return the module, the stage and a detail in words: whose operation a mark shows first."""
    if mark.stage == BACKWARD and mark.opens:
        return "", LOSS, "backward: the gradient of the model's output, which the loss gives"
    plain = mark.name.partition(" [")[0]
    if mark.what == INPUT:
        return _parent(plain, kinds), mark.stage, f"what goes into {plain or 'the model'}"
    if mark.stage == BACKWARD and mark.what == GRADIENT:
        return _parent(plain, kinds), mark.stage, f"the gradient of {plain or 'the model'}'s output"
    if mark.what == PARAMETER and mark.stage in (BACKWARD, ACCUMULATION, timeline.REDUCTION):
        return mark.name.removesuffix(".weight"), mark.stage, "the gradient of its weight"
    if mark.stage in (LOSS, timeline.SCHEDULE, timeline.EVALUATION, LOG) or mark.stage == "data":
        return "", mark.stage, mark.name if mark.name != mark.stage else ""
    if mark.stage in (BETWEEN, timeline.END) or mark.what == PARAMETER:
        return mark.name.removesuffix(".weight"), mark.stage, ""
    return plain, mark.stage, "" if mark.what in ("value", "output") else mark.what


def _parent(name: str, kinds: Mapping[str, str]) -> str:
    """Return the nearest module above one that is called itself."""
    while name:
        name = name.rpartition(".")[0]
        if name in kinds:
            return name
    return name


def _shape(tensor: torch.Tensor) -> str:
    return f"a {str(tensor.dtype).removeprefix('torch.')} of {tuple(tensor.shape)}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.9g}"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, (int, float, str, bool)) or value is None:
        return value
    return _short(value)


def steps_of(places: Sequence[Place]) -> Iterator[tuple[int, Place]]:
    """Yield each step that a path reaches, with the place of its largest relative difference."""
    best: dict[int, Place] = {}
    for place in places:
        size = place.distance.largest / (place.distance.size or 1.0)
        before = best.get(place.mark.step)
        if before is None or size > before.distance.largest / (before.distance.size or 1.0):
            best[place.mark.step] = place
    yield from best.items()
