"""Watch over a session of the suites from a process in which no code of the user's runs.

1. Before the plugin is configured, `pytest_cmdline_main` forks. Only torch is imported by then, with the laws, and nothing
   has used it. The child runs the session.
2. The child tells its parent, the supervisor, what it is doing, which test runs, each report, and the session's exit code
   (`Told`).
3. If a test ends the child, or runs longer than --case-limit, the test has failed. Another child gets all reports so far,
   replays them (`Replay`), and runs the tests that are left.
4. The exit code is the one that the last child told. If it told none, the session judged nothing for certain: the
   supervisor says why, and the code is 2.

Under xdist the workers run the tests, and xdist itself replaces a worker that ends. Each worker ends itself at --case-limit.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import pytest

from harness.processes.parent_watch import OWNER
from harness.processes.rank import die_with_parent
from harness.words import counted

#: Seconds that a case may take. The slowest takes 10 s on two busy cores.
LIMIT = 240.0

#: The same where a case may compile an extension of DeepSpeed (900 s, `harness.processes.launch`), wait for a GPU, or time
#: steps for minutes.
LONG_LIMIT = 1200.0

#: Profiles of hypothesis whose cases draw hundreds of runs, and so have no limit unless one is given.
_ENDLESS = ("deep", "soak")

#: After so many tests have ended their process, the rest is not run: each costs imports of upstream, or the limit.
MOST_ENDED = 10

#: Seconds that a session's process may take to end after it has told its exit code. Threads of the user's may go on.
_FAREWELL = 60.0

#: Seconds that a hung process has to write its stack, and how many lines of it are shown.
_LAST_WORDS, _LINES = 2.0, 60

#: How the report of such a test begins.
ENDED = "the process that ran"

#: Signals that ask a session to end. One that ends a test's process is no failure of that test.
_REQUESTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

#: Seconds that a session has to end after such a signal. After Ctrl-C pytest prints its summary and writes reports.
_GRACE, _SHORT_GRACE = {signal.SIGINT: 15.0}, 2.0

#: Seconds within which a second Ctrl-C is the same one. A terminal sends it to both processes, and one passes it on.
_SAME = 1.0

_TICK = 0.05

#: If this process did not run for so many seconds, both were stopped (Ctrl-Z). That is not the test's time.
_STOPPED = 5.0


def _anonymous_file() -> IO[bytes]:
    return os.fdopen(os.memfd_create("stack"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("peft-harness").addoption(
        "--case-limit",
        type=float,
        default=None,
        metavar="S",
        help=f"End a case after S seconds, show its stack, count it as failed, and go on. 0: never. Default: {LIMIT:g}; "
        f"{LONG_LIMIT:g} with --device cuda, --timed or --unpatched; 0 with --hypothesis-profile deep or soak.",
    )


def case_limit(config: pytest.Config) -> float:
    """Return after how many seconds a case is ended; 0 if never."""
    chosen: float | None = config.getoption("--case-limit")
    if chosen is not None:
        return max(0.0, chosen)
    if config.getoption("--hypothesis-profile", None) in _ENDLESS:
        return 0.0
    slow = config.getoption("--device") == "cuda" or config.getoption("--timed") or config.getoption("--unpatched")
    return LONG_LIMIT if slow else LIMIT


# ---- the supervisor ----


@dataclass
class Told:
    """What the children of a supervisor have told it, one JSON object a line.

    - doing: what the child does before the tests run.
    - running: (node id, location) of the test that runs; None between tests.
    - reports: the serialized reports of all tests so far.
    - code: the session's exit code; None until the session has ended.
    - since: when the last line came.
    """

    doing: str = "it started"
    running: tuple[str, Any] | None = None
    reports: list[dict[str, Any]] = field(default_factory=list)
    code: int | None = None
    since: float = field(default_factory=time.monotonic)

    def add(self, line: bytes) -> None:
        ((kind, value),) = json.loads(line).items()
        self.since = time.monotonic()
        if kind == "report":
            self.reports.append(value)
        else:
            setattr(self, kind, value)


class Supervisor:
    """Runs the session in children, one after the other, and returns its exit code (`run`)."""

    def __init__(self, limit: float):
        self.limit = limit
        self.told = Told()
        self.ended = 0
        self._pid = 0
        self._asked_to_end, self._asked_at = 0, 0.0
        # The child ends with this process, and this one with its own owner (`harness.processes.parent_watch`).
        self._owner = int(os.environ.pop(OWNER, "0"))

    def run(self) -> Child | int:
        """Return the exit code in the supervisor, and a Child in each child."""
        with self._passing_signals_on() as blocked:
            while True:
                reads, writes = os.pipe()
                stack = _anonymous_file()
                sys.stdout.flush()
                sys.stderr.flush()
                parent = os.getpid()
                # A signal waits until the new process knows what to do with it.
                signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
                self._pid = os.fork()
                if self._pid == 0:
                    break
                signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
                os.close(writes)
                with os.fdopen(reads, "rb", buffering=0) as pipe, stack:
                    status, hung = self._watch(pipe)
                    self._pid = 0
                    fate = self._fate(status, hung, stack)
                if not self._goes_on(status, fate):
                    return self._code(status, fate)
        # The child, in which signals do again what they did.
        os.close(reads)
        child = Child(writes, stack, self.told.reports, gives_up=self.ended >= MOST_ENDED)
        die_with_parent(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        return child

    @contextlib.contextmanager
    def _passing_signals_on(self) -> Iterator[list[signal.Signals]]:
        def pass_on(number: int, frame: Any) -> None:
            self._asked_to_end, self._asked_at = number, time.monotonic()
            if self._pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, number)

        # One that the caller made this process ignore, as nohup does, stays ignored.
        before = {each: signal.getsignal(each) for each in _REQUESTS if signal.getsignal(each) != signal.SIG_IGN}
        for each in before:
            signal.signal(each, pass_on)
        try:
            yield list(before)
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _watch(self, pipe: IO[bytes]) -> tuple[int, bool]:
        """Read what the child tells, until it has ended. Return its exit status (-N: signal N), and whether it hung."""
        os.set_blocking(pipe.fileno(), False)
        rest, is_open, looked = b"", True, time.monotonic()
        while True:
            if is_open:
                select.select([pipe], [], [], _TICK)
            else:
                time.sleep(_TICK)
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            while part := pipe.read(1 << 16):
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    self.told.add(line)
            is_open = part is None  # b"" at the end, None if there is nothing to read now
            if ended:
                return os.waitstatus_to_exitcode(status), False
            if self._owner and os.getppid() != self._owner:
                os.kill(self._pid, signal.SIGKILL)
                os._exit(2)
            now = time.monotonic()
            if now - looked > _STOPPED:
                self.told.since += now - looked
            looked = now
            if self._asked_to_end and now - self._asked_at > _GRACE.get(
                signal.Signals(self._asked_to_end), _SHORT_GRACE
            ):
                # A call in C never looks at signals.
                os.kill(self._pid, signal.SIGKILL)
                return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]), False
            limit = _FAREWELL if self.told.code is not None else self.limit if self.told.running else 0.0
            if limit and now - self.told.since > limit:
                return self._end_child(), self.told.code is None

    def _end_child(self) -> int:
        os.kill(self._pid, signal.SIGUSR1)
        time.sleep(_LAST_WORDS)
        os.kill(self._pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _fate(self, status: int, hung: bool, stack: IO[bytes]) -> str:
        """Say how a child ended."""
        if hung:
            stack.seek(0)
            lines = stack.read().decode(errors="replace").splitlines()[:_LINES]
            return "\n".join([f"had not ended after {self.limit:g} s (--case-limit)", *lines])
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"

    def _goes_on(self, status: int, fate: str) -> bool:
        """Return whether another child shall go on. The test that ended this one is noted as failed."""
        requested = self._asked_to_end or any(status in (-each, 128 + each) for each in _REQUESTS)
        if self.told.code is not None or requested or self.told.running is None:
            return False
        nodeid, location = self.told.running
        self.ended += 1
        self.told.reports.append({CRASHED: [nodeid, location, f"{ENDED} {nodeid} {fate}"]})
        self.told.running, self.told.since = None, time.monotonic()
        _say(f"{ENDED} {nodeid} {fate.splitlines()[0]}; going on without it")
        return True

    def _code(self, status: int, fate: str) -> int:
        if self._asked_to_end and self.told.code is None:
            return 128 + self._asked_to_end
        code = self.told.code
        if code is not None:
            if code != status:
                _say(f"the session ended with {code}, and its process afterwards {fate}; {code} counts")
            return code
        if status < 0 and -status in _REQUESTS:
            return 128 - status
        if status in [128 + each for each in _REQUESTS]:
            return status
        _say(f"the process that judges {fate} while {self.told.doing}, so nothing is judged for certain")
        return 2


def _say(sentence: str) -> None:
    print(f"peft-harness: {sentence}", file=sys.stderr, flush=True)


# ---- the child ----

#: The key of a test that ended its process, among the reports.
CRASHED = "crashed"


class Child:
    """The child's end: a pytest plugin that tells the supervisor what happens.

    - reports: those of earlier children.
    - gives_up: whether the tests that are left are not run.
    """

    def __init__(self, pipe: int, stack: IO[bytes], reports: list[dict[str, Any]], gives_up: bool):
        self._pipe = pipe
        self._owner = os.getpid()
        self.reports = reports
        self.gives_up = gives_up
        self._replays = False
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=True, chain=False)
        self._stack = stack  # faulthandler keeps the descriptor only
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _once())

    def tell(self, kind: str, value: Any) -> None:
        """Send a line to the supervisor. Forks of the child tell nothing."""
        if os.getpid() == self._owner and not self._replays:
            line = json.dumps({kind: value}).encode() + b"\n"
            # User code may have closed the pipe. Then no exit code arrives, and the supervisor says so.
            with contextlib.suppress(OSError):
                while line:
                    line = line[os.write(self._pipe, line) :]

    def ended(self) -> set[str]:
        """Return the node ids of the tests that earlier children ran."""
        return {report[CRASHED][0] if CRASHED in report else report["nodeid"] for report in self.reports}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self.tell("running", [nodeid, location])

    # Last, so that what a plugin does with the report is done when the supervisor has it.
    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.tell("running", None)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not self._replays:
            self.tell("report", self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_enter_pdb(self) -> None:
        self.tell("running", None)

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        ended = self.ended()
        items[:] = [item for item in items if item.nodeid not in ended]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, Any, Any]:
        """Replay the reports of earlier children, and run the tests that are left."""
        in_collection = session.testsfailed
        self._replay(session)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if self.gives_up:
            what = counted(sum(CRASHED in data for data in self.reports), "test")
            raise session.Interrupted(f"{what} ended their process; the tests that are left are not run")
        # pytest takes failures before its loop for errors of the collection.
        replayed = session.testsfailed - in_collection
        session.testsfailed = in_collection
        try:
            return (yield)
        finally:
            session.testsfailed += replayed

    def _replay(self, session: pytest.Session) -> None:
        """Pass reports to all plugins, as xdist does with those of its workers."""
        hook, config = session.config.hook, session.config
        self._replays = True
        session.testscollected += len(self.ended())
        before = ""
        for data in self.reports:
            report = _crash_report(*data[CRASHED]) if CRASHED in data else _report(config, data)
            if report.nodeid != before:
                hook.pytest_runtest_logstart(nodeid=report.nodeid, location=report.location)
            hook.pytest_runtest_logreport(report=report)
            if report.when in ("teardown", "???"):
                hook.pytest_runtest_logfinish(nodeid=report.nodeid, location=report.location)
            before = report.nodeid
        self._replays = False


def _once() -> Any:
    """Return a handler of Ctrl-C that takes two within _SAME seconds for one."""
    last = -_SAME

    def interrupt(number: int, frame: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SAME:
            last = now
            signal.default_int_handler(number, frame)

    return interrupt


def _report(config: pytest.Config, data: dict[str, Any]) -> pytest.TestReport:
    report: pytest.TestReport = config.hook.pytest_report_from_serializable(config=config, data=dict(data))
    return report


def _crash_report(nodeid: str, location: Any, words: str) -> pytest.TestReport:
    """Return the report of a test that ended its process. "???" is xdist's word for when."""
    return pytest.TestReport(nodeid, tuple(location), {}, "failed", words, "???")  # type: ignore[arg-type]


# ---- the hooks ----

_CHILD = pytest.StashKey[Child]()


def child_of(config: pytest.Config) -> Child | None:
    """Return the child's end in a session that has a supervisor, otherwise None."""
    return config.stash.get(_CHILD, None)


def tell_doing(config: pytest.Config, doing: str) -> None:
    """Tell the supervisor, if there is one, what this process does. doing: such as "it imported --preload x"."""
    if (child := child_of(config)) is not None:
        child.tell("doing", doing)


def _can_fork(config: pytest.Config) -> bool:
    """Return whether this is pytest's command line, outside of a debugger, that is going to run tests."""
    others = ("usepdb", "trace", "help", "version", "markers", "cacheshow", "collectonly")
    debugs_or_shows = any(getattr(config.option, name, False) for name in others)
    traced = sys.gettrace() is not None or sys.getprofile() is not None
    is_command = list(config.invocation_params.args) == sys.argv[1:] and not config.invocation_params.plugins
    alone = threading.current_thread() is threading.main_thread() and threading.active_count() == 1
    return hasattr(os, "fork") and is_command and alone and not (debugs_or_shows or traced or _is_worker(config))


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if not _can_fork(config):
        return None
    result = Supervisor(case_limit(config)).run()
    if isinstance(result, int):
        # pytest and Python would look for garbage among the objects of what is imported, which takes seconds.
        gc.freeze()
        return result
    config.stash[_CHILD] = result
    return None


def pytest_configure(config: pytest.Config) -> None:
    limit = case_limit(config)
    if _is_worker(config):
        if limit:
            config.pluginmanager.register(_WorkerLimit(limit), "peft-harness-limit")
        return
    child = child_of(config)
    if child is not None and getattr(config.option, "dist", "no") == "no":
        config.pluginmanager.register(child, "peft-harness-supervised")


class _WorkerLimit:
    """Ends a worker of xdist at --case-limit, with its stacks on stderr. xdist then counts the case as failed."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        # Tests may close or redirect stderr.
        self._stderr = os.fdopen(os.dup(2), "w")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, Any, Any]:
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._stderr)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()


class InternalErrors:
    """Notes whether pytest itself failed. Its code for that is 3, which would read as "undecided"."""

    def __init__(self) -> None:
        self.seen = False

    def pytest_internalerror(self) -> None:
        self.seen = True


def run_to_the_exit_code(config: pytest.Config) -> Generator[None, Any, Any]:
    """Wrap pytest's command: return the session's exit code, and tell the supervisor.

    A failure of pytest itself has the code 2.
    """
    errors = InternalErrors()
    config.pluginmanager.register(errors)
    code = int(pytest.ExitCode.USAGE_ERROR)
    try:
        code = int((yield))
        if errors.seen and code == pytest.ExitCode.INTERNAL_ERROR:
            code = 2
        return code
    finally:
        if (child := child_of(config)) is not None:
            child.tell("code", code)
