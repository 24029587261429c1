"""Two sides, timed in turn on one core: A B B A, block by block, until it is clear which is slower, or time is up."""

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
from harness.spec import RunSpec
from harness.throughput.clock import watched
from harness.throughput.judgement import SPREAD, Judgement, judge, spread
from harness.throughput.shapes import host_is_ahead, peak_bytes

#: What is judged. On CUDA the host's time is mostly that for which it waits, busily, for the device.
METRICS = {"cpu": ("wall", "cpu"), "cuda": ("wall",)}

#: Seconds of a block. On a CPU as short as can be, be it one step: what else the machine does then hits both sides alike
#: (on two cores of a shared machine the log-ratio of one A B B A strays by 11 % whether its blocks have one step or
#: twelve). On CUDA each block ends with the device idle, and the step that fills it again is not counted: so some more.
BLOCK = {"cpu": 0.008, "cuda": 0.05}

#: Where the device waits for the host at each step, one of the first after a process has slept may take a tenth longer: of
#: three the median does not.
FEWEST_STEPS = {"cpu": 1, "cuda": 3}

#: The share of a step up to which the host's work fits beside the device's, for a host that does not wait at each step.
AHEAD = 0.9

#: Processes of each side, one pair after the other: where memory comes to lie makes one process faster than another.
PROCESSES = 4

#: Starts a process of a side: the arguments of Python, and the options of subprocess.Popen.
Start = Callable[..., "subprocess.Popen[str]"]


def here(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start Python in this environment."""
    return subprocess.Popen([sys.executable, *arguments], text=True, env=keeping_bytecode(os.environ), **options)


@dataclass(frozen=True)
class Entrant:
    """One side: what trains which spec, with which preloads, started how. cost: whether the cost of a step is wanted."""

    name: str
    subject: str
    spec: RunSpec
    preloads: tuple[str, ...] = ()
    start: Start = here
    cost: bool = False


@dataclass
class Pairs:
    """What was timed. ratios: metric -> for each process pair, the log of B's time over A's of each A B B A.

    times: name of the side -> metric -> median seconds of a step, of each block. first: name of the side -> what it
    answered when it was ready. peak_bytes: by side, as its process sees it. steady: whether the device's clock stayed.
    strays: how much the mean of a pair does, by what its processes are (`judgement.spread`).
    """

    ratios: dict[str, list[list[float]]] = field(default_factory=dict)
    times: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    first: dict[str, dict[str, Any]] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    steady: bool = False
    strays: float = SPREAD[False]

    def step(self, side: str, metric: str = "wall") -> float:
        """Median seconds of a side's step."""
        return median(self.times[side][metric])


class Runner:
    """A process that trains one side, a block at a time.

    first: what it answered when it was ready. over: whether it has said its last, on purpose or not. slower: the share by
    which to slow its steps down on purpose, None for as they are.
    """

    slower: float | None = None

    def __init__(self, entrant: Entrant):
        self.entrant, self.first, self.over = entrant, dict[str, Any](), False
        self.words = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - ends with the process
        self.process = entrant.start(
            *SAFE_PATH, "-m", "harness.throughput.worker", entrant.subject, *entrant.preloads,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.words,
        )  # fmt: skip
        self._say({"spec": entrant.spec.to_json(), "cost": entrant.cost})

    def ready(self) -> None:
        """Wait until it can be timed. UsageError where it cannot.

        Those of one thread are all on one core from then on, so that none has the better one.
        """
        self.first = self._hear()
        if self.entrant.spec.launch.threads == 1 and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, {max(os.sched_getaffinity(0))})

    def block(self, steps: int) -> dict[str, Any]:
        """Train some steps. Returns the seconds of each, by metric, and "peak_bytes"."""
        self._say({"steps": steps} | ({} if self.slower is None else {"slower": self.slower}))
        return self._hear()

    def dismiss(self) -> None:
        """Tell the process to end."""
        assert self.process.stdin is not None
        # One that ended before it read its task has left that in the pipe.
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def end(self) -> None:
        """End the process."""
        self.dismiss()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.words.close()

    def _say(self, body: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(body) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer, which is missing, tells why

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            if "refused" in answer:
                self.over = True
                raise UsageError(f"{self.entrant.name}: {answer['refused']}")
            return answer
        self.over = True
        self.process.wait()
        self.words.seek(0)
        said = [text.strip() for text in self.words.read().splitlines() if text.strip()]
        raise UsageError(f"{self.entrant.name}: ended while it was timed ({said[-1] if said else 'without a word'})")


def compare(
    a: Entrant,
    b: Entrant,
    margin: float,
    budget: float,
    told: Callable[[Judgement], None] = lambda _: None,
    processes: int = PROCESSES,
    decide: bool = True,
) -> tuple[Judgement, Pairs]:
    """Is B slower than A by `margin` (0.01: one percent)? budget: seconds of timing at most, starts not counted.

    The processes of both sides stand ready side by side, and the A B B A go round over the pairs, so that each pair counts
    alike however early the answer is clear. decide: False goes on to the end of the budget, for samples.
    """
    with lined_up([a, b] * processes) as runners:
        return race(runners[::2], runners[1::2], margin, budget, told, decide)


def at_once(spec: RunSpec) -> int:
    """How many processes may warm up side by side: one for each core, or two, if they fit the GPU's memory."""
    cores = max(2, os.cpu_count() or 1)
    if spec.launch.device != "cuda":
        return cores
    import torch

    free, _ = torch.cuda.mem_get_info()
    # An allocator keeps more than it has given: 21.4 GiB for 16.7 where a tensor takes four.
    return max(1, min(cores, int(0.7 * free / peak_bytes(spec))))


def stand(entrants: Sequence[Entrant], runners: list[Runner]) -> None:
    """Start a process for each, and wait until all can be timed. They are added to `runners` as they start: end them.

    UsageError where one cannot be timed.
    """
    waiting = list(entrants)
    while waiting:
        # Asked anew: those that stand keep their weights.
        together, started = at_once(waiting[0].spec), len(runners)
        for entrant in waiting[:together]:
            runners.append(Runner(entrant))
        for runner in runners[started:]:
            runner.ready()
        waiting = waiting[together:]


@contextmanager
def lined_up(entrants: Sequence[Entrant]) -> Iterator[list[Runner]]:
    """`stand`; they end with the block."""
    runners: list[Runner] = []
    try:
        stand(entrants, runners)
        yield runners
    finally:
        end(runners)


def end(runners: Sequence[Runner]) -> None:
    """End them, side by side."""
    for runner in runners:
        runner.dismiss()
    for runner in runners:
        runner.end()


@contextmanager
def standing(runner: Runner) -> Iterator[Runner]:
    """Wait until it can be timed; it ends with the block. UsageError where it cannot."""
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
    told: Callable[[Judgement], None] = lambda _: None,
    decide: bool = True,
) -> tuple[Judgement, Pairs]:
    """`compare`, of processes that stand ready: as many of A as of B."""
    sides = {runners[0].entrant.name: runners[0].first for runners in (a, b)}
    device = a[0].entrant.spec.launch.device
    timed = Pairs({metric: [[] for _ in a] for metric in METRICS[device]}, first=sides)
    timed.times = {side: {metric: [] for metric in timed.ratios} for side in sides}
    began = time.monotonic()
    runners = list(zip(a, b, strict=True))
    steps = _steps(runners, device)
    with watched(device) as stays:
        while True:
            for index, pair in enumerate(runners):
                _quadruple(timed, index, pair, steps)
            timed.seconds = time.monotonic() - began
            timed.steady = stays()
            timed.strays = max(
                spread(device, runner.first["huge_pages"], host_share(runner), timed.steady) for runner in (*a, *b)
            )
            verdict = judge(timed.ratios, margin, timed.seconds / budget, timed.strays)
            told(verdict)
            if (decide and verdict.decided) or timed.seconds >= budget:
                return verdict, timed


def host_share(runner: Runner) -> float:
    """The share of a step that is the host's work and that the device may wait for: none where the host runs ahead of it."""
    share: float = runner.first["host"]
    return 0.0 if host_is_ahead(runner.entrant.spec) and share < AHEAD else share


def _quadruple(timed: Pairs, index: int, pair: Sequence[Runner], steps: int) -> None:
    """One A B B A, or B A A B in every other: what the first block suffers, each side suffers as often."""
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
        # No time is zero, whatever the clock's resolution.
        logs = {key: sum(math.log(max(value, 1e-9)) for value in values[metric]) / 2 for key, values in seen.items()}
        timed.ratios[metric][index].append(logs[id(b)] - logs[id(a)])


def _steps(runners: list[tuple[Runner, Runner]], device: str) -> int:
    """Steps of a block."""
    seconds: float = median(second for pair in runners for runner in pair for second in runner.block(5)["wall"])
    fewest = 1 if host_is_ahead(runners[0][0].entrant.spec) else FEWEST_STEPS[device]
    return max(fewest, min(60, round(BLOCK[device] / max(seconds, 1e-4))))
