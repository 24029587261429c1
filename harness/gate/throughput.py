"""Throughput and memory of two stacks: what a step costs on each, counted, and which of them is slower, timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from harness.environment import memory_bytes
from harness.errors import UsageError
from harness.gate.findings import BROKEN, LOST, MENDED, NOTE, Finding
from harness.gate.side import Side
from harness.spec import RunSpec
from harness.throughput import pairs
from harness.throughput.counters import Counters
from harness.throughput.judgement import HOLDS, SLOWER, Judgement
from harness.throughput.pairs import Entrant, Pairs
from harness.throughput.shapes import SHAPES, peak_bytes

#: Counters of memory: more of them is a finding by itself. Of the others more may be right; the clock tells.
MEMORY = ("saved_bytes", "held_bytes", "peak_bytes")

#: What is timed on a device: a step that is the host's work, and on CUDA one that is the device's.
TIMED = {"cpu": ("tiny",), "cuda": ("tiny", "long")}

#: How much slower a candidate may be, a share, by whether the memory of both lies in huge pages: without, equal processes
#: differ by more than half a percent.
MARGIN = {False: 0.02, True: 0.01}

#: The same where the step is the device's work.
DEVICE_MARGIN = 0.005

#: How much larger it may be.
LARGER = 0.02

#: The share of a device's memory that a shape may take: the processes that wait keep their weights.
ROOM = 0.6

#: Seconds of timing at most, starts not counted. With the noise of two cores that do nothing else a slowdown by MARGIN
#: takes a third of it (fixtures/baselines/rates-2-cores.json).
BUDGET = 120.0

#: The same of a gate that is unsafe already: what the clock says then is told, and decides nothing. So one process of each
#: side will do: eight take half a minute to start on two cores. Of one pair, how much equal processes differ soon outweighs
#: what more A B B A would tell.
BRIEF = 12.0


def counted_runs(device: str) -> dict[str, RunSpec]:
    """What is counted: the smallest shape, alone, with accumulation, and with activation checkpointing."""
    spec = SHAPES["tiny"].spec(device).but(logging_steps=500)
    options = {"use_reentrant": False}
    return {
        "step": spec,
        "step/accumulation": spec.but(gradient_accumulation_steps=2),
        "step/checkpointing": spec.but(activation_checkpointing=True, activation_checkpointing_kwargs=options),
    }


def count(side: Side) -> None:
    """Have a side count."""
    for name, spec in counted_runs(side.judged.device).items():
        side.ask(f"counters/{name}", "count", spec=spec.to_json(), subject=side.judged.subject, limit=300)


def counters(baseline: Side, candidate: Side, margin: float = LARGER) -> Iterator[Finding]:
    """A finding for each run whose counters are others."""
    for name in counted_runs(baseline.judged.device):
        before, after = (_counters(side, name) for side in (baseline, candidate))
        if before is None or after is None:
            means = BROKEN if before is not None else MENDED if after is not None else NOTE
            says = f"cannot be counted: {_error(candidate if after is None else baseline, name)}"
            yield Finding("throughput", name, means, says, {"counters": {}})
            continue
        changed = {one: (before.step[one], after.step[one]) for one in before.step if one in after.step}
        changed = {one: pair for one, pair in changed.items() if pair[0] != pair[1]}
        if not changed:
            continue
        larger = [one for one in MEMORY if one in changed and _grown(*changed[one]) > margin]
        smaller = [one for one in MEMORY if one in changed and _grown(*changed[one]) < -margin]
        words = "; ".join(f"{one} {was} -> {now} ({_grown(was, now):+.1%})" for one, (was, now) in changed.items())
        means = BROKEN if larger else MENDED if smaller else NOTE
        about = f"larger: {', '.join(larger)}; " if larger else ""
        yield Finding("throughput", name, means, f"{about}{words}", {"counters": changed})


def _counters(side: Side, name: str) -> Counters | None:
    answer = side.done.get(f"counters/{name}", {})
    return Counters.from_json(answer["data"]) if answer.get("data") else None


def _error(side: Side, name: str) -> str:
    return f"{side.name}: {side.done.get(f'counters/{name}', {}).get('error') or 'was not asked'}"


def can_be_timed(side: Side) -> bool:
    """Whether a side has steps that can be counted, and so timed: a user's subject may tell of none."""
    return _counters(side, next(iter(counted_runs(side.judged.device)))) is not None


def _grown(was: int, now: int) -> float:
    return (now - was) / max(was, 1)


def timed_shapes(device: str) -> tuple[list[str], list[Finding]]:
    """The names of the shapes that are timed, and a finding for each that the device has no room for."""
    names, findings = [], []
    for name in TIMED[device]:
        takes, there = peak_bytes(SHAPES[name].spec(device)), memory_bytes(device)
        if takes > ROOM * there:
            says = f"not timed: it takes {takes / 2**30:.0f} GiB, and {device} has {there / 2**30:.0f}"
            findings.append(Finding("throughput", where(name), NOTE, says))
        else:
            names.append(name)
    return names, findings


def where(shape: str) -> str:
    """What a finding about a shape's time is called."""
    return "time" if shape in TIMED["cpu"] else f"time/{shape}"


def stand(side: Side, shapes: Iterable[str], brief: bool = False) -> None:
    """Start the processes of a side that will be timed at these shapes. brief: for BRIEF."""
    for name in shapes:
        spec = SHAPES[name].spec(side.judged.device)
        entrant = Entrant(side.name, side.judged.subject, spec, side.judged.preloads, side.start)
        try:
            pairs.stand([entrant] * (1 if brief else pairs.PROCESSES), side.runners.setdefault(name, []))
        except UsageError as error:
            side.untimed[name] = str(error)


def time(
    baseline: Side, candidate: Side, shape: str, told: Callable[[Judgement], None], budget: float
) -> tuple[Judgement, Pairs]:
    """Time both sides in turn, when neither does anything else. UsageError where one could not stand ready."""
    if untimed := baseline.untimed.get(shape) or candidate.untimed.get(shape):
        raise UsageError(untimed)
    before, after = baseline.runners[shape], candidate.runners[shape]
    huge_pages = all(runner.first["huge_pages"] for runner in (*before, *after))
    margin = MARGIN[huge_pages] if shape in TIMED["cpu"] else DEVICE_MARGIN
    return pairs.race(before, after, margin, budget, told)


def slower(
    judgement: Judgement, timed: Pairs, counted: list[Finding], budget: float = BUDGET, shape: str = "tiny"
) -> Iterator[Finding]:
    """What the clock says, with the counters that explain it. counted: of `counters`. budget: what `time` was given."""
    wall, place = judgement.intervals["wall"], where(shape)
    means = {HOLDS: "", SLOWER: BROKEN}.get(judgement.word, LOST)
    details = {"seconds": timed.seconds, "shape": shape, "steady_clock": timed.steady, **judgement.to_json()}
    margin, most = (f"{share:.1%}".replace(".0%", "%") for share in (judgement.margin, 2 * judgement.margin))
    if means == LOST and all(one.high < 2 * judgement.margin for one in judgement.intervals.values()):
        says = f"a step takes {wall} longer: it may be less than {margin} or a little more, but not {most}"
        yield Finding("throughput", place, NOTE, says, details)
    elif means == LOST and budget < BUDGET:
        says = f"a step takes {wall} longer: undecided within {timed.seconds:.0f} s, no more since the gate is unsafe anyway"
        yield Finding("throughput", place, NOTE, says, details)
    elif means == LOST:
        says = f"a step takes {wall} longer: undecided within {timed.seconds:.0f} s, the machine is too noisy"
        yield Finding("throughput", place, LOST, says, details)
    elif means == BROKEN:
        metric = judgement.slower[0]
        more = [
            f"{name} {was} -> {now}"
            for one in counted
            if one.where == "step"
            for name, (was, now) in one.details["counters"].items()
            if now > was
        ]
        same = "the time is spent between them" if shape in TIMED["cpu"] else "the device takes longer over them"
        because = "; more " + ", ".join(more) if more else f"; it does the same operations: {same}"
        what = "of the processor" if metric == "cpu" else ""
        says = f"a step takes {judgement.intervals[metric]} longer {what}".rstrip() + because
        yield Finding("throughput", place, BROKEN, says, details)
