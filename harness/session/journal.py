"""The journal of a run of the suites: each case as it ended, so that an interrupted run can continue."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.files import reason, write_whole
from harness.reading import LINE_LIMIT, parse_json, read_bytes, shown, shown_path
from harness.verdict import ORDER, Case

#: Version of the file. 0.1.0 wrote none.
SCHEMA_VERSION = 1

#: Bytes of a journal. That of the whole suites has 6 MB.
LIMIT = 2**28


class Journal:
    """A file with one case in each line, and a checksum of it. Its first line says which run the cases belong to.

    A second file beside it has the cases that were collected.

    - cases: the cases that had ended when the journal was opened.
    - ended: the node ids of their tests.
    - writes: whether this process writes cases. Under xdist only the controller does.
    - failure: why a case could not be written, such as a full disk; "" if all were.
    """

    def __init__(self, file: Path, cases: Sequence[Case], writes: bool):
        self.file = file.absolute()
        self.failure = ""
        self.cases = tuple(cases)
        self.ended = {case.nodeid for case in cases}
        self._writes = writes

    @classmethod
    def open(cls, chosen: str | None, run: list[Any], writes: bool, known: int | None = None) -> Journal:
        """Open the journal in the chosen file, or make it. If none is chosen, only what is collected is written.

        - chosen: the file of --journal.
        - run: what the cases depend on: subject, device, clauses, stack.
        - writes: whether this process writes cases.
        - known: how many of its cases, the first, count as ended; None: all.

        Raises UsageError if the file has the cases of another run, or is no journal. It is left as it is then.
        """
        if chosen is None:
            return cls(Path(tempfile.gettempdir()) / f"peft-harness-{os.getpid()}.jsonl", [], writes=False)
        file = Path(chosen)
        cases: list[Case] = []
        # An empty file holds nothing that could be lost; mktemp makes such files.
        if file.exists() and not (file.is_file() and file.stat().st_size == 0):
            try:
                head, cases = read(file)
            except UsageError as error:
                raise UsageError(f"--journal {error}, so it is left as it is; name another file") from None
            if head != json.loads(json.dumps(run)):
                raise UsageError(
                    f"--journal {file}: has cases of another run (stack, subject, clauses); name another file"
                )
        cases = cases[:known]
        if writes:
            # Again, what could be read: the last line may have been cut off.
            write_whole(file, text(run, cases))
        return cls(file, cases, writes)

    def close(self) -> None:
        """Remove the list of collected cases if the user chose no journal. It is for crashes in this run."""
        if self._writes is False and self.file.parent == Path(tempfile.gettempdir()):
            _beside(self.file).unlink(missing_ok=True)

    def keep(self, case: Case) -> None:
        """Append a case that has ended."""
        if self._writes and not self.failure:
            try:
                with self.file.open("a", encoding="utf-8") as stream:
                    stream.write(_line(case))
            except OSError as error:
                self.failure = f"--journal {self.file}: cannot be written any more ({reason(error)})"

    def collected(self, cases: list[Case]) -> None:
        """Write the cases that are going to be judged."""
        write_whole(_beside(self.file), json.dumps([asdict(case) for case in cases]))

    def deselected(self, nodeids: set[str]) -> None:
        """Leave these tests out of the collected cases. Those that have ended before are deselected, too, and stay."""
        ended = {case.nodeid for case in read(self.file)[1]} if self.file.is_file() else set()
        left = [case for case in _read_collected(self.file) or [] if case["nodeid"] not in nodeids - ended]
        write_whole(_beside(self.file), json.dumps(left))

    def of(self, nodeid: str) -> list[Case]:
        """Return the cases of a test as they were collected."""
        return [Case(**case) for case in _read_collected(self.file) or [] if case["nodeid"] == nodeid]


def text(run: Any, cases: Sequence[Case]) -> str:
    """Return the text of a journal. run: what the cases depend on."""
    return json.dumps({"run": run, "schema_version": SCHEMA_VERSION}) + "\n" + "".join(map(_line, cases))


def read(file: Path) -> tuple[Any, list[Case]]:
    """Return what a journal's cases depend on, and the cases that have ended. A last line that was cut off is ignored.

    Raises UsageError if the file is no journal, is of a newer release, or was changed after it was written.
    """
    where = shown_path(file)
    *lines, _ = read_bytes(file, LIMIT).split(b"\n")
    head, cases = None, []
    for number, line in enumerate(lines, start=1):
        at = f"{where}, line {number}"
        try:
            body = parse_json(_decoded(line, at), at, nan=True, lines=False)
        except UsageError as error:
            raise UsageError(f"{error}: it is no journal, or damaged") from None
        if number > 1:
            cases.append(_case(body, at))
            continue
        if not (isinstance(body, dict) and "run" in body):
            raise UsageError(f"{at}: is no journal")
        version = body.get("schema_version", SCHEMA_VERSION)
        if not isinstance(version, int) or isinstance(version, bool) or version != SCHEMA_VERSION:
            raise UsageError(f"{at}: a journal of schema_version {shown(version)}, this release reads {SCHEMA_VERSION}")
        head = body["run"]
    if head is None:
        raise UsageError(f"{where}: is no journal")
    return head, cases


def _decoded(line: bytes, where: str) -> str:
    if len(line) > LINE_LIMIT:
        raise UsageError(f"{where}: has more than {LINE_LIMIT:,} bytes")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{where}: not UTF-8") from None


#: The key of a line's checksum. A line without one, of an earlier release, is taken as it is.
_CHECK = "check"


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def _line(case: Case) -> str:
    # Half of a surrogate pair, which an exception's message may have, would make the journal unreadable.
    body = json.loads(json.dumps(asdict(case), ensure_ascii=False).encode("utf-8", "replace"))
    return json.dumps({**body, _CHECK: _checksum(body)}) + "\n"


#: Field of a case -> its kinds.
_KINDS: dict[str, Any] = {
    "evidence": dict,
    "specs": list,
    "seconds": (int, float),
    "drawn": (int, type(None)),
    "life": (list, type(None)),
    "unsupported": bool,
    "misused": bool,
    "brought": bool,
    "refused": bool,
    "outside": bool,
    "own": bool,
    "raised": list,
}
_NEEDED = ("clause", "scenario", "nodeid", "subject")


def _case(body: Any, where: str) -> Case:
    """Return the case in a line. Raises UsageError if there is none, or if it was changed after it was written."""
    fields = {one.name for one in dataclasses.fields(Case)}
    if not isinstance(body, dict) or not {*_NEEDED} <= set(body) or set(body) - fields - {_CHECK}:
        raise UsageError(f"{where}: holds no case of this release")
    check = body.pop(_CHECK, None)
    if check is not None and check != _checksum(body):
        raise UsageError(f"{where}: was changed after it was written")
    wrong = next((name for name, value in body.items() if not isinstance(value, _KINDS.get(name, str))), None)
    if wrong is None and body.get("verdict", ORDER[0]) not in ORDER:
        wrong = "verdict"
    if wrong is not None:
        raise UsageError(f"{where}: {wrong} of a case cannot be {shown(body[wrong])}")
    return Case(**body)


def total(file: Path) -> int | None:
    """Return how many cases the run of a journal has to judge, or None if they are still being collected."""
    collected = _read_collected(file)
    return None if collected is None else len(collected)


def unfinished(file: Path) -> set[str]:
    """Return the node ids of the tests that were collected but have not ended."""
    return {case["nodeid"] for case in _read_collected(file) or []} - {case.nodeid for case in read(file)[1]}


def _read_collected(file: Path) -> list[dict[str, Any]] | None:
    beside = _beside(file)
    if not beside.is_file():
        return None
    cases = parse_json(read_bytes(beside, LIMIT).decode("utf-8", errors="replace"), shown_path(beside))
    if not (isinstance(cases, list) and all(isinstance(case, dict) and "nodeid" in case for case in cases)):
        raise UsageError(f"{shown_path(beside)}: is no list of collected cases")
    return cases


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.collected")
