"""The register as a page, suites/CONTRACT.md: each clause with its tests and with what makes it fail, by chapter."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from harness import contract
from harness.register.entries import Entry

_HEAD = """# The contract, clause by clause

`peft-harness clauses --write` writes this page; do not edit it. Sources are lines of transformers 5.23.0, peft 0.21.2
and accelerate 1.15.0.

- *profile*: what it asks of whoever trains (`harness/subjects/README.md`).
- *fails with*: known defects of supported releases (`suites/expectations/`).
- *broken in*: past releases that had a fault which was mended since (`harness/contract/releases.py`).
- *made to fail by*: faults that `tests/` puts into upstream, to show that the clause can fail.
"""


def page(entries: dict[str, Entry]) -> str:
    """Return the page as Markdown. entries: by clause id, as `harness.register.entries.entries` returns them."""
    return "\n".join([_HEAD, *_summary(entries), *_chapters(entries)])


def _summary(entries: dict[str, Entry]) -> Iterator[str]:
    yield "| chapter | clauses | with known defects | broken once | faults that make them fail |"
    yield "|---|---:|---:|---:|---:|"
    for chapter in contract.chapters():
        own = [entries[clause.id] for clause in chapter.clauses]
        title = f"{chapter.id} {chapter.title}"
        counts = (len(own), sum(bool(e.defects) for e in own), sum(bool(e.releases) for e in own))
        faults = sum(len(e.faults) for e in own)
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
    yield f"profile: {clause.profile}"
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
    """Return Markdown that shows a text as it is. Its underscores and stars belong to names and globs."""
    return re.sub(r"(?<!\w)_|_(?!\w)|[\\`*\[\]<>|]", r"\\\g<0>", text)


def _anchor(title: str) -> str:
    """Return the anchor that hosting sites give a heading."""
    return "".join(c for c in title.lower() if c.isalnum() or c in " -_").replace(" ", "-")
