"""Commands that read reports: report, trend."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
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


Sarif = Annotated[Path | None, file_option("Write what is wrong as SARIF 2.1.0, each at the line of its pin.")]
JUnit = Annotated[Path | None, file_option("Write the report as JUnit XML.")]
CodeQuality = Annotated[Path | None, file_option("Write what is wrong as GitLab's code-quality JSON.")]
Annotate = Annotated[
    bool, typer.Option("--annotate", help="Print what is wrong as annotations for GitHub Actions. Needs no token.")
]


def written_by(outputs: Mapping[str, Path | None]) -> dict[str, Path]:
    """Return the module of harness/reports/ that writes each file. outputs: option -> its value."""
    return {_WRITERS[name]: path for name, path in outputs.items() if path is not None}


def report(
    file: Annotated[Path, typer.Argument(metavar="REPORT", help="What --json of another command wrote.")],
    html: Html = None,
    markdown: Annotated[Path | None, file_option("Write a summary as Markdown.")] = None,
    junit: JUnit = None,
    sarif: Sarif = None,
    code_quality: CodeQuality = None,
    badge: Annotated[Path | None, file_option("Write a badge, as JSON for shields.io's endpoint badge.")] = None,
    annotate: Annotate = False,
    pins: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Look for pins in this requirements file. Repeatable."),
    ] = None,
) -> None:
    """Turn a report into what people and CI systems read.

    Reads the JSON of check, pytest suites/, gate, judge, sweep or mutants. Exit codes: 0 written, 2 could not run.
    """
    from harness.files import write_whole
    from harness.reading import read_json, shown_path
    from harness.reports import github, kinds, problems, web_page
    from harness.reports import pins as places
    from harness.words import counted

    outputs = {"html": html, "junit": junit, "sarif": sarif, "code_quality": code_quality, "badge": badge}
    if not (annotate or markdown or any(outputs.values())):
        options = ", ".join(f"--{name.replace('_', '-')} FILE" for name in ("markdown", *outputs))
        raise UsageError(f"nothing to write; name an output: {options}, --annotate")
    found = read_json(file, LIMIT, nan=True)
    kind = web_page.check(found, shown_path(file))  # raises for a damaged report, before anything is written
    if pins:
        for each in pins:
            if not each.is_file():
                raise UsageError(f"--pins {shown_path(each)}: no such file")
        found["pins"] = places.to_json(places.find(pins, kinds.packages(found), Path.cwd()))
    texts = {
        path: importlib.import_module(f"harness.reports.{name}").write(found)
        for name, path in written_by(outputs).items()
    }
    if markdown is not None:
        from harness.gate.summary import markdown as of_gate

        texts[markdown] = of_gate(found) if kind == kinds.GATE else github.summary(found)
    # Each text is made before the first is written: a damaged report leaves no file.
    for path, content in texts.items():
        write_whole(path, content)
    without = [] if sarif is None else [one for one in problems.of(found) if one.place is None]
    if without:
        what = f"{counted(len(without), 'problem')} {'has' if len(without) == 1 else 'have'} no line"
        advice = "and GitHub takes none of these; name a requirements file by --pins"
        print(f"{shown_path(sarif or '')}: {what}, {advice}", file=sys.stderr)
    if annotate:
        sys.stdout.write(github.write(found))


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
