"""Put what a run's trace and its recordings have into one order: that in which things happened.

A mark is one thing that two runs can be compared by: a tensor, a number, or something exact such as the rows of a
micro-batch. Its key says which mark of the other run it is compared with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.trace import Step, Trace
from harness.where.marks import ACCUMULATION, BACKWARD, BETWEEN, DATA, FORWARD, OPTIMIZER, VALUE, Entry, Recording

#: Stages besides those of the recorder, in the order of a run.
START, RESUME, LOSS, REDUCTION = "start", "resume", "loss", "reduction"
CLIPPING, SCHEDULE, EVALUATION, CHECKPOINT, LOG, END = "clipping", "schedule", "evaluation", "checkpoint", "log", "end"

#: What a mark is about that says a parameter's dtype. It is left out if the sides ask for different precisions.
DTYPE = "dtype"

#: Settings of a parameter group that the schedule changes.
_SCHEDULED = ("lr", "initial_lr")

#: Entries of a log that are no result, or that no two runs share.
_TIMES = ("runtime", "_per_second", "step", "epoch", "flos")


@dataclass
class Mark:
    """One thing to compare.

    - step, micro_batch, rank: from 1, and from 0 for ranks; 0 and 0 where there is none.
    - stage: one of the recorder's, or of this module's.
    - name, what, call: as in `harness.where.marks.Entry`.
    - row: the row of the data, if two runs cut the same rows into other micro-batches; else -1.
    - value: a tensor, a number, or anything that can be compared by ==.
    - norm: that of the whole tensor, if not all of it was kept.
    - opens: whether it is the first gradient of its backward pass, which the loss itself gives.
    """

    step: int
    micro_batch: int
    rank: int
    stage: str
    name: str
    what: str
    value: Any
    call: int = 0
    row: int = -1
    norm: float | None = None
    opens: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.step, self.micro_batch, self.rank, self.stage, self.name, self.what, self.call, self.row)


@dataclass
class Run:
    """A trace, and the recordings of its ranks."""

    trace: Trace
    recordings: list[Recording]

    @property
    def traces(self) -> list[Trace]:
        return [self.trace, *self.trace.ranks]

    def cuts(self) -> dict[int, list[list[list[int]]]]:
        """Return the rows of each step: of each rank, of each micro-batch."""
        found: dict[int, list[list[list[int]]]] = defaultdict(list)
        for trace in self.traces:
            for step in trace.steps:
                found[step.number].append([batch.rows for batch in step.batches])
        return found


def cut_otherwise(one: Run, other: Run) -> set[int]:
    """Return the steps in which two runs train the same rows, cut into other micro-batches or spread over other ranks."""
    ours, theirs = one.cuts(), other.cuts()
    return {
        step
        for step in ours.keys() & theirs.keys()
        if ours[step] != theirs[step] and (rows := _flat(ours[step])) == _flat(theirs[step]) and -1 not in rows
    }


def _flat(cut: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    return sorted(row for rank in cut for batch in rank for row in batch)


def timeline(run: Run, by_row: set[int]) -> list[Mark]:
    """Return the marks of a run in order.

    - by_row: steps whose tensors are taken apart into rows (`cut_otherwise`).
    """
    trace = run.trace
    marks = [mark for rank, one in enumerate(run.traces) for mark in _start(one, rank)]
    for index, step in enumerate(trace.steps):
        ours = [one.steps[index] for one in run.traces if index < len(one.steps)]
        if step.number in by_row:
            marks += _rows_of(run, step, ours)
        else:
            # What all ranks read decides the number of labels that each is given.
            for rank, part in enumerate(ours):
                rows = [batch.rows for batch in part.batches]
                marks.append(Mark(step.number, 0, rank, DATA, "rows of the window", VALUE, rows))
            for rank, part in enumerate(ours):
                marks += _batches(run, rank, part)
        marks += _end_of_step(run, step)
    marks += _end(trace)
    # What a run writes down feeds nothing back, so it comes last: a difference in it alone is one of writing.
    written = (CHECKPOINT, LOG)
    return [mark for mark in marks if mark.stage not in written] + [mark for mark in marks if mark.stage in written]


def _tensors(stage: str, tensors: Mapping[str, torch.Tensor], step: int, rank: int = 0, what: str = VALUE) -> Any:
    for name, tensor in tensors.items():
        yield Mark(step, 0, rank, stage, name, what, tensor)


def _start(trace: Trace, rank: int) -> Iterator[Mark]:
    yield Mark(0, 0, rank, START, "what is trained", VALUE, sorted(trace.trainable))
    yield from _tensors(START, trace.adapter_before, 0, rank)
    for name, digest in trace.base_before.items():
        # Digests of two dtypes differ, whatever the values.
        yield Mark(0, 0, rank, START, name, str(trace.parameters.get(name, [""])[0]), digest)
    for name, (dtype, _) in trace.parameters.items():
        yield Mark(0, 0, rank, START, name, DTYPE, dtype)
    yield from _tensors(RESUME, trace.adapter_resumed, 0, rank)
    yield Mark(
        0, 0, rank, OPTIMIZER, "what it steps", VALUE, sorted(name for one in trace.groups for name in one.names)
    )
    for group in trace.groups:
        for name in group.names:
            for setting, value in group.settings.items():
                if setting not in _SCHEDULED:
                    yield Mark(0, 0, rank, OPTIMIZER, name, setting, value)


def _batches(run: Run, rank: int, step: Step) -> Iterator[Mark]:
    entries: dict[int, list[Entry]] = defaultdict(list)
    for entry in run.recordings[rank].entries if rank < len(run.recordings) else ():
        if entry.step == step.number and entry.stage != OPTIMIZER:
            entries[entry.micro_batch].append(entry)
    yield from (_mark(entry, (step.number, 0, rank)) for entry in entries[0] if entry.stage == BETWEEN)
    for number, batch in enumerate(step.batches, start=1):
        seen = entries[number]
        place = (step.number, number, rank)
        yield from (_mark(entry, place) for entry in seen if entry.stage == ACCUMULATION)
        yield Mark(*place, DATA, "rows", VALUE, batch.rows)
        yield from (_mark(entry, place) for entry in seen if entry.stage == DATA)
        yield Mark(*place, DATA, "labels that count", VALUE, batch.tokens)
        yield Mark(*place, LOSS, "num_items_in_batch", VALUE, batch.num_items)
        # Layers that are recomputed run forward once more, in the backward pass.
        yield from (_mark(entry, place) for entry in seen if entry.stage == FORWARD)
        yield Mark(*place, LOSS, "loss", VALUE, batch.loss)
        backward = [entry for entry in seen if entry.stage == BACKWARD]
        yield from (_mark(entry, place, opens=index == 0) for index, entry in enumerate(backward))


def _mark(entry: Entry, place: tuple[int, int, int], opens: bool = False) -> Mark:
    norm = float(entry.norm) if entry.stride > 1 else None
    return Mark(
        *place, entry.stage, entry.name, entry.what, entry.kept, call=entry.call, norm=norm, opens=opens
    )  # fmt: skip


def _rows_of(run: Run, step: Step, parts: Sequence[Step]) -> Iterator[Mark]:
    """Yield the marks of a step row by row.

    Each rank computes the gradient of its own loss times the number of ranks, and the mean over the ranks is taken later.
    """
    number = step.number
    yield Mark(number, 0, 0, DATA, "rows", VALUE, _flat([[batch.rows for batch in part.batches] for part in parts]))
    batches = [batch for part in parts for batch in part.batches]
    counts = sorted({batch.num_items for batch in batches}, key=str)
    yield Mark(number, 0, 0, LOSS, "num_items_in_batch", VALUE, counts)
    later: list[Mark] = []
    for rank, part in enumerate(parts):
        for entry in run.recordings[rank].entries if rank < len(run.recordings) else ():
            if entry.step != number or not 1 <= entry.micro_batch <= len(part.batches) or entry.stride > 1:
                continue
            rows = part.batches[entry.micro_batch - 1].rows
            if len(entry.shape) < 2 or entry.shape[0] != len(rows) or len(set(rows)) != len(rows):
                continue
            factor = 1 / len(parts) if entry.stage == BACKWARD and len(parts) > 1 else None
            for index, row in enumerate(rows):
                value = entry.kept[index] if factor is None else entry.kept[index] * factor
                mark = Mark(number, 0, 0, entry.stage, entry.name, entry.what, value, entry.call, row)
                if entry.stage == BACKWARD:
                    later.append(mark)
                else:
                    yield mark
    losses = [batch.loss for batch in batches]
    if None not in losses and None not in counts:
        yield Mark(number, 0, 0, LOSS, "loss", VALUE, sum(loss for loss in losses if loss is not None))
    yield from later


def _end_of_step(run: Run, step: Step) -> Iterator[Mark]:
    trace, number = run.trace, step.number
    several = len(run.traces) > 1
    parts = [(rank, one) for rank, each in enumerate(run.traces) for one in each.steps if one.number == number]
    for rank, part in parts:
        yield from _tensors(REDUCTION if several else ACCUMULATION, part.gradients, number, rank, "gradient")
    for rank, part in parts:
        yield from _tensors(CLIPPING, part.clipped, number, rank, "gradient")
    for index, rate in enumerate(step.learning_rates):
        yield Mark(number, 0, 0, SCHEDULE, f"learning rate of group {index}", VALUE, rate)
    for entry in run.recordings[0].entries if run.recordings else ():
        if entry.step == number and entry.stage == OPTIMIZER:
            yield _mark(entry, (number, 0, 0))
    yield from _after(trace, number)


def _after(trace: Trace, number: int) -> Iterator[Mark]:
    """Yield what comes after a step: what was evaluated, saved and logged."""
    for index, evaluation in enumerate(one for one in trace.evaluations if one.step == number):
        yield Mark(number, 0, 0, DATA, "rows of the evaluation", VALUE, evaluation.rows, call=index)
        for name, value in _numbers(evaluation.metrics):
            yield Mark(number, 0, 0, EVALUATION, name, VALUE, value, call=index)
    for checkpoint in trace.checkpoints:
        if checkpoint.step == number:
            yield from _tensors(CHECKPOINT, checkpoint.adapter, number)
    for entry in trace.log_history:
        if entry.get("step") == number:
            for name, value in _numbers(entry):
                yield Mark(number, 0, 0, LOG, name, VALUE, value)


def _end(trace: Trace) -> Iterator[Mark]:
    last = trace.steps[-1].number if trace.steps else 1
    yield Mark(0, 0, 0, END, "optimizer steps", VALUE, len(trace.steps))
    yield from _tensors(END, trace.adapter, last)
    for name, digest in trace.base.items():
        yield Mark(last, 0, 0, END, name, str(trace.parameters.get(name, [""])[0]), digest)
    for name, states in trace.optimizer_state.items():
        for state, tensor in states.items():
            yield Mark(last, 0, 0, OPTIMIZER, name, state, tensor)
    loss = trace.output.get("training_loss")
    if loss is not None:
        yield Mark(last, 0, 0, LOG, "train_loss", VALUE, loss)
    if trace.best.get("metric") is not None:
        yield Mark(last, 0, 0, EVALUATION, "best metric", VALUE, trace.best["metric"])
        yield Mark(last, 0, 0, EVALUATION, "best step", VALUE, trace.best["step"])


def _numbers(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in entry.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not name.endswith(_TIMES):
            yield name, float(value)
