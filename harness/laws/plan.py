"""How many optimizer steps and epochs a run has, and which micro-batches each step has, computed from the spec alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.laws.loading import NotModelled, integer, loading, shares
from harness.spec import RunSpec
from harness.trace import Trace
from harness.verdict import NOT_COMPARABLE, Verdict

__all__ = [
    "NotModelled",
    "Plan",
    "if_planned",
    "never_ends",
    "plan",
    "position",
    "positions",
    "resumed_from",
    "windows_of",
]


@dataclass(frozen=True)
class Plan:
    """What a spec asks for. An epoch of a dataset without a length is one pass over it.

    - batches: how many rows each micro-batch of an epoch has, on all ranks together.
    - windows: how many micro-batches each optimizer step of an epoch has.
    - total: how many optimizer steps the run has.
    - epochs: how many epochs it begins.
    - warmup: how many steps its warm-up has.
    - counted: how many micro-batches state.epoch takes for an epoch. It is all of the run's if a dataset has no length.
    - leftover: whether a dataset without a length leaves a short window at the end of a pass (ACC-02). Upstream cannot
      see that end coming, so it is not said which steps and epochs other than the first pass's follow.
    """

    batches: tuple[int, ...]
    windows: tuple[int, ...]
    total: int
    epochs: int
    warmup: int
    counted: int
    leftover: bool = False

    def window(self, number: int) -> int:
        """Return how many micro-batches an optimizer step has. Steps are counted from 1."""
        return self.windows[(number - 1) % len(self.windows)]

    def row_counts(self, number: int) -> list[int]:
        """Return how many rows each micro-batch of an optimizer step has, on all ranks together."""
        start = sum(self.windows[: (number - 1) % len(self.windows)])
        return list(self.batches[start : start + self.window(number)])

    def epoch(self, number: int) -> float:
        """Return state.epoch after an optimizer step: finished epochs, plus the share of this epoch's micro-batches."""
        done, index = divmod(number - 1, len(self.windows))
        return done + sum(self.windows[: index + 1]) / self.counted


def plan(spec: RunSpec) -> Plan:
    """Return the plan of a spec.

    Raises NotModelled if its data loader is not modelled, if its ranks have different numbers of micro-batches, or if
    there is no batch at all.
    """
    found = loading(spec)
    of_ranks = shares(found)
    if len({len(batches) for batches in of_ranks}) > 1:
        raise NotModelled("even_batches=False leaves the ranks with different numbers of batches")
    batches = tuple(sum(map(len, column)) for column in zip(*of_ranks, strict=True))
    if not batches:
        raise NotModelled("an epoch has no batch")
    windows = windows_of(len(batches), found.window)
    max_steps, epochs_asked = integer(spec, "max_steps", -1), spec.arguments.get("num_train_epochs")
    share = 3.0 if epochs_asked is None else float(epochs_asked)
    if found.iterable and max_steps <= 0:
        raise NotModelled("a dataset without a length needs max_steps")
    total = max_steps if max_steps > 0 else math.ceil(share * len(windows))
    epochs = math.ceil(total / len(windows)) if max_steps > 0 else math.ceil(share)
    warmup = float(spec.arguments.get("warmup_steps") or 0)
    return Plan(
        batches,
        windows,
        total,
        epochs,
        int(warmup) if warmup >= 1 else math.ceil(warmup * total),
        counted=total * found.window if found.iterable else len(batches),
        leftover=found.iterable and windows[-1] < found.window,
    )


def never_ends(spec: RunSpec) -> str | None:
    """Return why upstream would train a spec for ever; None if it ends, or if that is not known.

    transformers/trainer.py:Trainer._run_epoch makes a step when a window is full, or at the end of an epoch whose length
    is known. If a pass over a dataset without a length is shorter than a window, no step is ever made.
    """
    try:
        planned, window = plan(spec), loading(spec).window
    except NotModelled:
        return None
    if planned.leftover and max(planned.windows) < window:
        return f"a pass over the IterableDataset has {len(planned.batches)} micro-batches, and a step needs {window}"
    return None


def position(spec: RunSpec, number: int, per_epoch: int, resumed: int) -> int:
    """Return which step of a run that was never interrupted has the rows of a step. It is the step itself, in most runs.

    With ignore_data_skip a resumed run starts the checkpoint's epoch again (transformers/trainer.py:Trainer._run_epoch).

    - number: the 1-based global step.
    - per_epoch: the steps of an epoch.
    - resumed: the step of the checkpoint that the run resumed from; 0 if it did not.
    """
    skipped = resumed % per_epoch if spec.arguments.get("ignore_data_skip") else 0
    return number - skipped


def resumed_from(trace: Trace) -> int:
    """Return the step of the checkpoint that a run resumed from, 0 if it started afresh."""
    resume = trace.spec.resume
    if resume is None or resume.checkpoint is False:
        return 0
    if resume.checkpoint is not True:
        return resume.checkpoint
    return trace.steps[0].number - 1 if trace.steps else 0


def positions(trace: Trace) -> dict[int, int]:
    """Return the `position` of each step that a run made itself, by global step. Raises NotModelled without a plan."""
    per_epoch, resumed = len(plan(trace.spec).windows), resumed_from(trace)
    return {step.number: position(trace.spec, step.number, per_epoch, resumed) for step in trace.steps}


def windows_of(batches: int, window: int) -> tuple[int, ...]:
    """Return how many micro-batches each optimizer step of an epoch has. The last one may have fewer.

    - batches: the micro-batches of the epoch.
    - window: those of a full step.
    """
    return tuple(min(window, batches - start) for start in range(0, batches, window))


def if_planned(law: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """Return a law whose verdict is NOT_COMPARABLE, with the reason, if it needs a plan that the spec does not give."""

    @functools.wraps(law)
    def judged(*args: Any, **options: Any) -> Verdict:
        try:
            return law(*args, **options)
        except NotModelled as reason:
            return Verdict(NOT_COMPARABLE, "the law applies to the spec", (str(reason),))

    return judged
