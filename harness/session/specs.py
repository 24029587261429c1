"""The runs that somebody brings with --spec. Each becomes cases of the suites (suites/test_specs.py), one for each clause."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import trust
from harness.laws import universal
from harness.reading import shown_path
from harness.runs import judging
from harness.spec import RunSpec
from harness.subjects import from_file
from harness.verdict import NOT_COMPARABLE, SKIPPED, Case, Verdict

#: Characters of a name. It is part of file names and of ids of tests.
_LONGEST = 60


@dataclass(frozen=True)
class Brought:
    """A run that somebody brought.

    - name: the name of its file without the ending. No two runs of a session have the same.
    - where: what messages call the file.
    - said: a sentence for each thing that was changed, since the run could not be judged as it is written.
    """

    name: str
    where: str
    spec: RunSpec
    said: tuple[str, ...] = ()

    @property
    def clauses(self) -> tuple[str, ...]:
        """The clauses whose laws are applied to the run."""
        return universal.clauses_of(self.spec)


def load(path: str | Path, trusted: bool = False) -> tuple[RunSpec, list[str]]:
    """Return the run that a file describes, and what was changed in it (`harness.subjects.from_file`).

    The file is a RunSpec as JSON, or the case file of a failure. Paths in it become absolute, since other processes train
    it. Without `report_to` the run reports to nobody, on any stack.

    - trusted: whether code that the file names may run (--trust-code).

    Raises UsageError for a file that is neither, or that names what it may not name (`harness.trust`).
    """
    spec, said = from_file.as_run(RunSpec.load(path), shown_path(path))
    arguments = {"report_to": "none", **spec.arguments}
    spec = dataclasses.replace(spec, arguments=arguments)
    trust.check(spec, shown_path(path), trusted)
    changes: list[dict[str, Any]] = [
        {"path": str(Path(part.path).absolute())} if part.path else {} for part in (spec.model, spec.data)
    ]
    model, data = dataclasses.replace(spec.model, **changes[0]), dataclasses.replace(spec.data, **changes[1])
    return dataclasses.replace(spec, model=model, data=data), said


def load_all(files: Iterable[str | Path], trusted: bool = False) -> list[Brought]:
    """Return the runs of several files. Parameters and errors as for `load`."""
    found: list[Brought] = []
    for file in files:
        spec, said = load(file, trusted)
        name = _name(Path(file), [one.name for one in found])
        found.append(Brought(name, shown_path(file), spec, tuple(said)))
    return found


# ---- what was found about them ----


def laws_by_run(cases: Iterable[Case]) -> dict[str, dict[str, Verdict]]:
    """Return name -> clause -> verdict of the runs of --spec that were trained."""
    found: dict[str, dict[str, Verdict]] = {}
    for case in cases:
        if case.brought and not case.refused:
            seen = tuple(case.evidence.get("seen") or [case.reason])
            found.setdefault(case.scenario, {})[case.clause] = Verdict(case.verdict, "", seen)
    return found


def uncompared(cases: Iterable[Case]) -> list[str]:
    """Return the runs of --spec that were compared with no other run, although clauses that do so were asked for."""
    return [
        name
        for name, laws in laws_by_run(cases).items()
        if not judging.compared(laws) and any(clause in laws for clause in universal.COMPARISONS)
    ]


def not_judged(cases: Iterable[Case]) -> dict[str, dict[str, list[str]]]:
    """Return name -> reason -> the clauses whose law was not applied to the run of --spec for that reason."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, laws in laws_by_run(cases).items():
        for clause, verdict in laws.items():
            if verdict.outcome in (NOT_COMPARABLE, SKIPPED):
                found.setdefault(name, {}).setdefault("; ".join(verdict.seen), []).append(clause)
    return found


def strengths(cases: Sequence[Case]) -> dict[str, str]:
    """Return name -> how strong the verdicts on the run are, for the runs of --spec of which GEN-01 was asked for."""
    specs = {case.scenario: RunSpec.from_json(case.specs[0], within_bounds=False) for case in cases if case.brought}
    return {
        name: judging.strength(laws, specs[name].launch.several)
        for name, laws in laws_by_run(cases).items()
        if "GEN-01" in laws
    }


def _name(file: Path, taken: Sequence[str]) -> str:
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", file.stem)[:_LONGEST].strip("-.") or "spec"
    names = [plain, *(f"{plain}-{number}" for number in range(2, len(taken) + 2))]
    return next(name for name in names if name not in taken)
