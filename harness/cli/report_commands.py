"""Commands that read reports: report."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Html
from harness.errors import UsageError

#: The module of harness/reports/ that writes what an option names. Each has `write(report, where) -> str`.
_WRITERS = {"html": "web_page"}

#: Bytes of a report. A gate's has both sides' cases, and with all of them failing 11 MB.
LIMIT = 2**27


def report(
    file: Annotated[Path, typer.Argument(metavar="REPORT", help="What --json of another command wrote.")],
    html: Html = None,
) -> None:
    """Turn a report into what people and CI systems show.

    Reads the JSON of check, pytest suites/, gate, judge, sweep or mutants. Exit codes: 0 written, 2 could not run.
    """
    from harness.files import write_whole
    from harness.reading import read_json, shown_path

    outputs = {"html": html}
    if not any(outputs.values()):
        options = ", ".join(f"--{name.replace('_', '-')} FILE" for name in outputs)
        raise UsageError(f"nothing to write; name an output: {options}")
    found = read_json(file, LIMIT, nan=True)
    for name, path in outputs.items():
        if path is not None:
            write_whole(
                path, importlib.import_module(f"harness.reports.{_WRITERS[name]}").write(found, shown_path(file))
            )
