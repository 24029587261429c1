"""What a command ends with when an exception ends it: one sentence on stderr, and the exit code 2.

Exit code 1 means that a clause fails. It is Python's own code for an exception, too, so no exception leaves the command.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from harness.errors import UsageError
from harness.files import out_of_space, reason

#: The exit code of a command that was used wrongly or could not run.
COULD_NOT_RUN = 2

#: The exit code of a command that Ctrl-C ended, where `harness.processes.interrupts` does not end it.
INTERRUPTED = 130

#: The exit code of a command whose reader left, as in `clauses | head -1`: that of a process that SIGPIPE ended.
NOBODY_READS = 141

#: Print the traceback of an internal error, instead of writing it to a file.
DEBUG = "PEFT_HARNESS_DEBUG"

#: The most characters of a sentence. A user's value may have a million.
_MOST = 2000

#: Errors of the operating system that are no fault of the harness: a disk, a permission, a limit.
_SURROUNDINGS = {
    getattr(errno, name)
    for name in (
        *("EACCES", "EPERM", "EROFS", "EIO", "EMFILE", "ENFILE", "ENOMEM", "EFBIG", "ENAMETOOLONG", "ESTALE", "EAGAIN"),
        *("ENOTDIR", "EISDIR", "ELOOP"),
    )
}


#: What begins each sentence: the name of the command line.
_program = "peft-harness"


def open_streams(program: str = "peft-harness") -> str:
    """Give this process the three standard streams. Return one sentence if what it prints would be lost, else "".

    If a descriptor is closed, the next file that is opened gets its number, and what is printed goes there. Characters that
    the encoding of a stream does not have are escaped.

    - program: the name of the command line, with which each sentence begins.
    """
    global _program
    _program = program
    was_closed = sys.stdout is None
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            while os.open(os.devnull, os.O_RDWR) < number:
                pass
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return "stdout is closed, so nothing can be printed; redirect it to a file or to /dev/null" if was_closed else ""


def say(sentence: str, code: int = COULD_NOT_RUN) -> int:
    """Print one sentence on stderr, and return the exit code."""
    words = _printable(sentence)
    if len(words) > _MOST:
        words = f"{words[: _MOST // 2]} ... {words[-_MOST // 2 :]}"
    try:
        print(f"{_program}: {words}", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # nobody reads it
        _discard(sys.stderr)
    return code


def ended(code: object) -> int:
    """Return the exit code of a command that came to its end, after all that it printed was written."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        return NOBODY_READS
    except OSError as error:
        return _unprinted(error)
    if code is None:
        return 0
    # Negative is a process that a signal ended; 120 is a Python that could not write its output.
    return int(code) if isinstance(code, int) and (0 <= code <= 3 or code > 128) else COULD_NOT_RUN


def ended_by(error: BaseException, places: Sequence[Path] = ()) -> int:
    """Say what an exception means, and return the exit code. It is 1 for none.

    - places: directories that the command writes to, one of which may be full.
    """
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
        # The libraries that parse the command line and that print tables end with 1.
        _discard(sys.stdout)
        return NOBODY_READS
    if isinstance(error, OSError) and error.filename is None and _stdout_is_broken():
        return _unprinted(error)
    if isinstance(error, UsageError):
        return say(str(error))
    if isinstance(error, KeyboardInterrupt):
        return say("interrupted; if it was a gate, the same command continues it", INTERRUPTED)
    full = out_of_space(error, places)
    if full:
        return say(full)
    if isinstance(error, MemoryError):
        return say("not enough memory; end other processes, or choose a smaller run")
    if isinstance(error, ImportError) and not (error.name or "harness").startswith("harness"):
        return say(f"{error.name} cannot be imported ({_first_line(error)}); install it again")
    if isinstance(error, OSError) and error.errno in _SURROUNDINGS:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        return say(f"{where}{reason(error)}")
    return say(f"internal error: {type(error).__name__}: {_first_line(error)}; please report it{_log(error)}")


def _printable(sentence: str) -> str:
    """Return a sentence as one line, without characters that move the cursor or change colours."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in sentence.strip()[: 100 * _MOST]
    )


def _first_line(error: BaseException) -> str:
    return next(iter(re.split(r"[\r\n]", str(error).strip())), "") or "no message"


def _unprinted(error: OSError) -> int:
    _discard(sys.stdout)
    return say(f"stdout: the results cannot be printed ({reason(error)})")


def _stdout_is_broken() -> bool:
    """Return whether stdout takes no more. After a write that failed, a flush alone does not show it."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except io.UnsupportedOperation:  # no file: a test's
        return False
    except (OSError, ValueError):
        return True
    return False


def _discard(stream: TextIO) -> None:
    """Send a stream nowhere, since Python writes what is left in it when it ends."""
    with contextlib.suppress(OSError, ValueError):
        number, nowhere = stream.fileno(), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def _log(error: BaseException) -> str:
    """Write the traceback to a file for the user to send, or print it. Return words that name the file."""
    lines = "".join(traceback.format_exception(error))
    if not os.environ.get(DEBUG):
        try:
            descriptor, name = tempfile.mkstemp(prefix="peft-harness-error-", suffix=".log")
            with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{sys.argv!r}\n{lines}")
            return f" with {name}"
        except OSError:
            pass
    print(lines, file=sys.stderr)
    return " with the lines above"
