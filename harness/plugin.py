"""The pytest plugin of `suites/`: options, fixtures, and the way from a test's outcome to a clause's verdict.

suites/conftest.py loads it. It is not a pytest11 entry point: options such as --device would then clash with those of
any other test suite in an environment where the harness is installed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from _pytest.outcomes import Skipped
from rich.console import Console

from harness import contract, drawn, environment, expectations, report, subjects
from harness.errors import UsageError
from harness.journal import Journal
from harness.paths import SUITES, make_importable
from harness.report import Case, told
from harness.runs import Runs
from harness.spec import RunSpec, changes
from harness.trace import Trace
from harness.verdict import (
    FAIL,
    KNOWN_DEFECT,
    NOT_COMPARABLE,
    SKIPPED,
    UNEXPECTED_PASS,
    Verdict,
)

_CASES = pytest.StashKey[list[Case]]()
_STATE = pytest.StashKey["State"]()
_PROPERTY = "peft_harness_case"


class ClauseFailure(AssertionError):
    """A verdict on a clause that is no pass."""

    def __init__(self, verdict: Verdict, clause: str):
        super().__init__("\n".join([verdict.expected, *verdict.seen]))
        self.verdict = verdict
        self.clause = clause


class State:
    """What the session knows: options, chosen clauses, expectations, and the cases judged so far."""

    def __init__(self, config: pytest.Config):
        self.subject: str = config.getoption("--subject")
        self.device: str = config.getoption("--device")
        self.json: str | None = config.getoption("--json")
        self.preload: list[str] = config.getoption("--preload")
        self.torchrun: bool = config.getoption("--torchrun")
        self.clauses = contract.select(config.getoption("--clause"))
        self.expectations = expectations.load(SUITES / "expectations")
        self.effort = report.Effort()
        #: Under xdist a worker is told where the cases that it collects are written down, for when it crashes.
        worker = getattr(config, "workerinput", None)
        chosen = worker["peft_harness_journal"] if worker else config.getoption("--journal")
        run = [self.subject, self.device, *sorted(self.clauses), *self.preload, environment.describe(self.device)]
        self.journal = Journal.open(chosen, run, writes=worker is None)
        self.cases: list[Case] = list(self.journal.cases)


# ---- options ----


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("peft-harness", "conformance of adapter fine-tuning")
    group.addoption(
        "--subject", default="hf-trainer", help=f"who is judged: {', '.join(subjects.NAMES)} or module:factory"
    )
    group.addoption("--device", default="cpu", help="cpu or cuda")
    group.addoption(
        "--clause", action="append", default=[], metavar="GLOB", help="judge these clauses only; may be repeated"
    )
    group.addoption(
        "--preload", action="append", default=[], metavar="MODULE", help="import this before upstream is used"
    )
    group.addoption(
        "--torchrun",
        action="store_true",
        help="start ranks by torchrun on a CPU too, which takes longer; on cuda always",
    )
    group.addoption(
        "--journal",
        default=None,
        metavar="FILE",
        help="keep each case in FILE as it ends; with FILE there, judge the rest",
    )
    group.addoption("--json", default=None, metavar="FILE", help="write the report as JSON")
    group.addoption(
        "--timed",
        action="store_true",
        help="time steps too (PERF-04): a minute each, on a machine that does nothing else",
    )
    group.addoption(
        "--record",
        action="store_true",
        help="record this environment's figures in fixtures/baselines/ instead of judging by them",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "clause(id): the clause of the contract that a test judges")
    drawn.register_profiles(config.getoption("--hypothesis-profile", None))
    # Deprecations are for upstream's own tests; what a clause needs to see of warnings is in Trace.warnings.
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore::FutureWarning")
    make_importable()
    try:
        state = State(config)
        _check_options(state, config)
        if state.preload:
            _warm(state)
        subjects.load(state.subject)
    except UsageError as error:
        pytest.exit(str(error), returncode=2)
    config.stash[_STATE] = state
    config.pluginmanager.register(_Collector(state), "peft-harness-collector")


def _warm(state: State) -> None:
    from harness import ranks
    from harness.warm import warm

    warm(state.preload)
    ranks.settings.preloads = tuple(state.preload)
    ranks.settings.torchrun = state.torchrun
    # Nothing has been trained in this process yet: from here on its ranks are forked.
    ranks.prepare(pristine=True)


def _check_options(state: State, config: pytest.Config) -> None:
    worker = getattr(config, "workerinput", {}).get("workerid", "gw0")
    environment.check_device(state.device, turn=int(worker.removeprefix("gw")))
    if state.device == "cuda":
        # Looked at once, at the first product of the process: without it full_determinism=True would be refused later.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if state.json is not None and Path(state.json).is_dir():
        raise UsageError(f"--json {state.json}: is a directory; name a file")
    if config.getoption("--record"):
        from harness.throughput.baselines import clean_commit

        if config.getoption("numprocesses", None):
            raise UsageError("--record: one process records; run with -n 0")
        clean_commit()


def pytest_report_header(config: pytest.Config) -> list[str]:
    state = config.stash[_STATE]
    seen = environment.describe(state.device)
    stack = ", ".join(f"{name} {version}" for name, version in seen["versions"].items() if version)
    return [f"judged: {state.subject} on {seen['device']}", f"stack: {stack}"]


# ---- collection ----


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    state = config.stash[_STATE]
    known = contract.clauses()
    chosen: list[pytest.Item] = []
    others: list[pytest.Item] = []
    collected: list[Case] = []
    errors: list[str] = []
    for item in items:
        ids = [id for mark in item.iter_markers("clause") for id in mark.args]
        unknown = [id for id in ids if id not in known]
        if len(ids) != 1 and not (ids and "draw" in getattr(item, "fixturenames", ())):
            errors.append(f"{item.nodeid} names {len(ids)} clauses; a test judges one, unless it draws its runs")
        elif unknown:
            errors.append(f"{item.nodeid} names clause {unknown[0]!r}, which harness/contract/ does not have")
        else:
            name = scenario(item) + "/shimmed" * _is_shimmed(item, state.device)
            cases = [Case(id, name, item.nodeid, state.subject, state.device) for id in ids]
            item.stash[_CASES] = [case for case in cases if case.clause in state.clauses]
            wanted = item.stash[_CASES] and item.nodeid not in state.journal.ended
            (chosen if wanted else others).append(item)
            collected += cases
    if _is_whole(config):
        tested = {case.clause for case in collected}
        errors += [f"clause {id} has no test in suites/" for id in known if id not in tested]
        errors += _stale(state, collected)
    if errors:
        raise pytest.UsageError("\n".join(errors))
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = chosen
    if getattr(config, "workerinput", {}).get("workerid", "gw0") == "gw0":
        wanted_here = [case for item in [*chosen, *others] for case in item.stash.get(_CASES, [])]
        state.journal.collected(wanted_here)
    # Here rather than in a fixture, so that the imports are not charged to the first case.
    if any("runs" in getattr(item, "fixturenames", ()) for item in items):
        _warm(state)


def scenario(item: pytest.Item) -> str:
    """The scenario's name: the parameters of the test, or its name where it has none."""
    callspec = getattr(item, "callspec", None)
    return callspec.id if callspec is not None else item.name.removeprefix("test_")


def cases_of(item: pytest.Item) -> list[Case]:
    """The cases that a collected test will judge."""
    return item.stash.get(_CASES, [])


def judged(config: pytest.Config) -> list[Case]:
    """The cases that have been judged so far."""
    return config.stash[_STATE].cases


def _is_shimmed(item: pytest.Item, device: str) -> bool:
    """Whether a case trains with shims of ours in place of a device (see `harness.shims`)."""
    values = getattr(item, "callspec", None)
    specs = [value for value in values.params.values() if isinstance(value, RunSpec)] if values else []
    return any(spec.on_device(device).launch.shimmed for spec in specs)


def _is_whole(config: pytest.Config) -> bool:
    """Whether all of suites/ was asked for, so that a clause without a test is an error."""
    narrowed = config.getoption("keyword") or config.getoption("markexpr") or config.getoption("deselect")
    args = [Path(str(arg)) for arg in config.args]
    return not narrowed and any(path.resolve() == SUITES for path in args)


def _stale(state: State, cases: list[Case]) -> list[str]:
    return [
        f"suites/expectations/{one.file}: {one.clause} {one.scenario!r} names no case"
        for one in state.expectations
        if not any(case.clause == one.clause and one.names(case.scenario) for case in cases)
    ]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if len(item.stash[_CASES]) > 1:
        return
    for requirement in contract.clauses()[item.stash[_CASES][0].clause].needs:
        if not environment.satisfies(requirement):
            pytest.skip(f"needs {requirement}")


# ---- fixtures ----


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The session's training runs, each made once."""
    state = request.config.stash[_STATE]
    root = tmp_path_factory.mktemp("runs")
    made = Runs(subjects.load(state.subject), root, state.device)
    yield made
    state.effort.runs, state.effort.seconds = made.made, made.seconds
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def train(request: pytest.FixtureRequest, runs: Runs) -> Callable[..., Trace]:
    """train(spec, again=False, subject=None): the subject's trace of a spec, or that of another subject.

    Skips, with the reason, what it does not train; so it does where the run that a spec resumes cannot be trained.
    """

    def trained(spec: RunSpec, again: bool = False, subject: subjects.Subject | None = None) -> Trace:
        for leg in (spec, spec.first_leg()) if spec.resume else (spec,):
            if reason := (subject or runs.subject).unsupported(runs.on_device(leg)):
                pytest.skip(reason)
        for case in request.node.stash[_CASES]:
            case.specs.append(spec.to_json())
        return runs.train(spec, subject, again)

    return trained


class NotComparable(Skipped):
    """What was recorded was recorded elsewhere: there is nothing to compare with, and the reason is told."""


@pytest.fixture
def baseline(request: pytest.FixtureRequest) -> Callable[[str, str, Callable[[], Any]], Any]:
    """baseline(kind, name, figure): what is recorded of this environment; NotComparable where nothing is.

    With --record figure() is recorded, and returned.
    """
    from harness.throughput import baselines

    state = request.config.stash[_STATE]

    def recorded(kind: str, name: str, figure: Callable[[], Any]) -> Any:
        if request.config.getoption("--record"):
            made = {"counters": {}, "ratios": {}, kind: {name: figure()}}
            baselines.record(state.device, made["counters"], made["ratios"], baselines.DIRECTORY)
            return made[kind][name]
        found, reason = baselines.matching(state.device)
        body = {} if found is None else getattr(found, kind)
        if name not in body:
            raise NotComparable(reason or f"no {kind} of {name} are recorded in this environment")
        return body[name]

    return recorded


@dataclass(frozen=True)
class Timing:
    """preloads: of --preload, for processes that are timed."""

    preloads: list[str]


@pytest.fixture
def timed(request: pytest.FixtureRequest, upstream: Any) -> Timing:
    """For cases that take a machine's whole attention: skipped unless --timed is given."""
    if not request.config.getoption("--timed"):
        pytest.skip("takes a minute, on a machine that does nothing else: --timed")
    return Timing(request.config.stash[_STATE].preload)


@pytest.fixture
def cuda(runs: Runs) -> None:
    """For cases that only a GPU can show, whatever the tier of their clause: skipped elsewhere."""
    if runs.device != "cuda":
        pytest.skip("shows on a GPU only: --device cuda")


@pytest.fixture
def trace(request: pytest.FixtureRequest, train: Callable[..., Trace]) -> Trace:
    """The trace of the scenario that `harness.scenarios.over` names."""
    return train(request.param)


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Callable[[Verdict], None]:
    """judge(verdict): record its evidence; end the test unless it holds."""

    (case,) = request.node.stash[_CASES]

    def judged(verdict: Verdict) -> None:
        case.evidence.update(verdict.measured)
        if not verdict.holds:
            raise ClauseFailure(verdict, case.clause)

    return judged


@pytest.fixture
def draw(request: pytest.FixtureRequest, runs: Runs) -> drawn.Draw:
    """Runs that hypothesis draws, each judged by several clauses (see `harness.drawn`)."""

    def fail(verdict: Verdict, clause: str) -> None:
        raise ClauseFailure(verdict, clause)

    state = request.config.stash[_STATE]
    chosen_seed = request.config.getoption("--hypothesis-seed", None)
    return drawn.Draw(request.node.stash[_CASES], runs, fail, chosen_seed, state.expectations)


@pytest.fixture
def upstream(runs: Runs) -> Any:
    """The subject, for clauses about transformers' and peft's own interfaces; skipped for one that is no Trainer."""
    from harness.subjects.hf_trainer import HFTrainer

    if not isinstance(runs.subject, HFTrainer):
        pytest.skip(f"subject {runs.subject.name} is no transformers.Trainer, and the clause is about its interface")
    return runs.subject.on(runs.device)


@pytest.fixture
def afterwards(runs: Runs, upstream: Any) -> Callable[[RunSpec, Callable[[Any], Any]], Trace]:
    """afterwards(spec, call): the trace of a run in several processes, at whose end each rank calls `call` with its
    Trainer; what that returns is in Trace.distributed["afterwards"].
    """

    def trained(spec: RunSpec, call: Callable[[Any], Any]) -> Trace:
        if reason := upstream.unsupported(runs.on_device(spec)):
            pytest.skip(reason)
        return runs.train(spec, subject=upstream.in_ranks(call.__name__, afterwards=call))

    return trained


# ---- verdicts ----


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    outcome = yield
    cases = item.stash.get(_CASES, [])
    for case in cases:
        case.seconds += call.duration / len(cases)
    if not cases or call.when == "teardown" or (call.when == "setup" and outcome.passed):
        return outcome
    for case in cases:
        _decide(item.config.stash[_STATE], case, call, outcome)
        item.user_properties.append((_PROPERTY, asdict(case)))
    outcome.user_properties = list(item.user_properties)
    return outcome


def _decide(state: State, case: Case, call: pytest.CallInfo[Any], outcome: pytest.TestReport) -> None:
    """Set the case's verdict, and pytest's outcome to match."""
    # Which of the drawn runs meet a known defect is not the case's to expect (Expectation.excuses).
    known = [] if case.drawn is not None else state.expectations
    expected = next((e for e in known if e.applies(case.clause, case.scenario, case.subject, case.device)), None)
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, pytest.skip.Exception):
        case.verdict = NOT_COMPARABLE if isinstance(error, NotComparable) else SKIPPED
        case.reason = str(error)
        return
    if error is None or (isinstance(error, ClauseFailure) and error.clause != case.clause):
        if case.drawn == 0:
            case.verdict, case.reason = SKIPPED, "the law says nothing of the runs that were drawn"
        elif expected is not None:
            case.verdict, case.reason, case.link = UNEXPECTED_PASS, expected.reason, expected.link
            outcome.outcome = "failed"
            outcome.longrepr = (
                f"{case.clause} holds on {case.scenario}, but suites/expectations/{expected.file} says it must fail "
                f"with {expected.match!r} on {', '.join(expected.versions)}: narrow its versions"
            )
        return
    failed = error.verdict if isinstance(error, ClauseFailure) else None
    case.verdict = failed.outcome if failed else FAIL
    case.evidence["expected"] = failed.expected if failed else "the case runs to its end"
    case.evidence["seen"] = list(failed.seen) if failed else [f"{type(error).__name__}: {error}"]
    message = _message(state, case)
    if expected is not None and case.verdict == FAIL and expected.match in message:
        case.verdict, case.reason, case.link = KNOWN_DEFECT, expected.reason, expected.link
        outcome.outcome = "skipped"
        outcome.wasxfail = expected.reason
        return
    # A law's failure is told by its message; anything else is a fault of the case and needs its traceback.
    outcome.longrepr = message if failed else f"{outcome.longreprtext}\n\n{message}"


def _message(state: State, case: Case) -> str:
    clause = contract.clauses()[case.clause]
    seen = case.evidence["seen"]
    lines = [
        f"{case.clause} does not hold: scenario {case.scenario}, subject {case.subject}, {case.device}",
        f"  clause    {clause.statement}",
        f"  upstream  {clause.source}",
        f"  expected  {case.evidence['expected']}",
        *[f"  {'seen' if index == 0 else '    '}      {one}" for index, one in enumerate(seen[:8])],
    ]
    if len(seen) > 8:
        lines.append(f"            and {len(seen) - 8} more")
    if case.drawn is not None and case.specs:
        lines.append(f"  run       {', '.join(changes(case.specs[0])) or 'the plain one'}")
    lines += [f"  {'life' if index == 0 else '    '}      {told(act)}" for index, act in enumerate(case.life or [])]
    lines.append(f"  repeat    peft-harness repro {_case_file(state, case)}")
    return "\n".join(lines)


def _case_file(state: State, case: Case) -> Path:
    """Write what it takes to repeat just this case, and say where."""
    directory = Path(".peft-harness")
    (directory / "cases").mkdir(parents=True, exist_ok=True)
    (directory / ".gitignore").write_text("*\n")
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{case.clause}-{case.scenario}")
    path = directory / "cases" / f"{name[:120]}.json"
    body = {
        "schema_version": report.SCHEMA_VERSION,
        "clause": case.clause,
        "scenario": case.scenario,
        # A drawn run is repeated from its spec: a test would draw anew.
        **({} if case.drawn else {"test": case.nodeid.rpartition("suites/")[2]}),
        "subject": case.subject,
        "device": case.device,
        "preload": state.preload,
        "spec": case.specs[0] if case.specs else None,
        **({"life": case.life} if case.life else {}),
    }
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return path


# ---- the end ----


class _Collector:
    """Gathers the cases of this process, or under xdist of all workers, in the order in which they ended."""

    def __init__(self, state: State):
        self.state = state

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == _PROPERTY and report.when in ("setup", "call"):
                self._ended(Case(**cast(dict[str, Any], value)))
        if report.when == "???":  # xdist's word for a test whose worker died in it
            for case in self.state.journal.of(report.nodeid):
                case.verdict = FAIL
                case.evidence = {"expected": "the case runs to its end", "seen": [_fate(report)]}
                self._ended(case)

    def _ended(self, case: Case) -> None:
        self.state.cases.append(case)
        self.state.journal.keep(case)


def _fate(report: pytest.TestReport) -> str:
    return f"{str(report.longrepr).strip()} (killed, crashed, or cut by faulthandler_timeout)"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    state = session.config.stash[_STATE]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peft_harness"] = asdict(state.effort.measured())
        return
    state.journal.close()
    state.effort.measured()
    if state.json is not None:
        report.write_json(Path(state.json), state.cases, environment.describe(state.device))
    # 5: nothing was left to be judged of a journal.
    if exitstatus in (0, 1, 5) and state.cases:
        session.exitstatus = max(report.exit_code(state.cases), exitstatus % 5)


def pytest_unconfigure(config: pytest.Config) -> None:
    """A session within another's process must not leave it ranks that know the inner one's preloads and faults."""
    from harness import ranks

    if config.stash.get(_STATE, None) is not None:
        ranks.end()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["peft_harness_journal"] = str(node.config.stash[_STATE].journal.file)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    done = getattr(node, "workeroutput", {}).get("peft_harness")
    if done is not None:
        node.config.stash[_STATE].effort.add(report.Effort(**done))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    state = config.stash[_STATE]
    if state.cases:
        console = Console(
            file=terminalreporter._tw._file, width=max(terminalreporter._tw.fullwidth, 110), soft_wrap=True
        )
        report.summary(console, state.cases, state.effort)
