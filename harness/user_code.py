"""Import and call code that users bring: subjects, modules of --preload, files of mutants. A failure is one sentence.

Such code runs in this process with all its rights, so it is trusted. What is caught here are its mistakes: an exception
of any kind, sys.exit, os._exit, closed output, a changed directory, an import that does not end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import io
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from harness.errors import UsageError
from harness.paths import FIXTURES, PACKAGE, search_user_modules

#: Seconds that user code may take to be imported or called once. Upstream's imports take 20 s on two busy cores, and 60 s
#: where nothing is compiled yet.
LIMIT = 300.0

#: Characters of an exception's message that a sentence quotes.
_MOST = 300


class _Ends(BaseException):
    """User code asked for the end of the process by os._exit."""


def imported(module: str, where: str) -> ModuleType:
    """Import a module of the user's. Raises UsageError if that fails.

    - where: begins the sentence, such as "--preload my_patches:".
    """
    if module in sys.modules:
        return sys.modules[module]
    search_user_modules()
    try:
        with guarded(f"{where} cannot be imported"):
            return importlib.import_module(module)
    except UsageError:
        # It may have come to its end, and have closed stdout. A second import must not succeed.
        sys.modules.pop(module, None)
        raise


@contextlib.contextmanager
def guarded(failure: str) -> Iterator[None]:
    """Turn whatever user code within does wrong into a UsageError: "FAILURE (CAUSE, at FILE:LINE)".

    - failure: what failed, such as "--preload my_patches: cannot be imported".

    Afterwards the current directory is what it was. If the code takes longer than LIMIT, its stack is printed and the
    process ends with status 2. A UsageError passes as it is. Ctrl-C ends a command before it gets here. If pytest was
    called from Python, it is a cause like others: the session ends with 2, which is pytest's own code for it.
    """
    with _limited(failure), _same_directory(), _same_output() as closed:
        try:
            with _no_exit():
                yield
        except UsageError:
            raise
        except BaseException as error:
            if isinstance(error, GeneratorExit):
                raise
            raise UsageError(f"{failure} ({cause(error)})") from None
    if closed:
        raise UsageError(f"{failure} (it closes {' and '.join(closed)}, where results are printed)")


def cause(error: BaseException) -> str:
    """Return an exception in one line: its kind, its words, and the place in the user's code that raised it."""
    if isinstance(error, _Ends):
        words = str(error)
    elif isinstance(error, SystemExit):
        words = f"it calls sys.exit({'' if error.code is None else repr(error.code)[:_MOST]})"
    else:
        message = error.msg if isinstance(error, SyntaxError) else _message(error)
        words = f"{type(error).__name__}{f': {message}' if message else ''}"
    place = _place(error)
    return f"{words}, at {place}" if place else words


def _message(error: BaseException) -> str:
    try:
        lines = str(error).strip().splitlines()
    except Exception as broken:
        return f"its message cannot be made: {type(broken).__name__}"
    line = lines[0] if lines else ""
    text = line if line.isprintable() else ascii(line)[1:-1]
    return text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."


def _place(error: BaseException) -> str:
    """Return FILE:LINE of the innermost frame outside of Python, of installed packages and of the harness."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    ours = ("<frozen", str(PACKAGE), os.path.dirname(__file__), str(FIXTURES), str(sysconfig.get_path("stdlib")))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    installed = tuple(str(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
    # The user's own package may be an installed one, too.
    frames = [frame for frame in frames if not frame.filename.startswith(installed)] or frames
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def quoted(value: Any) -> str:
    """Return an object of the user's as messages quote it: its repr, in one line, or its kind."""
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."


@contextlib.contextmanager
def _no_exit() -> Iterator[None]:
    """Let os._exit raise within, so that a sentence can be printed. Forked children and other threads end as usual."""
    real, process, thread, within = os._exit, os.getpid(), threading.get_ident(), True

    def end(status: int) -> Any:
        if within and (os.getpid(), threading.get_ident()) == (process, thread):
            raise _Ends(f"it calls os._exit({status})")
        real(status)

    os.__dict__["_exit"] = end
    try:
        yield
    finally:
        within = False
        if os.__dict__["_exit"] is end:
            os.__dict__["_exit"] = real


@contextlib.contextmanager
def _same_directory() -> Iterator[None]:
    """Return to the current directory afterwards: the paths of results are relative to it."""
    try:
        before = os.getcwd()
    except OSError:  # it was deleted
        before = ""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if before:
                os.chdir(before)


@contextlib.contextmanager
def _same_output() -> Iterator[list[str]]:
    """Open stdout and stderr again if they were closed, and add the names of these to the list."""
    closed: list[str] = []
    copies: dict[str, tuple[int, int]] = {}
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        with contextlib.suppress(OSError):
            copies[name] = (descriptor, os.dup(descriptor))
    try:
        yield closed
    finally:
        for name, (descriptor, copy) in copies.items():
            still_open = True
            try:
                os.fstat(descriptor)
            except OSError:
                os.dup2(copy, descriptor)
                still_open = False
            if getattr(getattr(sys, name), "closed", False):
                setattr(
                    sys, name, io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), errors="backslashreplace")
                )
                still_open = False
            os.close(copy)
            if not still_open:
                closed.append(name)


@contextlib.contextmanager
def _limited(failure: str) -> Iterator[None]:
    """End the process with status 2 if the code within takes longer than LIMIT. Its stack is printed before."""
    end = os._exit

    def give_up() -> None:
        faulthandler.dump_traceback(2)
        sentence = f"peft-harness: {failure} (it had not ended after {LIMIT:g} s; its stack is above)\n"
        os.write(2, sentence.encode(errors="backslashreplace"))
        end(2)

    timer = threading.Timer(LIMIT, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
