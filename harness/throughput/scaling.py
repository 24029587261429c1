"""`peft-harness speed --ranks N`: how fast a shape trains, and what memory it takes, in one process and in N ranks.

Each rank trains batches as large as the one process does, so N ranks train N times the tokens in a step. Ranks, like every
process that is timed, train without the harness's patches for speed.
"""

from __future__ import annotations

import functools
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from harness import patches, subjects
from harness.environment import describe
from harness.errors import UsageError
from harness.processes import launch
from harness.processes.group import RanksFailed
from harness.spec import RunSpec
from harness.throughput.counters import dispatched
from harness.throughput.pairs import Entrant, Runner, standing
from harness.throughput.shapes import Shape
from harness.throughput.speed import SCHEMA_VERSION, number
from harness.throughput.step_times import StepTimes
from harness.throughput.stepping import train
from harness.throughput.worker import COUNTED, FIRST

#: Strategies that are measured unless --strategy names others.
STRATEGIES = ("ddp", "fsdp2")

#: Steps that are timed.
STEPS = 30

#: Seconds for a group of ranks. Each rank draws the weights of a 7B model and makes shards of them.
LIMIT = 400.0


@dataclass
class Spread:
    """A shape under one launch.

    - strategy, ranks: of the launch.
    - steps: seconds of each timed step, on the slowest rank.
    - peak_bytes: of each rank, in the timed steps.
    - collectives, collective_bytes: collective operations of a step, and the bytes in them, as rank 0 calls them.
    - refused: why the launch was not timed; empty if it was.
    """

    strategy: str
    ranks: int
    steps: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    collectives: int = 0
    collective_bytes: int = 0
    refused: str = ""

    @property
    def seconds(self) -> float:
        """The median seconds of a step."""
        return median(self.steps) if self.steps else math.nan

    @property
    def middle(self) -> tuple[float, float]:
        """The first and third quartile of a step's seconds."""
        if len(self.steps) < 2:
            return math.nan, math.nan
        low, _, high = quantiles(self.steps, n=4)
        return low, high


@dataclass
class Scaled:
    """A shape under several launches, of which the first is one process."""

    shape: Shape
    spreads: list[Spread] = field(default_factory=list)

    def tokens(self, spread: Spread) -> float:
        """Return the tokens a second of all ranks together."""
        return self.shape.tokens * spread.ranks / spread.seconds

    def efficiency(self, spread: Spread) -> float:
        """Return the tokens a second as a share of what the ranks would train if they did not wait for each other."""
        return self.spreads[0].seconds / spread.seconds

    def to_json(self) -> dict[str, Any]:
        launches = [
            {
                "strategy": one.strategy,
                "ranks": one.ranks,
                "refused": one.refused or None,
                "seconds": number(one.seconds),
                "quartiles": [number(each) for each in one.middle],
                "tokens_per_second": number(self.tokens(one)),
                "efficiency": number(self.efficiency(one)),
                "peak_bytes": one.peak_bytes,
                "collectives": one.collectives,
                "collective_bytes": one.collective_bytes,
            }
            for one in self.spreads
        ]
        return {"shape": self.shape.name, "tokens_of_a_rank": self.shape.tokens, "launches": launches}


def measure(
    shape: Shape,
    device: str,
    subject: str,
    count: int,
    strategies: tuple[str, ...] = STRATEGIES,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Scaled]:
    """Time the subject at a shape in one process, then in several by each strategy.

    After each launch, yields the same `Scaled` with what has been timed so far: one launch of a large shape takes minutes.
    Raises UsageError if the shape cannot be timed in one process.

    - count: the number of ranks.
    - progress: called with words about what is done now.
    """
    spec = shape.spec(device)
    progress(f"{shape.name}: in one process")
    result = Scaled(shape, [_alone(subject, spec)])
    yield result
    for strategy in strategies:
        progress(f"{shape.name}: in {count} processes by {strategy}")
        result.spreads.append(_spread(subject, spread_over(spec, strategy, count)))
        yield result


def spread_over(spec: RunSpec, strategy: str, count: int) -> RunSpec:
    """Return the run in `count` ranks, each with the spec's batches. An epoch keeps its number of steps."""
    spec = spec.but(
        launch={"strategy": strategy, "ranks": count, "limit": LIMIT}, data={"rows": spec.data.rows * count}
    )
    if strategy.startswith("fsdp") and spec.arguments.get("activation_checkpointing"):
        # FSDP has activation checkpointing of its own, and refuses the Trainer's.
        return spec.but(
            launch={"activation_checkpointing": True},
            activation_checkpointing=None,
            activation_checkpointing_kwargs=None,
        )
    return spec


def _alone(subject: str, spec: RunSpec) -> Spread:
    with standing(Runner(Entrant("one process", subject, spec))) as runner:
        block = runner.block(STEPS)
    return Spread("single", 1, block["wall"], [block["peak_bytes"]])


def _spread(subject: str, spec: RunSpec) -> Spread:
    ranks = spec.launch.ranks
    result = Spread(spec.launch.strategy, ranks)
    if reason := subjects.load(subject).unsupported(spec):
        result.refused = reason
        return result
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        try:
            with patches.off():
                launch.run(functools.partial(_rank, subject, spec, directory), spec.launch, directory / "ranks")
        except RanksFailed as failed:
            result.refused = str(failed)
            return result
        timed = [json.loads(_file(directory, rank).read_text()) for rank in range(ranks)]
    result.steps = [max(each) for each in zip(*(rank["wall"] for rank in timed), strict=True)]
    result.peak_bytes = [rank["peak_bytes"] for rank in timed]
    result.collectives, result.collective_bytes = timed[0]["collectives"], timed[0]["collective_bytes"]
    return result


def _file(directory: Path, rank: int) -> Path:
    return directory / f"timed-{rank}.json"


# ---- in each rank ----


def _rank(subject: str, spec: RunSpec, directory: Path) -> None:
    launch.settle(spec.launch)
    timed = Timed(spec.launch.device)
    train(subjects.load(subject), spec, directory / "run", timed.step)
    _file(directory, int(os.environ["RANK"])).write_text(json.dumps(timed.result()))


class Timed:
    """Counts the collective operations of step COUNTED, then times STEPS steps and ends the run."""

    def __init__(self, device: str):
        self._cuda = device == "cuda"
        self._times = StepTimes(device)
        self._counting = ExitStack()
        self._totals = Counter[str]()

    def step(self, number: int, log: list[dict[str, Any]]) -> bool:
        """Take note that a step begins. Returns True, which ends the run, before the same step in all ranks."""
        if number == COUNTED:
            self._counting.enter_context(dispatched(self._totals))
        elif number == COUNTED + 1:
            self._counting.close()
        elif number == FIRST and self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        if number > FIRST:
            self._times.step_begins()
        return len(self._times) > STEPS

    def result(self) -> dict[str, Any]:
        """Return what this rank measured. UsageError if the run ended before it was timed."""
        if len(self._times) <= STEPS:
            raise UsageError(f"the run ended after {len(self._times)} timed steps, expected {STEPS}")
        counted = {name: self._totals[name] for name in ("collectives", "collective_bytes")}
        return self._times.seconds() | counted


def to_report(scaled: list[Scaled], device: str, subject: str) -> dict[str, Any]:
    """Return the report as JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "scaling",
        "environment": describe(device),
        "subject": subject,
        "shapes": [one.to_json() for one in scaled],
    }
