"""Run a command of `peft-harness` in this process, as its console script does."""

from __future__ import annotations

import contextlib
import io
import sys
from unittest import mock

from harness.cli import main


def run(*words: object) -> tuple[int, str, str]:
    """Return the exit code, and what was printed on stdout and on stderr. An exception that leaves the command is raised."""
    output, errors = io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", ["peft-harness", *map(str, words)]):
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                main()
            except SystemExit as end:
                code = end.code
    assert type(code) is int, code
    return code, output.getvalue(), errors.getvalue()
