"""What a side's processes left in its directory. It is data: a judged stack may write there what it likes.

Files are read only if they are regular and no link leads out of the side's directory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import contract
from harness.errors import UsageError
from harness.reading import shown
from harness.session.journal import read
from harness.trace import Trace
from harness.verdict import ORDER, Case

#: Files below one result. A run of a cell has some 60.
_MOST_FILES = 20_000

#: Bytes of a journal. That of the whole suites has 4 MB.
_JOURNAL_LIMIT = 256 * 2**20

#: Bytes of a process's output of which the end is searched for its error.
_TAIL = 2**20


def wrong(do: str, data: Any, directory: Path, arguments: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a worker's answer to a task (`harness.gate.worker`) that says it succeeded; None if nothing.

    - do: the task.
    - data: the answer.
    - directory: the side's.
    - arguments: of the task.
    """
    try:
        if do == "inventory":
            _require(isinstance(data["environment"], dict), "environment")
            _require(_is_interface(data["interface"]), "interface")
        elif do == "count":
            values = data["values"].values()
            _require(
                all(isinstance(counts, list) and all(type(n) is int for n in counts) for counts in values), "values"
            )
            _require(isinstance(data["by_operation"], dict), "by_operation")
        elif do in ("train", "infer") and data.get("unsupported") is not None:
            _require(isinstance(data["unsupported"], str), "unsupported")
        elif do == "train":
            trace(directory, arguments["into"])
        elif do == "infer":
            logits(directory, arguments["into"])
    except UsageError as error:
        return str(error)
    except (AttributeError, KeyError, TypeError) as error:
        return f"answered something else than was asked for ({type(error).__name__}: {error})"
    return None


def trace(directory: Path, name: str) -> Trace:
    """Return the trace that a task stored. Raises UsageError if it cannot be read, or leads out of the directory."""
    check(directory, name)
    try:
        found = Trace.load(directory / name / "trace")
        for checkpoint in found.checkpoints:
            if not Path(checkpoint.path).resolve().is_relative_to(directory.resolve()):
                raise UsageError(f"left a trace with a checkpoint outside of its results ({checkpoint.path})")
    except UsageError:
        raise
    except Exception as error:  # whatever the readers of damaged tensors raise
        raise UsageError(f"left a trace that cannot be read ({type(error).__name__}: {error})") from None
    return found


def logits(directory: Path, name: str) -> Path:
    """Return the directory of a task's logits. Raises UsageError if they cannot be read."""
    from safetensors import safe_open

    check(directory, name)
    try:
        with safe_open(directory / name / "logits.safetensors", "pt") as file:
            file.keys()
    except Exception as error:
        raise UsageError(f"left logits that cannot be read ({type(error).__name__}: {error})") from None
    return directory / name


def check(directory: Path, name: str) -> None:
    """Raise UsageError if a result has a link that leads out of the side's directory, a pipe, or too many files."""
    inside = directory.resolve()
    if not (directory / name).resolve().is_relative_to(inside):
        raise UsageError(f"left a link in place of its results ({name})")
    count = 0
    for place, folders, files in os.walk(directory / name):
        for entry in (*folders, *files):
            path = Path(place, entry)
            count += 1
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode) and not path.resolve().is_relative_to(inside):
                raise UsageError(f"left a link out of its results ({path.relative_to(directory)})")
            if not (stat.S_ISLNK(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UsageError(f"left something that is no file in its results ({path.relative_to(directory)})")
            if count > _MOST_FILES:
                raise UsageError(f"left more than {_MOST_FILES:,} files ({name})")


def cases(journal: Path) -> list[Case]:
    """Return the cases of a side's journal, none if there is no journal. Raises UsageError if it cannot be believed."""
    if not os.path.lexists(journal):
        return []
    if not stat.S_ISREG(journal.lstat().st_mode) or journal.stat().st_size > _JOURNAL_LIMIT:
        raise UsageError(f"{journal}: is a link or too large, and no journal")
    try:
        found = read(journal)[1]
    except (OSError, ValueError) as error:
        raise UsageError(f"{journal}: is damaged ({error})") from None
    known = contract.clauses()
    for case in found:
        words = (case.clause, case.scenario, case.nodeid, case.subject, case.reason or "")
        evidence = case.evidence if case.evidence is not None else {}
        if case.verdict not in ORDER or case.clause not in known or not isinstance(evidence, dict):
            raise UsageError(f"{journal}: has a case that no suite has ({shown(case.clause)}: {shown(case.verdict)})")
        if not all(isinstance(word, str) for word in words):
            raise UsageError(f"{journal}: has a case without a name")
    return found


def tail(file: Path) -> str:
    """Return the end of what a process printed."""
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            return ""
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL))
            return stream.read(_TAIL).decode(errors="replace")
    except OSError:
        return ""


def _is_interface(found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(fields, dict) and all(isinstance(default, str) for default in fields.values())
        for fields in found.values()
    )


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise UsageError(f"answered something else than was asked for ({what})")
