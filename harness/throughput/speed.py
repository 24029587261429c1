"""`peft-harness speed`: time the Trainer beside the reference, the compiled reference, and the limits of the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from harness import subjects
from harness.environment import describe
from harness.errors import UsageError
from harness.spec import RunSpec
from harness.throughput import kernels
from harness.throughput.ceiling import Ceiling
from harness.throughput.ceiling import measure as measure_ceiling
from harness.throughput.judgement import Interval
from harness.throughput.kernels import Kernel
from harness.throughput.pairs import Entrant, Runner, at_once, end, race, standing
from harness.throughput.shapes import Shape

SCHEMA_VERSION = 1

REFERENCE, COMPILED, CAPTURED = (
    "reference",
    "harness.throughput.compiled:compiled",
    "harness.throughput.compiled:captured",
)

#: What the Trainer is compared with, by the name that --beside takes -> the subject.
YARDSTICKS = {
    "reference": REFERENCE,
    "compiled": COMPILED,
    "captured": CAPTURED,
    "merged": "harness.throughput.merged:merged",
    "tuned": "harness.throughput.merged:tuned",
    "fp8": "harness.throughput.fp8:compiled",
}

#: Seconds of timing for each pair of Trainer and yardstick.
BUDGET = 40.0

#: How far the first losses may be apart, a share: compiled kernels round bfloat16 at other places. Measured on an H100
#: (2026-11-27): 9e-4 at most.
LOSS_NOISE = 2e-3


@dataclass
class Row:
    """One side at one shape.

    - name: the side's.
    - seconds: of a step.
    - peak_bytes: of memory.
    - loss: the mean over the first twelve steps.
    - overhead: how much slower the Trainer is than this side; None for the Trainer itself.
    - refused: why the side was not timed; empty if it was.
    - kernels: those of its step, the longest first; empty if they were not recorded.
    """

    name: str
    seconds: float = math.nan
    peak_bytes: int = 0
    loss: float | None = None
    overhead: Interval | None = None
    refused: str = ""
    kernels: list[Kernel] = field(default_factory=list)


@dataclass
class Measured:
    """What was measured at one shape.

    - rows: the sides; the Trainer is first.
    - flops: floating-point operations of a step, 0 if unknown.
    - traffic_bytes: bytes that a step moves through memory, 0 if unknown.
    - ceiling: the limits of the device.
    - float32: the mean of the first twelve losses of the same run in float32, by the reference; None if it is not known.
    - float32_refused: why not.
    - bounds: side's name -> how far its first losses may be from those in float32, for sides that have such a bound.
    """

    shape: Shape
    rows: list[Row] = field(default_factory=list)
    flops: int = 0
    traffic_bytes: int = 0
    ceiling: Ceiling | None = None
    float32: float | None = None
    float32_refused: str = ""
    bounds: dict[str, float | None] = field(default_factory=dict)

    def from_float32(self, row: Row) -> float | None:
        """Return how far a side's first losses are from those in float32; None if either is not known."""
        return None if row.loss is None or self.float32 is None else abs(row.loss - self.float32)

    def farther(self, row: Row) -> bool:
        """Return whether a side is farther from float32 than the Trainer, by more than a last place of float32."""
        own, trainers = self.from_float32(row), self.from_float32(self.rows[0])
        if own is None or trainers is None or row is self.rows[0]:
            return False
        return own > trainers + 2.0**-23 * abs(self.float32 or 0.0)

    def tokens(self, row: Row) -> float:
        """Return a side's tokens a second."""
        return self.shape.tokens / row.seconds

    @property
    def bound(self) -> float:
        """The tokens a second that the roofline model allows; nan if a step's cost is unknown."""
        assert self.ceiling is not None
        if not self.flops:
            return math.nan
        return self.shape.tokens / self.ceiling.seconds(self.flops, self.traffic_bytes)

    def share(self, row: Row) -> float:
        """Return a side's operations a second as a share of what the device can do at most."""
        assert self.ceiling is not None
        return self.flops / row.seconds / self.ceiling.flops

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                "name": row.name,
                "refused": row.refused or None,
                "seconds": number(row.seconds),
                "tokens_per_second": number(self.tokens(row)),
                "flops_per_second": number(self.flops / row.seconds),
                "share_of_ceiling": number(self.share(row)),
                "peak_bytes": row.peak_bytes,
                "loss": row.loss,
                "from_float32": self.from_float32(row),
                "farther_than_trainer": self.farther(row),
                **({"from_float32_bound": self.bounds[row.name]} if row.name in self.bounds else {}),
                "trainer_overhead": row.overhead
                and {name: number(getattr(row.overhead, name)) for name in ("estimate", "low", "high")},
                **({"step": kernels.to_json(row.kernels)} if row.kernels else {}),
            }
            for row in self.rows
        ]
        assert self.ceiling is not None
        return {
            "shape": self.shape.name,
            "tokens": self.shape.tokens,
            "flops": self.flops,
            "traffic_bytes": self.traffic_bytes,
            "bound_tokens_per_second": number(self.bound),
            "ceiling": vars(self.ceiling),
            "loss_in_float32": self.float32,
            "loss_in_float32_refused": self.float32_refused or None,
            "rows": rows,
        }


def number(value: float) -> float | None:
    """Return a value for JSON, which has neither nan nor infinity: None for those."""
    return value if math.isfinite(value) else None


def yardsticks(device: str, names: Sequence[str] = (), fp8: bool = False) -> list[str]:
    """Return the subjects that the Trainer is compared with on a device.

    - names: keys of YARDSTICKS; empty for the usual ones.
    - fp8: whether the one with a base in FP8 is added.

    Raises UsageError for an unknown name.
    """
    for name in names:
        if name not in YARDSTICKS:
            raise UsageError(f"--beside {name}: known are {', '.join(YARDSTICKS)}")
    chosen = names or ("reference", "compiled", *(["captured"] if device == "cuda" else []))
    return [YARDSTICKS[name] for name in dict.fromkeys((*chosen, *(["fp8"] if fp8 else [])))]


#: Steps of which kernels are recorded.
PROFILED = 3


def measure(
    shape: Shape,
    device: str,
    subject: str,
    budget: float | None,
    progress: Callable[[str], None] = lambda _: None,
    profile: bool = False,
    beside: Sequence[str] | None = None,
) -> Iterator[Measured]:
    """Time the subject at a shape against each yardstick in turn. Yields the same `Measured`, with one more row each time.

    - budget: seconds of timing for each pair; None for BUDGET.
    - progress: called with words about what is done now.
    - profile: whether to record which kernels a step runs.
    - beside: the yardsticks, as subjects; None for the usual ones.

    Raises UsageError if the subject cannot be timed.
    """
    spec, budget = shape.spec(device), budget or BUDGET
    ceiling = measure_ceiling(device, "bfloat16" if shape.bf16 else shape.dtype, spec.launch.threads)
    result = Measured(shape, [Row("trainer")], ceiling=ceiling)
    entrant, times = Entrant("trainer", subject, spec, cost=True), list[float]()
    others = {name: subjects.load(name) for name in beside or yardsticks(device)}
    refused = {name: other.unsupported(spec) for name, other in others.items()}
    with ExitStack() as started:
        progress(f"{shape.name}: {subject} starts")
        together = at_once(spec) > len(others)
        trainer, early = Runner(entrant), dict[str, Runner]()
        started.callback(lambda: end(list(early.values())))
        for name, other in others.items():
            if together and not refused[name]:
                early[name] = Runner(Entrant(other.name, name, spec))
        started.enter_context(standing(trainer))
        # Each byte that is kept is written once and read once. The traffic of the weights is small in comparison.
        result.flops, result.traffic_bytes = trainer.first["flops"], 2 * trainer.first["saved_bytes"]
        for name, other in others.items():
            if reason := refused[name]:
                result.rows.append(Row(other.name, refused=reason))
                continue
            progress(f"{shape.name}: {subject} and {other.name}")
            try:
                with standing(early.get(name) or Runner(Entrant(other.name, name, spec))) as yardstick:
                    judgement, timed = race([yardstick], [trainer], 0.01, budget, decide=False)
                    found = yardstick.kernels(PROFILED) if profile else []
            except UsageError as error:
                result.rows.append(Row(other.name, refused=str(error).removeprefix(f"{other.name}: ")))
                if trainer.over:
                    trainer = started.enter_context(standing(Runner(entrant)))
                continue
            result.rows.append(Row(other.name, overhead=judgement.intervals["wall"], kernels=found))
            times += timed.times["trainer"]["wall"]
            for row in (result.rows[0], result.rows[-1]):
                row.peak_bytes, row.loss = timed.peak_bytes[row.name], timed.first[row.name]["loss"]
            result.rows[0].seconds, result.rows[-1].seconds = median(times), timed.step(other.name)
            yield result
        if not times:
            alone, row = trainer.block(5), result.rows[0]
            row.seconds, row.peak_bytes, row.loss = median(alone["wall"]), alone["peak_bytes"], trainer.first["loss"]
        if profile and not trainer.over:
            result.rows[0].kernels = trainer.kernels(PROFILED)
    yield result
    # After the others have ended: in float32 a model takes twice their memory.
    progress(f"{shape.name}: the same in float32")
    try:
        with standing(Runner(Entrant("float32", REFERENCE, in_float32(spec)))) as exact:
            result.float32 = exact.first["loss"]
        if YARDSTICKS["fp8"] in others and result.float32 is not None:
            result.bounds[others[YARDSTICKS["fp8"]].name] = _fp8_bound(shape, spec, result.float32)
    except UsageError as error:
        result.float32_refused = str(error).removeprefix("float32: ")
    yield result


def _fp8_bound(shape: Shape, spec: RunSpec, exact: float) -> float | None:
    """Return how far the first losses may be from float32's with a base in FP8; None if no bound is known."""
    from harness.throughput.fp8 import loss_bound

    config = spec.model.config
    if spec.model.path is not None or not {"vocab_size", "num_hidden_layers"} <= set(config):
        return None
    # The first logged loss is the mean over this many steps.
    tokens = shape.tokens * int(spec.arguments["logging_steps"])
    return loss_bound(exact, config["vocab_size"], config["num_hidden_layers"], tokens)


def in_float32(spec: RunSpec) -> RunSpec:
    """Return a run with the same weights that computes in float32, and recomputes activations, which changes no number."""
    families = {
        "llama": "harness.fixtures.widened:llama",
        "harness.fixtures.on_device:llama": "harness.fixtures.widened:on_device",
    }
    half = spec.model.dtype in ("float16", "bfloat16")
    family = families.get(spec.model.family, spec.model.family) if half else spec.model.family
    options = {"use_reentrant": False}
    return spec.but(
        model={"family": family}, bf16=None, fp16=None,
        activation_checkpointing=True, activation_checkpointing_kwargs=options,
    )  # fmt: skip


def to_report(measured: list[Measured], device: str, subject: str) -> dict[str, Any]:
    """Return the report as JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": describe(device),
        "subject": subject,
        "shapes": [one.to_json() for one in measured],
    }


def differing_losses(measured: Measured) -> list[str]:
    """Return a sentence for each yardstick whose first losses are not the Trainer's: it computes something else.

    A side that has a bound is held to that, and to float32.
    """
    expected = measured.rows[0].loss
    beyond = [
        f"{measured.shape.name}: {row.name} is {away:.2g} from float32, at most {bound:.2g} is rounding"
        for row in measured.rows
        if (bound := measured.bounds.get(row.name)) is not None
        and (away := measured.from_float32(row)) is not None
        and not away <= bound
    ]
    return beyond + [
        f"{measured.shape.name}: {row.name} has loss {row.loss:.6f}, the trainer {expected:.6f}"
        for row in measured.rows[1:]
        if row.name not in measured.bounds
        and row.loss is not None
        and expected is not None
        and abs(row.loss - expected) > LOSS_NOISE * abs(expected)
    ]
