"""The text of a report to upstream, in Markdown: what, versions, script, expected, seen, since which release."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import contract
from harness.environment import STACK, version
from harness.errors import UsageError
from harness.reading import read_json, shown_path
from harness.upstream.case_script import Origin

#: Seconds that a script may take. Most take ten.
LIMIT = 600


def run(text: str, python: str = sys.executable, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
    """Run a script by itself, in an empty directory: nothing of ours can be imported, and no hub is asked.

    Raises UsageError if it does not end.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PEFT_HARNESS"))}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "reproduce.py")
        file.write_text(text, encoding="utf-8")
        environment = {**kept, "HF_HUB_OFFLINE": "1", "TMPDIR": directory, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        try:
            # Without -I's safe path the ranks of a script would not find it again; -E and -s are what matters here.
            return subprocess.run(
                [python, "-E", "-s", str(file)],
                cwd=directory,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            raise UsageError(f"the script had not ended after {limit:g} s") from None


def lines_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of a script's output that say what is expected and what is seen, or the last lines of its errors."""
    said = [line for line in done.stdout.splitlines() if line.startswith(("expected:", "seen:"))]
    return said or (done.stderr or done.stdout).strip().splitlines()[-5:]


def issue(origin: Origin, done: subprocess.CompletedProcess[str], bisect: Mapping[str, Any] | None = None) -> str:
    """Return the text of a report.

    - origin: the script, and what it shows.
    - done: its run on the installed stack.
    - bisect: what `bisect --json` wrote; None if there is none.
    """
    clause = contract.clauses()[origin.clause]
    defect = origin.defect
    what = defect.reason if defect is not None else clause.statement
    lines = [f"# {_first_sentence(what)}", "", what]
    if defect is not None:
        lines += ["", f"What must hold: {clause.statement}"]
    if defect is not None and defect.link:
        lines += ["", f"Perhaps the same as {defect.link}."]
    versions = ", ".join(f"{name} {version(name)}" for name in STACK if version(name))
    lines += ["", "## Versions", "", f"Python {sys.version.split()[0]}, {versions}. On a CPU."]
    lines += ["", "## To reproduce", "", "It builds a tiny random model and downloads nothing.", ""]
    lines += [
        "```python",
        origin.text.strip(),
        "```",
        "",
        "## Expected and seen",
        "",
        "```",
        *lines_of(done),
        "```",
        "",
    ]
    lines += [f"Where: {clause.source}"]
    if since := _since(origin, bisect):
        lines += ["", "## Since", "", since]
    return "\n".join(lines) + "\n"


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".")


def _since(origin: Origin, bisect: Mapping[str, Any] | None) -> str:
    if bisect is not None:
        return f"{bisect['answer']}."
    if origin.good:
        return f"The script exits with 0 on {origin.good}."
    return ""


def read_bisect(path: Path, clause: str) -> Mapping[str, Any]:
    """Return what `bisect --json` wrote. Raises UsageError if the file is none, or is about another clause."""
    body = read_json(path)
    if (
        not isinstance(body, Mapping)
        or not isinstance(body.get("answer"), str)
        or not isinstance(body.get("clause"), str)
    ):
        raise UsageError(f"{shown_path(path)}: is not what bisect --json writes")
    if clause not in body["clause"]:
        raise UsageError(f"{shown_path(path)}: is about {body['clause']}, and the case is about {clause}")
    return body
