"""One side of a gate: an environment, and the results of what was run in it.

Results are stored in a directory, so that an interrupted gate does nothing twice. `Side.ask` has a worker process train and
load (`harness.gate.worker`); `Side.suites` runs the suites.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.files import require_space_in
from harness.gate import baseline_cache, results, stored
from harness.gate.environments import Environment
from harness.gate.scope import Scope
from harness.gate.worker import LIMIT
from harness.paths import OUR_SETTINGS, SAFE_PATH, SUITES
from harness.processes import interrupts
from harness.processes.replies import Answers, BadAnswer, end
from harness.reading import read_text, shown
from harness.session import journal
from harness.throughput import pairs
from harness.throughput.pairs import Runner
from harness.trace import Trace
from harness.verdict import Case

#: Seconds after which a case of the suites is ended as hung. None: those of `harness.session.supervisor`.
CASE_LIMIT: float | None = None

#: At most this many starts of the suites: a case that ends their process makes another one necessary.
_ATTEMPTS = 5

#: Seconds that a worker may take longer than its task's limit, at which it ends itself.
_GRACE = 20.0

#: Seconds until upstream is imported. Without bytecode on two busy cores it takes 60 s.
_IMPORTS = 600.0

#: Bytes of the stored answers. Those of all cells have 1 MB.
_ANSWERS_LIMIT = 256 * 2**20

#: report(done, total): called as cases end. total is None until the cases are collected.
Report = Callable[[int, "int | None"], None]


@dataclass
class Side:
    """One side of a gate.

    - name: "baseline" or "candidate".
    - directory: where its results are stored.
    - judged: subject, device, clauses and preloads.
    - cache_file: where the suites' results are cached for later gates; None if they must not be cached.
    - cached_since: date of the cached result that is reused; empty if all cases are judged.
    - done: task -> {"error": words or None, "data": ...}, the worker's answers.
    - runners: shape -> processes that are ready to be timed.
    - untimed: shape -> why it has no such processes.
    """

    name: str
    environment: Environment
    directory: Path
    judged: Scope
    cache_file: Path | None = None
    cached_since: str = ""
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    runners: dict[str, list[Runner]] = field(default_factory=dict)
    untimed: dict[str, str] = field(default_factory=dict)
    _worker: subprocess.Popen[str] | None = None
    _answers: Answers | None = None
    _suites: subprocess.Popen[str] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: bool = False

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.done |= self._stored_answers()

    def _stored_answers(self) -> dict[str, dict[str, Any]]:
        """Return the answers of a gate that was interrupted. A line that was cut off or edited is asked again."""
        found: dict[str, dict[str, Any]] = {}
        file = self._answers_file
        if not os.path.lexists(file):
            return found
        try:
            lines = read_text(file, _ANSWERS_LIMIT).splitlines()
            read = [stored.read(line) for line in lines]
        except UsageError as error:
            print(f"peft-harness: {error}; its tasks are done again", file=sys.stderr)
            file.unlink()
            return found
        for body in read:
            if isinstance(body, dict):
                found |= {name: answer for name, answer in body.items() if isinstance(answer, dict)}
        # The last line may have been cut off when the gate was interrupted.
        if any(body is None for body in read[:-1]):
            print(f"peft-harness: {file}: lines are damaged; their tasks are done again", file=sys.stderr)
        return found

    @property
    def _answers_file(self) -> Path:
        return self.directory / "done.jsonl"

    # ---- the worker ----

    def ask(self, name: str, do: str, **arguments: Any) -> dict[str, Any]:
        """Return the worker's answer to a task: {"error": None, "data": ...}, or an error in words.

        A task that has an answer is not asked again, not even by a later gate in the same directory. If the worker dies or
        takes too long, that is the error, and the next task gets a new worker.

        Raises UsageError if the environment cannot import upstream, and OutOfSpace if a full disk is the cause of an error:
        then it says nothing about the stack, and the next gate asks again.
        """
        if name not in self.done:
            answer = self._ask_worker({"do": do, **arguments})
            if answer["error"]:
                require_space_in(answer["error"], [self.directory])
            if not answer["error"] and (wrong := results.wrong(do, answer["data"], self.directory, arguments)):
                answer = {"error": wrong, "data": None}
            self.done[name] = answer
            with self._answers_file.open("a", encoding="utf-8") as stream:
                stream.write(stored.line({name: answer}))
        return self.done[name]

    def _ask_worker(self, task: dict[str, Any]) -> dict[str, Any]:
        worker = self._running_worker()
        assert worker.stdin is not None and self._answers is not None
        began, limit = time.monotonic(), task.get("limit", LIMIT)
        try:
            worker.stdin.write(json.dumps(task) + "\n")
            worker.stdin.flush()
            # A worker ends itself at the limit, and prints its stack.
            answer = self._answers.read(limit + _GRACE)
        except OSError:
            answer = None
        except BadAnswer as bad:
            self._end_worker()
            if self._ended:
                raise KeyboardInterrupt from None
            return {"error": str(bad), "data": None}
        if answer is not None:
            error = answer.get("error")
            says = error if error is None or isinstance(error, str) else f"answered {shown(error)}"
            return {"error": says, "data": answer.get("data")}
        status = end(worker)
        self._worker = None
        if self._ended or -status in interrupts.ALL:  # such an end is no verdict on the stack, and must not be stored
            raise KeyboardInterrupt
        if time.monotonic() - began >= limit:
            return {"error": f"had not ended after {limit} s", "data": None}
        return {"error": f"ended its process with status {status}: {self._last_error_line()}", "data": None}

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            self._worker = None

    def dismiss(self) -> None:
        """End the worker, which holds half a GiB, until it is asked again."""
        if self._worker is not None and self._worker.stdin is not None:
            with contextlib.suppress(OSError):
                self._worker.stdin.close()
            end(self._worker)
            self._worker = None

    def _running_worker(self) -> subprocess.Popen[str]:
        if self._worker is None:
            with (self.directory / "worker.txt").open("a") as errors:
                self._worker = self.start(
                    *SAFE_PATH, "-m", "harness.gate.worker", str(self.directory), *self.judged.preloads,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                )  # fmt: skip
            self._answers = Answers(self._worker)
            try:
                greeting = self._answers.read(_IMPORTS)
            except BadAnswer as error:
                self._worker.kill()
                greeting = {"refused": str(error)}
            if greeting is None:
                status = end(self._worker)
                greeting = {"refused": f"ends with status {status} when it imports upstream: {self._last_error_line()}"}
            if self._ended:
                raise KeyboardInterrupt
            if "refused" in greeting or not greeting.get("ready"):
                self._worker.kill()
                self._worker.wait()
                self._worker = None
                refused = greeting.get("refused", f"answered {shown(greeting)}")
                raise UsageError(f"{self.name}, {self.environment.asked!r}: {refused}")
        return self._worker

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start Python in the side's environment. Raises KeyboardInterrupt if the side has been ended."""
        with self._lock:
            if self._ended:
                raise KeyboardInterrupt
            # In a session of its own. Ctrl-C, which a terminal sends to every process, is for the gate alone.
            return self.environment.start(*arguments, start_new_session=True, **options)

    def _last_error_line(self) -> str:
        lines = results.tail(self.directory / "worker.txt").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it printed no error")

    def trace(self, name: str) -> Trace | None:
        """Return the trace that a task stored. None if it stored none, or one that cannot be read: `done` says why."""
        if not os.path.lexists(self.directory / name / "trace" / "trace.json"):
            return None
        try:
            return results.trace(self.directory, name)
        except UsageError as error:
            self.done[name] = {"error": str(error), "data": None}
            return None

    # ---- the suites ----

    def suites(self, workers: int, report: Report, tests: Sequence[str] = ()) -> list[Case]:
        """Judge the environment by the suites, and return their cases.

        - workers: processes that judge side by side.
        - report: called as cases end.
        - tests: node ids of the tests to run; all tests if empty.

        A case that ends its process, or takes longer than the limit, is a failed case. Raises UsageError if the suites
        cannot run.
        """
        file = self.directory / "journal.jsonl"
        try:
            results.cases(file)
        except UsageError as error:
            print(f"peft-harness: {error}; its cases are judged again", file=sys.stderr)
            file.unlink()
        reused = self.cache_file if self.cached_since and not file.is_file() else None
        if reused is not None and not baseline_cache.copy(reused, file):
            self.cached_since = ""
        for attempt in range(_ATTEMPTS):
            before = len(results.cases(file))
            # With one worker the first attempt does without xdist, which takes a tenth of the time.
            alone = workers == 1 and attempt == 0
            code = self._run_suites(file, 0 if alone else workers, report, tests)
            cases = results.cases(file)
            # 2 if the stack refuses a run of --spec: that is a result.
            judged = code in (0, 1, 3) or (code == 2 and any(case.refused for case in cases))
            if judged and cases and not journal.unfinished(file):
                if self.cache_file is not None and not self.cached_since and not tests:
                    baseline_cache.store(file, self.cache_file)
                return cases
            if len(cases) == before and (not alone or self._could_not_start(code, file)):
                break
        raise UsageError(
            f"{self.name}, {self.environment.asked!r}: the suites cannot run (exit status {code}): {self._suites_error()}"
        )

    def _could_not_start(self, code: int, file: Path) -> bool:
        """Return whether pytest gave up before the first case: wrong usage, or test files that cannot be imported."""
        return code in (2, 4) and (journal.total(file) is None or "during collection" in self._suites_output())

    def _suites_error(self) -> str:
        """Return the last line in which the harness or pytest reports an error; else the last line of the output."""
        lines = [line for line in reversed(self._suites_output().splitlines()) if line.strip()]
        error = next((line for line in lines if line.startswith(("peft-harness:", "ERROR"))), "")
        return error.removeprefix("peft-harness: ") or (lines[0] if lines else "it printed no error")

    def _suites_output(self) -> str:
        return results.tail(self.directory / "suites.txt")

    def _run_suites(self, file: Path, workers: int, report: Report, tests: Sequence[str]) -> int:
        """Run pytest once, and return its exit status. workers: 0 for no xdist."""
        limit = ["--case-limit", str(CASE_LIMIT)] if CASE_LIMIT is not None else []
        chosen = [str(SUITES.parent / test) for test in tests] or [str(SUITES)]
        quiet = ["-q", "-p", "no:cacheprovider", "--hypothesis-profile", "sample"]
        words = [*chosen, *quiet, *limit, "-n", str(workers), "--journal", str(file)]
        words += self.judged.file_options(self.directory)
        with (self.directory / "suites.txt").open("w") as output:
            self._suites = self.start(
                *SAFE_PATH, "-m", "pytest", *OUR_SETTINGS, *words, *self.judged.options(),
                stdout=output, stderr=subprocess.STDOUT, cwd=self.directory,
            )  # fmt: skip
            size, total = -1, None
            while self._suites.poll() is None:
                time.sleep(0.2)
                if file.is_file() and file.stat().st_size != size:
                    size = file.stat().st_size
                    # The list of collected cases is long and never changes. Reading it at each case took 8 % of a core.
                    total = total or journal.total(file)
                    report(file.read_bytes().count(b"\n") - 1, total)
        if self._ended:
            raise KeyboardInterrupt
        return self._suites.returncode

    def end(self) -> None:
        """End every process of this side. Nothing can be started after that."""
        with self._lock:
            self._ended = True
            for process in (self._worker, self._suites):
                if process is not None and process.poll() is None:
                    # All that it has to save is on the disk.
                    process.kill()
                    process.wait()
        pairs.end([runner for runners in self.runners.values() for runner in runners])
