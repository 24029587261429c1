"""The script of a case that failed, or of a RunSpec: `peft-harness repro --script`.

1. `origin` reads the file: which clause, which scenario, which run.
2. If a known defect names the scenario, its recipe has the script (`harness.upstream.recipes`).
3. If not, the script is made of the case's own run and the check of its clause.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import contract, trust
from harness.contract import expectations
from harness.contract.expectations import Expectation
from harness.errors import UsageError
from harness.paths import SUITES
from harness.reading import read_json, shown, shown_path
from harness.spec import LIMIT, RunSpec
from harness.upstream import generator, recipes
from harness.upstream.pieces import refuse


@dataclass(frozen=True)
class Origin:
    """Where a script comes from.

    - text: the script.
    - clause: the id of the clause that it judges.
    - defect: the known defect that it shows; None if it is none.
    - recipe: the name of its recipe; "" if it was made of the case's own run.
    - good: a stack on which it exits with 0; "" if none is known.
    """

    text: str
    clause: str
    defect: Expectation | None = None
    recipe: str = ""
    good: str = ""


def origin(path: Path, clause: str | None = None, trusted: bool = False) -> Origin:
    """Return the script of a case file, or of the file of a RunSpec.

    - clause: the clause to judge; None for the one that the case file names.
    - trusted: whether the user trusts the file's code (--trust-code). What it names stands in the script, which is run.

    Raises UsageError if the file names no clause, if it names what such a file may not name, or if no short script can be
    made of it.
    """
    body, where = read_json(path, LIMIT, nan=True), shown_path(path)
    if not isinstance(body, Mapping):
        raise UsageError(f"{where}: is neither a case file nor a RunSpec")
    is_case = bool({"spec", "test", "life", "clause", "scenario"} & set(body))
    clause = clause or (body.get("clause") if is_case else None)
    if not isinstance(clause, str) or clause not in contract.clauses():
        named = f"{shown(clause)} is no clause" if clause else "names no clause"
        raise UsageError(f"{where}: {named}; name the one that fails with --clause, such as --clause LOSS-01")
    if body.get("life"):
        raise UsageError(f"{where}: has a life, a sequence of actions, of which no short script is made")
    known = expectations.load(SUITES / "expectations")
    scenario = body.get("scenario") if is_case else None
    raw = body.get("spec") if is_case else body
    if isinstance(scenario, str) and (found := _known(clause, scenario, raw, known)) is not None:
        return found
    if raw is None:
        named = "" if scenario is None else f", and no known defect names {clause} {shown(scenario)}"
        raise UsageError(f"{where}: has no run (spec){named}")
    _require_no_reason(clause, scenario, known)
    spec = RunSpec.from_json(raw, where)
    trust.check(spec, where, trusted)
    return of_spec(spec, clause, known)


def _known(clause: str, scenario: str, spec: Any, known: list[Expectation]) -> Origin | None:
    """Return the script of the known defect that a case shows; None if there is none."""
    drawn = isinstance(spec, Mapping) and scenario.startswith("drawn-")
    for one in recipes.load():
        for defect in recipes.defects(one, known):
            named = defect.clause == clause and defect.names(scenario)
            if named and (not defect.spec or (drawn and defect.describes(spec))):
                return Origin(recipes.script_of(one), clause, defect, one.id, one.good)
    return None


def _require_no_reason(clause: str, scenario: Any, known: list[Expectation]) -> None:
    """Raise UsageError with the reason if it is known why no script shows a clause, or a known defect of it."""
    if generator.has_check(clause):
        return
    for one in recipes.without_script():
        for defect in recipes.defects(one, known):
            if defect.clause == clause and (not isinstance(scenario, str) or defect.names(scenario)):
                raise refuse(f"{clause} {one.reason}")


def of_spec(spec: RunSpec, clause: str, known: list[Expectation]) -> Origin:
    """Return the script of a run and a clause. Raises UsageError if it would be too long, or needs what it cannot hold."""
    body = spec.to_json()
    defect = next((one for one in known if one.clause == clause and one.spec and one.describes(body)), None)
    check = generator.check_for(clause)
    options: dict[str, Any] = {}
    if check == "resumes":
        spec, options = _with_checkpoint(spec)
    text = generator.script(spec, check, f"Must hold: {contract.clauses()[clause].statement}", [], options)
    return Origin(text, clause, defect)


def _with_checkpoint(spec: RunSpec) -> tuple[RunSpec, dict[str, Any]]:
    """Return the run with checkpoints, and the step of the one from which it resumes."""
    step: Any = spec.resume.checkpoint if spec.resume is not None else None
    whole = spec.first_leg() if spec.resume is not None else spec
    every = whole.arguments.get("save_steps")
    if type(step) is not int:
        total = whole.arguments.get("max_steps") or 10
        step = every if type(every) is int and 0 < every < total else max(1, int(total) // 2)
    return whole.but(save_strategy="steps", save_steps=step), {"step": step}
