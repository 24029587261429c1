"""The pytest plugin of `suites/`: options, collection, and the report at the end.

Its fixtures are in `harness.session.pytest_fixtures`. `harness.session.decide` turns a test's outcome into a verdict.

suites/conftest.py loads it. It is not a pytest11 entry point: options such as --device would then clash with those of
any other test suite in an environment where the harness is installed.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from harness import contract, environment, paths, subjects
from harness.errors import UsageError
from harness.processes.parent_watch import end_with_owner
from harness.runs import drawn
from harness.session import report
from harness.session.decide import decide
from harness.session.state import CASES, STATE, ClauseFailure, State
from harness.spec import RunSpec
from harness.verdict import FAIL, Case

#: Plugins that come with this one.
pytest_plugins = ["harness.session.pytest_fixtures"]

_PROPERTY = "peft_harness_case"
_ERRORS = "peft_harness_errors"


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
        help="start ranks by torchrun, as a user does, which takes longer: by default they are forked",
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
    # Workers of xdist, and ranks, end with this process.
    end_with_owner()
    config.addinivalue_line("markers", "clause(id): the clause of the contract that a test judges")
    drawn.register_profiles(config.getoption("--hypothesis-profile", None))
    # Deprecations are for upstream's own tests; what a clause needs to see of warnings is in Trace.warnings.
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore::FutureWarning")
    try:
        # First of all: whatever asks a GPU for its name starts CUDA on it.
        worker = getattr(config, "workerinput", {}).get("workerid", "gw0")
        environment.check_device(config.getoption("--device"), turn=int(worker.removeprefix("gw")))
        state = State(config)
        _check_options(state, config)
        if state.preload:
            _warm(state)
        subjects.load(state.subject)
    except UsageError as error:
        pytest.exit(str(error), returncode=2)
    config.stash[STATE] = state
    config.pluginmanager.register(_Collector(state), "peft-harness-collector")


def _warm(state: State) -> None:
    from harness.processes import ranks
    from harness.processes.imports import import_upstream

    import_upstream(state.preload)
    ranks.settings.preloads = tuple(state.preload)
    ranks.settings.torchrun = state.torchrun
    if state.device == "cpu":
        # Nothing has been trained in this process yet: from here on its ranks are forked.
        ranks.prepare(pristine=True)
    else:
        # CUDA has been started here; the first group, if there is one, starts a process that has not.
        ranks.end()


def _check_options(state: State, config: pytest.Config) -> None:
    if state.device == "cuda":
        # Looked at once, at the first product of the process: without it full_determinism=True would be refused later.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if state.json is not None and Path(state.json).is_dir():
        raise UsageError(f"--json {state.json}: is a directory; name a file")
    if config.getoption("--record"):
        from harness.throughput.baselines import clean_commit

        if config.getoption("numprocesses", None):
            raise UsageError("--record: one process records; run with -n 0")
        state.commit = clean_commit()


def pytest_report_header(config: pytest.Config) -> list[str]:
    state = config.stash[STATE]
    seen = environment.describe(state.device)
    stack = ", ".join(f"{name} {version}" for name, version in seen["versions"].items() if version)
    return [f"judged: {state.subject} on {seen['device']}", f"stack: {stack}"]


# ---- collection ----


class _SuiteModule(pytest.Module):
    """A file of suites/, imported as `harness.suites.NAME` in a checkout and in a wheel alike."""

    def _getobj(self) -> Any:
        return importlib.import_module(f"harness.suites.{self.path.stem}")


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module | None:
    """pytest would derive another name from where the file lies, and put that place on sys.path."""
    ours = module_path.resolve().parent == paths.ROOT / "suites"
    return _SuiteModule.from_parent(parent, path=module_path) if ours else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    state = config.stash[STATE]
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
            item.stash[CASES] = [case for case in cases if case.clause in state.clauses]
            wanted = item.stash[CASES] and item.nodeid not in state.journal.ended
            (chosen if wanted else others).append(item)
            collected += cases
    if _is_whole(config):
        tested = {case.clause for case in collected}
        errors += [f"clause {id} has no test in suites/" for id in known if id not in tested]
        errors += _stale(state, collected)
    if errors and hasattr(config, "workeroutput"):
        # An error in a worker would end it, and xdist with a traceback that does not have these words: the process that
        # asked says them (`pytest_testnodedown`).
        config.workeroutput[_ERRORS] = errors
        items[:] = []
        return
    if errors:
        raise pytest.UsageError("\n".join(errors))
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = chosen
    if getattr(config, "workerinput", {}).get("workerid", "gw0") == "gw0":
        wanted_here = [case for item in [*chosen, *others] for case in item.stash.get(CASES, [])]
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
    return item.stash.get(CASES, [])


def judged(config: pytest.Config) -> list[Case]:
    """The cases that have been judged so far."""
    return config.stash[STATE].cases


def _is_shimmed(item: pytest.Item, device: str) -> bool:
    """Whether a case trains with shims of ours in place of a device (see `harness.processes.shims`)."""
    values = getattr(item, "callspec", None)
    specs = [value for value in values.params.values() if isinstance(value, RunSpec)] if values else []
    return any(spec.on_device(device).launch.shimmed for spec in specs)


def _is_whole(config: pytest.Config) -> bool:
    """Whether all of suites/ was asked for, so that a clause without a test is an error."""
    # The marker that the checkout's own settings leave out is about tests, of which suites/ has none.
    marked = config.getoption("markexpr") not in ("", "not network")
    left_out = any(config.getoption(option) for option in ("keyword", "deselect", "ignore", "ignore_glob"))
    narrowed = left_out or marked
    args = [Path(str(arg)) for arg in config.args]
    return not narrowed and any(path.resolve() == paths.SUITES for path in args)


def _stale(state: State, cases: list[Case]) -> list[str]:
    return [
        f"suites/expectations/{one.file}: {one.clause} {one.scenario!r} names no case"
        for one in state.expectations
        if not any(case.clause == one.clause and one.names(case.scenario) for case in cases)
    ]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if len(item.stash[CASES]) > 1:
        return
    for requirement in contract.clauses()[item.stash[CASES][0].clause].needs:
        if not environment.satisfies(requirement):
            pytest.skip(f"needs {requirement}")


# ---- verdicts ----


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    if call.excinfo is not None and isinstance(call.excinfo.value, ClauseFailure):
        # Told by its message alone (`decide`). A traceback would be written with the tensors of a trace in it: as long as a
        # run takes.
        item.repr_failure = lambda excinfo, style=None: str(excinfo.value)  # type: ignore[method-assign]
    outcome = yield
    cases = item.stash.get(CASES, [])
    for case in cases:
        case.seconds += call.duration / len(cases)
    if not cases or call.when == "teardown" or (call.when == "setup" and outcome.passed):
        return outcome
    for case in cases:
        decide(item.config.stash[STATE], case, call, outcome)
        item.user_properties.append((_PROPERTY, asdict(case)))
    outcome.user_properties = list(item.user_properties)
    return outcome


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
    state = session.config.stash[STATE]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peft_harness"] = asdict(state.effort.measured())
        return
    if state.errors:
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
        return
    state.journal.close()
    state.effort.measured()
    if state.json is not None:
        report.write_json(Path(state.json), state.cases, environment.describe(state.device))
    # 5: nothing was left to be judged of a journal.
    if exitstatus in (0, 1, 5) and state.cases:
        session.exitstatus = max(report.exit_code(state.cases, state.named), exitstatus % 5)


def pytest_unconfigure(config: pytest.Config) -> None:
    """A session within another's process must not leave it ranks that know the inner one's preloads and faults."""
    from harness.processes import ranks

    if config.stash.get(STATE, None) is not None:
        ranks.end()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["peft_harness_journal"] = str(node.config.stash[STATE].journal.file)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    told = getattr(node, "workeroutput", {})
    state = node.config.stash[STATE]
    state.errors = told.get(_ERRORS, state.errors)
    if (done := told.get("peft_harness")) is not None:
        state.effort.add(report.Effort(**done))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    state = config.stash[STATE]
    for error in state.errors:
        terminalreporter.write_line(f"ERROR: {error}", red=True)
    if state.cases:
        console = Console(
            file=terminalreporter._tw._file, width=max(terminalreporter._tw.fullwidth, 110), soft_wrap=True
        )
        report.summary(console, state.cases, state.effort, state.named)
