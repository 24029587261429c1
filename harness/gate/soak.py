"""Run the suites many times, each time with another hash seed and in another order. The verdicts must be the same."""

from __future__ import annotations

import contextlib
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

from harness.errors import UsageError
from harness.files import Attempts, write_whole
from harness.gate.command import workers
from harness.gate.scope import Scope
from harness.paths import OUR_SETTINGS, SAFE_PATH, SUITES
from harness.processes import engine
from harness.progress import Progress, screen
from harness.words import counted

#: Seconds after which a run of the suites counts as hung: ten times what the whole suites take on two slow cores.
LIMIT = 3000.0

#: "ACC-01[full-rows]" -> verdict.
Verdicts = dict[str, str]


def soak(
    times: int,
    judged: Scope,
    rest: Sequence[str] = (),
    file: Path | None = None,
    limit: float = LIMIT,
    on: str | None = None,
    places: int | None = None,
) -> int:
    """Run the suites `times` times, and print after each run what it judged differently from the first.

    - rest: further words for pytest.
    - file: gets {"runs": [{"seed", "seconds", "exit", "cases", "differs"}]} as JSON.
    - limit: seconds after which a run counts as hung.
    - on, places: where the runs are made, and how many at a time (`harness.processes.engine`); None: here, one by one.

    Returns 0 if all runs judged alike; 1 if one judged differently, hung, or judged nothing. Raises UsageError if the first
    run judged nothing.
    """
    if times < 2:
        raise UsageError(f"--times {times}: expected 2 or more, since the runs are compared with each other")
    if importlib.util.find_spec("random_order") is None:
        raise UsageError(
            "pytest-random-order, which shuffles the cases, is not installed; pip install pytest-random-order"
        )
    console, written = screen(markup=False, soft_wrap=True), Attempts()
    runs: list[dict[str, Any]] = []
    first: Verdicts | None = None
    with _engine(on, places, judged) as running:
        ahead = (
            []
            if running is None
            else [running.executor.submit(one_run, seed, judged, tuple(rest), limit) for seed in range(1, times + 1)]
        )
        for seed in range(1, times + 1):
            with Progress(None, f"run {seed} of {times}"):
                code, body, seconds = ahead[seed - 1].result() if ahead else one_run(seed, judged, rest, limit)
            found = verdicts(body)
            if first is None and code is not None and not found:
                raise UsageError(f"the suites judged no case (exit code {code}); the end of their output is above")
            if first is None and code is not None and not body.get("complete", True):
                raise UsageError(
                    f"the suites ended before all was judged (exit code {code}), so there is nothing to compare with; the "
                    "end of their output is above"
                )
            first = found if first is None else first
            if code is None:
                differs = [f"had not ended after {limit:g} s"]
            elif not found:
                differs = [f"judged no case (exit code {code})"]
            else:
                differs = differences(first, found)
            runs.append({"seed": seed, "seconds": seconds, "exit": code, "cases": len(found), "differs": differs})
            result = "same as the first" if seed > 1 and not differs else "; ".join(differs[:3])
            cases = counted(len(found), "case")
            console.print(f"run {seed:3d} of {times}  {seconds:6.1f} s  exit {code}  {cases}  {result}".rstrip())
            if file is not None:
                with written.attempt():
                    write_whole(file, json.dumps({"schema_version": 1, "runs": runs}, indent=1) + "\n")
    unlike = sum(bool(run["differs"]) for run in runs)
    console.print(f"{times} runs: {times - unlike} judged alike, {unlike} differently or hung")
    written.require_last()
    return 1 if unlike else 0


def _engine(
    on: str | None, places: int | None, judged: Scope
) -> contextlib.AbstractContextManager[engine.Engine | None]:
    if on is None:
        return contextlib.nullcontext()
    engine.check(on)
    return engine.opened(on, places, Path(".peft-harness") / "soak", judged.device)


def one_run(seed: int, judged: Scope, rest: Sequence[str], limit: float) -> tuple[int | None, dict[str, Any], float]:
    """Run the suites once: (the exit code, None if they were ended at the limit; the report; seconds)."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / f"{seed}.json"
        code = _run(seed, judged, rest, report, limit)
        body = json.loads(report.read_text()) if report.is_file() else {"clauses": []}
    return code, body, round(time.monotonic() - began, 1)


def verdicts(report: dict[str, Any]) -> Verdicts:
    """Return the verdict of each case of a JSON report."""
    return {
        f"{clause['id']}[{case['scenario']}]": case["verdict"]
        for clause in report["clauses"]
        for case in clause["cases"]
    }


def differences(first: Verdicts, found: Verdicts) -> list[str]:
    """Return one sentence for each case with another verdict than in the first run, in the contract's order."""
    return [
        f"{case}: {found.get(case, 'not judged')}, {first.get(case, 'not judged')} in the first run"
        for case in {**first, **found}
        if first.get(case) != found.get(case)
    ]


def _run(seed: int, judged: Scope, rest: Sequence[str], report: Path, limit: float) -> int | None:
    """Run the suites once, and return the exit code; None if they were ended at the limit.

    If they could not run, the end of their output is printed on stderr.
    """
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
