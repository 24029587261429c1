"""The file that repeats a failed case, as `peft-harness repro` reads it. `harness.session.failure` writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.paths import SUITES
from harness.reading import read_json, shown, shown_path
from harness.runs.lifecycle import VERBS
from harness.spec import LIMIT, RunSpec
from harness.verdict import Case

#: The newest schema that this release reads (`harness.session.report.SCHEMA_VERSION`).
SCHEMA_VERSION = 1

_MODULE = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_SUBJECT = re.compile(rf"[a-z][\w-]*|{_MODULE}:{_MODULE}")

#: A test of the suites as pytest names it, such as "test_acc.py::test_windows[plain/ACC-02]".
_TEST = re.compile(r"test_\w+\.py::(\w+::)?test_\w+(\[.*\])?")


@dataclass(frozen=True)
class CaseFile:
    """What is repeated: a test of the suites, or a run.

    - where: what messages call the file.
    - spec: the run; None for a test of the suites, which has its own.
    - subject, device: who trained it, and where; None in a bare spec.
    - preload: modules that were imported before upstream was used.
    - clause: the clause that did not hold; None in a bare spec.
    - test: the test of the suites; None for a run.
    - life: the actions of a drawn life; None if it is a run.
    """

    where: str
    spec: RunSpec | None = None
    subject: str | None = None
    device: str | None = None
    preload: tuple[str, ...] = ()
    clause: str | None = None
    test: str | None = None
    life: tuple[Mapping[str, Any], ...] | None = None


def load(path: str | Path) -> CaseFile:
    """Return what a case file, or a bare spec, describes. Raises UsageError for what is neither.

    What it names is not checked here: see `harness.trust`.
    """
    body, where = read_json(path, LIMIT, nan=True), shown_path(path)  # so that a message about NaN names the field
    if not isinstance(body, Mapping) or not {"spec", "test", "life"} & set(body):
        return CaseFile(where, RunSpec.from_json(body, where))
    version = body.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise UsageError(
            f"{where}: schema_version {shown(version)} is not one of 1 to {SCHEMA_VERSION}, which this release of "
            "peft-harness reads"
        )
    test = body.get("test")
    if "test" in body and not (isinstance(test, str) and test.isprintable() and _TEST.fullmatch(test)):
        raise UsageError(f"{where}, test: names the test {shown(test)}, which this release does not have")
    if test is not None:
        missing = [name for name in ("subject", "device", "preload") if name not in body]
        if missing:
            raise UsageError(f"{where}: lacks {missing[0]}, which the file of a failed case has")
    case = CaseFile(
        where,
        spec=RunSpec.from_json(body.get("spec"), where) if test is None else None,
        subject=_string(body, "subject", where, _SUBJECT),
        device=_string(body, "device", where, re.compile("cpu|cuda")),
        preload=_preload(body.get("preload", []), where),
        clause=_string(body, "clause", where, re.compile(r"[\w-]+")),
        test=test,
        life=_life(body["life"], where) if "life" in body else None,
    )
    if case.test is not None:
        path_of(case)
    return case


def body(case: Case, preload: Sequence[str]) -> dict[str, Any]:
    """Return what the file of a case holds. preload: modules that were imported before upstream was used."""
    return {
        "schema_version": SCHEMA_VERSION,
        "clause": case.clause,
        "scenario": case.scenario,
        # A drawn run is repeated from its spec: the test would draw other runs. So is a run of --spec: without it there
        # is no test.
        **({} if case.drawn or case.brought else {"test": case.nodeid.rpartition("suites/")[2]}),
        "subject": case.subject,
        "device": case.device,
        "preload": list(preload),
        "spec": case.specs[0] if case.specs else None,
        **({"life": case.life} if case.life else {}),
    }


def file_stem(clause: str, scenario: str) -> str:
    """Return the name of a case's file, without its extension. Other cases may have the same."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{clause}-{scenario}")[:120]


def path_of(case: CaseFile) -> str:
    """Return the test of a case as pytest's command line takes it. Raises UsageError if the suites do not have it.

    The case file may be somebody else's, and pytest runs any file: only those of the suites are taken.
    """
    name, _, function = (case.test or "").partition("::")
    file = SUITES / name
    function = function.partition("[")[0].rpartition("::")[2]
    known = name in {path.name for path in SUITES.glob("test_*.py")}
    if not known or f"def {function}(" not in file.read_text(encoding="utf-8"):
        raise UsageError(f"{case.where}: names the test {shown(case.test)}, which this release does not have")
    return str(SUITES / str(case.test))


def _string(body: Mapping[str, Any], name: str, where: str, pattern: re.Pattern[str]) -> str | None:
    value: str | None = body.get(name)
    if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
        raise UsageError(f"{where}, {name}: {shown(value)} is no {name}")
    return value


def _preload(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and re.fullmatch(_MODULE, item) for item in value):
        raise UsageError(f"{where}, preload: expected a list of names of modules, found {shown(value)}")
    return tuple(value)


def _life(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """Return the actions of a life. Their arguments are numbers."""
    acts = value if isinstance(value, list) else [value]
    if not acts or not all(isinstance(act, Mapping) and act.get("do") in [*VERBS] for act in acts):
        raise UsageError(f'{where}, life: expected a list of objects with "do", one of {", ".join(VERBS)}')
    for act in acts:
        for name, argument in act.items():
            if name != "do" and not (type(argument) is int and 0 <= argument <= 1000):
                raise UsageError(f"{where}, life: {act['do']} has {name} = {shown(argument)}; expected 0 to 1000")
    return tuple(acts)
