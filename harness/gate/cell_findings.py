"""Compare what two sides trained: which cells train, their numbers, and each other's checkpoints and adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from harness.errors import UsageError
from harness.gate import checkpoints, interface, numbers, results
from harness.gate.cells import resumed_step
from harness.gate.findings import BROKEN, FIXED, LOST, NOTE, Finding
from harness.gate.numbers import CHANGED, EQUAL, UNJUDGED, Parting
from harness.gate.side import Side
from harness.laws.equal import equal_runs
from harness.runs.judging import is_refused
from harness.spec import RunSpec
from harness.tolerance import STACKS
from harness.trace import Trace
from harness.verdict import NOT_COMPARABLE, Verdict

#: Name of a cell -> its spec.
Specs = dict[str, RunSpec]


def findings(baseline: Side, candidate: Side, specs: Specs, partings: dict[str, Parting]) -> Iterator[Finding]:
    """Yield all findings about the cells, and about the interface of the two stacks. partings: of `partings`."""
    yield from trained(baseline, candidate, specs)
    yield from changed(baseline, candidate, partings)
    yield from resumed(baseline, candidate, specs, partings)
    yield from inferred(baseline, candidate, specs)
    yield from checkpoints.files(_traces(baseline, specs), _traces(candidate, specs))
    yield from interfaces(baseline, candidate)


def partings(baseline: Side, candidate: Side, specs: Specs) -> dict[str, Parting]:
    """Return how the numbers of each cell differ, for cells that both sides trained to the end."""
    before, after = _traces(baseline, specs), _traces(candidate, specs)
    return {
        name: numbers.parting(before[name], after[name])
        for name in specs
        if name in before and name in after and not before[name].error and not after[name].error
    }


def saved_step(side: Side, cell: str) -> int | None:
    """Return the step of the checkpoint from which a cell's run is resumed. None if the side saved no such checkpoint."""
    trace = side.trace(f"cells/{cell}")
    steps = [checkpoint.step for checkpoint in trace.checkpoints] if trace is not None else []
    run = side.directory / "cells" / cell / "run"
    saved = [step for step in steps if (run / f"checkpoint-{step}").is_dir()]
    return resumed_step(saved) if saved else None


def trained(baseline: Side, candidate: Side, specs: Specs) -> Iterator[Finding]:
    """Yield a finding for each cell that only one side trains, and for each run of --spec that cannot be compared."""
    brought = bool(baseline.judged.specs)
    for name in specs:
        was, now = (_failure(side, f"cells/{name}") for side in (baseline, candidate))
        if now and not was:
            means = LOST if "not supported" in now and not brought else BROKEN
            # As the laws say it, so that the cases that fail for it have the same cause.
            seen = now.replace("ends with ", "the run ended with ", 1) if now.startswith("ends with ") else now
            trace = candidate.trace(f"cells/{name}")
            details = {"seen": [seen], "raised": trace.raised if trace is not None else {}}
            yield Finding("cell", name, means, f"trained before; now it {now}", details)
        elif was and not now:
            yield Finding("cell", name, FIXED, f"trains now; before, it {was}")
        if was and brought:
            yield Finding("cell", name, LOST, f"cannot be compared: on the baseline, it {was}")


def refused(side: Side, cell: str) -> str:
    """Return why a cell's run was refused, or left no trace. Empty if it was trained, or failed in training."""
    trace = side.trace(f"cells/{cell}")
    return _failure(side, f"cells/{cell}") if trace is None or is_refused(trace) else ""


def changed(baseline: Side, candidate: Side, partings: dict[str, Parting]) -> Iterator[Finding]:
    """Yield a finding for each cell whose numbers differ. If the reference computes the new ones, they are a fix."""
    for name, part in partings.items():
        if part.kind == EQUAL:
            continue
        if part.kind == UNJUDGED:
            yield Finding("numbers", name, LOST, str(part), part.to_json())
        elif part.kind != CHANGED:
            yield Finding("numbers", name, NOTE, f"{part}; within the tolerance of {STACKS.name}", part.to_json())
        elif _equals_reference(candidate, name):
            yield Finding("numbers", name, FIXED, f"{part}; now as the reference computes it", part.to_json())
        else:
            yield Finding("numbers", name, BROKEN, str(part), part.to_json())


def resumed(baseline: Side, candidate: Side, specs: Specs, partings: dict[str, Parting]) -> Iterator[Finding]:
    """Yield a finding for each checkpoint from which the other side does not continue as its writer does."""
    for writer, reader, way in _ways(baseline, candidate):
        for name in specs:
            whole, step = writer.trace(f"cells/{name}"), saved_step(writer, name)
            # If the reader cannot train the cell, or the writer cannot resume it, a clause or `trained` reports that.
            own = writer.trace(f"resumed/{name}")
            if whole is None or whole.error or _failure(reader, f"cells/{name}"):
                continue
            if reason := _not_resumed(own, whole, step):
                if writer.judged.specs:
                    says = f"not judged ({way}): the {writer.name}'s own run {reason}"
                    yield Finding("resume", name, NOTE, says, {"way": way, "step": step})
                continue
            assert step is not None
            kind = partings[name].kind if name in partings else CHANGED
            across = reader.trace(f"across/{name}")
            means = BROKEN
            if across is None:
                seen: tuple[str, ...] = (_failure(reader, f"across/{name}"),)
            else:
                judged = checkpoints.goes_on(across, whole, step, kind)
                seen, means = judged.seen, _meaning(judged)
            if seen:
                says = f"checkpoint-{step} of the {writer.name}, resumed by the {reader.name} ({way}): {seen[0]}"
                yield Finding("resume", name, means, says, {"way": way, "step": step, "seen": list(seen)})


def _not_resumed(own: Trace | None, whole: Trace, step: int | None) -> str:
    """Return why a run is not to be resumed on the other side: it does not even go on where it was written. Else ""."""
    if step is None:
        return "saved no checkpoint before its last steps"
    if own is None:
        return f"could not be resumed from checkpoint-{step}"
    judged = checkpoints.goes_on(own, whole, step, EQUAL)
    return "" if judged.holds else f"does not go on from checkpoint-{step} as it did ({judged.seen[0]})"


def inferred(baseline: Side, candidate: Side, specs: Specs) -> Iterator[Finding]:
    """Yield a finding for each adapter that the other side does not load, or that computes other logits there."""
    for writer, reader, way in _ways(baseline, candidate):
        for name in specs:
            own, loaded = writer.done.get(f"own/{name}"), reader.done.get(f"loaded/{name}")
            if _failure(reader, f"cells/{name}") or own is None or loaded is None:
                continue
            if reason := own["error"] or (own["data"] or {}).get("unsupported"):
                if writer.judged.specs:
                    says = f"not judged ({way}): the {writer.name}'s own adapter could not be loaded ({reason})"
                    yield Finding("inference", name, NOTE, says, {"way": way})
                continue
            means = BROKEN
            if loaded["error"]:
                seen: tuple[str, ...] = (loaded["error"],)
            else:
                try:
                    there, here = (results.logits(side.directory, task) for side, task in (
                        (reader, f"loaded/{name}"), (writer, f"own/{name}"),
                    ))  # fmt: skip
                    judged = checkpoints.computes(there, here)
                    seen, means = judged.seen, _meaning(judged)
                except UsageError as error:
                    seen = (str(error),)
            if seen:
                says = f"the {writer.name}'s adapter, loaded by the {reader.name} ({way}): {seen[0]}"
                yield Finding("inference", name, means, says, {"way": way, "seen": list(seen)})


def interfaces(baseline: Side, candidate: Side) -> Iterator[Finding]:
    """Yield a finding for each signature or default that differs."""
    before, after = (side.done.get("inventory", {}).get("data") for side in (baseline, candidate))
    if bool(before) != bool(after):
        side = candidate if before else baseline
        reason = side.done.get("inventory", {}).get("error") or "was not asked"
        yield Finding("interface", "all", LOST if before else NOTE, f"not compared: the {side.name} {reason}")
    if before and after:
        for change in interface.changes(before["interface"], after["interface"]):
            yield Finding("interface", change.where, NOTE, str(change), dataclasses.asdict(change))


def _meaning(judged: Verdict) -> str:
    """Return what findings of a comparison mean: LOST if there was nothing to compare, which is no change for the worse."""
    return LOST if judged.outcome == NOT_COMPARABLE else BROKEN


def _ways(baseline: Side, candidate: Side) -> tuple[tuple[Side, Side, str], ...]:
    """(writer, reader, way): an upgrade reads the baseline's files, a roll-back the candidate's."""
    return (baseline, candidate, "upgrade"), (candidate, baseline, "roll-back")


def _traces(side: Side, specs: Specs) -> dict[str, Trace]:
    return {name: trace for name in specs if (trace := side.trace(f"cells/{name}")) is not None}


def _failure(side: Side, task: str) -> str:
    """Return why a task left no trace that can be compared. Empty if it left one."""
    answer = side.done.get(task)
    if answer is None:
        return "was not asked"
    if answer["error"]:
        return str(answer["error"])
    if reason := (answer.get("data") or {}).get("unsupported"):
        return f"is not supported ({reason})"
    trace = side.trace(task)
    return f"ends with {trace.error}" if trace is not None and trace.error else ""


def _equals_reference(side: Side, cell: str) -> bool:
    reference, trace = side.trace(f"reference/{cell}"), side.trace(f"cells/{cell}")
    return reference is not None and trace is not None and equal_runs(trace, reference, STACKS).holds
