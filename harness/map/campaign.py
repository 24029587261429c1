"""A campaign: the stacks of a matrix, judged one by one, until enough of them are.

A directory has what was judged, a file a result (`harness.map.cell`), and nothing is ever written over. So an interrupted
campaign goes on where it was, and machines that share the directory share the results.

    lease         the command that runs here (`harness.processes.lease`)
    plans/        the stacks of each matrix, in their order
    results/      one file for each cell and set of clauses
    unfinished/   the journals of cells that are being judged
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import contract, environment
from harness.errors import OutOfSpace, UsageError
from harness.files import check_writable_directory, write_whole
from harness.gate import stored
from harness.gate.environments import running
from harness.map import cell, clause_sources
from harness.map.matrix_file import Matrix
from harness.map.stacks import Stack, following, planned, requirements
from harness.processes import engine, lease
from harness.reading import read_text, shown_path
from harness.session.concerns import Concerns

#: Bytes of a result.
_LIMIT = 2**24

#: How often in a row cells may fail to be judged at all before the campaign ends: the machine is then to blame.
_MOST_LOST = 5

Report = Callable[[int, int, str], None]


@dataclass
class Campaign:
    """A campaign.

    - matrix: what is judged.
    - directory: where results are.
    - module: what judges a cell in its process. Tests have another one.
    - found: the results of this directory, of any matrix.
    - lost: stack -> why it could not be judged this time.
    - anew: judge all again.
    """

    matrix: Matrix
    directory: Path
    specs: tuple[tuple[str, str], ...] = ()
    module: str = "harness.map.cell"
    anew: bool = False
    found: list[dict[str, Any]] = field(default_factory=list)
    lost: dict[Stack, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_writable_directory("the campaign's directory", self.directory)
        (self.directory / "results").mkdir(parents=True, exist_ok=True)
        self.found = [] if self.anew else load(self.directory)
        chosen = contract.select(list(self.matrix.clauses))
        self.sources = {clause: clause_sources.sources(clause, self.matrix.tests) for clause in chosen}
        self.run_name = run_name(self.specs, self.matrix)
        self._began = environment.now()

    # ---- what there is to do ----

    def plan(self) -> list[Stack]:
        """Return the stacks of the matrix.

        They are made once for the same releases: what is judged meanwhile must not change what is planned. A covering array
        leaves out what earlier results show not to resolve.
        """
        made = json.dumps([self.matrix.releases, self.matrix.pairing, self.matrix.stacks, self.matrix.first])
        file = self.directory / "plans" / f"{hashlib.sha256(made.encode()).hexdigest()[:12]}.json"
        if file.is_file() and isinstance(known := stored.read(read_text(file, _LIMIT).rstrip("\n")), list):
            return [tuple((str(name), str(release)) for name, release in stack) for stack in known]
        found = planned(self.matrix, [one["stack"] for one in self.found if one["state"] == cell.UNRESOLVABLE])
        write_whole(file, stored.line(found))
        return found

    def todo(self, stack: Stack, device: str) -> dict[str, str]:
        """Return clause -> hash of its sources, for the clauses that are still to be judged on a stack."""
        done: set[str] = set()
        for result in self.results(stack, device):
            if result["state"] != cell.JUDGED:
                return {}
            done |= {clause for clause, key in result["keys"].items() if self.sources.get(clause) == key}
        return {clause: key for clause, key in self.sources.items() if clause not in done}

    def results(self, stack: Stack, device: str) -> list[dict[str, Any]]:
        """Return the results of a stack on this kind of machine and Python."""
        kind, python = cell.machine(device), environment.describe()["python"].rpartition(".")[0]
        return [
            one
            for one in self.found
            if one["requirements"] == requirements(stack)
            and (one["device"], one["run"], one["machine"]) == (device, self.run_name, kind)
            and one["python"].rpartition(".")[0] == python
        ]

    def verdicts(self, stack: Stack, device: str) -> object:
        """Return something that is equal for stacks with equal verdicts."""
        verdicts: dict[str, str] = {}
        state = ""
        for one in self.results(stack, device):
            state = one["state"]
            verdicts |= {clause: entry["verdict"] for clause, entry in one["clauses"].items()}
        return state, tuple(sorted(verdicts.items()))

    # ---- doing it ----

    def task(self, stack: Stack, device: str, running_engine: engine.Engine) -> dict[str, Any]:
        """Return the task that judges what is still to be judged on a stack."""
        todo = self.todo(stack, device)
        earlier = next((one for one in self.results(stack, device) if one["lock"]), None)
        torch = dict(stack).get("torch")
        identity = [
            requirements(stack), device, self.run_name, cell.machine(device), environment.describe()["python"],
            sorted(todo.items()), self._began if self.anew else "",
        ]  # fmt: skip
        return {
            "id": hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20],
            "directory": str(self.directory.absolute()),
            "lease": str(running_engine.lease),
            "owner": running_engine.owner,
            "module": self.module,
            "stack": dict(stack),
            "requirements": requirements(stack),
            "device": device,
            "run": self.run_name,
            "specs": [list(one) for one in self.specs],
            "sources": todo,
            "tests": list(self.matrix.tests),
            "concerns": [list(one) for one in dataclasses.astuple(self.matrix.concerns)],
            "extras": list(self.matrix.extras),
            "lock": earlier["lock"] if earlier else "",
            # An environment with another torch has several GB.
            "keep": torch in (None, (running().pins.get("torch") or "").partition("+")[0]),
        }

    def go(self, on: str, workers: int | None, size: int, report: Report = lambda done, total, text: None) -> int:
        """Judge until `size` stacks of the plan are judged on each device. Returns how many cells were judged now.

        - on, workers: see `harness.processes.engine.opened`.
        - report(done, total, text): called as cells end.

        Raises UsageError if the engine cannot be started, and if one cell after the other cannot be judged.
        """
        judged_now = 0
        for device in self.matrix.devices:
            plan = self.plan()
            total = min(size, len(plan))
            if self._done(plan, device) >= total:
                report(total, total, "all judged")
                continue
            with engine.opened(on, workers, self.directory, device) as at:
                judged_now += self._go(at, plan, device, total, report)
        return judged_now

    def _done(self, plan: Sequence[Stack], device: str) -> int:
        return sum(not self.todo(stack, device) for stack in plan)

    def _go(self, at: engine.Engine, plan: Sequence[Stack], device: str, total: int, report: Report) -> int:
        ahead: dict[Future[str], Stack] = {}
        done, now, in_a_row = self._done(plan, device), 0, 0
        report(done, total, at.words)
        while True:
            free = min(at.width - len(ahead), total - done - len(ahead) - len(self.lost))
            for stack in self._next(plan, device, list(ahead.values()), free):
                ahead[at.executor.submit(cell.judge, self.task(stack, device, at))] = stack
            if not ahead:
                return now
            ended, _ = wait(ahead, return_when=FIRST_COMPLETED)
            for future in ended:
                stack = ahead.pop(future)
                words = requirements(stack)
                try:
                    result = read(self.directory / "results" / future.result())
                except (OutOfSpace, lease.Lost):
                    raise
                except Exception as error:  # the process or the worker was killed, again and again
                    self.lost[stack] = f"{type(error).__name__}: {error}"
                    in_a_row += 1
                    report(done, total, f"{words}: not judged ({self.lost[stack]})")
                    if in_a_row >= _MOST_LOST:
                        raise UsageError(
                            f"{in_a_row} cells in a row could not be judged; the last: {words}: {error}"
                        ) from None
                    continue
                self.found.append(result)
                done, now, in_a_row = done + 1, now + 1, 0
                report(done, total, f"{words}: {result['state']}, {result['seconds']:.0f} s")

    def _next(self, plan: Sequence[Stack], device: str, ahead: Iterable[Stack], count: int) -> list[Stack]:
        if count < 1:
            return []
        judged: dict[Stack, object] = {
            stack: self.verdicts(stack, device) for stack in plan if not self.todo(stack, device)
        }
        return following(plan, judged | dict.fromkeys([*ahead, *self.lost]), count, self.matrix.first)


def of_specs(matrix: Matrix, clauses: Sequence[str] = ()) -> Matrix:
    """Return a matrix for runs of --spec. Only they are collected, and all clauses that apply judge them if none is named."""
    return dataclasses.replace(matrix, tests=("suites/test_specs.py",), concerns=Concerns(), clauses=tuple(clauses))


def run_name(specs: Sequence[tuple[str, str]], matrix: Matrix) -> str:
    """Return the name of what is judged: "suites", with what it is limited to; or a hash of the runs of --spec."""
    if specs:
        bodies = sorted(json.dumps(json.loads(text), sort_keys=True) for _, text in specs)
        return "run " + hashlib.sha256("\n".join(bodies).encode()).hexdigest()[:12]
    judged = matrix.concerns
    limits = [*judged.routes, *judged.methods, *judged.launches]
    if matrix.tests:
        limits.append(f"tests {hashlib.sha256(repr(sorted(matrix.tests)).encode()).hexdigest()[:8]}")
    return ", ".join(["suites", *limits])


# ---- results ----

_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "stack": dict, "device": str, "run": str, "state": str, "sentence": str, "python": str, "machine": str, "cores": int,
    "date": str, "requires": list, "lock": str, "clauses": dict, "causes": list, "keys": dict, "seconds": (int, float),
    "requirements": str,
}  # fmt: skip


def load(directory: Path) -> list[dict[str, Any]]:
    """Return the results in a directory, oldest first.

    A damaged one is said, put aside and judged again; the others stay.
    """
    found = []
    for file in sorted((directory / "results").glob("*.json")):
        try:
            found.append(read(file))
        except UsageError as error:
            aside = file.with_suffix(".damaged")
            os.replace(file, aside)
            print(f"peft-harness: {error}; it is now {aside.name}, and its cell is judged again", file=sys.stderr)
    return sorted(found, key=lambda one: str(one["date"]))


def read(file: Path) -> dict[str, Any]:
    """Return a result. Raises UsageError if it was cut off or edited, or is of another release."""
    body = stored.read(read_text(file, _LIMIT).rstrip("\n"))
    if not isinstance(body, dict) or not all(isinstance(body.get(name), kind) for name, kind in _FIELDS.items()):
        raise UsageError(f"{shown_path(file)}: the result is damaged, or of another release")
    return body
