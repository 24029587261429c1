"""A report as one page of HTML that needs no network: the answer and its causes, then tables that can be filtered.

1. `page_of` turns a report into a `Page` (web_suites.py, web_gate.py, web_sweep.py, web_mutants.py, web_watch.py).
2. page/page.html.j2 shows the answer, the causes and the tables. They are there without a script, too.
3. page/page.js makes the rows that can be filtered, from JSON within the page.

A report may come from code that nobody trusts. Jinja escapes each text, the JSON cannot end its block, the script only
sets texts and never markup, and the page's policy allows this one script and nothing from elsewhere.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness import pages
from harness.errors import UsageError
from harness.reports import kinds, web_gate, web_mutants, web_suites, web_sweep, web_watch
from harness.reports.kinds import GATE, JUDGE, MUTANTS, SUITES, SWEEP, WATCH
from harness.reports.web_model import Page

#: The newest `schema_version` that is read, of any kind of report.
NEWEST = 1

#: Bytes of the JSON in a page. A page is to stay below 3 MB.
MOST_BYTES = 2_400_000

#: How long texts and lists may be, tried in turn until the JSON is small enough: (characters, entries).
_CUTS = ((4000, 60), (1200, 25), (300, 8), (120, 3))

#: Fields without which a report cannot be shown: kind -> field -> type.
_NEEDED: dict[str, dict[str, type]] = {
    SUITES: {"clauses": list, "environment": dict},
    GATE: {"verdict": str, "baseline": dict, "candidate": dict, "findings": list},
    JUDGE: {"laws": list},
    SWEEP: {"pairs": dict, "causes": list, "configurations": dict},
    MUTANTS: {"mutants": list},
    WATCH: {"checks": list, "steps": dict},
}

_PAGES: dict[str, Callable[[Mapping[str, Any]], Page]] = {
    SUITES: web_suites.page,
    GATE: web_gate.page,
    JUDGE: web_suites.judged_run,
    SWEEP: web_sweep.page,
    MUTANTS: web_mutants.page,
    WATCH: web_watch.page,
}


def write(report: Any, where: str = "the report") -> str:
    """Return the page of a report of any command.

    - where: what messages call the report.

    Raises UsageError if it is no report, if it is damaged, or if a newer release wrote it.
    """
    page = page_of(report, where)
    data, shortened = _data(page, where)
    template, style, script = _templates()
    text: str = template.render(
        page=page,
        data=data,
        style=style,
        script=script,
        policy=pages.policy(style, script),
        shortened=shortened,
        rows=len(page.rows.rows),
    )
    return text + "\n"


def page_of(report: Any, where: str = "the report") -> Page:
    """Return what the page of a report shows. Errors as for `write`."""
    return _PAGES[check(report, where)](report)


def check(report: Any, where: str = "the report") -> str:
    """Return the kind of a report that can be shown. Errors as for `write`."""
    kind = kinds.kind(report, where)
    version = report.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise UsageError(f"{where}: is damaged (schema_version is missing or no number); make the report again")
    if version > NEWEST:
        raise UsageError(
            f"{where}: was written by a newer release of peft-harness (schema_version {version}, this one reads {NEWEST}); "
            "update peft-harness"
        )
    for field, type_ in _NEEDED[kind].items():
        if not isinstance(report.get(field), type_):
            raise UsageError(f"{where}: is damaged ({field} is missing or of a wrong type); make the report again")
    for field in ("clauses", "laws", "mutants", "findings", "checks"):
        wrong = next((at for at, one in enumerate(kinds.items(report.get(field))) if not isinstance(one, dict)), None)
        if wrong is not None:
            raise UsageError(f"{where}: is damaged ({field}, entry {wrong + 1}, is no object); make the report again")
    return kind


def _data(page: Page, where: str) -> tuple[str, bool]:
    """Return the JSON of the page's script, and whether texts were cut. Raises UsageError if it is too large even so."""
    for at, (most, entries) in enumerate(_CUTS):
        data = {**page.rows.to_json(most, entries), "curves": page.curves}
        text = embedded(data)
        if len(text) <= MOST_BYTES:
            return text, at > 0
    raise UsageError(f"{where}: has too many cases for one page ({len(text):,} bytes); judge fewer clauses")


def embedded(value: Any) -> str:
    """Return JSON that may stand in a script element: it has no character that could end it or begin a comment."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@functools.cache
def _templates() -> tuple[Any, str, str]:
    """Return the template, the style and the script of every page."""
    folder = Path(__file__).parent / "page"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return pages.templates(folder).get_template("page.html.j2"), style, script
