"""A probe: does a clause hold under a stack? Asked once of each stack, by what its requirements resolve to."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from harness.errors import UsageError
from harness.files import write_whole
from harness.gate import environments
from harness.gate.baseline_cache import identity
from harness.gate.clauses import FAILED, HELD, state
from harness.gate.environments import Environment
from harness.gate.scope import Scope
from harness.gate.side import Side
from harness.paths import cache_directory
from harness.session.report import headline
from harness.verdict import Case

#: At once; each takes a core.
PARALLEL = 2

HOLDS, BREAKS, UNTESTABLE = "holds", "breaks", "cannot be judged"


@dataclass(frozen=True)
class Seen:
    """What a stack did. cases: by scenario, of the clause. reason: why there are none. versions: of all packages."""

    stack: str
    cases: dict[str, Case] = field(default_factory=dict)
    reason: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def verdict(self, targets: Iterable[str]) -> str:
        """BREAKS where one of these scenarios fails, HOLDS where some hold and none fails, else UNTESTABLE."""
        states = {state(self.cases.get(name)) for name in targets}
        return BREAKS if FAILED in states else HOLDS if HELD in states else UNTESTABLE

    def told(self, targets: Iterable[str]) -> str:
        """The first sentence on what was seen of a scenario that fails, or why there is no verdict."""
        if self.reason:
            return self.reason
        failing = [case for name in targets if (case := self.cases.get(name)) is not None and state(case) == FAILED]
        if failing:
            return headline(failing[0])
        skipped = [case.reason for name in targets if (case := self.cases.get(name)) is not None and case.reason]
        return skipped[0] if skipped else ""


@dataclass
class Prober:
    """Asks stacks for one clause. tests: only these tests of the suites (node ids); all of the clause's where empty."""

    clause: str
    judged: Scope
    tests: tuple[str, ...] = ()

    def ask(self, stacks: Sequence[str]) -> list[Seen]:
        """What each stack, given by its requirements, did; some at a time."""
        with ThreadPoolExecutor(PARALLEL) as pool:
            return list(pool.map(self._ask, stacks))

    def _ask(self, stack: str) -> Seen:
        started = time.monotonic()
        try:
            environment = environments.make(stack)
        except environments.Unresolvable as error:
            return Seen(stack, reason=str(error), seconds=time.monotonic() - started)
        known = self._cached(environment)
        try:
            cases = self._read(known) if known.is_file() else self._judge(environment, known)
        except UsageError as error:
            return Seen(stack, {}, str(error), environment.pins, time.monotonic() - started)
        return Seen(stack, {case.scenario: case for case in cases}, "", environment.pins, time.monotonic() - started)

    def _cached(self, environment: Environment) -> Path:
        tests = hashlib.sha256(repr(sorted(self.tests)).encode()).hexdigest()[:12]
        name = f"{environment.key}-{identity(self.clause, self.judged)}-{tests}.json"
        return cache_directory() / "verdicts" / name

    def _read(self, file: Path) -> list[Case]:
        return [Case(**case) for case in json.loads(file.read_text(encoding="utf-8"))]

    def _judge(self, environment: Environment, known: Path) -> list[Case]:
        try:
            cases = self._suites(environment, 0)
        except UsageError:
            # Perhaps a case killed the process: with a worker of its own that is a failed case.
            cases = self._suites(environment, 1)
        write_whole(known, json.dumps([asdict(case) for case in cases]))
        return cases

    def _suites(self, environment: Environment, workers: int) -> list[Case]:
        with tempfile.TemporaryDirectory() as directory:
            judged = replace(self.judged, clauses=(self.clause,))
            side = Side(environment.asked, environment, Path(directory), judged)
            try:
                return side.suites(workers, lambda ended, count: None, tests=self.tests)
            finally:
                side.end()


def targets(good: Seen, bad: Seen) -> list[str]:
    """The scenarios that hold under the one and fail under the other."""
    return [name for name, case in bad.cases.items() if state(case) == FAILED and state(good.cases.get(name)) == HELD]
