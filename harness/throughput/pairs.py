"""Time two sides in turn, in the order A B B A, until it is clear which is slower or the time is over.

1. `stand` starts processes of both sides (`harness.throughput.worker`) and waits until all can be timed.
2. `race` lets the pairs of processes take turns. `_quadruple` times one A B B A, or B A A B, of blocks of steps.
3. After each round, `harness.throughput.judgement.judge` says whether B is slower, holds, or is not yet clear.

`compare` does all three.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from harness.errors import UsageError
from harness.paths import SAFE_PATH, keeping_bytecode
from harness.processes.replies import Answers, BadAnswer
from harness.processes.replies import end as end_process
from harness.spec import RunSpec
from harness.throughput.clock import watched
from harness.throughput.judgement import SPREAD, Judgement, judge, spread
from harness.throughput.kernels import Kernel
from harness.throughput.shapes import host_is_ahead, peak_bytes

#: The times that are judged. On CUDA the host's time is mostly spent in a busy loop that waits for the device.
METRICS = {"cpu": ("wall", "cpu"), "cuda": ("wall",)}

#: Seconds of a block. On a CPU it is as short as possible, down to one step, so that other work on the machine hits both
#: sides equally: on two shared cores, the log-ratio of one A B B A varied by 11 % with blocks of one step and of twelve. On
#: CUDA each block ends with the device idle, and the step that fills its queue again is not counted, so a block is longer.
BLOCK = {"cpu": 0.008, "cuda": 0.05}

#: Fewest steps of a block if the device waits for the host at each step. One of the first steps after a process has slept may
#: take a tenth longer; the median of three does not.
FEWEST_STEPS = {"cpu": 1, "cuda": 3}

#: If the host's work is less than this share of a step, and the host does not wait at each step, it is ahead of the device.
AHEAD = 0.9

#: Seconds that a process may take to answer. Before the first answer it builds the model, which takes minutes at 7B.
_PATIENCE = 1800.0

#: Processes of each side. There are several because the place of its memory makes one process faster than an equal one.
PROCESSES = 4

#: start(*arguments, **options): start Python with arguments, in a side's environment. Options are those of subprocess.Popen.
Start = Callable[..., "subprocess.Popen[str]"]


def here(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start Python in this environment."""
    return subprocess.Popen([sys.executable, *arguments], text=True, env=keeping_bytecode(os.environ), **options)


@dataclass(frozen=True)
class Entrant:
    """One side of a comparison.

    - name: what messages call it.
    - subject: who trains, by name or as module:factory.
    - spec: what is trained.
    - preloads: modules that its processes import before upstream is used.
    - start: starts its processes.
    - cost: whether to count the cost of a step.
    """

    name: str
    subject: str
    spec: RunSpec
    preloads: tuple[str, ...] = ()
    start: Start = here
    cost: bool = False


@dataclass
class Pairs:
    """What was timed.

    - ratios: metric -> a list for each pair of processes, with the log of B's time over A's time of each A B B A.
    - times: side's name -> metric -> a list with the median seconds of a step in each block.
    - first: side's name -> its processes' first answer (`harness.throughput.worker`).
    - peak_bytes: side's name -> the peak of memory of its processes.
    - seconds: how long the timing took.
    - steady: whether the GPU's clock stayed the same.
    - strays: the standard deviation of a pair's mean between equal processes (`judgement.spread`).
    """

    ratios: dict[str, list[list[float]]] = field(default_factory=dict)
    times: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    first: dict[str, dict[str, Any]] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    steady: bool = False
    strays: float = SPREAD[False]

    def step(self, side: str, metric: str = "wall") -> float:
        """Return the median seconds of a side's step."""
        return median(self.times[side][metric])


class Runner:
    """A process that trains one side, a block of steps at a time.

    - first: its first answer.
    - over: whether it gives no more answers, because it refused or ended.
    - slower: the share by which to slow its steps down on purpose; None leaves them as they are.
    """

    slower: float | None = None

    def __init__(self, entrant: Entrant):
        self.entrant, self.first, self.over = entrant, dict[str, Any](), False
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - ends with the process
        self.process = entrant.start(
            *SAFE_PATH, "-m", "harness.throughput.worker", entrant.subject, *entrant.preloads,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        self._answers = Answers(self.process)
        self._ask({"spec": entrant.spec.to_json(), "cost": entrant.cost})

    def ready(self) -> None:
        """Wait until the process can be timed. UsageError if it cannot.

        Processes of one thread all run on the same core from then on, so that no side has the better core.
        """
        self.first = self._read_answer()
        self._require(isinstance(self.first.get("huge_pages"), bool) and _is_time(self.first.get("host")))
        if self.entrant.spec.launch.threads == 1 and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, {max(os.sched_getaffinity(0))})

    def block(self, steps: int) -> dict[str, Any]:
        """Train some steps. Returns the seconds of each by metric, and "peak_bytes"."""
        self._ask({"steps": steps} | ({} if self.slower is None else {"slower": self.slower}))
        answer = self._read_answer()
        times = [answer.get(metric) for metric in METRICS[self.entrant.spec.launch.device]]
        self._require(all(isinstance(list_, list) and list_ and all(map(_is_time, list_)) for list_ in times))
        self._require(type(answer.get("peak_bytes")) is int)
        return answer

    def kernels(self, steps: int) -> list[Kernel]:
        """Train some steps, and return the kernels that they ran, the longest first."""
        self._ask({"steps": steps, "kernels": True})
        found: Any = self._read_answer().get("kernels")
        self._require(isinstance(found, list))
        for one in found:
            self._require(
                isinstance(one, list) and len(one) == 3 and isinstance(one[0], str) and all(map(_is_time, one[1:]))
            )
        return [Kernel(*one) for one in found]

    def dismiss(self) -> None:
        """Tell the process to end."""
        assert self.process.stdin is not None
        # If the process ended before it read its first request, closing the pipe would write to it.
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def end(self) -> None:
        """End the process."""
        self.dismiss()
        end_process(self.process)
        self.errors.close()

    def _ask(self, body: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(body) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; reading its answer says why

    def _read_answer(self) -> dict[str, Any]:
        try:
            answer = self._answers.read(_PATIENCE)
        except BadAnswer as error:
            self.over = True
            self.process.kill()
            raise UsageError(f"{self.entrant.name}: {error}") from None
        if answer is not None:
            if "refused" in answer:
                self.over = True
                raise UsageError(f"{self.entrant.name}: {answer['refused']}")
            return answer
        self.over = True
        end_process(self.process)
        self.errors.seek(0)
        lines = [text.strip() for text in self.errors.read().splitlines() if text.strip()]
        raise UsageError(f"{self.entrant.name}: ended while it was timed ({lines[-1] if lines else 'no message'})")

    def _require(self, holds: bool) -> None:
        """Raise UsageError if an answer is not as the worker writes it: its code may have been changed."""
        if not holds:
            self.over = True
            raise UsageError(f"{self.entrant.name}: answered something else than times")


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0


def compare(
    a: Entrant,
    b: Entrant,
    margin: float,
    budget: float,
    progress: Callable[[Judgement], None] = lambda _: None,
    processes: int = PROCESSES,
    decide: bool = True,
) -> tuple[Judgement, Pairs]:
    """Judge whether B is slower than A. Returns the judgement and what was timed.

    All processes of both sides are ready at the same time, and the pairs take turns. So each pair counts equally, however
    early the answer is clear.

    - margin: the smallest slowdown that must be found, a share (0.01 is 1 %).
    - budget: seconds of timing at most, without the starts of the processes.
    - progress: called with the judgement after each round.
    - processes: the number of processes of each side.
    - decide: False goes on to the end of the budget even if the answer is clear.

    Raises UsageError if a side cannot be timed.
    """
    with lined_up([a, b] * processes) as runners:
        return race(runners[::2], runners[1::2], margin, budget, progress, decide)


def at_once(spec: RunSpec) -> int:
    """Return how many processes may start at the same time: one for each core, at least two, if the GPU's memory allows."""
    cores = max(2, os.cpu_count() or 1)
    if spec.launch.device != "cuda":
        return cores
    import torch

    free, _ = torch.cuda.mem_get_info()
    # An allocator reserves more than is allocated. With tensors of 4 GiB it reserved 21.4 GiB for 16.7.
    return max(1, min(cores, int(0.7 * free / peak_bytes(spec))))


def stand(entrants: Sequence[Entrant], runners: list[Runner]) -> None:
    """Start a process for each entrant, and wait until all can be timed.

    - runners: the processes are added to this list as they start. The caller ends them.

    Raises UsageError if one cannot be timed.
    """
    waiting = list(entrants)
    while waiting:
        # This is computed again for each batch, because processes that are ready keep their weights in memory.
        together, started = at_once(waiting[0].spec), len(runners)
        for entrant in waiting[:together]:
            runners.append(Runner(entrant))
        for runner in runners[started:]:
            runner.ready()
        waiting = waiting[together:]


@contextmanager
def lined_up(entrants: Sequence[Entrant]) -> Iterator[list[Runner]]:
    """Start processes as `stand` does, and end them when the block ends."""
    runners: list[Runner] = []
    try:
        stand(entrants, runners)
        yield runners
    finally:
        end(runners)


def end(runners: Sequence[Runner]) -> None:
    """End processes, all at the same time."""
    for runner in runners:
        runner.dismiss()
    for runner in runners:
        runner.end()


@contextmanager
def standing(runner: Runner) -> Iterator[Runner]:
    """Wait until a process can be timed, and end it when the block ends. UsageError if it cannot be timed."""
    try:
        runner.ready()
        yield runner
    finally:
        runner.end()


def race(
    a: Sequence[Runner],
    b: Sequence[Runner],
    margin: float,
    budget: float,
    progress: Callable[[Judgement], None] = lambda _: None,
    decide: bool = True,
) -> tuple[Judgement, Pairs]:
    """Compare two sides as `compare` does, whose processes are ready. There are as many of A as of B."""
    sides = {runners[0].entrant.name: runners[0].first for runners in (a, b)}
    device = a[0].entrant.spec.launch.device
    timed = Pairs({metric: [[] for _ in a] for metric in METRICS[device]}, first=sides)
    timed.times = {side: {metric: [] for metric in timed.ratios} for side in sides}
    began = time.monotonic()
    runners = list(zip(a, b, strict=True))
    steps = _steps(runners, device)
    with watched(device) as clock_is_steady:
        while True:
            for index, pair in enumerate(runners):
                _quadruple(timed, index, pair, steps)
            timed.seconds = time.monotonic() - began
            timed.steady = clock_is_steady()
            timed.strays = max(
                spread(device, runner.first["huge_pages"], host_share(runner), timed.steady) for runner in (*a, *b)
            )
            verdict = judge(timed.ratios, margin, timed.seconds / budget, timed.strays)
            progress(verdict)
            if (decide and verdict.decided) or timed.seconds >= budget:
                return verdict, timed


def host_share(runner: Runner) -> float:
    """Return the share of a step that is the host's work and delays the device. It is 0 if the host stays ahead."""
    share: float = runner.first["host"]
    return 0.0 if host_is_ahead(runner.entrant.spec) and share < AHEAD else share


def _quadruple(timed: Pairs, index: int, pair: Sequence[Runner], steps: int) -> None:
    """Time one A B B A, or B A A B every second time, so that each side has the first block equally often."""
    a, b = pair
    turn, metrics = len(timed.ratios["wall"][index]) % 2, list(timed.ratios)
    order = (a, b, b, a) if turn == 0 else (b, a, a, b)
    seen: dict[int, dict[str, list[float]]] = {id(side): {metric: [] for metric in metrics} for side in pair}
    for side in order:
        block = side.block(steps)
        timed.peak_bytes[side.entrant.name] = block["peak_bytes"]
        for metric in metrics:
            middle = median(block[metric])
            seen[id(side)][metric].append(middle)
            timed.times[side.entrant.name][metric].append(middle)
    for metric in metrics:
        # With a coarse clock a time may be 0, which has no logarithm.
        logs = {key: sum(math.log(max(value, 1e-9)) for value in values[metric]) / 2 for key, values in seen.items()}
        timed.ratios[metric][index].append(logs[id(b)] - logs[id(a)])


def _steps(runners: list[tuple[Runner, Runner]], device: str) -> int:
    """Time a few steps, and return how many make a block."""
    seconds: float = median(second for pair in runners for runner in pair for second in runner.block(5)["wall"])
    fewest = 1 if host_is_ahead(runners[0][0].entrant.spec) else FEWEST_STEPS[device]
    return max(fewest, min(60, round(BLOCK[device] / max(seconds, 1e-4))))
