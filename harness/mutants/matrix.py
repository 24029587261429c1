"""One warm process: collects the suites once, and has forked children run the cells with each mutant and without any."""

from __future__ import annotations

import gc
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UsageError
from harness.mutants import child, equivalent, usual_checks
from harness.mutants.catalogue import COMMON, Mutant, matches
from harness.mutants.child import Writer
from harness.mutants.judge import HELD, Outcome, judge
from harness.mutants.pool import Pool
from harness.paths import OUR_SETTINGS, SUITES
from harness.verdict import FAIL, UNEXPECTED_PASS, Case

#: Seconds that a child may take. The slowest of the register's takes a tenth of it.
LIMIT = 180.0

#: Baseline cases go to so many children a core: enough that both cores end together.
_PARTS = 2


@dataclass(frozen=True)
class Matrix:
    """Every mutant's outcome. unfit: cases that fail without a mutant, and say nothing. seconds: of the whole."""

    outcomes: list[Outcome]
    cases: int
    unfit: list[Case]
    workers: int
    seconds: float


def measure(mutants: Sequence[Mutant], told: Callable[[Outcome], Any], limit: float = LIMIT) -> Matrix:
    """Run every mutant's cells without it and with it. told: called with each outcome as it is known.

    UsageError where the suites cannot be collected, or where a mutant's cells name no case.
    """
    session = _Session(mutants, told, limit)
    # The summary of the suites is none of this; capturing by file descriptor would be shared by all children.
    options = ["-p", "no:terminal", "-p", "no:cacheprovider", "--capture=sys", "--strict-markers"]
    code = pytest.main([*OUR_SETTINGS, str(SUITES), *options], plugins=[session])
    if session.interrupted:
        raise KeyboardInterrupt
    if session.refusal:
        raise UsageError(session.refusal)
    if session.matrix is None:
        raise UsageError(f"the suites could not be collected (pytest ended with {int(code)}): run `pytest {SUITES}`")
    return session.matrix


class _Session:
    """The pytest plugin in whose place of a test loop everything happens."""

    def __init__(self, mutants: Sequence[Mutant], told: Callable[[Outcome], Any], limit: float):
        self.mutants = mutants
        self.told = told
        self.limit = limit
        self.matrix: Matrix | None = None
        self.refusal = ""
        self.interrupted = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if not session.testsfailed:
            try:
                self.matrix = self._run(session.items)
            except UsageError as error:
                self.refusal = str(error)
            except KeyboardInterrupt:  # which pytest would take for the end of its tests
                self.interrupted = True
        return True

    def _run(self, items: list[pytest.Item]) -> Matrix:
        started = time.monotonic()
        chosen = _choose(self.mutants, items)
        needed = {item for found in chosen.values() for item in found}
        wanted = [item for item in items if item in needed]
        workers = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        _warm()
        with tempfile.TemporaryDirectory(prefix="peft-harness-mutants-") as root:
            pool = Pool(Path(root), workers, self.limit)
            baseline = list(pool.run((part, _running(part)) for part in _parts(wanted, workers * _PARTS)))
            if broken := [fate for _, _, fate in baseline if fate]:
                raise UsageError(
                    f"without any mutant a process that runs the suites {broken[0]}: run `pytest {SUITES}`"
                )
            cases = {(c.nodeid, c.clause): c for _, record, _ in baseline for c in record.cases}
            goldens = {one.spec: one for _, record, _ in baseline for one in record.trained}
            outcomes = {}
            mutated = ((one, _running(chosen[one.name], one)) for one in self.mutants)
            for mutant, record, fate in pool.run(mutated):
                outcome = judge(mutant, cases, record)
                changed = [
                    one for one in record.trained if one.spec in goldens and one.digest != goldens[one.spec].digest
                ]
                outcome.differs = f"{len(changed)} of its cells'" if changed else ""
                outcome.fate, outcome.usual = fate, usual_checks.caught(record.trained, goldens, died=bool(fate))
                outcomes[mutant.name] = outcome
                self.told(outcome)
            self._compare(pool, [one for one in outcomes.values() if one.status == "survived"])
        unfit = [case for case in cases.values() if case.verdict in (FAIL, UNEXPECTED_PASS)]
        ordered = [outcomes[one.name] for one in self.mutants]
        return Matrix(ordered, len(cases), unfit, workers, time.monotonic() - started)

    def _compare(self, pool: Pool, survivors: list[Outcome]) -> None:
        """Prove survivors equivalent, or say which run of the scenario table tells them apart."""
        several = {one.mutant.chapter in equivalent.SEVERAL for one in survivors}
        kinds = ["DIST" if one else "FRZ" for one in several]
        plain = {kind: record.digests for kind, record, _ in pool.run((kind, _digesting(kind)) for kind in kinds)}
        for outcome, record, fate in pool.run((one, _digesting(one.mutant.chapter, one.mutant)) for one in survivors):
            wanted = plain["DIST" if outcome.mutant.chapter in equivalent.SEVERAL else "FRZ"]
            apart = [name for name in wanted if record.digests.get(name) != wanted[name]]
            held = len(outcome.seen) == sum(outcome.count(HELD).values())
            outcome.equivalent = held and not outcome.differs and not apart and not fate and bool(wanted)
            outcome.differs = ", ".join(apart[:3]) or outcome.differs


def _choose(mutants: Sequence[Mutant], items: list[pytest.Item]) -> dict[str, list[pytest.Item]]:
    """Mutant name -> the tests to run, in the order of the suites. UsageError where a glob names no case."""
    from harness.session.plugin import cases_of

    cells: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        for case in cases_of(item):
            cells.setdefault(f"{case.clause}/{case.scenario.removesuffix('/shimmed')}", []).append(index)
    chosen = {}
    for one in mutants:
        found: set[int] = set()
        for glob in (*one.cells, *COMMON):
            named = [index for cell, indices in cells.items() if matches(glob, cell) for index in indices]
            if not named:
                raise UsageError(f"cell {glob!r} of mutant {one.name} names no case of the suites")
            found.update(named)
        chosen[one.name] = [items[index] for index in sorted(found)]
    return chosen


def _warm() -> None:
    """Do once what every child would do at first use. Nothing here trains (see `harness.processes.fork_server`)."""
    from harness.environment import version
    from harness.processes import fork_server
    from harness.processes.launch import environment
    from harness.spec import LaunchSpec

    if version("deepspeed") is not None:
        os.environ |= environment(LaunchSpec(strategy="zero2", threads=0))
        with suppress(ImportError):
            import deepspeed  # noqa: F401
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fork_server.prepare()
    gc.collect()
    gc.freeze()


def _parts(items: list[pytest.Item], count: int) -> list[list[pytest.Item]]:
    """The items in runs of neighbours, which share training runs."""
    size = max(1, -(-len(items) // count))
    return [items[at : at + size] for at in range(0, len(items), size)]


def _running(items: list[pytest.Item], mutant: Mutant | None = None) -> Callable[[Writer], Any]:
    def work(write: Writer) -> None:
        if mutant is not None:
            mutant.apply()
        child.run(items, write)

    return work


def _digesting(chapter: str, mutant: Mutant | None = None) -> Callable[[Writer], Any]:
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
