"""What a page shows, whatever command wrote the report: an answer, causes, tables, and rows that can be filtered."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness import contract
from harness.reports.kinds import fields, number, objects, text, texts
from harness.words import counted

#: How an answer or a verdict is coloured. The word is always there, too.
GOOD, BAD, UNSURE, KNOWN, QUIET = "good", "bad", "unsure", "known", "quiet"

#: Word of a verdict or a status -> its tone.
TONES = {
    "pass": GOOD,
    "killed": GOOD,
    "fail": BAD,
    "unexpected_pass": BAD,
    "survived": BAD,
    "crashed": BAD,
    "fails": BAD,
    "did not end": BAD,
    "harness fault": UNSURE,
    "undecided": UNSURE,
    "ambiguous": UNSURE,
    "not_comparable": UNSURE,
    "known_defect": KNOWN,
    "equivalent": KNOWN,
    "skipped": QUIET,
    "refused": QUIET,
}


@dataclass(frozen=True)
class Cause:
    """A cause as the page lists it. number: how the fragment of the page's address names it, from 1."""

    number: int
    sentence: str
    cases: int
    clauses: tuple[str, ...] = ()
    reaches: str = ""
    packages: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    example: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than a text.

    - text: what it says in words.
    - tone: one of the tones, or "".
    - code: whether it is set as code.
    - interval: low, estimate, high and margin, as shares; drawn beside the text.
    - curves: the number of curves in `Page.curves` that a reader can open; None if there are none.
    """

    text: str
    tone: str = ""
    code: bool = False
    interval: tuple[float, float, float, float] | None = None
    curves: int | None = None


@dataclass(frozen=True)
class Section:
    """A table of the page.

    - id: its anchor.
    - open: whether it is shown at once; otherwise only its title is.
    - more: how many rows were left out.
    """

    id: str
    title: str
    head: tuple[str, ...]
    body: Sequence[Sequence[str | Cell]]
    note: str = ""
    open: bool = True
    more: int = 0
    kind: str = "table"


@dataclass
class Page:
    """A page.

    - title: of the window.
    - answer, tone: the answer in a few words, and its colour.
    - said: sentences below the answer.
    - causes: in the order of the report. None: the report has no causes.
    - sections: tables below the causes.
    - rows: the table that can be filtered.
    - curves: numbers by step that tables show (`Cell.curves`).
    """

    title: str
    answer: str
    tone: str
    said: list[str] = field(default_factory=list)
    causes: list[Cause] | None = None
    sections: list[Section] = field(default_factory=list)
    rows: Rows = field(default_factory=lambda: Rows("clause"))
    curves: list[Any] = field(default_factory=list)


class Rows:
    """The rows of the table that can be filtered. Equal evidence and equal specs are stored once.

    - noun: what the first column holds: "clause", "mutant".
    - sides: the names of the stacks whose verdicts a row has.
    - check: the command before `--clause`; "" if a row has no command, or one of its own.
    """

    def __init__(self, noun: str, sides: Sequence[str] = ("",), check: str = ""):
        self.noun = noun
        self.sides = list(sides)
        self.check = check
        self.about: dict[str, dict[str, str]] = {}
        self.rows: list[list[Any]] = []
        self._values: dict[str, int] = {}
        self._specs: dict[str, int] = {}
        self._uses: Counter[int] = Counter()

    def add(
        self,
        id: str,
        scenario: str,
        verdicts: Sequence[str],
        evidence: Sequence[Any],
        spec: Any = None,
        cause: int = 0,
        command: str = "",
    ) -> None:
        """Add a row.

        - id: the clause or the mutant. `describe` says what it states.
        - verdicts, evidence: one for each side; "" and None if the side has none.
        - cause: the number of its cause; 0 for none.
        - command: what repeats it, if it is not `check`.
        """
        stored = [-1 if not one else self._values.setdefault(_dumps(one), len(self._values)) for one in evidence]
        at = -1
        if isinstance(spec, dict) and spec:
            at = self._specs.setdefault(_dumps(spec), len(self._specs))
            self._uses[at] += 1
        self.rows.append([id, scenario, list(verdicts), stored, at, cause, *([command] if command else [])])

    def describe(self, id: str, statement: str = "", source: str = "") -> None:
        """Set what an id states, and where upstream says it."""
        self.about.setdefault(id, {"statement": statement, "source": source})

    def describe_clause(self, id: str) -> None:
        """Set what a clause of the contract states. A clause that this release does not have has no statement."""
        clause = None if id in self.about else contract.clauses().get(id)
        if clause is not None:
            self.describe(id, clause.statement, clause.source)

    def to_json(self, most: int, entries: int) -> dict[str, Any]:
        """Return the rows for the page's script.

        - most: characters of a text. Longer ones are cut.
        - entries: entries of a list or of an object. More are cut.
        """
        specs = [json.loads(one) for one in self._specs]
        usual = specs[self._uses.most_common(1)[0][0]] if specs else {}
        return {
            "noun": self.noun,
            "sides": self.sides,
            "check": self.check,
            "tones": TONES,
            "about": self.about,
            "values": [cut(json.loads(one), most, entries) for one in self._values],
            "usual": cut(usual, most, 4 * entries),
            "specs": [cut(changed(usual, spec), most, 4 * entries) for spec in specs],
            "rows": self.rows,
        }


#: `json.dumps` with these arguments would make an encoder for each value.
_dumps = json.JSONEncoder(separators=(",", ":"), default=str).encode


#: The key of `changed` under which the names lie that a spec lacks.
LACKS = "\u0000lacks"


def changed(usual: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a spec has otherwise than the usual one: its own values, and under LACKS the names that it lacks."""
    found: dict[str, Any] = {}
    for name, value in spec.items():
        was = usual.get(name)
        if isinstance(value, dict) and isinstance(was, dict):
            if part := changed(was, value):
                found[name] = part
        elif name not in usual or was != value:
            found[name] = value
    if lacks := [name for name in usual if name not in spec]:
        found[LACKS] = lacks
    return found


def cut(value: Any, most: int, entries: int) -> Any:
    """Return a value with long texts, lists and objects cut. What is cut is said in its place."""
    if isinstance(value, str):
        return value if len(value) <= most else f"{value[:most]}... ({len(value) - most:,} more characters)"
    if isinstance(value, list):
        left = [f"and {len(value) - entries:,} more"] if len(value) > entries else []
        return [cut(one, most, entries) for one in value[:entries]] + left
    if isinstance(value, dict):
        items = list(value.items())
        left_out = {"...": f"{len(items) - entries:,} more"} if len(items) > entries else {}
        # Curves are lists of numbers that belong together, and are short already.
        kept = {
            str(name)[:most]: curves_of(one) if name == "curves" else cut(one, most, entries)
            for name, one in items[:entries]
        }
        return kept | left_out
    # JSON has no NaN, and a browser refuses it.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# ---- what several kinds of reports have ----


def curves_of(value: Any) -> dict[str, Any] | None:
    """Return curves (`harness.laws.curves`) of a report, or None if they are not whole."""
    found = fields(value)
    names, steps = texts(found.get("of")), [number(one) for one in _list(found.get("steps"))][:100]
    if len(names) != 2 or not steps or None in steps:
        return None

    def line(values: Any) -> list[int | float | None]:
        return ([number(one) for one in _list(values)] + [None] * len(steps))[: len(steps)]

    def pair(values: Any) -> list[list[int | float | None]]:
        return [line(one) for one in ([*_list(values), [], []])[:2]]

    tensors = {text(name, 200): line(values) for name, values in list(fields(found.get("tensors")).items())[:8]}
    return {
        "of": list(names),
        "steps": steps,
        "loss": pair(found.get("loss")),
        "grad_norm": pair(found.get("grad_norm")),
        "tensors": tensors,
    }


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def causes_of(report: Mapping[str, Any]) -> tuple[list[Cause] | None, dict[tuple[str, str], int]]:
    """Return the causes of a report (None if it has none of the field), and the number of each member's cause."""
    if not isinstance(report.get("causes"), list):
        return None, {}
    causes, members = [], {}
    for at, one in enumerate(objects(report["causes"]), start=1):
        named = [(text(member.get("clause")), text(member.get("scenario"))) for member in objects(one.get("members"))]
        follows = [(text(member.get("clause")), text(member.get("scenario"))) for member in objects(one.get("follows"))]
        members.update(dict.fromkeys([*follows, *named], at))
        cases = number(one.get("cases"))
        causes.append(
            Cause(
                at,
                text(one.get("sentence")) or "a cause without a sentence",
                len(named) if cases is None else int(cases),
                texts(one.get("clauses")) or tuple(dict.fromkeys(clause for clause, _ in named)),
                "; ".join(part for part in (text(one.get("reaches")), _followed(len(follows))) if part),
                texts(one.get("packages")),
                texts(one.get("next")),
                text(one.get("example")),
            )
        )
    return causes, members


def _followed(number: int) -> str:
    return f"{counted(number, 'case')} could not be judged because of it" if number else ""


def stack_section(versions: Mapping[str, Mapping[str, Any]]) -> Section:
    """Return the table of versions. versions: side -> package -> version; with two sides, those that differ come first."""
    sides = list(versions)
    names = list(dict.fromkeys(name for side in sides for name in versions[side]))
    rows: list[list[str | Cell]] = []
    for name in names:
        found = [text(versions[side].get(name), 200) or "-" for side in sides]
        differs = len(set(found)) > 1
        marked: list[str | Cell] = [Cell(one, UNSURE if differs else "") for one in found]
        rows.append([name, *marked, *(["changed" if differs else ""] if len(sides) > 1 else [])])
    rows.sort(key=lambda row: row[-1] != "changed" if len(sides) > 1 else False)
    differ = sum(row[-1] == "changed" for row in rows) if len(sides) > 1 else 0
    head = ("package", *(side or "version" for side in sides), *(("",) if len(sides) > 1 else ()))
    title = f"Versions ({differ} of {len(rows)} changed)" if len(sides) > 1 else "Versions"
    return Section("versions", title, head, rows, open=False)


def environment_sentence(environment: Any) -> str:
    """Return where a report was made, in one sentence; "" if it does not say."""
    found = fields(environment)
    versions = [f"{name} {text(one, 60)}" for name, one in fields(found.get("versions")).items() if text(one, 60)]
    parts = [f"Python {text(found.get('python'), 60)}" if text(found.get("python"), 60) else ""]
    parts += [text(found.get("platform"), 200), text(found.get("device"), 100)]
    return ", ".join([*versions, *(part for part in parts if part)])
