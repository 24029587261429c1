"""The journal of a run of the suites: each case as it ended, so that an interrupted run can continue."""

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
    """A file with one case in each line. Its first line says which run the cases belong to.

    A second file beside it has the cases that were collected.

    - cases: the cases that had ended when the journal was opened.
    - ended: the node ids of their tests.
    - writes: whether this process writes cases. Under xdist only the controller does.
    """

    def __init__(self, file: Path, cases: Sequence[Case], writes: bool):
        self.file = file
        self.cases = tuple(cases)
        self.ended = {case.nodeid for case in cases}
        self._writes = writes

    @classmethod
    def open(cls, chosen: str | None, run: list[Any], writes: bool) -> Journal:
        """Open the journal in the chosen file, or make it. If none is chosen, only what is collected is written.

        - chosen: the file of --journal.
        - run: what the cases depend on: subject, device, clauses, stack.
        - writes: whether this process writes cases.

        Raises UsageError if the file has the cases of another run.
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
        journal._rewrite(run)
        return journal

    def _rewrite(self, run: list[Any]) -> None:
        """Write again what could be read. The last line may have been cut off."""
        if self._writes:
            lines = [json.dumps({"run": run}), *(json.dumps(asdict(case)) for case in self.cases)]
            write_whole(self.file, "\n".join(lines) + "\n")

    def close(self) -> None:
        """Remove the list of collected cases if the user chose no journal. It is for crashes in this run."""
        if self._writes is False and self.file.parent == Path(tempfile.gettempdir()):
            _beside(self.file).unlink(missing_ok=True)

    def keep(self, case: Case) -> None:
        """Append a case that has ended."""
        if self._writes:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(case)) + "\n")

    def collected(self, cases: list[Case]) -> None:
        """Write the cases that are going to be judged."""
        write_whole(_beside(self.file), json.dumps([asdict(case) for case in cases]))

    def of(self, nodeid: str) -> list[Case]:
        """Return the cases of a test as they were collected."""
        return [Case(**case) for case in _read_collected(self.file) or [] if case["nodeid"] == nodeid]


def read(file: Path) -> tuple[Any, list[Case]]:
    """Return what a journal's cases depend on, and the cases that have ended. A line that was cut off is ignored."""
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
    """Return how many cases the run of a journal has to judge, or None if they are still being collected."""
    collected = _read_collected(file)
    return None if collected is None else len(collected)


def unfinished(file: Path) -> set[str]:
    """Return the node ids of the tests that were collected but have not ended."""
    return {case["nodeid"] for case in _read_collected(file) or []} - {case.nodeid for case in read(file)[1]}


def _read_collected(file: Path) -> list[dict[str, Any]] | None:
    beside = _beside(file)
    cases: list[dict[str, Any]] | None = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else None
    return cases


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.collected")
