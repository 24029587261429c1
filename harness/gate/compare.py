"""A gate: the same cells on two sides, and what differs."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError
from harness.gate import checkpoints, clauses, interface, numbers, throughput
from harness.gate.cells import cells, resumed_step
from harness.gate.findings import BROKEN, LOST, MENDED, NOTE, UNSAFE, Finding, in_order, verdict
from harness.gate.numbers import CHANGED, EQUAL, Parting
from harness.gate.side import Side
from harness.laws.equal import equal_runs
from harness.spec import RunSpec
from harness.tolerance import STACKS
from harness.trace import Trace
from harness.verdict import Case

#: told(side, what, ended, all): how far a side is with what.
Told = Callable[[str, str, int, "int | None"], None]


@dataclass
class Outcome:
    """What a gate came to. numbers: cell -> how the sides' runs part. cases: side -> cases of the suites."""

    verdict: str
    findings: list[Finding]
    numbers: dict[str, Parting]
    cases: dict[str, list[Case]]
    seconds: float
    quick: bool = False


def gate(baseline: Side, candidate: Side, workers: int, told: Told, quick: bool = False) -> Outcome:
    """Judge two sides by the same cells, and compare. workers: processes for the suites of each side.

    quick: judge the baseline in those cases alone that do not hold under the candidate. The verdict is the same; what is
    mended, and what can be judged now and holds, is not told.
    """
    started = time.monotonic()
    wanted = _cells_on(baseline.judged.device) if not baseline.judged.clauses else {}
    meeting = threading.Barrier(2)
    first: Future[list[Case]] = Future()

    def judge(side: Side, other: Side) -> list[Case]:
        def suites(count: int, tests: Sequence[str] = ()) -> list[Case]:
            return side.suites(count, lambda ended, every: told(side.name, "suites", ended, every), tests)

        if quick and side is baseline:
            tests = clauses.not_held(first.result())
            return suites(2 * workers, tests) if tests else []
        # The other side has little to judge where it is known, and nothing yet where it waits for this one.
        cases = suites(2 * workers if quick or other.known else workers)
        if side is candidate:
            first.set_result(cases)
        return cases

    def play(side: Side, other: Side) -> list[Case]:
        try:
            _at_home(side, wanted, told)
            meeting.wait()
            _across(side, other, wanted, told)
            if wanted:
                throughput.count(side)
            side.dismiss()
            return judge(side, other)
        except BaseException:
            # The other side is told, wherever it is: without this one there is nothing to compare.
            meeting.abort()
            first.cancel()
            other.end()
            raise

    with ThreadPoolExecutor(2) as pool:
        playing = [pool.submit(play, baseline, candidate), pool.submit(play, candidate, baseline)]
        try:
            before, after = _both(playing)
            parted = dict(_numbers(baseline, candidate, wanted))
            # Each entry is a section of its own.
            findings = [
                *clauses.compared(before, clauses.of(after, clauses.not_held(after)) if quick else after),
                *_cells(baseline, candidate, wanted),
                *_changed(baseline, candidate, parted),
                *_resumed(baseline, candidate, wanted, parted),
                *_inferred(baseline, candidate, wanted),
                *checkpoints.files(_traces(baseline, wanted), _traces(candidate, wanted)),
                *_interface(baseline, candidate),
            ]
            # Only now does the machine do nothing else.
            if wanted:
                findings += _timed(baseline, candidate, told, verdict(findings) == UNSAFE)
        finally:
            baseline.end()
            candidate.end()
    return Outcome(
        verdict(findings),
        in_order(findings),
        parted,
        {"baseline": before, "candidate": after},
        time.monotonic() - started,
        quick,
    )


def _timed(baseline: Side, candidate: Side, told: Told, unsafe: bool) -> list[Finding]:
    """What counters and clock say of throughput and memory. unsafe: whether the gate is so already."""
    counted = list(throughput.counters(baseline, candidate))
    if not (throughput.can_be_timed(baseline) and throughput.can_be_timed(candidate)):
        return counted
    told("both", "timed", 0, None)
    ended, budget = 0, throughput.BRIEF if unsafe else throughput.BUDGET
    shapes, findings = throughput.timed_shapes(baseline.judged.device)
    # On a GPU one side after the other: how many processes warm up at once follows the memory that is free.
    with ThreadPoolExecutor(2 if baseline.judged.device == "cpu" else 1) as pool:
        list(pool.map(lambda side: throughput.stand(side, shapes, unsafe), (baseline, candidate)))

    def progress(judgement: Any) -> None:
        nonlocal ended
        ended += 1
        told("both", "timed", ended, None)

    for shape in shapes:
        try:
            judgement, pairs = throughput.time(baseline, candidate, shape, progress, budget)
        except UsageError as error:
            findings.append(
                Finding("throughput", throughput.where(shape), LOST, f"a step of {shape} cannot be timed: {error}")
            )
        else:
            findings += throughput.slower(judgement, pairs, counted, budget, shape)
    return counted + findings


def _both(playing: list[Any]) -> list[Any]:
    """Both results, or the error of the side that failed first rather than that of the one that was ended for it."""
    errors = [error for one in playing if (error := one.exception()) is not None]
    ended = (KeyboardInterrupt, threading.BrokenBarrierError, CancelledError)
    real = [error for error in errors if not isinstance(error, ended)]
    if errors:
        raise (real or errors)[0]
    return [one.result() for one in playing]


def _cells_on(device: str) -> dict[str, RunSpec]:
    return {name: spec.on_device(device) for name, spec in cells().items()}


# ---- what each side does ----


def _at_home(side: Side, wanted: dict[str, RunSpec], told: Told) -> None:
    """Train each cell, load its adapter, and resume it, all in the side's own environment."""
    side.ask("inventory", "inventory")
    for count, (name, spec) in enumerate(wanted.items(), start=1):
        side.ask(f"cells/{name}", "train", spec=spec.to_json(), into=f"cells/{name}", subject=side.judged.subject)
        trace = side.trace(f"cells/{name}")
        if trace is not None and trace.checkpoints:
            side.ask(f"own/{name}", "infer", trace=str(side.directory / "cells" / name / "trace"), into=f"own/{name}")
            _resume(side, side, name, spec, f"resumed/{name}")
        told(side.name, "cells", count, len(wanted))


def _across(side: Side, other: Side, wanted: dict[str, RunSpec], told: Told) -> None:
    """Resume and load what the other side wrote; where the two part, train the reference too."""
    for count, (name, spec) in enumerate(wanted.items(), start=1):
        theirs, mine = other.trace(f"cells/{name}"), side.trace(f"cells/{name}")
        if theirs is not None and theirs.checkpoints:
            place = other.directory / "cells" / name / "trace"
            side.ask(f"loaded/{name}", "infer", trace=str(place), into=f"loaded/{name}")
            _resume(side, other, name, spec, f"across/{name}")
        if theirs is not None and mine is not None and numbers.parting(theirs, mine).kind == CHANGED:
            into = f"reference/{name}"
            side.ask(into, "train", spec=spec.to_json(), into=into, subject="reference")
        told(side.name, "checkpoints across", count, len(wanted))


def _resume(side: Side, writer: Side, name: str, spec: RunSpec, into: str) -> None:
    step = _step(writer, name)
    if step is not None:
        run = str(writer.directory / "cells" / name / "run")
        resumed = spec.resumed(step).to_json()
        side.ask(into, "train", spec=resumed, into=into, subject=side.judged.subject, checkpoints=run)


def _step(writer: Side, name: str) -> int | None:
    trace = writer.trace(f"cells/{name}")
    steps = [one.step for one in trace.checkpoints] if trace is not None else []
    there = [step for step in steps if (writer.directory / "cells" / name / "run" / f"checkpoint-{step}").is_dir()]
    return resumed_step(there) if there else None


# ---- what is compared ----


def _traces(side: Side, wanted: dict[str, RunSpec]) -> dict[str, Trace]:
    return {name: trace for name in wanted if (trace := side.trace(f"cells/{name}")) is not None}


def _numbers(baseline: Side, candidate: Side, wanted: dict[str, RunSpec]) -> Iterator[tuple[str, Parting]]:
    before, after = _traces(baseline, wanted), _traces(candidate, wanted)
    for name in wanted:
        if name in before and name in after and not before[name].error and not after[name].error:
            yield name, numbers.parting(before[name], after[name])


def _outcome(side: Side, task: str) -> str:
    """Why a task gave no trace that can be compared; empty where it did."""
    answer = side.done.get(task)
    if answer is None:
        return "was not asked"
    if answer["error"]:
        return str(answer["error"])
    if reason := (answer.get("data") or {}).get("unsupported"):
        return f"is not supported ({reason})"
    trace = side.trace(task)
    return f"ends with {trace.error}" if trace is not None and trace.error else ""


def _cells(baseline: Side, candidate: Side, wanted: dict[str, RunSpec]) -> Iterator[Finding]:
    for name in wanted:
        was, now = (_outcome(side, f"cells/{name}") for side in (baseline, candidate))
        if now and not was:
            means = LOST if "not supported" in now else BROKEN
            yield Finding("cell", name, means, f"trained before; now it {now}")
        elif was and not now:
            yield Finding("cell", name, MENDED, f"is trained now; before, it {was}")


def _changed(baseline: Side, candidate: Side, parted: dict[str, Parting]) -> Iterator[Finding]:
    for name, part in parted.items():
        if part.kind == EQUAL:
            continue
        if part.kind != CHANGED:
            yield Finding("numbers", name, NOTE, f"{part}: within the tolerance of {STACKS.name}", part.to_json())
        elif _is_reference(candidate, name):
            yield Finding("numbers", name, MENDED, f"{part}: now as the reference computes it", part.to_json())
        else:
            yield Finding("numbers", name, BROKEN, str(part), part.to_json())


def _is_reference(side: Side, name: str) -> bool:
    reference, trace = side.trace(f"reference/{name}"), side.trace(f"cells/{name}")
    return reference is not None and trace is not None and equal_runs(trace, reference, STACKS).holds


def _resumed(
    baseline: Side, candidate: Side, wanted: dict[str, RunSpec], parted: dict[str, Parting]
) -> Iterator[Finding]:
    for writer, reader, way in ((baseline, candidate, "upgrade"), (candidate, baseline, "roll-back")):
        for name in wanted:
            whole, step = writer.trace(f"cells/{name}"), _step(writer, name)
            if whole is None or step is None or whole.error:
                continue
            # What the writer itself cannot resume, or the reader cannot train, is a fault of its own, which clauses tell.
            own = writer.trace(f"resumed/{name}")
            if (
                _outcome(reader, f"cells/{name}")
                or own is None
                or not checkpoints.goes_on(own, whole, step, EQUAL).holds
            ):
                continue
            kind = parted[name].kind if name in parted else CHANGED
            across = reader.trace(f"across/{name}")
            if across is None:
                seen: tuple[str, ...] = (_outcome(reader, f"across/{name}"),)
            else:
                seen = checkpoints.goes_on(across, whole, step, kind).seen
            if seen:
                says = f"checkpoint-{step} of the {writer.name}, resumed by the {reader.name} ({way}): {seen[0]}"
                yield Finding("resume", name, BROKEN, says, {"way": way, "step": step, "seen": list(seen)})


def _inferred(baseline: Side, candidate: Side, wanted: dict[str, RunSpec]) -> Iterator[Finding]:
    for writer, reader, way in ((baseline, candidate, "upgrade"), (candidate, baseline, "roll-back")):
        for name in wanted:
            own, loaded = writer.done.get(f"own/{name}"), reader.done.get(f"loaded/{name}")
            if (
                _outcome(reader, f"cells/{name}")
                or own is None
                or loaded is None
                or own["error"]
                or (own["data"] or {}).get("unsupported")
            ):
                continue
            places = reader.directory / "loaded" / name, writer.directory / "own" / name
            seen = (loaded["error"],) if loaded["error"] else checkpoints.computes(*places).seen
            if seen:
                says = f"the {writer.name}'s adapter, loaded by the {reader.name} ({way}): {seen[0]}"
                yield Finding("inference", name, BROKEN, says, {"way": way, "seen": list(seen)})


def _interface(baseline: Side, candidate: Side) -> Iterator[Finding]:
    before, after = (side.done.get("inventory", {}) for side in (baseline, candidate))
    if before.get("data") and after.get("data"):
        for change in interface.changes(before["data"]["interface"], after["data"]["interface"]):
            yield Finding("interface", change.where, NOTE, str(change), dataclasses.asdict(change))
