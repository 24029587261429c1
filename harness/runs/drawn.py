"""Runs and lives that hypothesis draws: each is trained, and judged by every law that has something to say of it."""

from __future__ import annotations

import functools
import random
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from hypothesis.strategies import SearchStrategy

from harness.contract.expectations import Expectation
from harness.errors import UsageError
from harness.laws import several
from harness.laws.universal import OF_MORE, Train, laws_for
from harness.runs import strategies
from harness.runs.cache import Runs
from harness.runs.lifecycle import Life
from harness.spec import RunSpec
from harness.subjects.hf_trainer import HFTrainer
from harness.verdict import NOT_COMPARABLE, Case, Verdict, verdict

#: Runs drawn by each part of the suite, and lives by each route. Each run drawn is followed by some six to compare it with.
PROFILES = {"quick": 3, "sample": 3, "deep": 100, "soak": 3000}

#: Always draw the same runs.
_FIXED = ("quick", "sample")

#: All but explain, which traces every line of upstream's Python, to say which of them only failing runs go through.
_PHASES = [phase for phase in Phase if phase is not Phase.explain]

#: Things done in a life.
STEPS_OF_A_LIFE = 12


def register_profiles(chosen: str | None) -> None:
    """Make --hypothesis-profile know the profiles. quick, the default, always draws the same runs, and so does sample,
    which does not shrink what fails: that takes minutes, and a stack that is compared with another needs none of it.
    """
    for name, examples in PROFILES.items():
        settings.register_profile(
            name,
            max_examples=examples,
            deadline=None,
            derandomize=name in _FIXED,
            phases=[Phase.explicit, Phase.generate] if name == "sample" else _PHASES,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            stateful_step_count=STEPS_OF_A_LIFE,
        )
    settings.load_profile(chosen or "quick")


#: Given how to train and a spec, clause -> what judges the spec by it.
Laws = Callable[[Train, RunSpec], dict[str, Callable[[], Verdict]]]


def universal_laws(train: Train, spec: RunSpec) -> dict[str, Callable[[], Verdict]]:
    """The laws of one process (harness/laws/universal.py)."""
    trace = train(spec)
    judged: dict[str, Callable[[], Verdict]] = {
        clause: functools.partial(law, trace) for clause, law in laws_for(trace).items()
    }
    return judged | {clause: functools.partial(compare, train, spec) for clause, compare in OF_MORE.items()}


def laws_of_ranks(train: Train, spec: RunSpec) -> dict[str, Callable[[], Verdict]]:
    """The law that the ranks of a launch train as one process does, under the clause that says so of it."""
    clauses = {"ddp": "DIST-02", "zero2": "DS-08", "zero3": "DS-08"}
    clause = clauses.get(spec.launch.strategy, "FSDP-17")
    return {clause: functools.partial(several.as_one_process, train, spec)}


class Draw:
    """Draws runs for a test. cases: of the test, one a clause. fail: called with a verdict that is no pass.

    expected: known defects; those with a spec excuse the runs that they describe.
    """

    def __init__(
        self,
        cases: list[Case],
        runs: Runs,
        fail: Callable[[Verdict, str], None],
        chosen_seed: Any,
        expected: list[Expectation],
    ):
        self._cases = {case.clause: case for case in cases}
        self._runs = runs
        self._fail = fail
        self._seed = chosen_seed
        self._expected = expected
        #: The clause that has failed: while hypothesis shrinks a failure, no other is judged.
        self._failed: str | None = None
        for case in cases:
            case.drawn = 0

    def judge_all(self, specs: SearchStrategy[RunSpec], part: int, laws: Laws = universal_laws) -> None:
        """Draw specs, train each, and judge it by all these laws. part: another part draws other specs."""
        default = settings.default
        first = 0 if default is None or default.derandomize else random.SystemRandom().randrange(2**32)
        chosen = int(self._seed) if self._seed not in (None, "random") else first

        @seed(chosen + part)
        @settings(derandomize=False, deadline=None)
        @given(specs)
        def every_law_holds(spec: RunSpec) -> None:
            self._judge(spec, laws)

        every_law_holds()

    def live(self, route: str) -> None:
        """Draw lives (`harness.runs.lifecycle`) of a model with adapters by one route, and judge all that is done in them."""
        if self._runs.device != "cpu":
            pytest.skip("a life is compared with models that are built anew on a CPU")
        assert isinstance(self._runs.subject, HFTrainer)
        machine = functools.partial(_lives(route), self, self._runs, self._runs.subject)
        run_state_machine_as_test(cast(Any, machine))

    def _judge(self, spec: RunSpec, laws: Laws) -> None:
        # What a drawn run left behind is not needed for the next one.
        with tempfile.TemporaryDirectory() as directory:
            runs = Runs(self._runs.subject, Path(directory), self._runs.device)
            try:
                if runs.subject.unsupported(runs.on_device(spec)) is None:
                    self.begin(spec)
                    for clause, judged in laws(runs.train, spec).items():
                        self.record(clause, spec, judged)
            finally:
                self._runs.made += runs.made
                self._runs.seconds += runs.seconds

    def begin(self, spec: RunSpec, life: list[dict[str, Any]] | None = None) -> None:
        """What is judged next: a run of this spec, or a life that begins with it and whose log grows."""
        for case in self._cases.values():
            case.specs, case.life = [spec.to_json()], life

    def record(self, clause: str, spec: RunSpec, judged: Callable[[], Verdict]) -> bool:
        """Judge a clause on a drawn spec, if it is one of the test's. False where a known defect explains a failure."""
        case = self._cases.get(clause)
        if case is None or self._failed not in (None, clause):
            return True
        try:
            found = judged()
        except UsageError:
            raise
        except Exception as error:
            # Of this clause alone: the others have laws of their own, and a known defect may explain it.
            found = raised(error)
        if found.outcome == NOT_COMPARABLE:
            return True
        case.drawn = (case.drawn or 0) + 1
        met = case.evidence.get("known defects met", {})
        if not found.holds:
            seen, plain = "\n".join(found.seen), spec.to_json()
            known = [e for e in self._expected if e.excuses(clause, self._runs.subject.name, plain, seen)]
            if not known:
                self._failed = clause
                self._fail(found, clause)
                return False
            met = {**met, known[0].reason: met.get(known[0].reason, 0) + 1}
        case.evidence = {"runs judged": case.drawn, **found.measured, **({"known defects met": met} if met else {})}
        return found.holds


@functools.cache
def _lives(route: str) -> Callable[..., RuleBasedStateMachine]:
    """A machine of a life by one route, with a rule for each verb."""

    class Lives(RuleBasedStateMachine):
        def __init__(self, draw: Draw, runs: Runs, subject: HFTrainer):
            super().__init__()
            self._draw, self._runs, self._subject = draw, runs, subject
            self._directory = tempfile.TemporaryDirectory()
            self._over = False

        @initialize(spec=strategies.lives(route))
        def begin(self, spec: RunSpec) -> None:
            self._life = Life(self._subject, self._runs.on_device(spec), Path(self._directory.name))
            self._draw.begin(spec, self._life.log)

        def act(self, verb: str, **arguments: Any) -> None:
            if self._over:
                return
            for clause, found in self._life.do(verb, **arguments):
                # After a known defect nobody knows what to expect of the model.
                self._over |= not self._draw.record(clause, self._life.spec, functools.partial(_given, found))

        def teardown(self) -> None:
            self._runs.made += self._life.made if hasattr(self, "_life") else 0
            self._directory.cleanup()

    def acting(verb: str) -> Callable[..., None]:
        def act(self: Lives, **arguments: Any) -> None:
            self.act(verb, **arguments)

        act.__name__ = verb
        return act

    rules: dict[str, Any] = {
        verb: rule(**arguments)(acting(verb))  # type: ignore[call-overload]
        for verb, arguments in strategies.VERBS.items()
    }
    return type(f"LivesBy{route}", (Lives,), rules)


def raised(error: Exception) -> Verdict:
    """What a law that ends in an error says: the error, and the last two places that it came through."""
    places = traceback.extract_tb(error.__traceback__)[-2:]
    where = ", called at ".join(
        f"{Path(place.filename).name}:{place.lineno} ({place.name})" for place in reversed(places)
    )
    return verdict("the run can be judged", [f"{type(error).__name__}: {error}, raised at {where}"])


def _given(found: Verdict) -> Verdict:
    return found
