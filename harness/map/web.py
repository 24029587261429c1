"""The table as one page of HTML that needs no network: releases along both sides, and what is behind each cell.

The page has the table as JSON, and a script that sets texts only. What others wrote cannot become markup: see
`harness.reports.web_page`, whose style and rules this page shares.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import contract, pages
from harness.errors import UsageError
from harness.map import results_table, texts
from harness.map.since import defects
from harness.reports.web_model import cut
from harness.reports.web_page import embedded

_FOLDER = Path(__file__).with_name("page")

#: Bytes of the JSON in a page, and how texts and lists are cut until it fits: (characters, entries).
_MOST = 12_000_000
_CUTS = ((300, 400), (160, 40), (80, 12))

_FIELDS = (
    "stack", "requirements", "device", "run", "state", "sentence", "python", "machine", "cores", "date", "requires",
    "lock_key", "clauses", "causes",
)  # fmt: skip


def write(table: Mapping[str, Any]) -> str:
    """Return the page of a table. Raises UsageError if it is too large for one page."""
    template, style, script = _templates()
    names = texts.packages(table["cells"]) if table["cells"] else []
    cells = texts.ordered(table["cells"])
    shown = [{name: cell[name] for name in _FIELDS} for cell in cells]
    text: str = template.render(
        sentence=texts.sentence(table),
        made=table["made"],
        defects=defects(cells, names),
        conflicts=table["conflicts"][:200],
        not_judged=table.get("not_judged", []),
        unmade=[cell for cell in cells if cell["state"] != "judged"],
        data=_data(shown, names),
        style=style,
        script=script,
        policy=pages.policy(style, script),
    )
    return text + "\n"


def _data(cells: list[dict[str, Any]], names: list[str]) -> str:
    known = contract.clauses()
    ids = sorted({clause for cell in cells for clause in cell["clauses"]})
    about = {id: known[id].statement if id in known else "" for id in ids}
    for most, entries in _CUTS:
        shown = [
            {
                **cut(cell, most, entries),
                "clauses": {id: cut(entry, most, entries) for id, entry in cell["clauses"].items()},
            }
            for cell in cells
        ]
        text = embedded({"packages": names, "clauses": ids, "about": about, "cells": shown, "holds": _WORDS})
        if len(text) <= _MOST:
            return text
    raise UsageError("the table has too many stacks and clauses for one page; write one of fewer clauses")


#: Verdict -> what it says of its stack, for the script.
_WORDS = {
    verdict: results_table.state(verdict)
    for verdict in (
        "pass",
        "fail",
        "ambiguous",
        "not_comparable",
        "skipped",
        "known_defect",
        "unexpected_pass",
        "conflict",
    )
}


@functools.cache
def _templates() -> tuple[Any, str, str]:
    from harness import reports

    shared = (Path(str(reports.__file__)).parent / "page" / "page.css").read_text(encoding="utf-8")
    style = shared + (_FOLDER / "map.css").read_text(encoding="utf-8")
    return pages.templates(_FOLDER).get_template("map.html.j2"), style, (_FOLDER / "map.js").read_text(encoding="utf-8")
