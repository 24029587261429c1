"""What is new since the night before: compare two reports of `peft-harness gate` by what they found.

    python -m harness.gate.news LAST TONIGHT      paths of two JSON reports

prints a summary as Markdown if anything is new or gone, and nothing if all is as it was. Two findings are the same if they
are about the same thing in the same words, but for numbers. If both reports have causes, these are compared, and findings
that are no clause's. A step's time that noise left undecided is no news. Reports may have been changed by the code that they
judge: see `harness.gate.summary`. Nothing has to be installed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.environment import STACK
from harness.errors import UsageError
from harness.files import inside
from harness.gate.findings import BROKEN, LOST, UNSAFE
from harness.gate.summary import code_span
from harness.reading import read_json, shown_path

#: Findings that are listed of each kind.
_LISTED = 20

#: Hexadecimal numbers, numbers, and the words of a sentence that count cases, which vary from night to night.
_VARYING = re.compile(r"0x[0-9a-f]+|\d+(?:[.,]\d+)*(?:e[+-]?\d+)?|\(held before.*|\bin \d+ cases?.*", re.IGNORECASE)


@dataclass(frozen=True)
class News:
    """What differs between two nights. Each list has (what it is about, its sentence), in the order of the reports."""

    new: list[tuple[str, str]]
    gone: list[tuple[str, str]]
    same: int


def compared(last: Mapping[str, Any] | None, tonight: Mapping[str, Any]) -> News:
    """Return what is new and gone tonight. last: None if there is no report of the night before."""
    by_cause = bool(tonight.get("causes")) and (last is None or bool(last.get("causes")) or not _blocking(last))
    now, before = _found(tonight, by_cause), {} if last is None else _found(last, by_cause)
    new = [found for key, found in now.items() if key not in before]
    gone = [found for key, found in before.items() if key not in now]
    return News(new, gone, len(now) - len(new))


def _found(report: Mapping[str, Any], by_cause: bool) -> dict[tuple[str, ...], tuple[str, str]]:
    """Return key -> (about, sentence) of each cause and finding that blocks the upgrade."""
    found: dict[tuple[str, ...], tuple[str, str]] = {}
    for cause in _dicts(report.get("causes")) if by_cause else ():
        sentence = str(cause.get("sentence"))
        clauses = [str(id) for id in cause.get("clauses") or ()][:_LISTED]
        found.setdefault(("cause", _plain(sentence)), (f"cause, {', '.join(clauses)}", sentence))
    for finding in _blocking(report):
        about, where = str(finding.get("about")), str(finding.get("where"))
        if not (by_cause and about == "clause"):
            sentence = str(finding.get("sentence"))
            key = (about, where, str(finding.get("means")), _plain(sentence))
            found.setdefault(key, (f"{about} {where}", sentence))
    return found


def _plain(sentence: str) -> str:
    """Return a sentence without what varies from night to night."""
    return _VARYING.sub("#", " ".join(sentence.split()))


def _blocking(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the findings that block the upgrade, but for times that are undecided: the machine was busy."""
    return [
        one
        for one in _dicts(report.get("findings"))
        if one.get("means") == BROKEN
        or (one.get("means") == LOST and "machine is too noisy" not in str(one.get("sentence")))
    ]


def _dicts(value: Any) -> Iterator[Mapping[str, Any]]:
    return (one for one in value if isinstance(one, dict)) if isinstance(value, list) else iter(())


def markdown(news: News, tonight: Mapping[str, Any]) -> str:
    """Return the news as Markdown; "" if there are none."""
    if not (news.new or news.gone):
        return ""
    lines = [
        f"## The newest releases: {len(news.new)} new, {len(news.gone)} gone, {news.same} as the night before",
        "",
        f"Candidate: {code_span(_versions(tonight))}",
    ]
    for title, found in (("New", news.new), ("Gone", news.gone)):
        if found:
            lines += ["", f"### {title} ({len(found)})", ""]
            lines += [f"- {code_span(about)}: {code_span(sentence)}" for about, sentence in found[:_LISTED]]
        if len(found) > _LISTED:
            lines.append(f"- and {len(found) - _LISTED} more in the report")
    return "\n".join(lines) + "\n"


def _versions(report: Mapping[str, Any]) -> str:
    candidate = report.get("candidate")
    versions = candidate.get("versions") if isinstance(candidate, dict) else None
    known = versions if isinstance(versions, dict) else {}
    return ", ".join(f"{package} {known[package]}" for package in STACK if package in known)


def read(path: Path) -> dict[str, Any]:
    """Return a gate's report. Raises UsageError if it cannot be read as one."""
    # No link is followed out of its folder.
    report = read_json(inside(path.parent, path.name, path.parent.name or "."), nan=True)
    if not isinstance(report, dict) or not isinstance(report.get("findings"), list) or "verdict" not in report:
        raise UsageError(f"{shown_path(path)}: is no report of `peft-harness gate`")
    return report


def main(words: Sequence[str]) -> int:
    """Print what is new.

    Returns 0 if nothing is, 1 if something broke, 3 if something can no longer be judged, 2 if tonight's is no report.
    """
    if len(words) != 2:
        print("ci/news: name two reports: LAST TONIGHT", file=sys.stderr)
        return 2
    before, now = map(Path, words)
    try:
        tonight = read(now)
    except (UsageError, OSError) as error:
        print(f"ci/news: {error}", file=sys.stderr)
        return 2
    last = None
    try:
        last = read(before)
    except (UsageError, OSError) as error:
        print(f"ci/news: there is no report of the night before, so everything is new ({error})", file=sys.stderr)
    news = compared(last, tonight)
    sys.stdout.buffer.write(markdown(news, tonight).encode(errors="replace"))
    return 0 if not news.new else 1 if tonight["verdict"] == UNSAFE else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
