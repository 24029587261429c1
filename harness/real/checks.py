"""Checks of runs on a real model. They are the laws of the suites, applied to this model's traces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from harness.laws.checkpoint import adapter_files, adapter_only, last_is_current, size_law
from harness.laws.equal import equal_runs
from harness.laws.frozen import base_frozen, base_without_gradients, optimizer_holds_trainables
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
    """

    name: str
    verdict: Verdict
    detail: str

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
        }


def judge(runs: Mapping[str, Trace], resumed: Trace | None) -> list[Check]:
    """Return all checks on two runs of one spec.

    - runs: label -> trace; the first is judged, the second is what it is compared with
    - resumed: the first run, resumed from one of its checkpoints; None leaves that check out

    On a GPU the distance between two runs is measured but not judged. That both trained on the same rows is judged.
    """
    (label_of_first, first), (_, second) = runs.items()
    checks = [Check("bit-equal", *_equality(first, second, 0))]
    for label, trace in runs.items():
        checks += [
            Check(f"base frozen: {label}", *_frozen(trace)),
            Check(f"adapter only: {label}", *_adapter_only(trace)),
            Check(f"adapter size: {label}", *_size(trace)),
        ]
    if resumed is not None:
        assert resumed.spec.resume is not None
        step = int(resumed.spec.resume.checkpoint)
        equal, detail = _equality(resumed, first, step)
        checks.append(
            Check(
                f"resume: {label_of_first}", equal, f"from checkpoint-{step} on, compared with the whole run: {detail}"
            )
        )
    return checks


def numbers_of(trace: Trace) -> int:
    """Return how many numbers are trained."""
    return sum(tensor.numel() for tensor in trace.adapter_before.values())


def shorten(text: str, limit: int = 200) -> str:
    """Return the first line of a text, cut at `limit` characters. result.json has the whole text."""
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _equality(trace: Trace, other: Trace, after: int) -> tuple[Verdict, str]:
    """Judge whether two runs are equal from the step `after` on. Return the verdict and the check's detail."""
    exact = equal_runs(trace, other, after=after)
    if exact.holds:
        return exact, "losses, gradients and their norms, adapter and optimizer state are the same bits"
    if trace.error or other.error:
        return exact, shorten("; ".join(exact.seen))
    gaps = ", ".join(f"{name.removeprefix('largest_')} {gap:.3g}" for name, gap in exact.measured.items())
    device = trace.spec.launch.device
    if device == "cpu":
        return exact, gaps
    rows = same("rows of each step", trace.rows, other.rows[len(other.rows) - len(trace.rows) :])
    coarse = both(equal_runs(trace, other, within=_NO_BOUND, after=after), rows)
    if not coarse.holds:
        return coarse, shorten("; ".join(coarse.seen))
    reason = f"not judged bit-equal on {device}, where kernels may add in another order"
    return Verdict(NOT_COMPARABLE, exact.expected, (reason, *exact.seen), exact.measured), f"{reason}: {gaps}"


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
