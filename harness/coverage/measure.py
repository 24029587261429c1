"""Compare the branches that count with what coverage recorded, and give the reasons for those that were not reached."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.coverage.find import Branch
from harness.coverage.table import Reason, all_branches, paths

if TYPE_CHECKING:
    from coverage import Coverage


@dataclass(frozen=True)
class File:
    """A file of upstream: the number of its branches, and how many of them were reached."""

    name: str
    branches: int
    reached: int


@dataclass
class Measured:
    """What a run of the suites reached.

    - reached: the branches that ran.
    - unreached: the branches that did not run, each with its reason from the table or None.
    - stale: reasons that cover no unreached branch, because what they name is reached by now or gone.
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
    """Divide branches into reached and unreached ones.

    - recorded: file -> its entry in coverage's JSON report ("executed_lines", "executed_branches").
    - reasons: the entries of reasons.toml. The first that covers a branch counts.
    """
    measured = Measured()
    for branch in branches:
        seen = recorded.get(branch.file, {})
        arcs = {(start, end) for start, end in seen.get("executed_branches", [])}
        if branch.reached(set(seen.get("executed_lines", [])), arcs):
            measured.reached.append(branch)
        else:
            measured.unreached.append((branch, next((reason for reason in reasons if reason.covers(branch)), None)))
    used = {id(reason) for _, reason in measured.unreached}
    measured.stale = [reason for reason in reasons if id(reason) not in used]
    return measured


def read(data: Path, reasons: Sequence[Reason]) -> Measured:
    """Combine the data files in a directory, one per process, and compare them with the branches that count."""
    from coverage import Coverage

    with tempfile.TemporaryDirectory() as directory:
        whole = Coverage(data_file=str(Path(directory) / "data"), branch=True, config_file=False)
        whole.combine([str(data)], keep=True)
        return judge(all_branches(), report(whole, paths()), reasons)


def report(cover: Coverage, files: dict[str, Path]) -> dict[str, Any]:
    """Return what was recorded for each file, by its name in `files`, in the form that `judge` takes."""
    # By default coverage leaves out lines with a pragma, and bodies that are "...". Here they count.
    cover.clear_exclude()
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "report.json"
        cover.json_report(outfile=str(out), morfs=[str(path) for path in files.values()])
        body = json.loads(out.read_text(encoding="utf-8"))["files"]
    by_path = {Path(name).resolve(): seen for name, seen in body.items()}
    return {name: by_path.get(path.resolve(), {}) for name, path in files.items()}
