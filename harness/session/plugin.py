"""The pytest plugin of `suites/`: options, collection, and the report at the end.

- `harness.session.pytest_fixtures` has its fixtures.
- `harness.session.supervisor` runs the session in a process that another one watches over.
- `harness.session.decide` sets each case's verdict from what its test recorded.
- `harness.session.complete` counts whether all was judged that was asked for.
- `harness.session.terminal` prints the summary.

suites/conftest.py loads it. It is no pytest11 entry point: its options, such as --device, would then clash with those
of every other test suite in an environment where the harness is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from harness import compat, contract, environment, patches, paths, subjects
from harness.errors import UsageError
from harness.files import check_writable, out_of_space, reason, write_whole
from harness.processes import guard, interrupts
from harness.processes.imports import set_environment
from harness.processes.parent_watch import end_with_owner
from harness.reports import web_page
from harness.runs import drawn
from harness.session import complete, concerns, report, supervisor, terminal
from harness.session.decide import RUNS_TO_ITS_END, decide
from harness.session.junit_properties import JUnitProperties
from harness.session.specs import Brought
from harness.session.state import CASES, STATE, VERDICTS, DrawnFailure, Outside, State, has_pytest_html, skip_if
from harness.spec import RunSpec
from harness.verdict import FAIL, Case

#: Plugins that pytest loads together with this one.
pytest_plugins = ["harness.session.pytest_fixtures"]

#: The property of a test's report that holds a case as JSON. xdist's controller and JUnit files read it.
_PROPERTY = "peft_harness_case"
_ERRORS = "peft_harness_errors"
#: The file of suites/ that judges the runs of --spec.
_BROUGHT = "test_specs.py"


# ---- options ----


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.register(supervisor, "peft-harness-supervisor")
    group = parser.getgroup("peft-harness", "conformance of adapter fine-tuning")
    names = ", ".join(subjects.NAMES)
    group.addoption("--subject", default="hf-trainer", help=f"Who is judged: {names} or module:factory.")
    group.addoption("--device", default="cpu", help="cpu or cuda.")
    group.addoption(
        "--clause",
        action="append",
        default=[],
        metavar="GLOB",
        help="Judge these clauses only, such as 'RES-*'. Repeatable.",
    )
    group.addoption(
        "--spec",
        action="append",
        default=[],
        metavar="FILE",
        help="Judge the run of this RunSpec only, by each clause whose law applies to any run. Repeatable.",
    )
    group.addoption("--trust-code", action="store_true", help="Run code that the file of a --spec names.")
    for kind, examples in concerns.NAMES.items():
        group.addoption(
            f"--{kind}",
            action="append",
            default=[],
            metavar="NAME",
            help=f"Judge the cases of this {kind} only, such as {examples[0]}. Others are listed. Repeatable.",
        )
    group.addoption(
        "--known-defects",
        action="append",
        default=[],
        metavar="FILE",
        help="Known defects of your own, in the format of suites/expectations/. A case in it must fail. Repeatable.",
    )
    group.addoption(
        "--preload",
        action="append",
        default=[],
        metavar="MODULE",
        help="Import this module before upstream is used, in every process that trains. Repeatable.",
    )
    group.addoption(
        "--torchrun",
        action="store_true",
        help="Start ranks with torchrun, as users do. This is slower; by default ranks are forked.",
    )
    group.addoption(
        "--unpatched",
        action="store_true",
        help="Leave upstream as it is, without the harness's patches for speed (harness/patches.py). This is slower.",
    )
    group.addoption(
        "--journal",
        default=None,
        metavar="FILE",
        help="Write each case to FILE as it ends. If FILE exists, judge only the cases that it lacks.",
    )
    # How the user called this session, if pytest was not called by hand: for commands to type next.
    group.addoption("--called", default="peft-harness check", help=argparse.SUPPRESS)
    group.addoption("--json", default=None, metavar="FILE", help="Write the report as JSON.")
    if not pluginmanager.hasplugin("html"):
        group.addoption("--html", default=None, metavar="FILE", help="Write the report as a page of HTML, in one file.")
    group.addoption(
        "--timed",
        action="store_true",
        help="Time steps too (PERF-04). Takes two minutes on a machine that does nothing else.",
    )
    group.addoption(
        "--record",
        action="store_true",
        help="Record this environment's figures in fixtures/baselines/ instead of judging them.",
    )


#: Ends the session before it begins, with one line on stderr. pytest prints the name of the exception before its message.
_Exit: Any = type("peft-harness", (pytest.exit.Exception,), {})


@contextlib.contextmanager
def _usage_errors_end_the_session() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise _Exit(str(error), returncode=2) from None


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, Any, Any]:
    for stream in (sys.stdout, sys.stderr):
        # With LC_ALL=C a character that is not ASCII would end the session.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return (yield from supervisor.run_to_the_exit_code(config))


def pytest_configure(config: pytest.Config) -> None:
    # Workers of xdist, and ranks, end with this process.
    end_with_owner()
    if not guard.is_guarded():
        # pytest itself answers Ctrl-C, with a summary.
        at_the_end = contextlib.ExitStack()
        try:
            at_the_end.enter_context(guard.guarded())
        except OSError as error:
            raise _Exit(f"temporary files: {error}", returncode=2) from None
        at_the_end.enter_context(interrupts.ending_at(*interrupts.BUT_CTRL_C))
        config.add_cleanup(at_the_end.close)
        config.pluginmanager.register(_AtCtrlC())
    if config.getoption("--unpatched"):
        # Until the session ends: it may be one within another session's process.
        unpatched = contextlib.ExitStack()
        unpatched.enter_context(patches.off())
        config.add_cleanup(unpatched.close)
    _keep_benchmarks_out_of_here(config)
    config.addinivalue_line("markers", "clause(id): the clause of the contract that a test judges")
    drawn.register_profiles(config.getoption("--hypothesis-profile", None))
    # Deprecations are for upstream's own tests. Clauses about warnings read them from Trace.warnings.
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore::FutureWarning")
    with _usage_errors_end_the_session():
        compat.require_supported()
        # The suites import upstream as they are collected, before a case needs it.
        set_environment()
        # This comes first: whatever asks a GPU for its name starts CUDA on it.
        worker = getattr(config, "workerinput", {}).get("workerid", "gw0")
        environment.check_device(config.getoption("--device"), turn=int(worker.removeprefix("gw")))
        _check_outputs(config)
        state = State(config)
        _check_options(state, config)
        # User code may change the current directory later on.
        state.json = state.json and str(Path(state.json).absolute())
        state.html = state.html and str(Path(state.html).absolute())
        if state.preload:
            supervisor.tell_doing(config, f"it imported --preload {' --preload '.join(state.preload)}")
            _prepare_training(state)
        supervisor.tell_doing(config, f"it loaded --subject {state.subject}")
        state.know(subjects.load(state.subject))
    supervisor.tell_doing(config, "no test ran in it")
    config.stash[STATE] = state
    config.pluginmanager.register(state.complete, "peft-harness-complete")
    config.pluginmanager.register(_Collector(state), "peft-harness-collector")


def _keep_benchmarks_out_of_here(config: pytest.Config) -> None:
    """Have pytest-benchmark make its folder among the temporary files, unless the user saves benchmarks or names a folder."""
    option = config.option
    saves = getattr(option, "benchmark_save", None) or getattr(option, "benchmark_autosave", False)
    if getattr(option, "benchmark_storage", None) == "file://./.benchmarks" and not saves:
        option.benchmark_storage = f"file://{tempfile.gettempdir()}/benchmarks"


class _AtCtrlC:
    """Ends the session soon after Ctrl-C.

    - xdist would wait ten seconds for workers to come to the end of their tests.
    - pytest and Python would look through upstream's two million objects for garbage, seven times (3 s on a busy machine).
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self) -> None:
        guard.end_the_others()
        gc.freeze()


def pytest_sessionstart(session: pytest.Session) -> None:
    # pytest registers its reporter after `pytest_configure` of a conftest's plugins.
    manager = session.config.pluginmanager
    reporter = manager.getplugin("terminalreporter")
    if hasattr(session.config, "workerinput"):
        return
    manager.register(JUnitProperties(_PROPERTY), "peft-harness-junit")
    if reporter is not None:
        manager.register(terminal.Terminal(session.config, reporter), "peft-harness-terminal")


def _prepare_training(state: State) -> None:
    """Import upstream, and the modules of --preload before it, and prepare the process that ranks are forked from."""
    from harness.processes import ranks
    from harness.processes.imports import import_upstream

    import_upstream(state.preload)
    ranks.settings.preloads = tuple(state.preload)
    ranks.settings.torchrun = state.torchrun
    if state.device == "cpu":
        # Nothing has been trained in this process yet, so its ranks can be forked from a copy of it.
        ranks.prepare(pristine=True)
    else:
        # This process has started CUDA. The first group of ranks starts a process that has not.
        ranks.end()


def _check_outputs(config: pytest.Config) -> None:
    """Raise UsageError if a file that is written at the end cannot be written."""
    if hasattr(config, "workerinput"):
        return
    for option in ("--json", "--html", "--junitxml", "--journal"):
        file = config.getoption("xmlpath" if option == "--junitxml" else option, None)
        if file:
            check_writable(option, file)


def _check_options(state: State, config: pytest.Config) -> None:
    if state.device == "cuda":
        # cuBLAS reads it once, at the first matrix product. Without it full_determinism=True would be refused later.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if config.getoption("--record"):
        from harness.throughput.baselines import clean_commit

        if config.getoption("numprocesses", None):
            raise UsageError("--record: only one process can record; run with -n 0")
        state.commit = clean_commit()


def pytest_report_header(config: pytest.Config) -> list[str]:
    state = config.stash[STATE]
    described = environment.describe(state.device)
    stack = ", ".join(f"{name} {version}" for name, version in described["versions"].items() if version)
    names = ", ".join(patches.names(state.device))
    patched = f"patched for speed: {names}; --unpatched turns them off" if names else "patched for speed: nothing"
    said = [f"{one.where}: {sentence}" for one in state.brought for sentence in one.said]
    if has_pytest_html(config) and config.getoption("--html", None):
        said.append("--html: the plugin pytest-html writes it; with -p no:html it is peft-harness's page")
    return [f"judged: {state.subject} on {described['device']}", f"stack: {stack}", patched, *said]


# ---- collection ----


class _SuiteModule(pytest.Module):
    """A file of suites/, imported as `harness.suites.NAME` in a checkout and in a wheel alike."""

    def _getobj(self) -> Any:
        return importlib.import_module(f"harness.suites.{self.path.stem}")


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module | None:
    """Import suites/ by its one name. pytest would derive another from the path, and put a folder on sys.path."""
    ours = module_path.resolve().parent == paths.ROOT / "suites"
    return _SuiteModule.from_parent(parent, path=module_path) if ours else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect test_specs.py if runs were brought with --spec, and the other files of suites/ if none was."""
    if not collection_path.name.startswith("test_") or collection_path.resolve().parent != paths.SUITES.resolve():
        return None
    return True if (collection_path.name == _BROUGHT) != bool(config.stash[STATE].brought) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test its cases, keep the tests of the chosen clauses, and check that suites and contract agree."""
    state = config.stash[STATE]
    clauses = contract.clauses()
    chosen: list[pytest.Item] = []
    others: list[pytest.Item] = []
    collected: list[Case] = []
    errors: list[str] = []
    for item in items:
        if _judges_brought(item) and not state.brought:
            continue  # pytest makes one test for no runs, if its file was named
        ids = [id for mark in item.iter_markers("clause") for id in mark.args]
        unknown = [id for id in ids if id not in clauses]
        if len(ids) != 1 and not (ids and "draw" in getattr(item, "fixturenames", ())):
            errors.append(f"{item.nodeid} names {len(ids)} clauses; a test judges one, unless it draws its runs")
        elif unknown:
            errors.append(f"{item.nodeid} names clause {unknown[0]!r}, which harness/contract/ does not have")
        else:
            cases = [_case(item, id, state) for id in ids]
            item.stash[CASES] = [case for case in cases if case.clause in state.clauses]
            wanted = _judges_brought(item) == bool(state.brought)
            (chosen if item.stash[CASES] and wanted else others).append(item)
            collected += cases
    if _is_whole(config):
        tested = {case.clause for case in collected}
        errors += [f"clause {id} has no test in suites/" for id in clauses if id not in tested]
        errors += _stale(state, collected)
    if not errors and _writes_the_list(config):
        try:
            state.journal.collected([case for item in [*chosen, *others] for case in item.stash.get(CASES, [])])
        except OSError as error:
            errors.append(out_of_space(error) or f"{state.journal.file}: cannot be written ({reason(error)})")
    if errors and hasattr(config, "workeroutput"):
        # An exception would end the worker, and xdist would print a traceback without these sentences. The controller
        # prints them (`pytest_testnodedown`).
        config.workeroutput[_ERRORS] = errors
        items[:] = []
        return
    if errors:
        raise pytest.UsageError("\n".join(errors))
    if len(chosen) < len(items):
        config.hook.pytest_deselected(items=others)
        items[:] = chosen
    # Here and not in a fixture, so that the time of the imports is not counted for the first case.
    if any("runs" in getattr(item, "fixturenames", ()) for item in items):
        with _usage_errors_end_the_session():
            _prepare_training(state)


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Leave what --keyword and markers have deselected out of the list of cases that are going to be judged."""
    config = items[0].config if items else None
    if config is not None and STATE in config.stash and _writes_the_list(config):
        with contextlib.suppress(OSError):  # a full disk: the next case that is written says so
            config.stash[STATE].journal.deselected({item.nodeid for item in items})


def _writes_the_list(config: pytest.Config) -> bool:
    """Return whether this process writes the list of collected cases: the first worker, or the only process."""
    return bool(getattr(config, "workerinput", {}).get("workerid", "gw0") == "gw0")


def _case(item: pytest.Item, clause: str, state: State) -> Case:
    name = scenario(item) + "/shimmed" * _is_shimmed(item, state.device)
    case = Case(clause, name, item.nodeid, state.subject, state.device)
    if (brought := _brought(item)) is not None:
        case.brought, case.specs = True, [brought.spec.to_json()]
    return case


def _judges_brought(item: pytest.Item) -> bool:
    return "judge_brought" in getattr(item, "fixturenames", ())


def _brought(item: pytest.Item) -> Brought | None:
    """Return the run of --spec that a test judges; None if it judges one of the suites' own."""
    callspec = getattr(item, "callspec", None)
    found = callspec.params.get("brought") if callspec else None
    return found if isinstance(found, Brought) else None


def scenario(item: pytest.Item) -> str:
    """Return the scenario's name: of the run of --spec; else the id of the test's parameters, or the test's name."""
    if (brought := _brought(item)) is not None:
        return brought.name
    callspec = getattr(item, "callspec", None)
    return callspec.id if callspec is not None else item.name.removeprefix("test_")


def cases_of(item: pytest.Item) -> list[Case]:
    """Return the cases that a collected test will judge."""
    return item.stash.get(CASES, [])


def judged(config: pytest.Config) -> list[Case]:
    """Return the cases that have been judged so far."""
    return config.stash[STATE].cases


def _is_shimmed(item: pytest.Item, device: str) -> bool:
    """Return whether a case trains with the harness's own stand-in for a device (`harness.processes.shims`)."""
    callspec = getattr(item, "callspec", None)
    values = [getattr(value, "spec", value) for value in callspec.params.values()] if callspec else []
    specs = [value for value in values if isinstance(value, RunSpec)]
    return any(spec.on_device(device).launch.shimmed for spec in specs)


def _is_whole(config: pytest.Config) -> bool:
    """Return whether all of suites/ was asked for, so that a clause without a test is an error."""
    # pyproject.toml and suites.ini add these expressions. Cases that are slow are collected before they are left out.
    marked = config.getoption("markexpr") not in ("", "not slow", "not network and not slow")
    filtered = any(config.getoption(option) for option in ("keyword", "deselect", "ignore", "ignore_glob"))
    args = [Path(str(arg)) for arg in config.args]
    if config.stash[STATE].brought:
        return False
    return not (filtered or marked) and any(path.resolve() == paths.SUITES for path in args)


def _stale(state: State, cases: list[Case]) -> list[str]:
    """Return a sentence for each known defect whose clause and scenario name no case."""
    return [
        f"{one.path}: {one.clause} {one.scenario!r} names no case"
        for one in state.expectations
        if not any(case.clause == one.clause and one.names(case.scenario) for case in cases)
    ]


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[VERDICTS], cases = [], item.stash[CASES]
    if (runs := item.config.stash[STATE].runs) is not None:
        runs.broken.clear()
        runs.completed = runs.built = 0
        runs.clause = cases[0].clause if len(cases) == 1 else ""
    if reason := _outside(item, item.config.stash[STATE].concerns):
        raise Outside(f"{concerns.OUTSIDE}{reason}")
    if len(cases) > 1:
        return
    clause = contract.clauses()[cases[0].clause]
    skip_if(item.config.stash[STATE].traits.why_not(clause, cases[0].scenario))
    for requirement in clause.needs:
        if unmet := environment.unmet(requirement):
            pytest.skip(unmet)


def _outside(item: pytest.Item, chosen: concerns.Concerns) -> str:
    """Say which part of a test's run is outside of the user's scope; "" if the test is judged."""
    if chosen.all or _judges_brought(item):
        return ""
    if "draw" in getattr(item, "fixturenames", ()):
        return "drawn runs, which have any route, method and launch"
    callspec = getattr(item, "callspec", None)
    for name, value in callspec.params.items() if callspec else ():
        value = getattr(value, "spec", value)
        if isinstance(value, RunSpec):
            found = chosen.outside(value)
        else:
            found = chosen.outside_by_name(name, value) if name in concerns.NAMES and isinstance(value, str) else ""
        if found:
            return found
    return ""


# ---- verdicts ----


# Innermost, so that pytest's own wrappers see the outcome that is set here.
@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    if call.excinfo is not None and isinstance(call.excinfo.value, DrawnFailure):
        # `decide` prints the verdict. A traceback would show the tensors of a trace, and take as long to make as a run.
        item.repr_failure = lambda excinfo, style=None: str(excinfo.value)  # type: ignore[method-assign]
    outcome = yield
    cases = item.stash.get(CASES, [])
    for case in cases:
        case.seconds += call.duration / len(cases)
    if not cases or call.when == "teardown" or (call.when == "setup" and outcome.passed):
        return outcome
    for case in cases:
        decide(item.config.stash[STATE], item, case, call, outcome)
        item.user_properties.append((_PROPERTY, json.dumps(asdict(case))))
    outcome.user_properties = list(item.user_properties)
    return outcome


# ---- the end ----


class _Collector:
    """Collects the cases of this process, or under xdist of all workers, in the order in which they ended."""

    def __init__(self, state: State):
        self.state = state

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == _PROPERTY and report.when in ("setup", "call"):
                self.state.complete.judged(report.nodeid)
                self._ended(Case(**json.loads(str(value))))
        when: str | None = report.when
        if when == "???":  # xdist's word for a test whose worker died in it
            self.state.complete.judged(report.nodeid)
            for case in self.state.journal.of(report.nodeid):
                case.verdict = FAIL
                case.evidence = {"expected": RUNS_TO_ITS_END, "seen": [_fate(report)]}
                self._ended(case)

    def _ended(self, case: Case) -> None:
        if case.nodeid in self.state.journal.ended:
            return  # The supervisor replays what an earlier process judged and wrote into the journal.
        self.state.cases.append(case)
        if not case.misused:  # It is judged once the subject is right.
            self.state.journal.keep(case)


def _fate(report: pytest.TestReport) -> str:
    words = str(report.longrepr).strip()
    # xdist knows only that the worker is gone.
    return words if words.startswith(supervisor.ENDED) else f"{words} (killed, crashed, or ended at --case-limit)"


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
    if exitstatus == 0 and session.config.option.collectonly:
        exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
    code = complete.exit_code(state.complete, state.cases, state.named, exitstatus)
    if state.json is not None or state.html is not None:
        described = environment.describe(state.device) | {"patches": patches.names(state.device)}
        described |= {"subject": state.subject, "preloads": list(state.preload)}
        facts = {"date": environment.now(), **complete.facts(state.complete, exitstatus)}
    if state.json is not None:
        try:
            report.write_json(Path(state.json), state.cases, described, facts, state.causes())
        except OSError as error:
            state.unwritten.append(f"--json {state.json}: cannot be written ({reason(error)})")
    if state.html is not None:
        try:
            write_whole(Path(state.html), web_page.write(report.to_json(state.cases, described, facts)))
        except (OSError, UsageError) as error:
            why = reason(error) if isinstance(error, OSError) else str(error)
            state.unwritten.append(f"--html {state.html}: cannot be written ({why})")
    if state.journal.failure:
        state.unwritten.append(state.journal.failure)
    # What was asked for is not all there.
    session.exitstatus = 2 if state.unwritten and code in (0, 3) else code


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the ranks, so that an outer session in this process does not get ranks with this one's preloads and faults."""
    from harness.processes import ranks

    if config.stash.get(STATE, None) is not None:
        ranks.end()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker of `-n 2` one half of the tests, and the one that is done first a part of what the other has left.

    Each worker trains what its tests ask for. Tests that follow each other ask for the same runs, and xdist's own way
    (`--dist load`) deals them out by turns, so that both workers train them: a fifth of all runs.
    """
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    journal = node.config.stash[STATE].journal
    node.workerinput["peft_harness_journal"] = str(journal.file)
    node.workerinput["peft_harness_journal_cases"] = len(journal.cases)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    output = getattr(node, "workeroutput", {})
    state = node.config.stash[STATE]
    state.errors = output.get(_ERRORS, state.errors)
    if (done := output.get("peft_harness")) is not None:
        state.effort.add(report.Effort(**done))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    terminal.print_summary(terminalreporter, config)
