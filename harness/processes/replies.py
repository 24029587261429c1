"""Read the answers of a process that runs somebody else's code: one JSON object a line, of a limited size, in time."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from typing import Any

from harness.reading import shown

#: Bytes of an answer. The longest, the signatures of a stack, has 100 kB.
_LIMIT = 16 * 2**20


class BadAnswer(Exception):
    """What a process wrote is no answer, or it wrote nothing in time. The message is a sentence without a subject."""


class Answers:
    """The lines that a process writes to its standard output. Nothing else may read that."""

    def __init__(self, process: subprocess.Popen[str]):
        assert process.stdout is not None
        self._descriptor = process.stdout.fileno()
        self._rest = b""

    def read(self, seconds: float) -> dict[str, Any] | None:
        """Return the next answer. None if the process has closed its output.

        Raises BadAnswer if it writes something else, too much, or nothing within so many seconds.
        """
        until = time.monotonic() + seconds
        parts = [self._rest]
        size = len(self._rest)
        while b"\n" not in parts[-1]:
            if size > _LIMIT:
                raise BadAnswer(f"wrote more than {_LIMIT:,} bytes where its answer should be")
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._descriptor], [], [], left)[0]:
                raise BadAnswer(f"did not answer within {seconds:g} s")
            part = os.read(self._descriptor, 2**16)
            if not part:
                return None
            parts.append(part)
            size += len(part)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise BadAnswer(f"wrote {shown(line[:200].decode(errors='replace'))} where its answer should be")
        return answer


def end(process: subprocess.Popen[str], seconds: float = 10.0) -> int:
    """Wait until a process has ended, and kill it if it does not end in time. Returns its exit status."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
