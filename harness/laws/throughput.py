"""What a step costs: no other than recorded, the same in every run, and little more than the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping

from harness.throughput.counters import UNITS, Counters
from harness.throughput.judgement import HOLDS, SLOWER, Interval, judge
from harness.throughput.pairs import Pairs
from harness.verdict import AMBIGUOUS, FAIL, PASS, Unjudged, Verdict, verdict

#: How many reads and operations a Trainer may do in each micro-batch more than the reference. Measured on a CPU and an H100
#: with transformers 5.17 and 5.23: one read (whether the loss is finite) and up to six operations.
MORE_READS, MORE_OPERATIONS = 1, 8

#: The same for each step: values are read to be logged.
STEP_READS, STEP_OPERATIONS = 1, 8

#: Counters that also depend on what the process did before: the same step makes 5093 Python calls in a new process, and
#: 5257 after the other suites. They are not compared with a recording. The gate compares them, since both of its sides
#: count in equal processes.
OF_THE_PROCESS = ("python_calls",)


def as_recorded(seen: Counters, recorded: Counters) -> Verdict:
    """Check that each counter but OF_THE_PROCESS is what was recorded in this environment.

    - seen: the counters of this run.
    - recorded: those of the baseline recording.
    """
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
    if not recorded.values.keys() - set(OF_THE_PROCESS):
        findings.append(Unjudged("nothing was recorded to compare with"))
    return verdict("a step costs what is recorded of it", findings, **seen.step)


def steady(seen: Counters, again: Counters) -> Verdict:
    """Check that equal steps have equal counters, within a run and in a second run.

    - seen, again: the counters of two runs of one spec.
    """
    findings = [] if seen.values else ["nothing was counted"]
    for name, values in seen.values.items():
        if again.values.get(name) != values:
            findings.append(f"{name}: {values}, and in another run {again.values.get(name)} ({UNITS[name]})")
        if len(set(values)) > 1:
            findings.append(f"{name}: {values} in steps alike ({UNITS[name]})")
    return verdict("steps that are alike cost alike", findings, **seen.step)


def no_more_than_reference(seen: Counters, reference: Counters, micro_batches: int) -> Verdict:
    """Check that a step has the reference's floating-point operations, saves no more bytes, and does little besides.

    - seen, reference: the counters of the subject and of the reference.
    - micro_batches: how many micro-batches a step has.
    """
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
            f"flops: {ours['flops']} a step, fewer than the reference's {theirs['flops']}: some are left out"
        )
    return verdict("a step costs what the path takes", findings, **ours)


def no_slower(timed: Pairs, recorded: Mapping[str, float], margin: float, budget: float) -> Verdict:
    """Check that a step takes no longer than recorded, relative to the reference's step.

    If the machine is too noisy to decide, the verdict is AMBIGUOUS.

    - timed: pairs of the subject's and the reference's times.
    - recorded: "ratio", the subject's time over the reference's, and "low" and "high", the ends of its interval.
    - margin: the slowdown that must be found, as a share of a step's time.
    - budget: seconds that timing may take.
    """
    ratio = recorded["ratio"]
    moved = {
        metric: [[value - math.log(ratio) for value in pair] for pair in pairs]
        for metric, pairs in timed.ratios.items()
        if metric == "wall"
    }
    # The recorded ratio has an error of its own.
    unknown = Interval.error_of(recorded["low"], recorded["high"])
    judged = judge(moved, margin, timed.seconds / budget, timed.strays, unknown)
    change = judged.intervals["wall"]
    outcome = {HOLDS: PASS, SLOWER: FAIL}.get(judged.word, AMBIGUOUS)
    seen = () if outcome == PASS else (f"a step is {change.describe()}, compared with the recorded one",)
    return Verdict(
        outcome,
        f"a step takes {ratio:.3f} times the reference's, or less",
        seen,
        {"change": change.estimate, "low": change.low, "high": change.high, "recorded": ratio},
    )


def written_once(written: int, files: Mapping[str, int], allowance: int) -> Verdict:
    """Check that saving writes each byte of a checkpoint's files once.

    - written: bytes that the process wrote during the save.
    - files: relative path -> bytes of each file.
    - allowance: bytes that may be written besides.
    """
    size = sum(files.values())
    findings = [] if files else ["no file was written"]
    if written > size + allowance:
        findings.append(f"{written} bytes written for files of {size} bytes, expected {allowance} more at most")
    return verdict("each byte of a checkpoint is written once", findings, written=written, size=size)


def read_once(read: int, files: Mapping[str, int], allowance: int) -> Verdict:
    """Check that resuming reads each byte of a checkpoint's files at most once.

    Bytes of files that are mapped into memory, as safetensors does, are not counted as read.

    - read: bytes that the process read while it resumed.
    - files: relative path -> bytes of each file.
    - allowance: bytes for each file that may be read besides.
    """
    size, allowed = sum(files.values()), allowance * len(files)
    findings = [] if files else ["there is no file to read"]
    if not read:
        findings.append("nothing was read")
    if read > size + allowed:
        findings.append(f"{read} bytes read of files of {size} bytes, expected {allowed} more at most")
    return verdict("each byte of a checkpoint is read at most once", findings, read=read, size=size)
