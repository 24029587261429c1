"""One side of a gate: an environment, and what was found in it, kept in a directory so that nothing is done twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.gate.baseline_cache import keep
from harness.gate.environments import Environment
from harness.gate.scope import Scope
from harness.gate.worker import LIMIT
from harness.paths import SUITES
from harness.session import journal
from harness.throughput import pairs
from harness.throughput.pairs import Runner
from harness.trace import Trace
from harness.verdict import Case

#: Seconds after which a case of the suites is cut; the slowest takes 10 s on two busy cores.
CASE_LIMIT = 240


@dataclass
class Side:
    """name: "baseline" or "candidate". directory: where what was found is kept.

    kept: where what the suites say of it is kept for later gates, None for nowhere. known: the day since which that is known
    and not judged again, empty where all is judged.
    done: task -> {"error": words or None, "data": ...}, of what the worker was asked. runners: processes that stand ready
    to be timed, by shape. untimed: shape -> why there are none.
    """

    name: str
    environment: Environment
    directory: Path
    judged: Scope
    kept: Path | None = None
    known: str = ""
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    runners: dict[str, list[Runner]] = field(default_factory=dict)
    untimed: dict[str, str] = field(default_factory=dict)
    _worker: subprocess.Popen[str] | None = None
    _suites: subprocess.Popen[str] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: bool = False

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._record.is_file():
            for line in self._record.read_text(encoding="utf-8").splitlines():
                try:
                    self.done |= json.loads(line)
                except ValueError:  # cut off when the gate was interrupted
                    continue

    @property
    def _record(self) -> Path:
        return self.directory / "done.jsonl"

    # ---- the worker ----

    def ask(self, name: str, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a task, asked only once: {"error": None, "data": ...}, or an error in words.

        A worker that dies or takes too long is such an error, and is replaced.
        """
        if name not in self.done:
            self._keep(name, self._asked({"do": do, **arguments}))
        return self.done[name]

    def _asked(self, task: dict[str, Any]) -> dict[str, Any]:
        worker = self._started()
        assert worker.stdin is not None and worker.stdout is not None
        began = time.monotonic()
        try:
            worker.stdin.write(json.dumps(task) + "\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
        except OSError:
            line = ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        status = worker.wait()
        self._worker = None
        if self._ended:
            raise KeyboardInterrupt
        if time.monotonic() - began >= task.get("limit", LIMIT):
            return {"error": f"had not ended after {task.get('limit', LIMIT)} s"}
        return {"error": f"ended its process with status {status}: {self._last_words()}"}

    def dismiss(self) -> None:
        """End the worker: there is nothing more to ask, and it holds half a GiB."""
        if self._worker is not None and self._worker.stdin is not None:
            self._worker.stdin.close()
            self._worker.wait()
            self._worker = None

    def _keep(self, name: str, answer: dict[str, Any]) -> None:
        self.done[name] = answer
        with self._record.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({name: answer}) + "\n")

    def _started(self) -> subprocess.Popen[str]:
        if self._worker is None:
            with (self.directory / "worker.txt").open("a") as words:
                self._worker = self.start(
                    "-m", "harness.gate.worker", str(self.directory), *self.judged.preloads,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words,
                )  # fmt: skip
            assert self._worker.stdout is not None
            line = self._worker.stdout.readline()
            if line:
                greeting = json.loads(line)
            else:
                status = self._worker.wait()
                if self._ended:
                    raise KeyboardInterrupt
                greeting = {"refused": f"ends with status {status} when it imports upstream: {self._last_words()}"}
            if "refused" in greeting:
                self._worker = None
                raise UsageError(f"{self.name}, {self.environment.asked!r}: {greeting['refused']}")
        return self._worker

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start Python in the side's environment, unless the side has ended."""
        with self._lock:
            if self._ended:
                raise KeyboardInterrupt
            return self.environment.start(*arguments, **options)

    def _last_words(self) -> str:
        lines = (self.directory / "worker.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no word")

    def trace(self, name: str) -> Trace | None:
        """The trace that a task left, None where it left none."""
        place = self.directory / name / "trace"
        return Trace.load(place) if (place / "trace.json").is_file() else None

    # ---- the suites ----

    def suites(self, workers: int, report: Callable[[int, int | None], None], tests: Sequence[str] = ()) -> list[Case]:
        """Judge the environment by the suites, and return their cases. report(ended, all): told as cases end.

        tests: only these, by node id.
        A case that kills its process, or takes too long, is a failed case. UsageError where the suites cannot run.
        """
        file = self.directory / "journal.jsonl"
        if self.known and self.kept is not None and not file.is_file():
            shutil.copyfile(self.kept, file)
        for attempt in range(5):
            before = len(journal.read(file)[1]) if file.is_file() else 0
            # One process needs no other to hand it cases, which takes a tenth of the time. Where it did not come to its
            # end, a worker that dies tells which case it was in.
            alone = workers == 1 and attempt == 0
            code = self._run_suites(file, 0 if alone else workers, report, tests)
            cases = journal.read(file)[1] if file.is_file() else []
            if code in (0, 1, 3) and not (alone and journal.unfinished(file)):
                if self.kept is not None and not self.known and not tests:
                    keep(file, self.kept)
                return cases
            if len(cases) == before and not alone:
                break
        words = (self.directory / "suites.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        lines = [line for line in reversed(words) if line.strip()]
        told = next((line for line in lines if line.startswith("ERROR")), lines[0] if lines else "no word")
        raise UsageError(f"{self.name}, {self.environment.asked!r}: the suites cannot run (exit status {code}): {told}")

    def _run_suites(
        self, file: Path, workers: int, report: Callable[[int, int | None], None], tests: Sequence[str]
    ) -> int:
        limits = ["-o", f"faulthandler_timeout={CASE_LIMIT}", "-o", "faulthandler_exit_on_timeout=true"]
        chosen = [str(SUITES.parent / test) for test in tests] or [str(SUITES)]
        quiet = ["-q", "-p", "no:cacheprovider", "--hypothesis-profile", "sample"]
        words = [*chosen, *quiet, *limits, "-n", str(workers), "--journal", str(file)]
        with (self.directory / "suites.txt").open("w") as output:
            self._suites = self.start(
                "-m", "pytest", *words, *self.judged.options(),
                stdout=output, stderr=subprocess.STDOUT, cwd=self.directory,
            )  # fmt: skip
            size, every = -1, None
            while self._suites.poll() is None:
                time.sleep(0.2)
                if file.is_file() and file.stat().st_size != size:
                    size = file.stat().st_size
                    # Written once, and long: to read it at each case took a twelfth of a core.
                    every = every or journal.total(file)
                    report(file.read_bytes().count(b"\n") - 1, every)
        if self._ended:
            raise KeyboardInterrupt
        return self._suites.returncode

    def end(self) -> None:
        """End what was started."""
        with self._lock:
            self._ended = True
            for process in (self._worker, self._suites):
                if process is not None and process.poll() is None:
                    process.terminate()
                    try:
                        process.wait(10)
                    except subprocess.TimeoutExpired:
                        process.kill()
        pairs.end([runner for runners in self.runners.values() for runner in runners])
