"""Checks of runs on a real model. They are the laws of the suites, applied to this model's traces."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from harness.laws.checkpoint import adapter_files, adapter_only, last_is_current, size_law
from harness.laws.equal import distance, equal_runs
from harness.laws.frozen import adapter_moved, base_frozen, base_without_gradients, optimizer_holds_trainables
from harness.laws.quantized import learns
from harness.tolerance import Tolerance
from harness.trace import Trace
from harness.verdict import FAIL, NOT_COMPARABLE, Verdict, both, same, verdict

_NO_BOUND = Tolerance("steps, names and shapes", inf, inf, inf, "a GPU may add in another order from run to run")


@dataclass(frozen=True)
class Check:
    """One thing that was judged.

    - name: a few words
    - verdict: of the law, or of several laws together
    - detail: the numbers behind the verdict, in one sentence
    - by_design: whether it is known before the run that this is not judged, as equality of bits on a GPU
    """

    name: str
    verdict: Verdict
    detail: str
    by_design: bool = False

    @property
    def undecided(self) -> bool:
        """Whether it neither holds nor fails, and that is no design."""
        return not (self.verdict.holds or self.fails or self.by_design)

    @property
    def fails(self) -> bool:
        return self.verdict.outcome == FAIL

    def to_json(self) -> dict[str, Any]:
        return {
            "check": self.name,
            "verdict": self.verdict.outcome,
            "expected": self.verdict.expected,
            "seen": list(self.verdict.seen),
            "measured": dict(self.verdict.measured),
            "detail": self.detail,
            "by_design": self.by_design,
        }


def judge(runs: Mapping[str, Trace], resumed: Trace | None) -> list[Check]:
    """Return all checks on two runs of one spec.

    - runs: label -> trace; the first is judged, the second is what it is compared with
    - resumed: the first run, resumed from one of its checkpoints; None leaves that check out

    On a GPU the distance between two runs is measured but not judged. That both trained on the same rows is judged.
    """
    (label_of_first, first), (_, second) = runs.items()
    checks = [_equality("bit-equal", first, second, 0)]
    for label, trace in runs.items():
        checks += [
            Check(f"trained: {label}", *_trained(trace)),
            Check(f"base frozen: {label}", *_frozen(trace)),
            Check(f"adapter only: {label}", *_adapter_only(trace)),
            Check(f"adapter size: {label}", *_size(trace)),
        ]
    if resumed is not None:
        assert resumed.spec.resume is not None
        step = int(resumed.spec.resume.checkpoint)
        equal = _equality(f"resume: {label_of_first}", resumed, first, step)
        detail = f"from checkpoint-{step} on, compared with the whole run: {equal.detail}"
        checks.append(dataclasses.replace(equal, detail=detail))
    return checks


def exit_code(checks: Sequence[Check]) -> int:
    """Return 1 if a check fails, 3 if one that should have been judged was not, 0 if all others hold."""
    if any(check.fails for check in checks):
        return 1
    return 3 if not checks or any(check.undecided for check in checks) else 0


def numbers_of(trace: Trace) -> int:
    """Return how many numbers are trained."""
    return sum(tensor.numel() for tensor in trace.adapter_before.values())


def shorten(text: str, limit: int = 200) -> str:
    """Return the first line of a text, cut at `limit` characters. result.json has the whole text."""
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _equality(name: str, trace: Trace, other: Trace, after: int) -> Check:
    """Judge whether two runs are equal from the step `after` on."""
    exact = equal_runs(trace, other, after=after)
    if exact.holds:
        said = "losses, gradients and their norms, adapter and optimizer state are the same bits"
        return Check(name, exact, said)
    if trace.error or other.error or exact.outcome == NOT_COMPARABLE:
        return Check(name, exact, shorten("; ".join(exact.seen)))
    gaps = ", ".join(f"{name.removeprefix('largest_')} {gap:.3g}" for name, gap in distance(trace, other).items())
    device = trace.spec.launch.device
    if device == "cpu":
        return Check(name, exact, gaps)
    rows = same("rows of each step", trace.rows, other.rows[len(other.rows) - len(trace.rows) :])
    coarse = both(equal_runs(trace, other, within=_NO_BOUND, after=after), rows)
    if not coarse.holds:
        return Check(name, coarse, shorten("; ".join(coarse.seen)))
    reason = f"not judged bit-equal on {device}, where kernels may add in another order"
    unjudged = Verdict(NOT_COMPARABLE, exact.expected, (reason, *exact.seen), exact.measured)
    return Check(name, unjudged, f"{reason}: {gaps}", by_design=True)


def _trained(trace: Trace) -> tuple[Verdict, str]:
    """Judge whether the run trained: finite losses and norms, and every trainable tensor has moved.

    If a number is NaN or infinite, that may be the model's or the data's fault, so it is not judged.
    """
    if trace.error is not None or not trace.steps:
        failed = verdict("the run trains", [trace.error or "the run made no optimizer step"])
        return failed, shorten(failed.seen[0])
    finite = learns(trace)
    if not finite.holds and not _all_finite(trace):
        finite = Verdict(NOT_COMPARABLE, finite.expected, finite.seen)
    judged = both(finite, adapter_moved(trace))
    if not judged.holds:
        return judged, shorten("; ".join(judged.seen))
    losses = [trace.losses[step] for step in sorted(trace.losses)]
    return judged, f"{len(trace.trainable)} tensors have moved; loss {losses[0]:.4f} at first, {losses[-1]:.4f} at last"


def _all_finite(trace: Trace) -> bool:
    return all(map(math.isfinite, (*trace.losses.values(), *trace.grad_norms.values())))


def _frozen(trace: Trace) -> tuple[Verdict, str]:
    judged = both(base_frozen(trace), base_without_gradients(trace), optimizer_holds_trainables(trace))
    unchanged = sum(trace.base.get(name) == digest for name, digest in trace.base_before.items())
    return judged, (
        f"{unchanged} of {len(trace.base_before)} base tensors kept their digest, {len(trace.base_gradients)} got a "
        f"gradient; the optimizer holds {numbers_of(trace):,} numbers"
    )


def _adapter_only(trace: Trace) -> tuple[Verdict, str]:
    judged = both(adapter_only(trace), last_is_current(trace))
    if not trace.checkpoints:
        return judged, "no checkpoint"
    last = trace.checkpoints[-1]
    files = sorted(last.files.items(), key=lambda item: -item[1])
    return judged, f"checkpoint-{last.step}: " + ", ".join(f"{name} {size:,}" for name, size in files)


def _size(trace: Trace) -> tuple[Verdict, str]:
    judged = size_law(trace)
    if not judged.holds:
        return judged, shorten("; ".join(judged.seen))
    last = trace.checkpoints[-1]
    numbers = numbers_of(trace)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in last.adapter.values())
    size = sum(last.files[name] for name in adapter_files(last))
    findings = []
    if stored != 4 * numbers:
        findings = [f"{stored:,} bytes of tensors in it, expected 4 x {numbers:,} = {4 * numbers:,}"]
    four = verdict("the adapter file holds each trained number in four bytes", findings, bytes=size, numbers=numbers)
    return both(judged, four), f"{size:,} bytes = 4 x {numbers:,} trained numbers + {size - stored:,} of header"
