"""Runs and lives that hypothesis draws. Each is trained, and judged by every law that applies to it."""

from __future__ import annotations

import functools
import random
import tempfile
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from hypothesis.strategies import SearchStrategy

from harness import defaults
from harness.contract.expectations import Expectation
from harness.errors import UsageError
from harness.files import require_space
from harness.laws import several, universal
from harness.laws.comparisons import Train
from harness.laws.plan import never_ends
from harness.laws.universal import CLAUSES_OF_RANKS, LAWS_OF_SEVERAL_RUNS, laws_for
from harness.runs import judging, strategies
from harness.runs.cache import Runs
from harness.runs.lifecycle import Life
from harness.spec import RunSpec
from harness.subjects import unsupported
from harness.subjects.hf_trainer import HFTrainer
from harness.verdict import NOT_COMPARABLE, Case, Verdict, verdict

#: Profile -> how many runs each part of the suite draws, and how many lives each route. For each drawn run about six
#: more are trained, to compare it with.
PROFILES = {"quick": 3, "sample": 3, "deep": 100, "soak": 3000}

#: Profiles that draw the same runs every time.
_FIXED = ("quick", "sample")

#: All phases but "explain". To find the lines that only failing runs execute, it would trace every line of upstream's
#: Python.
_PHASES = [phase for phase in Phase if phase is not Phase.explain]

#: How many actions a life has.
STEPS_OF_A_LIFE = 12


def register_profiles(chosen: str | None) -> None:
    """Register the profiles for --hypothesis-profile, and load one.

    "quick" and "sample" always draw the same runs. "sample" does not shrink failures: shrinking takes minutes, and the
    gate, which compares two stacks, does not need it.

    - chosen: a key of PROFILES; None for "quick".
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


#: laws(train, spec) -> clause id -> a function that judges the spec by that clause.
Laws = Callable[[Train, RunSpec], dict[str, Callable[[], Verdict]]]


def universal_laws(train: Train, spec: RunSpec) -> dict[str, Callable[[], Verdict]]:
    """Train a spec, and return the laws that judge a run in one process (harness/laws/universal.py)."""
    trace = train(spec)
    judged: dict[str, Callable[[], Verdict]] = {
        clause: functools.partial(law, trace) for clause, law in laws_for(trace).items()
    }
    return judged | {
        clause: functools.partial(compare, train, spec) for clause, compare in LAWS_OF_SEVERAL_RUNS.items()
    }


def laws_that_apply(train: Train, spec: RunSpec) -> dict[str, Callable[[], Verdict]]:
    """Train a spec, and return the laws that apply to it and model what it sets, as `peft-harness judge` finds them."""
    plain = defaults.plain(spec)
    if never_ends(plain) is not None:
        return {}
    trace = train(plain)
    if judging.is_refused(trace):
        return {}  # this release refuses it
    if trace.error is not None:
        return {judging.COMPLETES: functools.partial(judging.failed, trace)}
    return {clause: law for clause, law in universal.laws_of(train, plain) if not isinstance(law, str)}


def laws_of_ranks(train: Train, spec: RunSpec) -> dict[str, Callable[[], Verdict]]:
    """Return the law that several ranks train as one process does, under the clause about the spec's strategy."""
    clause = CLAUSES_OF_RANKS.get(spec.launch.strategy, "FSDP-17")
    return {clause: functools.partial(several.trains_as_one_process, train, spec)}


class Draw:
    """Draws runs for a test, and judges them.

    - cases: the test's cases, one for each clause that it names.
    - runs: whose subject and device are used, and whose counts are increased. Each drawn run has a cache of its own.
    - fail: called as fail(verdict, clause) when a verdict does not hold and no known defect explains it. It raises.
    - chosen_seed: the value of --hypothesis-seed; None or "random" if no number was given.
    - expected: known defects. One that has a `spec` excuses the drawn runs which that spec describes.
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
        #: The clause that has failed. While hypothesis shrinks its failure, no other clause is judged.
        self._failed: str | None = None
        for case in cases:
            case.drawn = 0

    def judge_all(self, specs: SearchStrategy[RunSpec], part: int, laws: Laws = universal_laws) -> None:
        """Draw specs, train each, and judge it by these laws.

        - specs: what to draw from (`harness.runs.strategies`).
        - part: number of the test's part. It is added to the random seed, so that each part draws different specs.
        - laws: see `Laws`.
        """
        default = settings.default
        first = 0 if default is None or default.derandomize else random.SystemRandom().randrange(2**32)
        chosen = int(self._seed) if self._seed not in (None, "random") else first

        @seed(chosen + part)
        @settings(derandomize=False, deadline=None)
        @given(specs)
        def every_law_holds(spec: RunSpec) -> None:
            self._judge(spec, laws)

        every_law_holds()

    def judge_each(self, specs: Iterable[RunSpec], laws: Laws = laws_that_apply) -> None:
        """Train each of these specs, and judge it by these laws. What the installed releases do not train is left out."""
        for spec in specs:
            self._judge(spec, laws)

    def live(self, route: str) -> None:
        """Draw lives (`harness.runs.lifecycle`) of a model with adapters, and judge every action in them.

        - route: GET or ADD, how the adapters are injected.
        """
        if self._runs.device != "cpu":
            pytest.skip("a life is compared with models that are rebuilt on a CPU, so it needs --device cpu")
        assert isinstance(self._runs.subject, HFTrainer)
        machine = functools.partial(_lives(route), self, self._runs, self._runs.subject)
        run_state_machine_as_test(cast(Any, machine))

    def _judge(self, spec: RunSpec, laws: Laws) -> None:
        # A cache and a directory for this run alone: the next drawn run needs none of its traces or checkpoints.
        with tempfile.TemporaryDirectory() as directory:
            runs = Runs(self._runs.subject, Path(directory), self._runs.device)
            try:
                if unsupported(runs.subject, runs.on_device(spec)) is None:
                    self.begin(spec)
                    for clause, judged in laws(runs.train, spec).items():
                        self.record(clause, spec, judged)
            finally:
                self._runs.made += runs.made
                self._runs.seconds += runs.seconds

    def begin(self, spec: RunSpec, life: list[dict[str, Any]] | None = None) -> None:
        """Note in each case which run is judged next.

        - spec: the run, or how the life begins.
        - life: the life's log, a list that grows as the life goes on; None for a plain run.
        """
        for case in self._cases.values():
            case.specs, case.life = [spec.to_json()], life

    def record(self, clause: str, spec: RunSpec, judged: Callable[[], Verdict]) -> bool:
        """Judge a drawn spec by a clause, and count the result in the clause's case.

        A verdict that does not hold is passed to `fail`, unless a known defect explains it. Nothing is judged if the
        test does not name the clause, or while hypothesis shrinks the failure of another clause.

        - judged: returns the verdict. If it raises, the clause fails (`raised`); a UsageError is raised again.

        Returns False if the clause does not hold, otherwise True.
        """
        case = self._cases.get(clause)
        if case is None or self._failed not in (None, clause):
            return True
        try:
            found = judged()
        except UsageError:
            raise
        except Exception as error:
            require_space(error)
            # This clause alone fails. The other clauses are judged all the same, and a known defect may explain this.
            found = raised(error)
        if found.outcome == NOT_COMPARABLE:
            return True
        case.drawn = (case.drawn or 0) + 1
        met = case.evidence.get("known defects met", {})
        if not found.holds:
            seen, plain = "\n".join(found.seen), spec.to_json()
            defects = [e for e in self._expected if e.excuses(clause, self._runs.subject.name, plain, seen)]
            if not defects:
                self._failed = clause
                self._fail(found, clause)
                return False
            met = {**met, defects[0].reason: met.get(defects[0].reason, 0) + 1}
        case.evidence = {"runs judged": case.drawn, **found.measured, **({"known defects met": met} if met else {})}
        return found.holds


@functools.cache
def _lives(route: str) -> Callable[..., RuleBasedStateMachine]:
    """Return hypothesis's state machine of a life: one rule for each verb of `strategies.VERBS`.

    - route: GET or ADD, how the adapters are injected.
    """

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
                # After a known defect the values that are expected of the model are no longer right: the life ends.
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
    """Return the failed verdict of a law that raised an error instead of returning a verdict.

    The finding has the error's type and message, the file, line and function that raised it, and those of its caller:
    "UnboundLocalError: no variable, raised at rebuilt.py:40 (logits), called at rebuilt.py:63 (switched_off)".
    """
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    where = ", called at ".join(
        f"{Path(frame.filename).name}:{frame.lineno} ({frame.name})" for frame in reversed(frames)
    )
    return verdict("the run can be judged", [f"{type(error).__name__}: {error}, raised at {where}"])


def _given(found: Verdict) -> Verdict:
    return found
