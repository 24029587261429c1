"""The summary of a gate's report as Markdown, for a comment on a pull request or an issue.

A report may have been changed by the code that it judges. So only a few fields are read. Words of the report stand in code
spans on lines that begin with ours: they mention nobody, load no image, and are no command to GitHub or GitLab.

    python -m harness.gate.summary DIRECTORY NAME...

prints the summaries of reports that came from somewhere else. It imports nothing that has to be installed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.environment import STACK
from harness.errors import UsageError
from harness.files import inside
from harness.gate.extract import TITLES, Answer, Listed, of_type, read
from harness.gate.findings import BROKEN, LOST
from harness.reading import read_json
from harness.words import counted, one_line

#: Findings of each kind that are listed.
_FINDINGS = 20

#: Commands of a cause that are listed.
_COMMANDS = 3

#: Characters of a quoted text.
_QUOTED = 300

#: Bytes of all summaries together. GitHub takes 65,536 characters in a comment, and as an argument 131,072 bytes of base64.
_BYTES = 60_000

_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+!_-]{0,39}")


def markdown(report: Mapping[str, Any], title: str = "Upgrade gate", where: str = "the report") -> str:
    """Return the summary of a gate's report.

    - report: as in report_schema.json. It may come from somebody else.
    - title: what the heading calls it.
    - where: what messages call the report.

    Raises UsageError if a field that is shown has another type than the schema says.
    """
    answer = read(report, where)
    lines = [
        f"## {title}: {answer.verdict.upper()}",
        "",
        code_span(answer.sentence),
        "",
        *(line for one in answer.requires[:_FINDINGS] for line in (f"- Requires: {code_span(one)}",)),
        *([""] if answer.requires else []),
        f"| | {' | '.join(STACK)} |",
        f"|---|{'---|' * len(STACK)}",
    ]
    for side in ("baseline", "candidate"):
        versions = of_type(of_type(report, side, dict, where), "versions", dict, where)
        lines.append(f"| {side} | {' | '.join(_version(versions.get(package)) for package in STACK)} |")
    for means, heading in TITLES.items():
        lines += _section(means, heading, answer)
    if not answer.findings[BROKEN]:
        lines += ["", "Nothing that held on the baseline is broken on the candidate."]
    for package, reason in _left_out(report):
        lines += ["", f"Left out on both sides: {code_span(package)} ({code_span(reason)})"]
    if isinstance(report.get("compared"), str):
        lines += ["", code_span(report["compared"])]
    return "\n".join(lines) + "\n"


def _section(means: str, heading: str, answer: Answer) -> list[str]:
    """Return the lines about one kind of change: its causes, or its findings if there are none."""
    if answer.causes is not None and means in (BROKEN, LOST):
        causes = answer.causes[means]
        heading += f" ({counted(len(causes), 'cause')})"
        entries = [line for one in causes[:_FINDINGS] for line in _cause(one)]
        number = len(causes)
    else:
        findings = answer.findings[means]
        heading += f" ({len(findings)})"
        entries = [
            f"- {code_span(place)} ({about}): {code_span(sentence)}" for about, place, sentence in findings[:_FINDINGS]
        ]
        number = len(findings)
    more = [f"- and {number - _FINDINGS} more in the report"] if number > _FINDINGS else []
    return ["", f"### {heading}", "", *entries, *more] if number else []


def _cause(one: Listed) -> list[str]:
    details = "; ".join(code_span(detail) for detail in one.details)
    return [
        f"- {code_span(one.sentence)}: {one.counts}{f'; {details}' if details else ''}",
        *(f"- next: {code_span(command)}" for command in one.next[:_COMMANDS]),
    ]


def _left_out(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each optional package that was left out on both sides, and why. Older reports do not say it."""
    listed = report.get("left_out")
    for one in listed[:_FINDINGS] if isinstance(listed, list) else ():
        if isinstance(one, dict) and isinstance(one.get("package"), str) and isinstance(one.get("reason"), str):
            yield one["package"], one["reason"]


def _version(version: Any) -> str:
    if version is None:
        return "-"
    return version if isinstance(version, str) and _VERSION.fullmatch(version) else "?"


def code_span(text: str) -> str:
    """Return a text as a code span of one line. Backticks, which would end it, are replaced."""
    plain = one_line(text.replace("`", "'"))
    return f"`{plain if len(plain) <= _QUOTED else plain[: _QUOTED - 3] + '...'}`" if plain else "-"


def of_files(directory: Path, names: list[str]) -> str:
    """Return the summaries of reports that another job wrote.

    - directory: the directory that holds nothing but what the job wrote.
    - names: the paths of the reports in it. No link is followed out of the directory. A report that is missing, or that
      cannot be read as one, is named with the reason.
    """
    parts = []
    for name in names:
        title = f"Upgrade gate ({code_span(str(Path(name).parent))})" if len(names) > 1 else "Upgrade gate"
        try:
            if not (directory / name).exists() and not (directory / name).is_symlink():
                raise UsageError(f"{name}: there is no such file, so the gate did not end; see the log of its job")
            report = read_json(inside(directory, name, directory.name), nan=True)
            parts.append(markdown(report if isinstance(report, dict) else {}, title, name))
        except UsageError as error:
            parts.append(f"## {title}: NO REPORT\n\n{code_span(str(error))}\n")
    return _shortened("\n".join(parts))


def _shortened(text: str) -> str:
    """Leave out the last lines of a text that is too long for a comment, and say so."""
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        size += len(line.encode())
        if size > _BYTES:
            return "".join(lines) + "\nThe rest is left out; see the report.\n"
        lines.append(line)
    return text


def main(words: list[str]) -> int:
    """Print the summaries of reports in a directory. Returns the exit code."""
    if len(words) < 2:
        print("ci/summary: name a directory, and reports in it", file=sys.stderr)
        return 2
    sys.stdout.buffer.write(of_files(Path(words[0]), words[1:]).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
