"""`conformance`: the clauses as tests in somebody's own test file.

    test_sft = conformance(TrainerSubject(SFTTrainer, ...), profile="trainer", expectations="tests/known_defects.toml")

It returns one parametrised test function; each case of suites/ is one parameter. Their pytest collects and runs it like any
other test, so it needs no option and no plugin of ours. `harness.session.suite_tests` finds the tests of suites/ and calls
them. Under xdist each worker trains what its cases ask for.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import pytest

from harness import contract, environment, paths
from harness.alarm import cut_off
from harness.contract import expectations as known
from harness.contract.clause import PROFILES
from harness.contract.expectations import Expectation
from harness.errors import UsageError
from harness.runs import preflight
from harness.runs.cache import Runs
from harness.session.decide import decide
from harness.session.pyargs import PROPERTY
from harness.session.state import CASES, VERDICTS, State, Unsupported, skip_if
from harness.session.suite_tests import Request, SuiteTest, Whole, call, find
from harness.spec import RunSpec
from harness.subjects import Subject, given, traits
from harness.trace import Trace
from harness.user_code import quoted
from harness.verdict import KNOWN_DEFECT, NOT_COMPARABLE, SKIPPED, Case

#: Seconds after which a case is cut off.
LIMIT = 300.0


class ConformanceError(UsageError, pytest.Collector.CollectError):
    """Wrong arguments of `conformance`. pytest prints the sentence without a traceback, and ends with 2."""


def conformance(
    subject: Subject,
    profile: str = "trainer",
    expectations: str | Path | None = None,
    clauses: str | Sequence[str] = (),
    allow: Mapping[str, Sequence[str]] | None = None,
    tables: bool = False,
    limit: float = LIMIT,
    device: str = "cpu",
) -> Callable[..., None]:
    """Return a test function that judges a subject. Assign it to a name that begins with "test".

    - subject: a TrainerSubject, a LoopSubject, or an object with the protocol of `harness.subjects.Subject`.
    - profile: which clauses: "any-loop", "checkpoint", "trainer" or, for transformers.Trainer itself, "stack"
      (`harness.contract.clause.PROFILES`).
    - expectations: a file of the subject's known defects, in the format of suites/expectations/. Relative to the current
      directory, or to the test file. A case in it must fail, in those words.
    - clauses: globs over clause ids, such as "RES-*"; empty: all of the profile.
    - allow: clause id, or glob -> names, or globs, of what the subject adds on purpose: keys of log entries and metrics,
      files of a checkpoint.
    - tables: judge each method of peft on each kind of layer, too, which is four times as much.
    - limit: seconds after which a case is cut off and has failed; 0: never.
    - device: "cpu" or "cuda".

    Raises ConformanceError for a wrong argument.
    """
    caller = sys._getframe(1)
    here = Path(caller.f_code.co_filename).parent
    try:
        if device not in ("cpu", "cuda"):
            raise UsageError(f"device={quoted(device)} is neither 'cpu' nor 'cuda'")
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 <= limit < math.inf:
            raise UsageError(f"limit={quoted(limit)}; expected seconds, or 0 for no limit")
        tests = find(_chosen(subject, profile, clauses), tables)
        judged = _Judged(subject, tests, _own(expectations, subject, here), given.lists("allow", allow), limit, device)
    except UsageError as error:
        raise ConformanceError(f"conformance: {error}") from None
    often = Counter(one.id for one in tests)
    names = [one.id if often[one.id] == 1 else f"{one.id}-{one.function.__name__}" for one in tests]
    cases = [pytest.param(one, id=name) for one, name in zip(tests, names, strict=True)]

    @pytest.mark.parametrize("case", cases)
    def test(case: SuiteTest, request: pytest.FixtureRequest) -> None:
        __tracebackhide__ = True
        judged.judge(case, request)

    # pytest shows where a test is. This one is where conformance() was called.
    test.place_as = _placed(caller.f_code.co_filename, caller.f_lineno)  # type: ignore[attr-defined]
    return test


def _chosen(subject: Any, profile: str, globs: str | Sequence[str]) -> list[str]:
    """Return the ids of the clauses that judge the subject."""
    if isinstance(subject, type) or not isinstance(subject, Subject):
        raise UsageError(f"{quoted(subject)} is no subject; wrap it in TrainerSubject(...) or LoopSubject(...)")
    if not isinstance(globs, str) and not (isinstance(globs, Sequence) and all(isinstance(one, str) for one in globs)):
        raise UsageError(f"clauses={quoted(globs)}; expected a glob over clauses, or a list of them")
    who = traits(subject)
    if profile == "stack" and who.foreign:
        raise UsageError(
            "profile 'stack' is about interfaces of transformers and peft themselves; "
            f"the largest for {subject.name} is {PROFILES[-2]!r}"
        )
    named = contract.select([globs] if isinstance(globs, str) else list(globs))
    chosen = [id for id, clause in contract.in_profile(profile).items() if id in named and not who.why_not(clause)]
    if not chosen:
        raise UsageError(f"clauses {globs!r}: none of them is in profile {profile!r} and judges {subject.name}")
    return chosen


def _own(file: str | Path | None, subject: Subject, here: Path) -> list[Expectation]:
    if file is None:
        return []
    if not isinstance(file, (str, Path)):
        raise UsageError(f"expectations={quoted(file)}; expected the path of a file")
    places = [Path(file), here / file]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UsageError(f"expectations: {file} is neither in the current directory nor in {here}")
    return known.load_own(found, subject.name)


def _placed(file: str, line: int) -> Callable[[], None]:
    def placed() -> None: ...

    code: CodeType = placed.__code__
    placed.__code__ = code.replace(co_filename=file, co_firstlineno=line)
    return placed


# ---- one call of conformance ----


class Conforming(State):
    """The state of the cases of one `conformance`, as that of a session of suites/."""

    in_theirs = True
    runs: _OneProcess

    def __init__(self, judged: _Judged, root: Path):
        self.subject, self.device, self.preload = judged.subject.name, judged.device, []
        self.runs = _OneProcess(judged.subject, root, judged.device)
        self.runs.allow.append(judged.allow)
        self.expectations = [*judged.own, *known.load(paths.SUITES / "expectations")]
        self.cases: list[Case] = []
        self.know(judged.subject)
        self.whole = Whole({"runs": self.runs})
        #: Why nothing is judged; "" if the plain run was trained.
        with _as_in_suites():
            self.refused = preflight.refused(self.runs)
        #: Whether a case has said so.
        self.said = False


class _OneProcess(Runs):
    """The training runs of a `conformance`."""

    def train(self, spec: RunSpec, subject: Subject | None = None, again: bool = False) -> Trace:
        """Return the trace of a spec. See `Runs.train`."""
        if spec.launch.several:
            raise Unsupported("several processes: `pytest --pyargs harness.suites --subject NAME` judges these")
        return super().train(spec, subject, again)


@dataclass
class _Judged:
    """What a call of `conformance` judges, and by what."""

    subject: Subject
    tests: list[SuiteTest]
    own: list[Expectation]
    allow: Mapping[str, Sequence[str]]
    limit: float
    device: str
    _state: Conforming | None = None

    def judge(self, test: SuiteTest, request: pytest.FixtureRequest) -> None:
        """Judge one case, and end the test accordingly."""
        __tracebackhide__ = True
        state = self._made(request)
        case = Case(test.clause, test.scenario, request.node.nodeid, state.subject, state.device)
        started = time.monotonic()
        if state.refused:
            case.verdict, case.reason, case.misused = SKIPPED, state.refused, True
            outcome = _Outcome()
        else:
            outcome = self._run(test, case, state, request)
        case.seconds = time.monotonic() - started
        request.node.user_properties.append((PROPERTY, json.dumps(asdict(case))))
        if state.refused and not state.said:
            state.said = True
            pytest.fail(state.refused, pytrace=False)
        if case.verdict == KNOWN_DEFECT:
            pytest.xfail(f"{case.whose}: {case.reason}")
        if case.verdict in (SKIPPED, NOT_COMPARABLE) and outcome.outcome != "failed":
            pytest.skip(case.reason)
        if outcome.outcome == "failed":
            pytest.fail(outcome.text, pytrace=False)

    def _made(self, request: pytest.FixtureRequest) -> Conforming:
        """Return the state of this process. The plain run is trained for it, once."""
        if self._state is None:
            environment.check_device(self.device)
            root = request.getfixturevalue("tmp_path_factory").mktemp("runs")
            self._state = Conforming(self, root)

            def end() -> None:
                assert self._state is not None
                self._state.whole.ends.close()
                shutil.rmtree(root, ignore_errors=True)

            request.config.add_cleanup(end)
        return self._state

    def _run(self, test: SuiteTest, case: Case, state: Conforming, real: pytest.FixtureRequest) -> _Outcome:
        state.runs.broken.clear()
        state.runs.completed, state.runs.built, state.runs.clause = 0, 0, case.clause
        request = Request(test, real, state, state.whole)
        request.node.stash[CASES], request.node.stash[VERDICTS] = [case], []
        raised: BaseException | None = None
        outcome = _Outcome()
        try:
            skip_if(state.traits.why_not(contract.clauses()[case.clause], case.scenario))
            skip_if(next((f"needs {need}" for need in _needs(case) if not environment.satisfies(need)), None))
            with _as_in_suites(), cut_off(self.limit):
                call(test, request)
        except (KeyboardInterrupt, pytest.exit.Exception):
            raise
        except BaseException as error:
            raised, outcome.longreprtext = error, "".join(traceback.format_exception(error, limit=-_FRAMES))
        ended = SimpleNamespace(excinfo=None if raised is None else SimpleNamespace(value=raised))
        decide(state, request.node, case, ended, outcome)  # type: ignore[arg-type]
        return outcome


#: Frames of a traceback that a failed case shows, the innermost.
_FRAMES = 12


@dataclass
class _Outcome:
    """What `decide` makes of a case. It has the attributes of pytest's report that are set there."""

    outcome: str = "passed"
    longrepr: Any = None
    longreprtext: str = ""
    wasxfail: str = ""
    sections: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What is printed for a failed case."""
        entries = self.longrepr.reprtraceback.reprentries
        return "".join(line for entry in entries for line in entry.lines).rstrip()


def _needs(case: Case) -> tuple[str, ...]:
    return contract.clauses()[case.clause].needs


@contextlib.contextmanager
def _as_in_suites() -> Iterator[None]:
    """Compute with one thread and pass over warnings, as a session of suites/ does. Leave their session as it was."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
