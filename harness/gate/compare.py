"""Run the same cells and suites on two sides, and list what differs.

The pipeline of `gate`, in which steps 1 to 3 run on both sides at the same time:

1. Each side trains the cells in its own environment, and resumes and loads what it wrote (`train_cells`).
2. When both have trained, each side resumes and loads what the other wrote (`read_other_side`), and counts what a step
   costs (`throughput.count`).
3. Each side runs the suites (`judge_suites`). With `quick`, the baseline then runs only the tests that do not hold on the
   candidate (`judge_failing`).
4. The verdicts, numbers, checkpoints and interfaces are compared (`clauses.changes`, `cell_findings.findings`).
5. When nothing else runs, both sides are timed in turn (`time_steps`).
6. What is broken or lost is grouped by cause (`by_cause.by_cause`).

If the user chose clauses, and no --scope, there are no cells: steps 1, 2 and 5 do nothing but read the interfaces.

If the user brought runs (--spec), these are the cells, the suites judge nothing else, and no step is counted or timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from harness.errors import UsageError
from harness.gate import cell_findings, cells, clauses, numbers, own_defects, throughput
from harness.gate.by_cause import GateCause, by_cause, changed_packages
from harness.gate.cell_findings import Specs, saved_step
from harness.gate.findings import LOST, UNSAFE, Finding, in_order, verdict
from harness.gate.numbers import CHANGED, Parting
from harness.gate.scope import Scope
from harness.gate.side import Side
from harness.spec import RunSpec
from harness.verdict import Case

#: report(side, stage, done, total): how far a side is in a stage. total is None if it is not known.
Report = Callable[[str, str, int, "int | None"], None]

T = TypeVar("T")


@dataclass
class Outcome:
    """The result of a gate.

    - verdict: safe, unsafe or inconclusive.
    - findings: gravest first.
    - numbers: cell -> how the sides' runs differ.
    - cases: "baseline" or "candidate" -> cases of the suites.
    - seconds: how long the gate took.
    - quick: whether the baseline was judged only in what does not hold on the candidate.
    - causes: of all findings that are broken or lost (`harness.gate.by_cause`).
    - requires: what packages of the stacks want and do not have, as the report has it (`harness.gate.requires`).
    - timing: shape -> how its steps' time compares (`Judgement.to_json`), for those that were timed.
    """

    verdict: str
    findings: list[Finding]
    numbers: dict[str, Parting]
    cases: dict[str, list[Case]]
    seconds: float
    quick: bool = False
    causes: list[GateCause] = field(default_factory=list)
    requires: list[dict[str, Any]] = field(default_factory=list)
    timing: dict[str, Any] = field(default_factory=dict)


def gate(baseline: Side, candidate: Side, workers: int, report: Report, quick: bool = False) -> Outcome:
    """Judge two sides by the same cells and clauses, and compare them.

    - workers: processes for the suites of each side.
    - report: called with the progress of each stage.
    - quick: judge the baseline only in the tests that do not hold on the candidate. The verdict is the same; fixes, and
      clauses that can be judged only now and hold, are not listed.

    Raises UsageError if a side cannot be judged at all.
    """
    started = time.monotonic()
    brought = bool(baseline.judged.specs)
    specs = cells_of(baseline.judged)

    def read_and_judge(side: Side, other: Side) -> list[Case]:
        if specs:
            read_other_side(side, other, specs, report)
        if specs and not brought:
            report(side.name, "counting a step's costs", 0, None)
            throughput.count(side)
            report(side.name, "counting a step's costs", 1, 1)
        side.dismiss()
        if quick and side is baseline:
            return []  # judged below, when the candidate's failures are known
        return judge_suites(side, other, workers, report, quick)

    try:
        _on_both_sides(baseline, candidate, lambda side, other: train_cells(side, specs, report))
        if brought:
            require_trained(baseline, candidate, specs)
        before, after = _on_both_sides(baseline, candidate, read_and_judge)
        compared = after
        if quick:
            failing = clauses.not_held(after)
            before = judge_failing(baseline, failing, workers, report)
            compared = clauses.of_tests(after, failing)
        report("both", "comparing", 0, None)
        partings = cell_findings.partings(baseline, candidate, specs)
        changes = clauses.changes(*own_defects.others(before, compared))
        findings = [
            *clauses.findings(changes),
            *own_defects.findings(compared),
            *cell_findings.findings(baseline, candidate, specs, partings),
            *(clauses.unchanged(before, compared) if brought else ()),
        ]
        report("both", "comparing", 1, 1)
        timing: dict[str, Any] = {}
        if specs and not brought:
            findings += time_steps(baseline, candidate, report, verdict(findings) == UNSAFE, timing)
    finally:
        baseline.end()
        candidate.end()
    cases = {"baseline": before, "candidate": after}
    findings = in_order(findings)
    packages = changed_packages(baseline.environment.pins, candidate.environment.pins)
    causes = by_cause(findings, changes, after, packages, specs)
    return Outcome(
        verdict(findings), findings, partings, cases, time.monotonic() - started, quick, causes, timing=timing
    )


def cells_of(judged: Scope) -> Specs:
    """Return the cells that both sides train."""
    if judged.specs:
        chosen = cells.brought(judged.specs)
    elif judged.clauses and not judged.file:
        chosen = {}
    else:
        chosen = {name: spec for name, spec in cells.cells().items() if not judged.concerns.outside(spec)}
    return {name: spec.on_device(judged.device) for name, spec in chosen.items()}


def require_trained(baseline: Side, candidate: Side, specs: Specs) -> None:
    """Raise UsageError if neither side can train a run of --spec: there is nothing to compare."""
    for name in specs:
        refused = [cell_findings.refused(side, name) for side in (baseline, candidate)]
        if all(refused):
            both = refused[0] if refused[0] == refused[1] else f"{refused[0]}; the candidate: {refused[1]}"
            raise UsageError(f"{name}: no stack can train it; the baseline: {both}")


def _on_both_sides(baseline: Side, candidate: Side, stage: Callable[[Side, Side], T]) -> tuple[T, T]:
    """Run stage(side, other) for both sides at the same time, and return both results.

    If one side fails, the other is ended, since there is nothing to compare it with, and the first error is raised.
    """

    def run(side: Side, other: Side) -> T:
        try:
            return stage(side, other)
        except BaseException:
            other.end()
            raise

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run, baseline, candidate), pool.submit(run, candidate, baseline)]
        try:
            errors = [error for future in futures if (error := future.exception()) is not None]
        except KeyboardInterrupt:
            # The pool waits for its threads, which end when their processes do.
            baseline.end()
            candidate.end()
            raise
    if errors:
        # The side that was ended for the other's sake raises KeyboardInterrupt: that is not the reason.
        raise next((error for error in errors if not isinstance(error, KeyboardInterrupt)), errors[0])
    return futures[0].result(), futures[1].result()


# ---- the stages of a side ----


def train_cells(side: Side, specs: Specs, report: Report) -> None:
    """Train each cell, load its adapter and resume it, all in the side's own environment."""
    report(side.name, "importing upstream", 0, None)
    side.ask("inventory", "inventory")
    report(side.name, "importing upstream", 1, 1)
    for count, (name, spec) in enumerate(specs.items(), start=1):
        side.ask(f"cells/{name}", "train", spec=spec.to_json(), into=f"cells/{name}", subject=side.judged.subject)
        trace = side.trace(f"cells/{name}")
        if trace is not None and trace.checkpoints:
            side.ask(f"own/{name}", "infer", trace=str(side.directory / "cells" / name / "trace"), into=f"own/{name}")
            _resume(side, side, name, spec, f"resumed/{name}")
        report(side.name, "cells", count, len(specs))


def read_other_side(side: Side, other: Side, specs: Specs, report: Report) -> None:
    """Resume and load what the other side wrote. If the numbers of a cell differ, train it by the reference, too."""
    for count, (name, spec) in enumerate(specs.items(), start=1):
        theirs, ours = other.trace(f"cells/{name}"), side.trace(f"cells/{name}")
        if theirs is not None and theirs.checkpoints:
            trace = other.directory / "cells" / name / "trace"
            side.ask(f"loaded/{name}", "infer", trace=str(trace), into=f"loaded/{name}")
            _resume(side, other, name, spec, f"across/{name}")
        if theirs is not None and ours is not None and numbers.parting(theirs, ours).kind == CHANGED:
            task = f"reference/{name}"
            side.ask(task, "train", spec=spec.to_json(), into=task, subject="reference")
        report(side.name, "the other side's checkpoints", count, len(specs))


def _resume(side: Side, writer: Side, cell: str, spec: RunSpec, task: str) -> None:
    step = saved_step(writer, cell)
    if step is not None:
        run = str(writer.directory / "cells" / cell / "run")
        resumed = spec.resumed(step).to_json()
        side.ask(task, "train", spec=resumed, into=task, subject=side.judged.subject, checkpoints=run)


def judge_suites(side: Side, other: Side, workers: int, report: Report, quick: bool) -> list[Case]:
    """Run the suites. If the other side has little or nothing to judge meanwhile, this side gets its workers, too."""
    return _run_suites(side, 2 * workers if quick or other.cached_since else workers, report)


def judge_failing(baseline: Side, failing: list[str], workers: int, report: Report) -> list[Case]:
    """Run on the baseline the tests (node ids) that do not hold on the candidate."""
    return _run_suites(baseline, 2 * workers, report, failing) if failing else []


def _run_suites(side: Side, workers: int, report: Report, tests: Sequence[str] = ()) -> list[Case]:
    report(side.name, "suites", 0, None)
    cases = side.suites(workers, lambda done, total: report(side.name, "suites", done, total), tests)
    report(side.name, "suites", len(cases), len(cases))
    return cases


# ---- timing ----


def time_steps(
    baseline: Side, candidate: Side, report: Report, unsafe: bool, timing: dict[str, Any] | None = None
) -> list[Finding]:
    """Return what counters and the clock say of throughput and memory.

    - unsafe: whether the gate already is.
    - timing: gets the judgement of each shape that is timed, as JSON.
    """
    larger = baseline.judged.larger
    counted = list(throughput.counters(baseline, candidate, throughput.LARGER if larger is None else larger))
    if not (throughput.can_be_timed(baseline) and throughput.can_be_timed(candidate)):
        return counted
    report("both", "timing", 0, None)
    budget = throughput.BRIEF if unsafe else throughput.BUDGET
    shapes, findings = throughput.timed_shapes(baseline.judged.device)
    # On a GPU one side starts after the other: how many processes warm up at once depends on the free memory.
    with ThreadPoolExecutor(2 if baseline.judged.device == "cpu" else 1) as pool:
        list(pool.map(lambda side: throughput.start_processes(side, shapes, unsafe), (baseline, candidate)))
    rounds = 0

    def progress(judgement: Any) -> None:
        nonlocal rounds
        rounds += 1
        report("both", "timing", rounds, None)

    for shape in shapes:
        try:
            judgement, pairs = throughput.time(baseline, candidate, shape, progress, budget)
        except UsageError as error:
            findings.append(
                Finding("throughput", throughput.where(shape), LOST, f"a step of {shape} cannot be timed: {error}")
            )
        else:
            if timing is not None:
                timing[shape] = judgement.to_json()
            findings += throughput.slower(judgement, pairs, counted, budget, shape)
    return counted + findings
