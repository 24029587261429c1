"""The table: what was judged of each stack, clause by clause. A file that can be sent, merged and read without a network."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from harness.errors import UsageError
from harness.map import ask
from harness.paths import FIXTURES
from harness.reading import read_json, shown_path
from harness.verdict import KNOWN_DEFECT, ORDER, PASS, SKIPPED, UNEXPECTED_PASS
from harness.words import one_line

#: The newest `schema_version` that is read.
NEWEST = 1

#: The table that comes with the harness.
OURS = FIXTURES / "map" / "table.json"

#: Bytes of a table. One of 400 stacks and all clauses has 60 MB.
LIMIT = 2**28

#: The verdict of a clause on which two tables do not agree.
CONFLICT = "conflict"

#: What a stack says of a clause.
HOLDS, FAILS, UNDECIDED, NOT_JUDGED = "holds", "fails", "undecided", "not judged"

#: What a stack says of all its clauses, if nothing fails in it but what is recorded in suites/expectations/.
KNOWN = "known defects"

#: What a stack may say that nobody has to act on.
GOOD = (HOLDS, KNOWN)

_STATES = {PASS: HOLDS, UNEXPECTED_PASS: HOLDS, KNOWN_DEFECT: FAILS, "fail": FAILS, SKIPPED: NOT_JUDGED}

Cell = dict[str, Any]


def state(verdict: str | None) -> str:
    """Return what a verdict says of its stack, as a gate counts it: a known defect fails, an unexpected pass holds."""
    return NOT_JUDGED if verdict is None else _STATES.get(verdict, UNDECIDED)


def of_cell(cell: Mapping[str, Any], clauses: Iterable[str] = ()) -> str:
    """Return what a cell says of clauses: the worst of them.

    - clauses: those that must hold; a known defect of one of them is a failure. If none is named, all that was judged, and
      a stack whose failures are all known defects is KNOWN.

    A stack that cannot be made or run does not hold. Nor does one whose packages refuse each other (`requires`): what they
    refuse, such as add_adapter, may be in no case that was judged.
    """
    if cell["state"] != "judged" or cell["requires"]:
        return FAILS
    named = list(clauses)
    states = {state(_verdict(cell, one)) for one in named or cell["clauses"]}
    if not named and {_verdict(cell, one) for one in failing(cell)} == {KNOWN_DEFECT} and UNDECIDED not in states:
        return KNOWN
    # A clause that is skipped everywhere decides nothing; one that was asked for and is not judged does.
    order = (FAILS, UNDECIDED, NOT_JUDGED, HOLDS) if named else (FAILS, UNDECIDED, HOLDS, NOT_JUDGED)
    return next((one for one in order if one in states), NOT_JUDGED)


def failing(cell: Mapping[str, Any], clauses: Iterable[str] = ()) -> list[str]:
    """Return the clauses that fail in a cell, among those that are named; if none is, new failures before known defects."""
    named = list(clauses)
    found = [one for one in named or cell["clauses"] if state(_verdict(cell, one)) == FAILS]
    new = [one for one in found if _verdict(cell, one) != KNOWN_DEFECT]
    return found if named or not new else new


def reason(cell: Mapping[str, Any], clauses: Iterable[str] = ()) -> str:
    """Return why a cell does not hold, in one sentence; "" if it does."""
    if cell["state"] != "judged":
        return f"{cell['state']}: {cell['sentence']}"
    named = list(clauses)
    wanted, broken = named or list(cell["clauses"]), failing(cell, named)
    if cell["requires"]:
        return str(cell["requires"][0])
    for cause in cell["causes"]:
        if hit := [one for one in cause["clauses"] if one in broken]:
            return f"{', '.join(hit[:3])}{' and more' * (len(hit) > 3)}: {cause['sentence']}"
    for clause in sorted(wanted):
        entry = cell["clauses"].get(clause)
        if entry is None:
            return f"{clause} was not judged"
        if state(entry["verdict"]) != HOLDS:
            return f"{clause} {entry['verdict']}: {entry['seen']}"
    return ""


def _verdict(cell: Mapping[str, Any], clause: str) -> str | None:
    entry = cell["clauses"].get(clause)
    return None if entry is None else entry["verdict"]


# ---- making ----


def table(
    results: Iterable[Mapping[str, Any]], tables: Iterable[Mapping[str, Any]], made: str, version: str
) -> dict[str, Any]:
    """Return the table of a campaign's results and of other tables.

    Results of the same stack, device, run, kind of machine, Python and lock are one cell. Of a clause that was judged again
    after its tests had changed, the newest verdict counts. Of equal tests with other verdicts, none does: the clause is in
    conflict, and `conflicts` has both.
    """
    cells: dict[tuple[str, ...], Cell] = {}
    singles = [one for each in results for one in [_of_result(each)]]
    for one in [*(cell for body in tables for cell in body["cells"]), *singles]:
        key = _identity(one)
        cells[key] = _joined(cells[key], one) if key in cells else json.loads(json.dumps(one))
    ordered = sorted(cells.values(), key=lambda cell: (cell["requirements"], cell["date"]), reverse=True)
    return {
        "schema_version": NEWEST,
        "kind": "map",
        "made": made,
        "harness": version,
        "cells": ordered,
        "conflicts": _conflicts(ordered),
    }


def _identity(cell: Mapping[str, Any]) -> tuple[str, ...]:
    python = cell["python"].rpartition(".")[0]
    return (*(cell[name] for name in ("requirements", "device", "run", "machine")), python, cell["lock_key"])


def _of_result(result: Mapping[str, Any]) -> Cell:
    """Return a cell of one result (`harness.map.cell`)."""
    names = (
        "stack",
        "requirements",
        "device",
        "run",
        "state",
        "sentence",
        "python",
        "machine",
        "cores",
        "date",
        "seconds",
    )
    cell = {name: result[name] for name in names}
    causes = [
        {**cause, **{name: _unstyled(cause[name]) for name in ("sentence", "reaches", "example") if name in cause}}
        for cause in result["causes"]
    ]
    cell |= {"requires": result["requires"], "lock_key": result.get("lock_key", ""), "causes": causes}
    cell["clauses"] = {
        clause: entry
        | {"seen": _unstyled(entry["seen"]), "key": result["keys"].get(clause, ""), "date": result["date"]}
        for clause, entry in result["clauses"].items()
    }
    return cell


def _unstyled(text: str) -> str:
    """Return a text in one line, without the colours that upstream put in for a terminal."""
    return one_line(re.sub(r"\x1b\[[0-9;]*m", "", text))


def _joined(one: Cell, other: Mapping[str, Any]) -> Cell:
    """Return two cells of the same stack as one."""
    older, newer = sorted([one, other], key=lambda cell: str(cell["date"]))
    joined: Cell = json.loads(json.dumps(newer))
    clauses: dict[str, Any] = {}
    for clause in dict.fromkeys([*older["clauses"], *newer["clauses"]]):
        was, now = older["clauses"].get(clause), newer["clauses"].get(clause)
        clauses[clause] = _agreed(was, now) if was and now else was or now
    kept = [
        {**cause, "clauses": left}
        for cause in older["causes"]
        if (left := [one for one in cause["clauses"] if one not in newer["clauses"] or _is_conflict(clauses[one])])
    ]
    kept = [cause for cause in kept if cause not in newer["causes"]]
    if older["state"] != newer["state"] and "judged" in (older["state"], newer["state"]):
        # What could be judged once is not unjudged by a network that was away.
        whole = older if older["state"] == "judged" else newer
        joined |= {name: whole[name] for name in ("state", "sentence", "requires", "stack", "date")}
    return joined | {"clauses": clauses, "causes": [*newer["causes"], *kept]}


def _is_conflict(entry: Mapping[str, Any]) -> bool:
    return bool(entry["verdict"] == CONFLICT)


def _agreed(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a clause that two cells have."""
    said = {(one["verdict"], one["date"]): one for one in (*was.get("verdicts", [was]), *now.get("verdicts", [now]))}
    if was["key"] != now["key"] or len({verdict for verdict, _ in said}) == 1:
        return dict(max((was, now), key=lambda one: str(one["date"])))
    each = [{name: one[name] for name in ("verdict", "date", "seen")} for one in said.values()]
    words = ", ".join(f"{one['verdict']} on {one['date'][:10]}" for one in each)
    return {**now, "verdict": CONFLICT, "seen": words, "verdicts": each}


def _conflicts(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what tables do not agree on: within a cell, and between cells of a stack with other locks."""
    found = []
    of: dict[tuple[str, ...], dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        for clause, entry in cell["clauses"].items():
            each = entry.get("verdicts", [entry])
            of[_identity(cell)[:-1]][clause] += [
                (entry["key"], one["verdict"], one["date"], cell["lock_key"]) for one in each
            ]
    for identity, clauses in of.items():
        for clause, said in clauses.items():
            if any(a[0] == b[0] and state(a[1]) != state(b[1]) for a in said for b in said):
                verdicts = [{"verdict": verdict, "date": date, "lock_key": lock} for _, verdict, date, lock in said]
                found.append(
                    {"requirements": identity[0], "device": identity[1], "clause": clause, "verdicts": verdicts}
                )
    return found


# ---- reading ----


@cache
def _schema() -> Any:
    return json.loads(Path(__file__).with_name("table_schema.json").read_text(encoding="utf-8"))


def load(file: Path | None = None) -> dict[str, Any]:
    """Return a table; the one that comes with the harness if no file is named.

    Raises UsageError if it is none, is damaged, or if a newer release wrote it.
    """
    path, where = file or OURS, shown_path(file or OURS)
    body = read_json(path, LIMIT)
    if not isinstance(body, dict) or body.get("kind") != "map":
        raise UsageError(f"{where}: is no table of stacks; name a file that map --json wrote")
    version = body.get("schema_version")
    if isinstance(version, int) and not isinstance(version, bool) and version > NEWEST:
        raise UsageError(
            f"{where}: was written by a newer release of peft-harness (schema_version {version}, this one reads {NEWEST}); "
            "update peft-harness"
        )
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(_schema()).iter_errors(body):
        at = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in error.absolute_path).lstrip(".")
        raise UsageError(
            f"{where}: is damaged ({at or 'the table'}: {error.message[:120]}); make it again with map --json"
        )
    known = {CONFLICT, *ORDER}
    for number, cell in enumerate(body["cells"]):
        try:
            ask.pins(cell["requirements"])
            for version in cell["stack"].values():
                Version(version)
        except (UsageError, InvalidVersion) as error:
            raise UsageError(f"{where}: is damaged (cells[{number}]: {error}); make it again with map --json") from None
        for clause, entry in cell["clauses"].items():
            if entry["verdict"] not in known:
                raise UsageError(f"{where}: is damaged ({clause} has the verdict {entry['verdict']!r})")
    return body


def write(body: Mapping[str, Any]) -> str:
    """Return a table as JSON, a cell a line, so that a change of one cell is a change of one line."""
    rest = {name: value for name, value in body.items() if name != "cells"}
    head = json.dumps(rest, indent=1)[:-2]
    cells = ",\n".join(json.dumps(cell, sort_keys=True) for cell in body["cells"])
    return f'{head},\n "cells": [\n{cells}\n ]\n}}\n'
