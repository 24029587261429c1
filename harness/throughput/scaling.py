"""`peft-harness speed --ranks N`: a shape in one process, and spread over several: what that makes of speed and memory.

Each rank trains batches as large as the one process does, so that N of them train N times the tokens in a step.
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

from harness import subjects
from harness.environment import describe
from harness.errors import UsageError
from harness.processes import launch
from harness.processes.group import RanksFailed
from harness.spec import RunSpec
from harness.throughput.counters import dispatched
from harness.throughput.pairs import Entrant, Runner, standing
from harness.throughput.shapes import Shape
from harness.throughput.speed import SCHEMA_VERSION, number
from harness.throughput.step_times import Marks
from harness.throughput.stepping import train
from harness.throughput.worker import COUNTED, FIRST

#: Ways to spread a run that are measured unasked.
STRATEGIES = ("ddp", "fsdp2")

#: Steps that are timed.
STEPS = 30

#: Seconds for a group of ranks: a 7B model is drawn, and made into shards, by each.
LIMIT = 400.0


@dataclass
class Spread:
    """A shape under one launch. steps: seconds of each timed step, of the slowest rank. refused: why it was not timed.

    peak_bytes: of each rank, in the timed steps. collectives, collective_bytes: of a step, as rank 0 asked for them.
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
        """Median seconds of a step."""
        return median(self.steps) if self.steps else math.nan

    @property
    def middle(self) -> tuple[float, float]:
        """First and third quartile of a step's seconds."""
        if len(self.steps) < 2:
            return math.nan, math.nan
        low, _, high = quantiles(self.steps, n=4)
        return low, high


@dataclass
class Scaled:
    """A shape, in one process first."""

    shape: Shape
    spreads: list[Spread] = field(default_factory=list)

    def tokens(self, spread: Spread) -> float:
        """Tokens a second, of all ranks."""
        return self.shape.tokens * spread.ranks / spread.seconds

    def efficiency(self, spread: Spread) -> float:
        """Tokens a second, as a share of what so many processes would train that need not wait for each other."""
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
    told: Callable[[str], None] = lambda _: None,
) -> Iterator[Scaled]:
    """Time the subject at a shape in one process, then in `count` by each strategy. UsageError where one cannot.

    Yields the shape with what has been timed of it so far, after each: those of a large one take minutes.
    """
    spec = shape.spec(device)
    told(f"{shape.name}: in one process")
    result = Scaled(shape, [_alone(subject, spec)])
    yield result
    for strategy in strategies:
        told(f"{shape.name}: in {count} processes by {strategy}")
        result.spreads.append(_spread(subject, spread_over(spec, strategy, count)))
        yield result


def spread_over(spec: RunSpec, strategy: str, count: int) -> RunSpec:
    """The run in `count` processes, each with the spec's batches: epochs keep their number of steps."""
    spec = spec.but(
        launch={"strategy": strategy, "ranks": count, "limit": LIMIT}, data={"rows": spec.data.rows * count}
    )
    if strategy.startswith("fsdp") and spec.arguments.get("activation_checkpointing"):
        # Sharding has a kind of its own, and refuses the Trainer's beside it.
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
    asked = spec.launch
    result = Spread(asked.strategy, asked.ranks)
    if reason := subjects.load(subject).unsupported(spec):
        result.refused = reason
        return result
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        try:
            launch.run(functools.partial(_rank, subject, spec, directory), asked, directory / "ranks")
        except RanksFailed as failed:
            result.refused = str(failed)
            return result
        told = [json.loads(_file(directory, rank).read_text()) for rank in range(asked.ranks)]
    result.steps = [max(each) for each in zip(*(one["wall"] for one in told), strict=True)]
    result.peak_bytes = [one["peak_bytes"] for one in told]
    result.collectives, result.collective_bytes = told[0]["collectives"], told[0]["collective_bytes"]
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
    """Told of each step: counts what one of the first asks of the other ranks, then times `STEPS` and ends the run."""

    def __init__(self, device: str):
        self._cuda = device == "cuda"
        self._marks = Marks(device)
        self._counting = ExitStack()
        self._totals = Counter[str]()

    def step(self, number: int, log: list[dict[str, Any]]) -> bool:
        """A step begins. True ends the run: in all ranks before the same step."""
        if number == COUNTED:
            self._counting.enter_context(dispatched(self._totals))
        elif number == COUNTED + 1:
            self._counting.close()
        elif number == FIRST and self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        if number > FIRST:
            self._marks.add()
        return len(self._marks) > STEPS

    def result(self) -> dict[str, Any]:
        """What is left for the process that asked. UsageError where the run ended before it was timed."""
        if len(self._marks) <= STEPS:
            raise UsageError(f"the run ended after {len(self._marks)} timed steps, expected {STEPS}")
        counted = {name: self._totals[name] for name in ("collectives", "collective_bytes")}
        return self._marks.seconds() | counted


def to_report(scaled: list[Scaled], device: str, subject: str) -> dict[str, Any]:
    """The report, for machines."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "scaling",
        "environment": describe(device),
        "subject": subject,
        "shapes": [one.to_json() for one in scaled],
    }
