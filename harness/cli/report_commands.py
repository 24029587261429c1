"""Commands that read reports: report, trend."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Html
from harness.cli.outputs import file_option
from harness.errors import UsageError

#: The module of harness/reports/ that writes what an option names. Each has `write(report) -> str`.
_WRITERS = {"html": "web_page", "junit": "junit", "sarif": "sarif", "code_quality": "gitlab", "badge": "badge"}

#: Bytes of a report. A gate's has both sides' cases, and with all of them failing 11 MB.
LIMIT = 2**27


def report(
    file: Annotated[Path, typer.Argument(metavar="REPORT", help="What --json of another command wrote.")],
    html: Html = None,
    junit: Annotated[Path | None, file_option("Write the report as JUnit XML.")] = None,
    sarif: Annotated[Path | None, file_option("Write the report as SARIF 2.1.0, for code scanning.")] = None,
    code_quality: Annotated[Path | None, file_option("Write the report as GitLab's code-quality JSON.")] = None,
    badge: Annotated[Path | None, file_option("Write a badge, as JSON for shields.io's endpoint badge.")] = None,
    github: Annotated[
        bool,
        typer.Option(
            "--github", help="Print annotations for GitHub Actions, and add a summary to $GITHUB_STEP_SUMMARY."
        ),
    ] = False,
    pins: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Show findings at the lines of this requirements file. Repeatable."),
    ] = None,
) -> None:
    """Turn a report into what people and CI systems show.

    Reads the JSON of check, pytest suites/, gate, judge, sweep or mutants. Exit codes: 0 written, 2 could not run.
    """
    from harness.files import write_whole
    from harness.reading import read_json, shown_path
    from harness.reports import kinds, web_page
    from harness.reports import pins as places

    outputs = {"html": html, "junit": junit, "sarif": sarif, "code_quality": code_quality, "badge": badge}
    if not github and not any(outputs.values()):
        options = ", ".join(f"--{name.replace('_', '-')} FILE" for name in outputs)
        raise UsageError(f"nothing to write; name an output: {options}, --github")
    found = read_json(file, LIMIT, nan=True)
    kinds.kind(found, shown_path(file))
    if pins:
        for each in pins:
            if not each.is_file():
                raise UsageError(f"--pins {shown_path(each)}: no such file")
        found["pins"] = places.to_json(places.find(pins, kinds.packages(found), Path.cwd()))
    web_page.page_of(found, shown_path(file))  # raises for a damaged report, before anything is written
    for name, path in outputs.items():
        if path is not None:
            write_whole(path, importlib.import_module(f"harness.reports.{_WRITERS[name]}").write(found))
    if github:
        _for_github(found)


def _for_github(found: dict[str, object]) -> None:
    from harness.reports import github, kinds

    sys.stdout.write(github.write(found))
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return
    if kinds.kind(found) == kinds.GATE:
        from harness.gate.summary import markdown

        text = markdown(found)
    else:
        text = github.summary(found)
    try:
        with open(name, "a", encoding="utf-8") as page:
            page.write(text + "\n")
    except (OSError, ValueError) as error:
        raise UsageError(f"GITHUB_STEP_SUMMARY: cannot be written ({error})") from None


def trend(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Reports of many nights: JSON, JSON lines.")],
    html: Annotated[Path | None, file_option("Write the trend as a page.")] = None,
    png: Annotated[Path | None, file_option("Write the curves as a plot, PNG or SVG.", "plot")] = None,
    json: Annotated[Path | None, file_option("Write the trend as JSON.")] = None,
) -> None:
    """Show what changed over many reports: clauses, counters, times.

    Reads every *.json and *.jsonl in a directory, in the order of their dates. Exit codes: 0 read, 2 could not run.
    """
    from harness.reports import trend_command

    raise typer.Exit(trend_command.run(directory, html, png, json))
