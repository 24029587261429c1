"""The suites many times over, each time under another hash seed and in another order: the verdicts must be the same."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.errors import UsageError
from harness.files import write_whole
from harness.gate.command import workers
from harness.gate.scope import Scope
from harness.paths import OUR_SETTINGS, SAFE_PATH, SUITES

#: Seconds after which a run of the suites counts as hung: ten times what the whole suites take on two slow cores.
LIMIT = 3000.0

Verdicts = dict[str, str]


def soak(times: int, judged: Scope, rest: Sequence[str] = (), file: Path | None = None, limit: float = LIMIT) -> int:
    """Run the suites `times` times, and tell after each what it judged otherwise than the first.

    rest: further words for pytest. file: gets {"runs": [{"seed", "seconds", "exit", "cases", "differs"}]} as JSON.
    Returns 0 where all runs judged alike and 1 where two differ, or one hung or judged nothing; UsageError where the first
    judged nothing.
    """
    if times < 2:
        raise UsageError(f"--times {times}: expected 2 or more, since the runs are compared with each other")
    if importlib.util.find_spec("random_order") is None:
        raise UsageError("a soak shuffles the cases with pytest-random-order, which is missing: pip install it")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    runs: list[dict[str, Any]] = []
    first: Verdicts | None = None
    with tempfile.TemporaryDirectory() as directory:
        for seed in range(1, times + 1):
            report = Path(directory) / f"{seed}.json"
            console.print(f"run {seed} of {times} ...", end="\r")
            began = time.monotonic()
            code = _run(seed, judged, rest, report, limit)
            found = verdicts(json.loads(report.read_text())) if report.is_file() else {}
            if first is None and code is not None and not found:
                raise UsageError(f"the suites judged no case (exit code {code}); their last words are above")
            first = found if first is None else first
            if code is None:
                differs = [f"had not ended after {limit:g} s"]
            elif not found:
                differs = [f"judged no case (exit code {code})"]
            else:
                differs = differences(first, found)
            seconds = round(time.monotonic() - began, 1)
            runs.append({"seed": seed, "seconds": seconds, "exit": code, "cases": len(found), "differs": differs})
            words = "as the first" if seed > 1 and not differs else "; ".join(differs[:3])
            console.print(f"run {seed:3d} of {times}  {seconds:6.1f} s  exit {code}  {len(found)} cases  {words}")
            if file is not None:
                write_whole(file, json.dumps({"schema_version": 1, "runs": runs}, indent=1) + "\n")
    unlike = sum(bool(run["differs"]) for run in runs)
    console.print(f"{times} runs: {times - unlike} judged alike, {unlike} otherwise or hung")
    return 1 if unlike else 0


def verdicts(report: dict[str, Any]) -> Verdicts:
    """What a report says of each case: "ACC-01[full-rows]" -> verdict."""
    return {
        f"{clause['id']}[{case['scenario']}]": case["verdict"]
        for clause in report["clauses"]
        for case in clause["cases"]
    }


def differences(first: Verdicts, found: Verdicts) -> list[str]:
    """One sentence for each case that is judged otherwise, in the contract's order."""
    return [
        f"{case}: {found.get(case, 'not judged')}, {first.get(case, 'not judged')} in the first run"
        for case in {**first, **found}
        if first.get(case) != found.get(case)
    ]


def _run(seed: int, judged: Scope, rest: Sequence[str], report: Path, limit: float) -> int | None:
    """The exit code of one run, None where it had not ended in time. What it printed is shown where it could not run."""
    words = [
        sys.executable, *SAFE_PATH, "-m", "pytest", *OUR_SETTINGS, str(SUITES), "-q", "-p", "no:cacheprovider",
        *judged.options(),
        "--random-order-bucket", "module", "--random-order-seed", str(seed), "--json", str(report),
        *workers(judged, list(rest)), *rest,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONHASHSEED": str(seed)}
    output = report.with_suffix(".txt")
    with output.open("wb") as stream, subprocess.Popen(words, stdout=stream, stderr=stream, env=environment) as process:
        try:
            code: int | None = process.wait(limit)
        except BaseException as error:
            # Workers and ranks end with the process that started them.
            process.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            code = None
    if code not in (0, 1, 3, None):
        sys.stderr.write(output.read_text(encoding="utf-8", errors="replace")[-2000:])
    return code
