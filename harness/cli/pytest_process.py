"""Starting pytest for a command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness.errors import UsageError


def html_words(html: Path | None) -> list[str]:
    """Return pytest's words for --html. The plugin pytest-html has an option of that name, so it is left out."""
    return ["-p", "no:html", "--html", str(html.absolute())] if html is not None else []


def run_pytest(
    tests: list[str],
    subject: str,
    device: str,
    clauses: list[str],
    preloads: list[str],
    json: Path | None,
    rest: list[str],
) -> int:
    """Run pytest in a process, with the options of the suites. Return the exit code of the command."""
    from harness.gate.scope import Scope
    from harness.paths import OUR_SETTINGS, SAFE_PATH
    from harness.processes.guard import ignore_ctrl_c

    arguments = Scope(subject, device, tuple(clauses), tuple(preloads)).options()
    if json is not None:
        arguments += ["--json", str(json)]
    ours = Path.cwd() / ".peft-harness"
    # Failures that hypothesis has found, to be tried first the next time.
    environment = {"HYPOTHESIS_STORAGE_DIRECTORY": str(ours / "hypothesis"), **os.environ}
    command = [
        sys.executable,
        *SAFE_PATH,
        "-m",
        "pytest",
        *OUR_SETTINGS,
        *tests,
        *arguments,
        "-o",
        f"cache_dir={ours / 'pytest_cache'}",
        *rest,
    ]
    code = subprocess.run(command, env=environment, check=False, preexec_fn=ignore_ctrl_c).returncode
    # pytest returns 4 for wrong usage and 5 for no tests. More than 128 is a signal that asked for the end.
    if 0 <= code <= 5 or code > 128:
        return 2 if code in (4, 5) else code
    raise UsageError(f"the suites' process ended with {code}, so not all that was asked for is judged")
