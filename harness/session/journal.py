"""The journal of a run of the suites: each case as it ended, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.files import write_whole
from harness.verdict import Case


class Journal:
    """Cases by line in `file`, after a first line that says what run they are of; and beside it, what was collected.

    cases: those that had ended before. ended: their tests.
    """

    def __init__(self, file: Path, cases: Sequence[Case], writes: bool):
        self.file = file
        self.cases = tuple(cases)
        self.ended = {case.nodeid for case in cases}
        self._writes = writes

    @classmethod
    def open(cls, chosen: str | None, run: list[Any], writes: bool) -> Journal:
        """The journal in a file, which is made if it is missing; in a file of its own where none is chosen.

        run: what the cases depend on. UsageError where the file holds another run's. writes: only one process does.
        """
        if chosen is None:
            return cls(Path(tempfile.gettempdir()) / f"peft-harness-{os.getpid()}.jsonl", [], writes=False)
        file = Path(chosen)
        if not file.exists():
            if writes:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps({"run": run}) + "\n", encoding="utf-8")
            return cls(file, [], writes)
        head, cases = read(file)
        if head != json.loads(json.dumps(run)):
            raise UsageError(f"--journal {file}: has cases of another run (stack, subject, clauses); name another file")
        journal = cls(file, cases, writes)
        journal._mend(run)
        return journal

    def _mend(self, run: list[Any]) -> None:
        """Write anew what could be read: the last line may have been cut off."""
        if self._writes:
            lines = [json.dumps({"run": run}), *(json.dumps(asdict(case)) for case in self.cases)]
            write_whole(self.file, "\n".join(lines) + "\n")

    def close(self) -> None:
        """Take away what was written down only in case that a process crashes."""
        if self._writes is False and self.file.parent == Path(tempfile.gettempdir()):
            _beside(self.file).unlink(missing_ok=True)

    def keep(self, case: Case) -> None:
        """Write down a case that has ended."""
        if self._writes:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(case)) + "\n")

    def collected(self, cases: list[Case]) -> None:
        """Write down what is going to be judged."""
        write_whole(_beside(self.file), json.dumps([asdict(case) for case in cases]))

    def of(self, nodeid: str) -> list[Case]:
        """The cases of a test as they were collected."""
        return [Case(**case) for case in _read_collected(self.file) or [] if case["nodeid"] == nodeid]


def read(file: Path) -> tuple[Any, list[Case]]:
    """(what the cases depend on, the cases that have ended) of a journal. A last line that is cut off counts for nothing."""
    head: Any = None
    cases: list[Case] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            body = json.loads(line)
            if isinstance(body, dict) and "run" in body:
                head = body["run"]
            else:
                cases.append(Case(**body))
        except (ValueError, TypeError):
            continue
    return head, cases


def total(file: Path) -> int | None:
    """How many cases the run of a journal has to judge, None while they are being collected."""
    collected = _read_collected(file)
    return None if collected is None else len(collected)


def unfinished(file: Path) -> set[str]:
    """The tests that were collected and of which no case has ended, by node id."""
    return {case["nodeid"] for case in _read_collected(file) or []} - {case.nodeid for case in read(file)[1]}


def _read_collected(file: Path) -> list[dict[str, Any]] | None:
    beside = _beside(file)
    cases: list[dict[str, Any]] | None = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else None
    return cases


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.collected")
