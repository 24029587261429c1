"""Measure the kill matrix: run the cells of each mutant, with it and without it.

One process collects the suites, once, and imports what a run needs. Then it forks a child for each mutant (`Pool`).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UsageError
from harness.mutants import child, equivalent, usual_checks, watched
from harness.mutants.catalogue import COMMON, Mutant, matches
from harness.mutants.child import Record, Trained, Writer
from harness.mutants.judge import HELD, Outcome, judge
from harness.mutants.pool import Pool
from harness.paths import SUITES
from harness.processes.workers import prepare
from harness.progress import Progress
from harness.verdict import FAIL, UNEXPECTED_PASS, Case

#: Seconds that a child may run. The slowest of the harness's own mutants takes a tenth of it.
LIMIT = 180.0

#: Into how many parts per worker the baseline is divided, so that all workers end at about the same time.
_PARTS = 2


@dataclass(frozen=True)
class Matrix:
    """The outcome of every mutant.

    - cases: how many cases were judged without a mutant.
    - unfit: cases that fail without a mutant, and so say nothing of any.
    - workers: how many processes ran at a time.
    - seconds: how long everything took.
    """

    outcomes: list[Outcome]
    cases: int
    unfit: list[Case]
    workers: int
    seconds: float


@dataclass(frozen=True)
class _Baseline:
    """What the cells are without a mutant. cases: by (nodeid, clause). goldens: the runs, by `Trained.spec`."""

    cases: dict[tuple[str, str], Case]
    goldens: dict[str, Trained]


def measure(mutants: Sequence[Mutant], progress: Progress, limit: float = LIMIT, watch: bool = False) -> Matrix:
    """Run the cells of every mutant, without it and with it.

    - progress: shows how far it is.
    - limit: seconds that one mutant's cells may take.
    - watch: whether it is measured, too, what Watch sees of each (`harness.mutants.watched`).

    Raises UsageError if the suites cannot be collected, or if a cell of a mutant names no case.
    """
    session = _Session(mutants, progress, limit, watch)
    # The suites' own summary would only confuse. Capturing by file descriptor would be shared by all children.
    options = ["-p", "no:terminal", "-p", "no:cacheprovider", "--capture=sys", "--strict-markers"]
    code = pytest.main([str(SUITES), *options], plugins=[session])
    if session.interrupted:
        raise KeyboardInterrupt
    if session.refusal:
        raise UsageError(session.refusal)
    if session.matrix is None:
        raise UsageError(f"the suites could not be collected (pytest ended with {int(code)}): run `pytest {SUITES}`")
    return session.matrix


class _Session:
    """A pytest plugin that measures the matrix in place of pytest's loop over the tests."""

    def __init__(self, mutants: Sequence[Mutant], progress: Progress, limit: float, watch: bool):
        self.mutants = mutants
        self.watch = watch
        self.progress = progress
        self.limit = limit
        self.matrix: Matrix | None = None
        self.refusal = ""
        self.interrupted = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if not session.testsfailed:
            try:
                self.matrix = self._measure(session.items)
            except UsageError as error:
                self.refusal = str(error)
            except KeyboardInterrupt:  # pytest would end its tests and go on.
                self.interrupted = True
        return True

    def _measure(self, items: list[pytest.Item]) -> Matrix:
        started = time.monotonic()
        chosen = _choose(self.mutants, items)
        needed = {item for tests in chosen.values() for item in tests}
        workers = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        prepare()
        with tempfile.TemporaryDirectory(prefix="peft-harness-mutants-") as root:
            pool = Pool(Path(root), workers, self.limit, self.progress.tick)
            baseline = self._baseline(pool, [item for item in items if item in needed])
            outcomes = self._mutated(pool, chosen, baseline)
            self._compare(pool, [outcome for outcome in outcomes if outcome.status == "survived"])
            if self.watch:
                seen = watched.measure(pool, [outcome.mutant for outcome in outcomes], self.progress)
                for outcome in outcomes:
                    outcome.watched = seen.get(outcome.mutant.name)
        unfit = [case for case in baseline.cases.values() if case.verdict in (FAIL, UNEXPECTED_PASS)]
        return Matrix(outcomes, len(baseline.cases), unfit, workers, time.monotonic() - started)

    def _baseline(self, pool: Pool, items: list[pytest.Item]) -> _Baseline:
        """Run the cells without a mutant. Raises UsageError if a process does not come to its end."""
        parts = _parts(items, pool.workers * _PARTS)
        task = self.progress.add("cases without a mutant, in parts", len(parts))
        records: list[Record] = []
        for _, record, fate in pool.run((number, _running(part)) for number, part in enumerate(parts)):
            if fate:
                raise UsageError(f"without any mutant a process that runs the suites {fate}: run `pytest {SUITES}`")
            records.append(record)
            task.advance()
        return _Baseline(
            {(case.nodeid, case.clause): case for record in records for case in record.cases},
            {run.spec: run for record in records for run in record.trained},
        )

    def _mutated(self, pool: Pool, chosen: dict[str, list[pytest.Item]], baseline: _Baseline) -> list[Outcome]:
        """Run each mutant's cells with it. The outcomes are in the order of the mutants."""
        task = self.progress.add("mutants", len(self.mutants))
        outcomes = {}
        mutated = ((mutant, _running(chosen[mutant.name], mutant)) for mutant in self.mutants)
        for mutant, record, fate in pool.run(mutated):
            outcome = judge(mutant, baseline.cases, record)
            goldens = baseline.goldens
            pairs = [(run, goldens[run.spec]) for run in record.trained if run.spec in goldens]
            changed = [run for run, golden in pairs if run.digest != golden.digest]
            outcome.differs = f"{len(changed)} of its cells'" if changed else ""
            outcome.fate, outcome.usual = fate, usual_checks.caught(record.trained, goldens, died=bool(fate))
            outcomes[mutant.name] = outcome
            task.advance(1, f"{mutant.name} {outcome.status}")
        return [outcomes[mutant.name] for mutant in self.mutants]

    def _compare(self, pool: Pool, survivors: list[Outcome]) -> None:
        """Train the scenario table with each survivor. Prove it equivalent, or name the runs that it changes."""
        if not survivors:
            return
        task = self.progress.add("survivors compared", len(survivors))
        several = {outcome.mutant.chapter in equivalent.SEVERAL for outcome in survivors}
        # One chapter of either kind stands for all of its kind.
        kinds = ["DIST" if spread else "FRZ" for spread in several]
        plain = {kind: record.digests for kind, record, _ in pool.run((kind, _digesting(kind)) for kind in kinds)}
        compared = ((outcome, _digesting(outcome.mutant.chapter, outcome.mutant)) for outcome in survivors)
        for outcome, record, fate in pool.run(compared):
            expected = plain["DIST" if outcome.mutant.chapter in equivalent.SEVERAL else "FRZ"]
            apart = [name for name in expected if record.digests.get(name) != expected[name]]
            held = len(outcome.cases) == sum(outcome.count(HELD).values())
            outcome.equivalent = held and not outcome.differs and not apart and not fate and bool(expected)
            outcome.differs = ", ".join(apart[:3]) or outcome.differs
            task.advance()


def _choose(mutants: Sequence[Mutant], items: list[pytest.Item]) -> dict[str, list[pytest.Item]]:
    """Return the tests to run for each mutant by name, in the order of the suites.

    Raises UsageError if a glob of a mutant names no case.
    """
    from harness.session.plugin import cases_of

    cells: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        for case in cases_of(item):
            cells.setdefault(f"{case.clause}/{case.scenario.removesuffix('/shimmed')}", []).append(index)
    chosen = {}
    for mutant in mutants:
        found: set[int] = set()
        for glob in (*mutant.cells, *COMMON):
            named = [index for cell, indices in cells.items() if matches(glob, cell) for index in indices]
            if not named:
                raise UsageError(f"cell {glob!r} of mutant {mutant.name} names no case of the suites")
            found.update(named)
        chosen[mutant.name] = [items[index] for index in sorted(found)]
    return chosen


def _parts(items: list[pytest.Item], count: int) -> list[list[pytest.Item]]:
    """Divide the items into parts of neighbours, since neighbours share training runs."""
    size = max(1, -(-len(items) // count))
    return [items[at : at + size] for at in range(0, len(items), size)]


def _running(items: list[pytest.Item], mutant: Mutant | None = None) -> Callable[[Writer], Any]:
    """Return what a child does to run some tests."""

    def work(write: Writer) -> None:
        if mutant is not None:
            mutant.apply()
        child.run(items, write)

    return work


def _digesting(chapter: str, mutant: Mutant | None = None) -> Callable[[Writer], Any]:
    """Return what a child does to train the scenario table."""

    def work(write: Writer) -> None:
        from harness import subjects
        from harness.processes import ranks
        from harness.runs.cache import Runs

        if mutant is not None:
            mutant.apply()
        ranks.prepare(pristine=True)
        runs = Runs(subjects.load("hf-trainer"), Path.cwd() / "runs")
        for name, value in equivalent.digests(runs, chapter).items():
            write("digest", {name: value})

    return work
