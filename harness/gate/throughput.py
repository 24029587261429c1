"""Compare throughput and memory of two stacks: count what a step costs on each side, and time which side is slower."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from harness.environment import memory_bytes
from harness.errors import UsageError
from harness.gate.findings import BROKEN, FIXED, LOST, NOTE, Finding
from harness.gate.side import Side
from harness.spec import RunSpec
from harness.throughput import pairs
from harness.throughput.counters import Counters
from harness.throughput.judgement import HOLDS, SLOWER, Interval, Judgement, percent
from harness.throughput.pairs import Entrant, Pairs
from harness.throughput.shapes import SHAPES, peak_bytes

#: Counters of memory. An increase is a finding by itself. More of another counter may be right, so the clock decides.
MEMORY = ("saved_bytes", "held_bytes", "peak_bytes")

#: Device -> the shapes that are timed: a step that is the host's work, and on CUDA also one that is the device's.
TIMED = {"cpu": ("tiny",), "cuda": ("tiny", "long")}

#: The slowdown that must be found, a share, by whether the memory of both sides lies in huge pages. Without huge pages,
#: equal processes differ by more than half a percent.
MARGIN = {False: 0.02, True: 0.01}

#: The same for a step that is the device's work.
DEVICE_MARGIN = 0.005

#: The increase of a memory counter from which it is a finding, a share.
LARGER = 0.02

#: The share of a device's memory that a shape may take: waiting processes keep their weights there.
ROOM = 0.6

#: Seconds of timing at most, without the starts of processes. On two idle cores a slowdown by MARGIN is found in a third of
#: that (fixtures/baselines/rates-2-cores.json).
BUDGET = 120.0

#: The same if the gate is already unsafe: the clock then decides nothing. One process of each side is enough, since eight
#: take half a minute to start on two cores. More time would not help: with one pair, the difference between equal processes
#: soon outweighs what more rounds can show.
BRIEF = 12.0


def counted_runs(device: str) -> dict[str, RunSpec]:
    """Return the runs whose steps are counted: the smallest shape plain, with accumulation, with activation checkpointing."""
    spec = SHAPES["tiny"].spec(device).but(logging_steps=500)
    options = {"use_reentrant": False}
    return {
        "step": spec,
        "step/accumulation": spec.but(gradient_accumulation_steps=2),
        "step/checkpointing": spec.but(activation_checkpointing=True, activation_checkpointing_kwargs=options),
    }


def count(side: Side) -> None:
    """Let a side count what a step of each run costs."""
    for name, spec in counted_runs(side.judged.device).items():
        side.ask(f"counters/{name}", "count", spec=spec.to_json(), subject=side.judged.subject, limit=300)


def counters(baseline: Side, candidate: Side, margin: float = LARGER) -> Iterator[Finding]:
    """Yield a finding for each run whose counters differ. margin: the share by which memory may grow."""
    for name in counted_runs(baseline.judged.device):
        before, after = (_counters(side, name) for side in (baseline, candidate))
        if before is None or after is None:
            means = BROKEN if before is not None else FIXED if after is not None else NOTE
            says = f"cannot be counted: {_error(candidate if after is None else baseline, name)}"
            yield Finding("throughput", name, means, says, {"counters": {}})
            continue
        both = {
            counter: (before.step[counter], after.step[counter]) for counter in before.step if counter in after.step
        }
        if not both:
            yield Finding("throughput", name, LOST, "no counter was counted on both sides", {"counters": {}})
            continue
        changed = {counter: pair for counter, pair in both.items() if pair[0] != pair[1]}
        if not changed:
            continue
        growth = {counter: _growth(was, now) for counter, (was, now) in changed.items()}
        larger = [counter for counter in MEMORY if growth.get(counter, 0.0) > margin]
        smaller = [counter for counter in MEMORY if growth.get(counter, 0.0) < -margin]
        words = "; ".join(f"{name} {was} -> {now} ({growth[name]:+.1%})" for name, (was, now) in changed.items())
        means = BROKEN if larger else FIXED if smaller else NOTE
        about = f"larger: {', '.join(larger)}; " if larger else ""
        yield Finding("throughput", name, means, f"{about}{words}", {"counters": changed})


def _counters(side: Side, name: str) -> Counters | None:
    answer = side.done.get(f"counters/{name}", {})
    return Counters.from_json(answer["data"]) if answer.get("data") else None


def _error(side: Side, name: str) -> str:
    return f"{side.name}: {side.done.get(f'counters/{name}', {}).get('error') or 'was not asked'}"


def can_be_timed(side: Side) -> bool:
    """Return whether a side's steps could be counted. If not, they cannot be timed: a user's subject may report no steps."""
    return _counters(side, next(iter(counted_runs(side.judged.device)))) is not None


def _growth(was: int, now: int) -> float:
    return (now - was) / max(was, 1)


def timed_shapes(device: str) -> tuple[list[str], list[Finding]]:
    """Return the names of the shapes that are timed, and a finding for each that does not fit the device's memory."""
    names, findings = [], []
    for name in TIMED[device]:
        needed, available = peak_bytes(SHAPES[name].spec(device)), memory_bytes(device)
        if needed > ROOM * available:
            says = f"not timed: it needs {needed / 2**30:.0f} GiB, and {device} has {available / 2**30:.0f} GiB"
            findings.append(Finding("throughput", where(name), NOTE, says))
        else:
            names.append(name)
    return names, findings


def where(shape: str) -> str:
    """Return the name of findings about a shape's time."""
    return "time" if shape in TIMED["cpu"] else f"time/{shape}"


def start_processes(side: Side, shapes: Iterable[str], brief: bool = False) -> None:
    """Start the processes of a side that will be timed at these shapes, and wait until they are ready.

    - brief: start one process a shape, as for BRIEF.

    If a process cannot be started, the reason goes to `Side.untimed`.
    """
    for name in shapes:
        spec = SHAPES[name].spec(side.judged.device)
        entrant = Entrant(side.name, side.judged.subject, spec, side.judged.preloads, side.start)
        try:
            pairs.stand([entrant] * (1 if brief else pairs.PROCESSES), side.runners.setdefault(name, []))
        except UsageError as error:
            side.untimed[name] = str(error)


def time(
    baseline: Side, candidate: Side, shape: str, report: Callable[[Judgement], None], budget: float
) -> tuple[Judgement, Pairs]:
    """Time the steps of both sides in turn. Nothing else may run meanwhile.

    - report: called after each round of measurements.
    - budget: seconds of timing at most.

    Raises UsageError if a side's processes could not be started, or end while they are timed.
    """
    if untimed := baseline.untimed.get(shape) or candidate.untimed.get(shape):
        raise UsageError(untimed)
    before, after = baseline.runners[shape], candidate.runners[shape]
    huge_pages = all(runner.first["huge_pages"] for runner in (*before, *after))
    margin = baseline.judged.slower or (MARGIN[huge_pages] if shape in TIMED["cpu"] else DEVICE_MARGIN)
    return pairs.race(before, after, margin, budget, report)


def slower(
    judgement: Judgement, timed: Pairs, counted: list[Finding], budget: float = BUDGET, shape: str = "tiny"
) -> Iterator[Finding]:
    """Yield what the clock says, with the counters that explain a slowdown.

    - judgement, timed: as `time` returned them.
    - counted: the findings of `counters`.
    - budget: seconds that `time` was given.
    - shape: the shape that was timed.
    """
    wall, name = judgement.intervals["wall"], where(shape)
    details = {"seconds": timed.seconds, "shape": shape, "steady_clock": timed.steady, **judgement.to_json()}
    margin = judgement.margin
    if judgement.word == HOLDS:
        return
    if judgement.word == SLOWER:
        metric = judgement.slower[0]
        says = _step_is(judgement.intervals[metric], metric) + _explained(counted, shape)
        yield Finding("throughput", name, BROKEN, says, details)
    elif all(interval.high < 2 * margin for interval in judgement.intervals.values()):
        limits = f"perhaps more than the margin of {percent(margin)}, surely less than {percent(2 * margin)}"
        says = f"{_step_is(wall)}: {limits}"
        yield Finding("throughput", name, NOTE, says, details)
    elif budget < BUDGET:
        says = f"{_step_is(wall)}: undecided after {timed.seconds:.0f} s; timing stopped because the gate is already unsafe"
        yield Finding("throughput", name, NOTE, says, details)
    else:
        says = f"{_step_is(wall)}: undecided after {timed.seconds:.0f} s, because the machine is too noisy"
        yield Finding("throughput", name, LOST, says, details)


def _explained(counted: list[Finding], shape: str) -> str:
    """Return what a step does more often than before, or that it does not."""
    more = [
        f"{counter} {was} -> {now}"
        for finding in counted
        if finding.where == "step"
        for counter, (was, now) in finding.details["counters"].items()
        if now > was
    ]
    if more:
        return "; more " + ", ".join(more)
    if shape in TIMED["cpu"]:
        return "; it does the same operations, so the time is spent between them"
    return "; it does the same operations, so the device takes longer over them"


def _step_is(change: Interval, metric: str = "wall") -> str:
    """Return a sentence such as "a step is 0.92 % faster (99 % interval: 2.10 % faster to 0.26 % slower)"."""
    if not math.isfinite(change.low):
        return f"the change of a step's time is unknown after {change.count} rounds"
    if metric == "wall":
        return f"a step is {change.describe()}"
    return f"a step takes {change.describe('more', 'less', 'processor time')}"
