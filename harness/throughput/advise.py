"""Which arguments make the user's own run faster: each is tried beside the run as it is, and what it costs is measured."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from harness.environment import describe
from harness.errors import UsageError
from harness.spec import RunSpec
from harness.throughput.judgement import Interval
from harness.throughput.pairs import Entrant, Runner, race, standing
from harness.throughput.shapes import Shape
from harness.throughput.speed import SCHEMA_VERSION, number

#: Seconds of timing for each change.
BUDGET = 20.0

#: How many changes are named as the best.
BEST = 5


@dataclass(frozen=True)
class Change:
    """A change of a run.

    - words: the arguments, as one writes them.
    - apply: RunSpec -> the changed one, or why it does not apply, in words.
    """

    words: str
    apply: Callable[[RunSpec], RunSpec | str]


@dataclass
class Tried:
    """A change that was tried.

    - gain: how much longer the run as it is takes than the changed one; None if it was not timed.
    - seconds, peak_bytes: of the changed run's step.
    - loss, loss_before: the mean of the first twelve losses, changed and as it is.
    - refused: why it was not timed.
    """

    words: str
    gain: Interval | None = None
    seconds: float = math.nan
    peak_bytes: int = 0
    loss: float | None = None
    loss_before: float | None = None
    refused: str = ""

    @property
    def apart(self) -> float:
        """The difference of the two mean losses, as a share of the run's own; nan if one is not known."""
        if self.loss is None or not self.loss_before:
            return math.nan
        return abs(self.loss - self.loss_before) / abs(self.loss_before)

    @property
    def helps(self) -> bool:
        """Whether the changed run is surely faster."""
        return self.gain is not None and self.gain.low > 0

    def to_json(self) -> dict[str, Any]:
        gain = self.gain and {name: number(getattr(self.gain, name)) for name in ("estimate", "low", "high")}
        return {
            "change": self.words,
            "refused": self.refused or None,
            "gain": gain,
            "helps": self.helps,
            "seconds": number(self.seconds),
            "peak_bytes": self.peak_bytes,
            "loss": self.loss,
            "loss_as_it_is": self.loss_before,
            "loss_apart": number(self.apart),
        }


@dataclass
class Advice:
    """What was tried on one run.

    - seconds, peak_bytes: of a step of the run as it is.
    - tried: the changes, in the order in which they were tried.
    """

    shape: Shape
    seconds: float = math.nan
    peak_bytes: int = 0
    tried: list[Tried] = field(default_factory=list)

    @property
    def best(self) -> list[Tried]:
        """The changes that surely help, the best first, at most `BEST`."""
        helping = [one for one in self.tried if one.helps and one.gain is not None]
        return sorted(helping, key=lambda one: -one.gain.estimate if one.gain else 0.0)[:BEST]

    def to_json(self) -> dict[str, Any]:
        return {
            "shape": self.shape.name,
            "tokens": self.shape.tokens,
            "seconds": number(self.seconds),
            "peak_bytes": self.peak_bytes,
            "tried": [one.to_json() for one in self.tried],
            "best": [one.words for one in self.best],
        }


def _argument(words: str, needs: str = "", **values: Any) -> Change:
    """Return a change of arguments. needs: a package without which it is not tried."""

    def apply(spec: RunSpec) -> RunSpec | str:
        if needs and importlib.util.find_spec(needs) is None:
            return f"{needs} is not installed"
        changed = spec.but(**values)
        return changed if changed != spec else "the run has it already"

    return Change(words, apply)


def _without_waiting(spec: RunSpec) -> RunSpec | str:
    if spec.launch.device != "cuda":
        return "copies to a CPU do not wait"
    config = {**(spec.arguments.get("accelerator_config") or {}), "non_blocking": True}
    changed = spec.but(accelerator_config=config, dataloader_pin_memory=True)
    return changed if changed != spec else "the run has it already"


def _one_batch(spec: RunSpec) -> RunSpec | str:
    accumulation = int(spec.arguments.get("gradient_accumulation_steps", 1))
    if accumulation == 1:
        return "nothing is accumulated"
    rows = int(spec.arguments["per_device_train_batch_size"]) * accumulation
    return spec.but(per_device_train_batch_size=rows, gradient_accumulation_steps=1)


def _keeping_activations(spec: RunSpec) -> RunSpec | str:
    names = ("activation_checkpointing", "gradient_checkpointing")
    if not any(spec.arguments.get(name) for name in names):
        return "activations are kept already"
    off: dict[str, Any] = {name: False for name in names if name in spec.arguments}
    return spec.but(**off)


def _attention(kind: str) -> Change:
    def apply(spec: RunSpec) -> RunSpec | str:
        if spec.model.config.get("attn_implementation", "sdpa") == kind:
            return "the run has it already"
        return spec.but(model={"config": {**spec.model.config, "attn_implementation": kind}})

    return Change(f'attn_implementation="{kind}"', apply)


def _bf16(spec: RunSpec) -> RunSpec | str:
    if spec.arguments.get("bf16") or spec.arguments.get("fp16"):
        return "the run computes in half precision already"
    return spec.but(bf16=True)


#: The changes that are tried, in order.
CHANGES = (
    _argument("torch_compile=True", torch_compile=True),
    _argument("logging_nan_inf_filter=False", logging_nan_inf_filter=False),
    Change("accelerator_config.non_blocking=True, dataloader_pin_memory=True", _without_waiting),
    _argument("dataloader_num_workers=2", dataloader_num_workers=2),
    _argument("use_liger_kernel=True", needs="liger_kernel", use_liger_kernel=True),
    Change("one batch instead of accumulation", _one_batch),
    Change("activation_checkpointing=False", _keeping_activations),
    _attention("sdpa"),
    _attention("eager"),
    _argument('optim="adamw_torch_fused"', optim="adamw_torch_fused"),
    Change("bf16=True", _bf16),
)


def advise(
    shape: Shape,
    device: str,
    subject: str,
    budget: float | None,
    progress: Callable[[str], None] = lambda _: None,
    changes: tuple[Change, ...] = CHANGES,
) -> Iterator[Advice]:
    """Time a run beside itself with each change. Yields the same `Advice` each time, with one more change tried.

    - subject: who trains.
    - budget: seconds of timing for each change; None for BUDGET.
    - progress: called with words about what is done now.

    Raises UsageError if the run as it is cannot be timed.
    """
    spec = shape.spec(device)
    advice, times = Advice(shape), list[float]()
    progress(f"{shape.name}: as it is")
    with standing(Runner(Entrant("as it is", subject, spec))) as before:
        for change in changes:
            changed = change.apply(spec)
            if isinstance(changed, str):
                advice.tried.append(Tried(change.words, refused=changed))
                continue
            progress(f"{shape.name}: {change.words}")
            try:
                with standing(Runner(Entrant(change.words, subject, changed))) as after:
                    judgement, timed = race([after], [before], 0.01, budget or BUDGET, decide=False)
            except UsageError as error:
                advice.tried.append(Tried(change.words, refused=str(error).removeprefix(f"{change.words}: ")))
                if before.over:
                    raise
                continue
            times += timed.times["as it is"]["wall"]
            advice.seconds, advice.peak_bytes = median(times), timed.peak_bytes["as it is"]
            advice.tried.append(
                Tried(
                    change.words,
                    judgement.intervals["wall"],
                    timed.step(change.words),
                    timed.peak_bytes[change.words],
                    timed.first[change.words]["loss"],
                    timed.first["as it is"]["loss"],
                )
            )
            yield advice
    yield advice


def to_report(advices: list[Advice], device: str, subject: str) -> dict[str, Any]:
    """Return the report as JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "advice",
        "environment": describe(device),
        "subject": subject,
        "runs": [one.to_json() for one in advices],
    }
