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
from harness.gate.findings import ABOUT, BROKEN, FIXED, INCONCLUSIVE, LOST, NOTE, SAFE, UNSAFE
from harness.reading import read_json, shown

TITLES = {
    BROKEN: "Broken by the upgrade",
    LOST: "Cannot be judged any more",
    FIXED: "Fixed by the upgrade",
    NOTE: "Worth knowing",
}

#: Findings of each kind that are listed.
_FINDINGS = 20

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
    verdict = _one_of(report, "verdict", (SAFE, UNSAFE, INCONCLUSIVE), where)
    findings = list(_findings(report, where))
    lines = [
        f"## {title}: {verdict.upper()}",
        "",
        f"| | {' | '.join(STACK)} |",
        f"|---|{'---|' * len(STACK)}",
    ]
    for side in ("baseline", "candidate"):
        versions = _of_type(_of_type(report, side, dict, where), "versions", dict, where)
        lines.append(f"| {side} | {' | '.join(_version(versions.get(package)) for package in STACK)} |")
    for means, heading in TITLES.items():
        sentences = [sentence for each, sentence in findings if each == means]
        if sentences:
            lines += ["", f"### {heading} ({len(sentences)})", "", *sentences[:_FINDINGS]]
        if len(sentences) > _FINDINGS:
            lines.append(f"- and {len(sentences) - _FINDINGS} more in the report")
    if not any(means == BROKEN for means, _ in findings):
        lines += ["", "Nothing that held on the baseline is broken on the candidate."]
    for package, reason in _left_out(report):
        lines += ["", f"Left out on both sides: {code_span(package)} ({code_span(reason)})"]
    if isinstance(report.get("compared"), str):
        lines += ["", code_span(report["compared"])]
    return "\n".join(lines) + "\n"


def _left_out(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each optional package that was left out on both sides, and why. Older reports do not say it."""
    listed = report.get("left_out")
    for one in listed[:_FINDINGS] if isinstance(listed, list) else ():
        if isinstance(one, dict) and isinstance(one.get("package"), str) and isinstance(one.get("reason"), str):
            yield one["package"], one["reason"]


def _findings(report: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    """Yield what each finding means, and its line."""
    for finding in _of_type(report, "findings", list, where):
        if not isinstance(finding, dict):
            raise UsageError(f"{where}: a finding is no object; it is not a report of `peft-harness gate`")
        about = _one_of(finding, "about", ABOUT, where)
        means = _one_of(finding, "means", tuple(TITLES), where)
        place, sentence = (code_span(_of_type(finding, field, str, where)) for field in ("where", "sentence"))
        yield means, f"- {place} ({about}): {sentence}"


def _one_of(report: Mapping[str, Any], field: str, allowed: tuple[str, ...], where: str) -> str:
    value = _of_type(report, field, str, where)
    if value not in allowed:
        raise UsageError(f"{where}: {field} is {shown(value)}; it is one of {', '.join(allowed)}")
    return str(value)


def _of_type(report: Mapping[str, Any], field: str, kind: type, where: str) -> Any:
    value = report.get(field)
    if not isinstance(value, kind):
        raise UsageError(f"{where}: {field} is no {kind.__name__}; it is not a report of `peft-harness gate`")
    return value


def _version(version: Any) -> str:
    if version is None:
        return "-"
    return version if isinstance(version, str) and _VERSION.fullmatch(version) else "?"


def one_line(text: str) -> str:
    """Return a text in one line. What cannot be printed, such as commands to a terminal, is replaced by spaces."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


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
