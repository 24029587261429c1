"""The contract as a page for people, suites/CONTRACT.md: by chapter, each clause with what judges and what fails it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from harness import contract
from harness.register.entries import Entry

_HEAD = """# The contract, clause by clause

Written by `peft-harness clauses --write`; do not edit. Sources are lines of transformers 5.23.0, peft 0.21.2 and
accelerate 1.15.0. *Fails with* lists known defects of releases that are supported (`suites/expectations/`), *broken
in* releases that have since been mended (`harness/contract/releases.py`), *made to fail by* the faults that
`tests/` puts into upstream to show that the clause can fail.
"""


def page(entries: dict[str, Entry]) -> str:
    """The whole page, as Markdown."""
    return "\n".join([_HEAD, *_summary(entries), *_chapters(entries)])


def _summary(entries: dict[str, Entry]) -> Iterator[str]:
    yield "| chapter | clauses | with known defects | broken once | faults that make them fail |"
    yield "|---|---:|---:|---:|---:|"
    for chapter in contract.chapters():
        of = [entries[clause.id] for clause in chapter.clauses]
        title = f"{chapter.id} {chapter.title}"
        counts = (len(of), sum(bool(e.defects) for e in of), sum(bool(e.releases) for e in of))
        faults = sum(len(e.faults) for e in of)
        cells = [f"[{title}](#{_anchor(title)})", *(str(count or "") for count in (*counts, faults))]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _chapters(entries: dict[str, Entry]) -> Iterator[str]:
    for chapter in contract.chapters():
        yield f"## {chapter.id} {chapter.title}\n"
        for clause in chapter.clauses:
            yield from _clause(entries[clause.id])


def _clause(entry: Entry) -> Iterator[str]:
    yield f"### {entry.clause.id}\n"
    yield f"{_wrapped(_escaped(entry.clause.statement))}\n"
    for fact in _facts(entry):
        yield _wrapped(f"- {fact}", "  ")
    yield ""


def _facts(entry: Entry) -> Iterator[str]:
    clause = entry.clause
    yield f"upstream: {_escaped(clause.source)}"
    if clause.tier != "cpu" or clause.needs:
        yield f"needs: {', '.join([clause.tier, *clause.needs])}"
    files = dict.fromkeys(test.partition("::")[0] for test in entry.judged_by)
    yield f"judged in: {', '.join(f'[{file}]({file})' for file in files)}"
    for defect in entry.defects:
        link = f" ([thread]({defect.link}))" if defect.link else ""
        yield f"fails with {', '.join(defect.versions)} on `{defect.scenario}`: {_escaped(defect.reason)}{link}"
    for release in entry.releases:
        yield f"broken in {release.bad}, good in {'; '.join(release.good)}: {_escaped(release.seen)}"
    for fault in dict.fromkeys(one["fault"] for one in entry.faults):
        yield f"made to fail by: {_escaped(fault)}"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _escaped(text: str) -> str:
    """Markdown that shows the text as it is: underscores and stars are names and globs here, not emphasis."""
    return re.sub(r"(?<!\w)_|_(?!\w)|[\\`*\[\]<>|]", r"\\\g<0>", text)


def _anchor(title: str) -> str:
    """The anchor that hosting sites give a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
