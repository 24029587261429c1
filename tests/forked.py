"""Run `python -m MODULE` or `python -c CODE` in a fork of a process that has imported upstream.

A new process would import it first, which takes 5 s of CPU time, and tests of the command line start some fifty. `prepare`
forks a helper from this process before any test has trained (what has trained cannot be forked:
`harness.processes.fork_server`). `run` asks it for a process, which has its own arguments, directory, variables, module
search path and streams. What that one starts with `python -m pytest` or `python -m harness`, and workers of xdist, are
forks as well.

What a fork does not show: that modules are imported in an order that works, and what Python does at its start and end.
tests/test_wheel.py, tests/test_ci.py and tests/test_interrupted.py start new processes.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import itertools
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from harness.paths import ROOT
from harness.processes.group import receive, send
from harness.processes.rank import close_inherited, die_with_parent

#: What the helper imports at its first task. Tests that were collected have imported most of it.
IMPORTED = ("torch", "transformers.trainer", "peft", "accelerate", "harness.cli", "harness.session.plugin")

#: Modules that are run in a fork. Others, such as torchrun, are started by processes that may have trained.
FORKED = ("pytest", "harness", "harness.cli")

#: What xdist starts its workers with.
_WORKER = "import sys;exec(eval(sys.stdin.readline()))"

_channel: socket.socket | None = None


def prepare() -> None:
    """Fork the helper. Nothing may have been trained in this process. A second call does nothing."""
    global _channel
    if _channel is not None:
        return
    _channel, theirs = socket.socketpair()
    owner = os.getpid()
    if os.fork() == 0:
        try:
            die_with_parent(owner)
            close_inherited(theirs.fileno())
            _serve(theirs)
        finally:
            os._exit(1)
    theirs.close()


def end() -> None:
    """End the helper."""
    global _channel
    if _channel is not None:
        _channel.close()
        _channel = None


def run(
    command: Sequence[str], cwd: str | Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 900.0
) -> subprocess.CompletedProcess[str]:
    """Run a command that begins with sys.executable to its end, as `subprocess.run` does, and return what it printed.

    Raises subprocess.TimeoutExpired if it had not ended after `timeout` seconds; it is killed.
    """
    assert _channel is not None, "tests/conftest.py calls prepare()"
    send(_channel, (list(command), str(cwd or os.getcwd()), dict(os.environ if env is None else env), timeout))
    code, output, errors = receive(_channel)
    if code is None:
        raise subprocess.TimeoutExpired(list(command), timeout, output, errors)
    return subprocess.CompletedProcess(list(command), code, output, errors)


def _serve(channel: socket.socket) -> None:
    subprocess.Popen = _Popen
    ready = False
    while True:
        with contextlib.suppress(EOFError, OSError):
            command, cwd, env, timeout = receive(channel)
            if not ready:
                for name in IMPORTED:
                    importlib.import_module(name)
                ready = True
            with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
                process = _First(
                    command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
                    start_new_session=True,
                )  # fmt: skip
                try:
                    code = process.wait(timeout)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    code = None
                said = [(file.seek(0), file.read().decode(errors="replace"))[1] for file in (output, errors)]
            send(channel, (code, *said))
            continue
        os._exit(0)


class _Popen(subprocess.Popen):
    """subprocess.Popen that forks instead of starting another Python, where a fork does the same."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, *rest: Any) -> None:
        pass_fds, cwd, env, _startupinfo, _flags, shell, *pipes = rest[:12]
        start_new_session = rest[17]
        if shell or executable or not self._forks(args):
            super()._execute_child(args, executable, preexec_fn, close_fds, *rest)
            return
        reads, writes, errors = pipes[0], pipes[3], pipes[5]
        pid = os.fork()
        if pid == 0:
            try:
                _take(reads, writes, errors)
                if start_new_session:
                    os.setsid()
                if preexec_fn is not None:
                    preexec_fn()
                _close_all_but(pass_fds)
                _become([os.fspath(word) for word in args], cwd, env)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(255)
        self.pid = pid
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _forks(self, args: Any) -> bool:
        words = [args] if isinstance(args, (str, bytes, os.PathLike)) else [os.fspath(word) for word in args]
        return words[0] == sys.executable and any(
            (flag == "-m" and word in FORKED) or (flag == "-c" and word == _WORKER)
            for flag, word in itertools.pairwise(words[1:5])
        )


class _First(_Popen):
    """The process that a test asks for. It is forked whatever it runs, for the helper has trained nothing."""

    def _forks(self, args: Any) -> bool:
        return True


def _take(*descriptors: int) -> None:
    """Make these descriptors 0, 1 and 2. -1 leaves one as it is."""
    copies = [os.dup(each) if each != -1 else -1 for each in descriptors]
    for number, copy in enumerate(copies):
        if copy != -1:
            os.dup2(copy, number)


def _close_all_but(kept: Sequence[int]) -> None:
    before = 2
    for each in sorted(kept):
        os.closerange(before + 1, each)
        before = each
    os.closerange(before + 1, 4096)


def _become(words: Sequence[str], cwd: str | None, env: Mapping[str, str] | None) -> NoReturn:
    """Be the process that these words would start, to its end."""
    # What this process has registered belongs to its parent.
    atexit._clear()
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if env is not None:
        os.environ.clear()
        os.environ.update({os.fsdecode(name): os.fsdecode(value) for name, value in env.items()})
    if cwd is not None:
        os.chdir(cwd)
    tempfile.tempdir = None
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    at = next(index for index, word in enumerate(words) if word in ("-m", "-c"))
    first = [] if "-P" in words[:at] else [os.getcwd()]
    named = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*first, *named, *(path for path in sys.path if path not in {"", str(ROOT), *before})]
    sys.argv = ["-c" if words[at] == "-c" else words[at + 1], *words[at + 2 :]]
    code: object = 0
    try:
        if words[at] == "-c":
            exec(words[at + 1], {"__name__": "__main__"})
        else:
            runpy.run_module(words[at + 1], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    for printed in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            printed.flush()
    os._exit((code or 0) & 255)
