"""Judge one clause, or the runs of --spec, on several stacks.

A stack's cases are cached, by what its requirements resolve to.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.errors import UsageError
from harness.files import write_whole
from harness.gate import environments, extras, stored
from harness.gate.baseline_cache import identity, load
from harness.gate.clauses import FAILED, HELD, state
from harness.gate.environments import Environment
from harness.gate.scope import Scope
from harness.gate.side import Side
from harness.paths import cache_directory
from harness.processes.engine import Engine
from harness.session.report import headline
from harness.verdict import Case

#: Stacks that are judged at the same time; each takes a core.
PARALLEL = 2

HOLDS, BREAKS, UNTESTABLE = "holds", "breaks", "cannot be judged"


@dataclass(frozen=True)
class StackResult:
    """What the cases said of a stack.

    - stack: its requirements.
    - cases: name -> case. The name is the scenario; if several clauses were judged, their ids stand before it.
    - reason: why there are no cases; empty if there are.
    - versions: distribution -> version.
    - seconds: how long it took.
    """

    stack: str
    cases: dict[str, Case] = field(default_factory=dict)
    reason: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def verdict(self, targets: Iterable[str]) -> str:
        """Return BREAKS if one of these scenarios fails, HOLDS if some hold and none fails, else UNTESTABLE."""
        states = {state(self.cases.get(name)) for name in targets}
        return BREAKS if FAILED in states else HOLDS if HELD in states else UNTESTABLE

    def summary(self, targets: Iterable[str]) -> str:
        """Return the first failure among these scenarios; if none fails, why there is no verdict, or nothing."""
        if self.reason:
            return self.reason
        cases = [case for name in targets if (case := self.cases.get(name)) is not None]
        failing = [case for case in cases if state(case) == FAILED]
        if failing:
            return headline(failing[0])
        reasons = [case.reason for case in cases if case.reason]
        return reasons[0] if reasons else ""


@dataclass
class Prober:
    """Judges stacks by one clause, or by the runs of --spec.

    - judged: has the clause, or the runs.
    - tests: node ids of the suites; if empty, all tests that `judged` chooses.
    - report(stack, doing): called with what is being done, for progress lines.
    - engine: judges the stacks, of which each takes one of its places; None: threads of this process do.
    """

    judged: Scope
    tests: tuple[str, ...] = ()
    report: Callable[[str, str], None] = lambda stack, doing: None
    engine: Engine | None = None

    @property
    def width(self) -> int:
        """How many stacks are judged at a time."""
        return PARALLEL if self.engine is None else self.engine.width

    def ask(self, stacks: Sequence[str]) -> list[StackResult]:
        """Judge stacks, given by their requirements, `width` at a time."""
        if self.engine is None:
            with ThreadPoolExecutor(PARALLEL) as pool:
                return list(pool.map(self._ask, stacks))
        for stack in stacks:
            self.report(stack, "waits for a place, or is judged")
        ahead = [self.engine.executor.submit(judged_elsewhere, self.judged, self.tests, stack) for stack in stacks]
        return [future.result() for future in ahead]

    def _ask(self, stack: str) -> StackResult:
        started = time.monotonic()
        self.report(stack, "making the environment")
        try:
            environment = environments.make(
                stack,
                build=self.judged.build,
                added=self.judged.added,
                extras=extras.wanted(environments.running().pins, False),
            )
        except environments.Unresolvable as error:
            return StackResult(stack, reason=str(error), seconds=time.monotonic() - started)
        file = self._cache_file(environment)
        try:
            cases = self._read(file)
            if cases is None:
                cases = self._judge(environment, file)
        except UsageError as error:
            return StackResult(stack, {}, str(error), environment.pins, time.monotonic() - started)
        alone = len(self.judged.clauses) == 1
        named = {case.scenario if alone else f"{case.clause} {case.scenario}": case for case in cases}
        return StackResult(stack, named, "", environment.pins, time.monotonic() - started)

    def _cache_file(self, environment: Environment) -> Path:
        tests = hashlib.sha256(repr(sorted(self.tests)).encode()).hexdigest()[:12]
        name = f"{environment.key}-{identity(self.judged)}-{tests}.json"
        return cache_directory() / "verdicts" / name

    def _read(self, file: Path) -> list[Case] | None:
        """Return the cached cases. None if there are none, or if they are damaged."""
        found = load(file) if os.path.lexists(file) else None
        try:
            return None if found is None else [Case(**case) for case in found]
        except TypeError:  # cases of another release
            return None

    def _judge(self, environment: Environment, file: Path) -> list[Case]:
        try:
            cases = self._suites(environment, 0)
        except UsageError:
            # A case may have killed the process. In a worker process of its own that is a failed case.
            cases = self._suites(environment, 1)
        write_whole(file, stored.line([asdict(case) for case in cases]))
        return cases

    def _suites(self, environment: Environment, workers: int) -> list[Case]:
        def report(done: int, total: int | None) -> None:
            self.report(environment.asked, "suites" if total is None else f"suites {done} of {total} cases")

        report(0, None)
        with tempfile.TemporaryDirectory() as directory:
            side = Side(environment.asked, environment, Path(directory), self.judged)
            try:
                return side.suites(workers, report, tests=self.tests)
            finally:
                side.end()


def judged_elsewhere(judged: Scope, tests: tuple[str, ...], stack: str) -> StackResult:
    """Judge one stack: the task of an engine. Its cases are cached like any other's, so it may run again."""
    return Prober(judged, tests)._ask(stack)


def targets(good: StackResult, bad: StackResult) -> list[str]:
    """Return the scenarios that hold on the good stack and fail on the bad one."""
    return [name for name, case in bad.cases.items() if state(case) == FAILED and state(good.cases.get(name)) == HELD]
