"""What a step may cost: as recorded, the same at every run, and no more than the path takes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from harness.throughput.counters import UNITS, Counters
from harness.throughput.judgement import HOLDS, SLOWER, Interval, judge
from harness.throughput.pairs import Pairs
from harness.verdict import AMBIGUOUS, FAIL, PASS, Verdict, verdict

#: What a Trainer may do more than the reference in each micro-batch. Measured on a CPU and an H100, transformers 5.17 and
#: 5.23: one value read (the loss, looked at for being finite, twice) and up to six operations.
MORE_READS, MORE_OPERATIONS = 1, 8
#: And in each step: what is logged.
STEP_READS, STEP_OPERATIONS = 1, 8


#: What depends on the process too: of the same step 5093 calls in a new one, 5257 after the other suites. A gate, whose
#: sides count in processes alike, compares it.
OF_THE_PROCESS = ("python_calls",)


def as_recorded(seen: Counters, recorded: Counters) -> Verdict:
    """Each counter is what was recorded in this environment, but those of the process."""
    findings = [
        f"{name}: {seen.values.get(name)} in the counted steps, recorded {values} ({UNITS[name]})"
        for name, values in recorded.values.items()
        if seen.values.get(name) != values and name not in OF_THE_PROCESS
    ]
    findings += [
        f"{name} {seen.by_operation.get(name, 0)} times, recorded {recorded.by_operation.get(name, 0)}"
        for name in sorted({*seen.by_operation, *recorded.by_operation})
        if seen.by_operation.get(name, 0) != recorded.by_operation.get(name, 0)
    ]
    return verdict("a step costs what is recorded of it", findings, **seen.step)


def steady(seen: Counters, again: Counters) -> Verdict:
    """The counters are the same at the next run, and no step costs more than the one before it."""
    findings = [] if seen.values else ["nothing was counted"]
    for name, values in seen.values.items():
        if again.values.get(name) != values:
            findings.append(f"{name}: {values}, and in another run {again.values.get(name)} ({UNITS[name]})")
        if len(set(values)) > 1:
            findings.append(f"{name}: {values} in steps alike ({UNITS[name]})")
    return verdict("steps that are alike cost alike", findings, **seen.step)


def no_more_than_reference(seen: Counters, reference: Counters, micro_batches: int) -> Verdict:
    """The same floating-point operations, nothing more kept for the backward pass, and little beside."""
    ours, theirs = seen.step, reference.step
    allowed = {
        "flops": theirs["flops"],
        "saved_bytes": theirs["saved_bytes"],
        "reads": theirs["reads"] + micro_batches * MORE_READS + STEP_READS,
        "operations": theirs["operations"] + micro_batches * MORE_OPERATIONS + STEP_OPERATIONS,
    }
    findings = [
        f"{name}: {ours[name]} a step, expected {most} at most, the reference has {theirs[name]} ({UNITS[name]})"
        for name, most in allowed.items()
        if ours[name] > most
    ]
    if ours["flops"] < theirs["flops"]:
        findings.append(
            f"flops: {ours['flops']} a step, fewer than the reference's {theirs['flops']}: what is left out?"
        )
    return verdict("a step costs what the path takes", findings, **ours)


def no_slower(timed: Pairs, recorded: Mapping[str, float], margin: float, budget: float) -> Verdict:
    """A step does not take longer, in units of the reference's, than is recorded; AMBIGUOUS where that stays unclear.

    recorded: "ratio", the subject's time over the reference's, and "low" and "high", the ends of its interval, which is
    as wide as the machine was noisy. margin: the slowdown that must be found, a share.
    """
    ratio = recorded["ratio"]
    moved = {
        metric: [[value - math.log(ratio) for value in pair] for pair in pairs]
        for metric, pairs in timed.ratios.items()
        if metric == "wall"
    }
    # What was recorded is not known to the last digit either.
    unknown = Interval.error_of(recorded["low"], recorded["high"])
    judged = judge(moved, margin, timed.seconds / budget, timed.strays, unknown)
    change = judged.intervals["wall"]
    outcome = {HOLDS: PASS, SLOWER: FAIL}.get(judged.word, AMBIGUOUS)
    seen = () if outcome == PASS else (f"a step takes {change} longer than recorded",)
    return Verdict(
        outcome,
        f"a step takes {ratio:.3f} times the reference's, or less",
        seen,
        {"change": change.estimate, "low": change.low, "high": change.high, "recorded": ratio},
    )


def written_once(written: int, files: Mapping[str, int], allowance: int) -> Verdict:
    """Saving writes each byte of a checkpoint's files once. written: bytes that the process wrote meanwhile."""
    size = sum(files.values())
    findings = [] if files else ["no file was written"]
    if written > size + allowance:
        findings.append(f"{written} bytes written for files of {size} bytes, expected {allowance} more at most")
    return verdict("each byte of a checkpoint is written once", findings, written=written, size=size)


def read_once(read: int, files: Mapping[str, int], allowance: int) -> Verdict:
    """Resuming reads each byte of a checkpoint's files at most once. read: bytes that the process read meanwhile.

    A file that is mapped into memory, as safetensors does, is not read in this sense. allowance: bytes a file.
    """
    size, allowed = sum(files.values()), allowance * len(files)
    findings = [] if files else ["there is no file to read"]
    if not read:
        findings.append("nothing was read")
    if read > size + allowed:
        findings.append(f"{read} bytes read of files of {size} bytes, expected {allowed} more at most")
    return verdict("each byte of a checkpoint is read at most once", findings, read=read, size=size)
