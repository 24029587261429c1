"""Measure the kill matrix in parts, each a task of an engine.

python -m harness.mutants.in_parts RESULT MODULE NAME...     a part: these mutants; MODULE is "" for the harness's own
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.files import write_whole
from harness.mutants import catalogue
from harness.mutants.catalogue import Mutant
from harness.mutants.judge import MutatedCase, Outcome
from harness.mutants.matrix import Matrix, measure
from harness.paths import SAFE_PATH
from harness.processes.engine import Engine
from harness.progress import Progress
from harness.reading import read_json
from harness.verdict import Case

#: Parts for each place of the engine, so that all end at about the same time. Each collects the suites again.
_PARTS = 2


def measured(mutants: Sequence[Mutant], module: Path | None, at: Engine, progress: Progress) -> Matrix:
    """Return the matrix of mutants that an engine's tasks measure. Raises UsageError if a part cannot be measured."""
    began = time.monotonic()
    size = -(-len(mutants) // (at.width * _PARTS))
    parts = [[one.name for one in mutants[start : start + size]] for start in range(0, len(mutants), size)]
    task = progress.add("parts", len(parts))
    found: dict[str, Outcome] = {}
    cases, workers = 0, 0
    unfit: dict[tuple[str, str], Case] = {}
    named = str(module.absolute()) if module is not None else ""
    by_name = {mutant.name: mutant for mutant in mutants}
    for future in as_completed([at.executor.submit(part, named, part_) for part_ in parts]):
        body = future.result()
        found |= {one["mutant"]: _outcome(one, by_name[one["mutant"]]) for one in body["outcomes"]}
        cases += body["cases"]
        unfit |= {(one["clause"], one["nodeid"]): Case(**one) for one in body["unfit"]}
        workers = max(workers, body["workers"])
        task.advance()
    outcomes = [found[mutant.name] for mutant in mutants]
    return Matrix(outcomes, cases, list(unfit.values()), workers * min(at.width, len(parts)), time.monotonic() - began)


def part(module: str, names: Sequence[str]) -> dict[str, Any]:
    """Measure some mutants in a process of its own, which may fork: the task of an engine."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "part.json")
        words = [sys.executable, *SAFE_PATH, "-m", __name__, str(result), module, *names]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if not result.is_file():
            said = done.stdout.strip().splitlines()
            raise UsageError(f"mutants {', '.join(names[:3])}: {said[-1] if said else f'ended with {done.returncode}'}")
        body: dict[str, Any] = read_json(result, nan=True)
        return body


def _outcome(body: dict[str, Any], mutant: Mutant) -> Outcome:
    cases = [MutatedCase(**one) for one in body["cases"]]
    return Outcome(**{**body, "mutant": mutant, "cases": cases})


def main(result: Path, module: str, names: Sequence[str]) -> None:
    """Measure mutants, and write the outcomes as JSON."""
    available = catalogue.load(Path(module)) if module else catalogue.mutants()
    with Progress(forks=True) as progress:
        matrix = measure([available[name] for name in names if name in available], progress)
    outcomes = [
        {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
        | {"mutant": one.mutant.name, "cases": [dataclasses.asdict(case) for case in one.cases]}
        for one in matrix.outcomes
    ]
    unfit = [dataclasses.asdict(case) for case in matrix.unfit]
    body = {"outcomes": outcomes, "cases": matrix.cases, "unfit": unfit, "workers": matrix.workers}
    write_whole(result, json.dumps(body))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    except UsageError as error:
        sys.exit(f"peft-harness: {error}")
