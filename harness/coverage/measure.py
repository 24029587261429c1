"""What the suites reach: the branches that count, judged by what coverage recorded, with the reasons for the rest."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.coverage.find import Branch
from harness.coverage.table import Reason, paths, wanted

if TYPE_CHECKING:
    from coverage import Coverage


@dataclass(frozen=True)
class File:
    """A file of upstream: its branches, and how many of them were reached."""

    name: str
    branches: int
    reached: int


@dataclass
class Measured:
    """reached: branches that ran. unreached: those that did not, each with its reason where the table has one.

    stale: reasons that cover no unreached branch: what they name is reached by now, or is no longer there.
    """

    reached: list[Branch] = field(default_factory=list)
    unreached: list[tuple[Branch, Reason | None]] = field(default_factory=list)
    stale: list[Reason] = field(default_factory=list)

    def files(self) -> Iterator[File]:
        everything = [*self.reached, *(branch for branch, _ in self.unreached)]
        for name in sorted({branch.file for branch in everything}):
            count = sum(branch.file == name for branch in everything)
            yield File(name, count, sum(branch.file == name for branch in self.reached))

    @property
    def unexplained(self) -> list[Branch]:
        return [branch for branch, reason in self.unreached if reason is None]

    def to_json(self) -> dict[str, Any]:
        return {
            "files": [vars(file) for file in self.files()],
            "unreached": [
                {
                    **{name: getattr(branch, name) for name in ("file", "line", "function", "condition", "outcome")},
                    "tier": reason.tier if reason else None,
                    "reason": reason.reason if reason else None,
                }
                for branch, reason in self.unreached
            ],
            "stale_reasons": [vars(reason) for reason in self.stale],
        }


def judge(branches: list[Branch], recorded: dict[str, Any], reasons: Sequence[Reason]) -> Measured:
    """recorded: by file, what coverage's JSON report says of it ("executed_lines", "executed_branches")."""
    measured = Measured()
    for branch in branches:
        seen = recorded.get(branch.file, {})
        arcs = {(start, end) for start, end in seen.get("executed_branches", [])}
        if branch.reached(set(seen.get("executed_lines", [])), arcs):
            measured.reached.append(branch)
        else:
            measured.unreached.append((branch, next((one for one in reasons if one.covers(branch)), None)))
    used = {id(reason) for _, reason in measured.unreached}
    measured.stale = [reason for reason in reasons if id(reason) not in used]
    return measured


def read(data: Path, reasons: Sequence[Reason]) -> Measured:
    """Judge the data files in a directory, one a process, all together."""
    from coverage import Coverage

    with tempfile.TemporaryDirectory() as directory:
        whole = Coverage(data_file=str(Path(directory) / "data"), branch=True, config_file=False)
        whole.combine([str(data)], keep=True)
        return judge(wanted(), report(whole, paths()), reasons)


def report(cover: Coverage, files: dict[str, Path]) -> dict[str, Any]:
    """What was recorded of each file, by its name in `files`, as `judge` takes it."""
    # Coverage leaves out what a pragma excludes, and bodies that are "...": these are no wish of ours.
    cover.clear_exclude()
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "report.json"
        cover.json_report(outfile=str(out), morfs=[str(path) for path in files.values()])
        body = json.loads(out.read_text(encoding="utf-8"))["files"]
    by_path = {Path(name).resolve(): seen for name, seen in body.items()}
    return {name: by_path.get(path.resolve(), {}) for name, path in files.items()}
