"""`peft-harness repro --script`, `--issue`, and `peft-harness defects`."""

from __future__ import annotations

import json as json_
from pathlib import Path

from rich.console import Console
from rich.text import Text

from harness.errors import UsageError
from harness.files import write_whole
from harness.progress import screen
from harness.reading import read_json, shown, shown_path
from harness.upstream import case_script, issue, known, recipes

#: Bytes of a report of all suites: 20 MB.
_REPORT = 256 * 2**20


def write(
    file: Path,
    script: Path | None,
    report: Path | None,
    clause: str | None = None,
    bisect: Path | None = None,
    trusted: bool = False,
) -> None:
    """Write the script of a case, the report to upstream, or both.

    - file: a case file, or the file of a RunSpec.
    - script, report: where to write them; None: nowhere.
    - clause: the clause to judge; None for the one that the file names.
    - bisect: what `bisect --json` wrote; None if there is none.
    - trusted: whether the user trusts the code that the file names.

    Raises UsageError if no short script can be made. For a report it must show its fault on the installed stack.
    """
    if bisect is not None and report is None:
        raise UsageError("--bisect is for --issue, which says since which release the fault is there")
    origin = case_script.origin(file, clause, trusted)
    since = None if bisect is None else issue.read_bisect(bisect, origin.clause)
    if script is not None:
        write_whole(script, origin.text)
    if report is None:
        return
    done = issue.run(origin.text)
    if done.returncode != 1 or not any(line.startswith("seen:") for line in done.stdout.splitlines()):
        raise UsageError(
            f"--issue: the script shows no fault on the installed stack, so there is nothing to report "
            f"(exit code {done.returncode}: {' / '.join(issue.lines_of(done)) or 'it printed nothing'})"
        )
    write_whole(report, issue.issue(origin, done, since))


def defects(
    globs: list[str],
    report: Path | None,
    markdown: Path | None,
    html: Path | None,
    json: Path | None,
    script: str | None = None,
) -> None:
    """Print the table of known defects, or write it.

    - globs: clauses, as for --clause.
    - report: a report of the suites, which says what was seen; None if there is none.
    - markdown, html, json: where to write the table; None: nowhere.
    - script: the name of a script to print instead.

    Raises UsageError if a glob matches no clause, for another file than a report, and for a name of no script.
    """
    if script is not None:
        one = next((one for one in recipes.load() if one.id == script), None)
        if one is None:
            raise UsageError(f"--script: no script is named {shown(script)}; peft-harness defects lists them")
        print(recipes.script_of(one), end="")
        return
    body = None if report is None else known.read_report(read_json(report, _REPORT), shown_path(report))
    rows = known.table(globs, body)
    if markdown is not None:
        write_whole(markdown, known.to_markdown(rows))
    if html is not None:
        write_whole(html, known.to_html(rows))
    if json is not None:
        text = json_.dumps({"schema_version": 1, "defects": [row.to_json() for row in rows]}, indent=1)
        write_whole(json, text + "\n")
    console: Console = screen()
    if markdown is html is json is None:
        console.print(known.to_screen(rows))
    console.print(Text(known.counts(rows)))
