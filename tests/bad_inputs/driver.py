"""Run a bad input in this process, and say what is wrong with the answer.

A command that starts pytest gets a session in this process instead: that is the same session without the imports.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

from tests.bad_inputs.row import Row

#: Seconds that a row may take when upstream has been imported. The commands promise one second; the rest is for a
#: machine that does other work at the same time.
ALLOWED = 3.0
#: Seconds after which a row is ended.
LIMIT = 8
#: Bytes of address space for a row in a process of its own. Upstream's imports alone take a third of it.
MEMORY = 16 * 2**30


class TooSlow(BaseException):
    """Ends a row that has not ended by itself."""


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, what it printed, how long it took, and the files that it changed."""

    code: int
    output: str
    errors: str
    seconds: float
    changed: tuple[str, ...]

    def faults(self, row: Row) -> list[str]:
        """Return a sentence for each thing that is wrong with the answer."""
        sentences = [line for line in self.errors.splitlines() if line.startswith(row.says)]
        found = []
        if "Traceback" in self.errors + self.output or "INTERNALERROR" in self.errors + self.output:
            found.append("prints a traceback")
        if self.code not in (row.codes or (row.code,)):
            found.append(f"exit code {self.code}, expected {' or '.join(map(str, row.codes or (row.code,)))}")
        if "internal error" in self.errors:
            found.append("is an internal error")
        if len(sentences) != 1 and self.code == 2:
            found.append(f"{len(sentences)} sentences on stderr, expected 1")
        if row.answer.lower() not in (self.errors + self.output).lower():
            found.append(f"does not say {row.answer!r}")
        if self.seconds > ALLOWED and not row.own_child:
            found.append(f"takes {self.seconds:.1f} s")
        if self.changed:
            found.append(f"changes {', '.join(self.changed)}")
        return found


def run(row: Row, directory: Path) -> Outcome:
    """Run a row in a directory of its own, and return what it did.

    The home directory, the directory for temporary files and the cache are made beside it, and are watched.
    """
    places = {name: directory / name for name in ("home", "tmp", "cache", "mine")}
    for place in places.values():
        place.mkdir(parents=True)
    (directory / "precious").mkdir()
    (directory / "precious" / "thesis.txt").write_text("the only copy\n")
    words = row.prepare(places["mine"])
    before = _snapshot(directory)
    done = _forked(row, words, places) if row.forked else _here(row, words, places)
    changed = _changes(before, _snapshot(directory))
    return Outcome(*done, tuple(changed))


def _here(row: Row, words: list[str], places: dict[str, Path]) -> tuple[int, str, str, float]:
    output, errors = io.StringIO(), io.StringIO()
    began = time.monotonic()
    with _surroundings(row, places), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        began = time.monotonic()
        try:
            code = _main(words)
        except TooSlow:
            code = -1
            errors.write(f"was ended after {LIMIT} s\n")
        except BaseException as error:
            code = 1  # as Python ends
            errors.write(f"Traceback: {type(error).__name__}: {error}\n")
        seconds = time.monotonic() - began
    return code, output.getvalue(), errors.getvalue(), seconds


def _forked(row: Row, words: list[str], places: dict[str, Path]) -> tuple[int, str, str, float]:
    """Run a row in a forked process, with the children that it starts. Its exit status may be the answer."""
    readable, writable = os.pipe()
    with tempfile.TemporaryFile() as printed:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os.close(readable)
            os.setpgid(0, 0)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            done = pickle.dumps(_here(row, words, places))
            with os.fdopen(writable, "wb") as stream:
                stream.write(len(done).to_bytes(8, "little") + done)
            os._exit(99)
        os.close(writable)
        with os.fdopen(readable, "rb") as stream:
            answer = _answer(stream)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # such as the million workers that a row asks for
        printed.seek(0)
        by_children = printed.read().decode(errors="replace")
    if answer:
        code, output, errors, seconds = pickle.loads(answer)
        return code, output, errors + by_children, seconds
    return os.waitstatus_to_exitcode(status), "", by_children, time.monotonic() - began


def _answer(stream: BinaryIO) -> bytes:
    """Return what the child wrote. Its own children may hold the pipe open, so its end is not waited for."""
    head = stream.read(8)
    return stream.read(int.from_bytes(head, "little")) if len(head) == 8 else b""


def _main(words: list[str]) -> int:
    from harness.cli import main

    sys.argv = ["peft-harness", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


@contextlib.contextmanager
def _surroundings(row: Row, places: dict[str, Path]) -> Iterator[None]:
    """Give a row its own directories, variables and modules, and take them back."""
    variables = {
        "HOME": str(places["home"]),
        "TMPDIR": str(places["tmp"]),
        "PEFT_HARNESS_CACHE": str(places["cache"]),
        "COLUMNS": "200",
    }
    here, argv, path, modules = os.getcwd(), sys.argv, list(sys.path), set(sys.modules)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}

    def end(*_: Any) -> None:
        raise TooSlow

    with mock.patch.dict(os.environ, variables | dict(row.variables)), mock.patch.object(tempfile, "tempdir", None):
        with mock.patch.object(
            subprocess, "run", subprocess.run if row.own_child else _run_pytest_here(subprocess.run)
        ):
            os.chdir(places["mine"])
            signal.signal(signal.SIGALRM, end)
            signal.alarm(60 if row.own_child else LIMIT)
            try:
                yield
            finally:
                signal.alarm(0)
                for number, handler in handlers.items():
                    signal.signal(number, handler)
                os.chdir(here)
                sys.argv, sys.path[:] = argv, path
                for name in set(sys.modules) - modules:
                    if str(getattr(sys.modules[name], "__file__", "")).startswith(str(places["mine"])):
                        del sys.modules[name]


def _run_pytest_here(run: Any) -> Any:
    """Return a stand-in for subprocess.run that runs pytest in this process, without workers."""

    def instead(command: Any, *arguments: Any, **options: Any) -> Any:
        words = [str(word) for word in command]
        if "pytest" not in words or words[words.index("pytest") - 1] != "-m":
            return run(command, *arguments, **options)
        import pytest

        rest = words[words.index("pytest") + 1 :]
        for workers in (["-n", "auto"], ["--maxprocesses", "4"]):
            if workers[0] in rest:
                at = rest.index(workers[0])
                del rest[at : at + 2]
        code = pytest.main([*rest, "-p", "no:cacheprovider", "--capture=no"])
        return subprocess.CompletedProcess(command, int(code), "", "")

    return instead


def _snapshot(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Return size, time and kind of each file below a directory. Links are not followed."""
    found = {}
    for folder, names, files in os.walk(directory):
        for name in [*names, *files]:
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                about = os.lstat(path)
                size = 0 if name in names else about.st_size
                found[os.path.relpath(path, directory)] = (
                    size,
                    0 if name in names else about.st_mtime_ns,
                    about.st_mode,
                )
    return found


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the files that differ. New entries of the cache are the harness's own."""
    new = [name for name in after if name not in before and not name.startswith("cache/")]
    return sorted([name for name in before if before[name] != after.get(name)] + new)
