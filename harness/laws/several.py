"""Runs in several processes: the ranks together must do what one process does. `harness.laws.sharding` and
`harness.laws.rank_files` judge how the model is sharded, and which files the ranks write.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from harness.laws import evaluation
from harness.laws.completion import incomplete
from harness.laws.data_order import drawn, expected_places, out_of_order
from harness.laws.equal import differences, equal_runs, largest_gap
from harness.laws.loading import accelerator_config
from harness.laws.loss import logged_rounding
from harness.laws.plan import if_planned, resumed_from
from harness.spec import LaunchSpec, RunSpec
from harness.tolerance import RANKS, SUMMATION, Tolerance
from harness.trace import MicroBatch, Step, Trace
from harness.verdict import Verdict, both, not_finite, verdict

#: Fields of accelerator_config that say how ranks share batches, and how a batch is moved. One process ignores them.
OF_RANKS = ("split_batches", "dispatch_batches", "even_batches", "non_blocking")


def one_process_spec(spec: RunSpec) -> RunSpec:
    """Return the spec of the same run in one process. Its batches are as large as those of all ranks together.

    With split_batches the batch size is that of all ranks already. What one process has no use for is left out.
    """
    config = dict(accelerator_config(spec))
    ranks = 1 if config.get("split_batches") else spec.launch.row_ranks
    sizes: dict[str, Any] = {
        name: ranks * int(spec.arguments[name])
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size")
        if name in spec.arguments
    }
    sizes["accelerator_config"] = {name: value for name, value in config.items() if name not in OF_RANKS}
    return dataclasses.replace(
        spec,
        # The Trainer refuses a communication backend if there is only one process.
        arguments={
            name: value
            for name, value in {**spec.arguments, **sizes}.items()
            if name != "ddp_backend" and (name, value) != ("accelerator_config", {})
        },
        launch=LaunchSpec(device=spec.launch.device, threads=spec.launch.threads),
    )


def whole_run(trace: Trace) -> Trace:
    """Return the trace that one process would have had. The laws on one process can then judge several.

    It keeps the spec of the ranks, from which `harness.laws.plan` knows what all of them train together.

    Each micro-batch gets the rows of all ranks, rank 0's first. Its loss is put together in one of two ways:
    - If num_items_in_batch counts the labels of all ranks, each rank's loss is a share of the window's: they are added.
    - Otherwise each rank's loss is a mean over its own labels: they are averaged.
    """
    traces = [trace, *trace.ranks][trace.spec.launch.leaders]
    steps = []
    for index, step in enumerate(trace.steps):
        parts = [rank.steps[index].batches for rank in traces if index < len(rank.steps)]
        own, total = (sum(batch.tokens for part in some for batch in part) for some in (parts[:1], parts))
        given = step.batches[0].num_items if step.batches else None
        # Releases differ in whether they count a row's first label, so `given` may equal neither `own` nor `total`. The
        # nearer of the two decides.
        shares = given is not None and (len(parts) == 1 or 2 * given > own + total)
        batches = [_joined(column, shares) for column in zip(*parts, strict=False)]
        steps.append(dataclasses.replace(step, batches=batches))
    evaluations = []
    for index, pass_ in enumerate(trace.evaluations):
        rows = [rank.evaluations[index].rows for rank in traces if index < len(rank.evaluations)]
        joined = [[row for part in column for row in part] for column in zip(*rows, strict=False)]
        evaluations.append(dataclasses.replace(pass_, rows=joined))
    return dataclasses.replace(trace, steps=steps, evaluations=evaluations, ranks=[])


def _joined(column: Sequence[MicroBatch], shares: bool) -> MicroBatch:
    """Join the micro-batches that all ranks trained at the same time. If `shares`, their losses are added, not averaged."""
    losses = [batch.loss for batch in column if batch.loss is not None]
    loss = sum(losses) / (1 if shares else len(losses)) if len(losses) == len(column) else None
    return MicroBatch(
        [row for batch in column for row in batch.rows],
        sum(batch.tokens for batch in column),
        column[0].num_items,
        loss,
    )


def incomplete_ranks(trace: Trace) -> list[str]:
    """Return why the run cannot be judged: it failed, or a rank left no trace. Return an empty list if it can be."""
    findings = incomplete(trace)
    count = 1 + len(trace.ranks)
    if count != trace.spec.launch.ranks:
        findings.append(f"{count} ranks left a trace, expected {trace.spec.launch.ranks}")
    return findings


def completes(trace: Trace) -> Verdict:
    """Check that the run ends without an error, on every rank."""
    return verdict("every rank trains to the end", incomplete_ranks(trace))


def ranks_agree(trace: Trace) -> Verdict:
    """Check that every rank has rank 0's adapter, optimizer state, gradients and base, bit for bit."""
    findings = incomplete_ranks(trace)
    for rank, other in enumerate(trace.ranks, start=1):
        where = f"rank {rank}:"
        findings += differences(other.adapter, trace.adapter, 0.0, f"{where} adapter at the end:")[:1]
        if other.base != trace.base:
            findings.append(f"{where} its base is another than rank 0's at the end")
        for ours, theirs in zip(other.steps, trace.steps, strict=False):
            gap = differences(
                ours.clipped, theirs.clipped, 0.0, f"{where} step {ours.number}: gradient of", finite=False
            )
            findings += gap[:1]
            if gap:
                break
        for name, state in trace.optimizer_state.items():
            findings += differences(other.optimizer_state.get(name, {}), state, 0.0, f"{where} state of {name}:")[:1]
    return verdict("all ranks hold the same", findings, ranks=1 + len(trace.ranks))


def differing_starts(trace: Trace) -> list[str]:
    """Return the names of the adapter tensors that on some rank had a different initial value than on rank 0, sorted."""
    return sorted(
        {
            name
            for other in trace.ranks
            for name, value in trace.adapter_before.items()
            if largest_gap(value, other.adapter_before[name]) > 0
        }
    )


def first_rank_wins(trace: Trace, single: Trace) -> Verdict:
    """Check that ranks whose adapters start with different values all train rank 0's adapter.

    - trace: a run whose ranks started with different values.
    - single: the same run in one process, started with rank 0's values.
    """
    findings = incomplete_ranks(trace)
    if not findings and not differing_starts(trace):
        findings.append("all ranks started from the same adapter, so nothing could be overwritten")
    return both(
        verdict("each rank started from an adapter of its own", findings),
        ranks_agree(trace),
        equals_single(trace, single),
    )


def equals_single(trace: Trace, single: Trace, within: Tolerance = RANKS) -> Verdict:
    """Check that the ranks together train the rows of one process, in the same micro-batches, to the same adapter.

    DeepSpeed's engine does not show its gradients, so under "zero*" gradients are not compared.

    - single: the run of `one_process_spec` in one process.
    - within: how far losses, gradients and adapters may differ.
    """
    merged = whole_run(trace)
    findings = incomplete_ranks(trace)
    for ours, theirs in zip(merged.steps, single.steps, strict=False):
        rows, expected = [[batch.rows for batch in step.batches] for step in (ours, theirs)]
        if rows != expected:
            findings.append(f"step {ours.number}: the ranks trained rows {rows}, expected {expected}")
            break
    if trace.spec.launch.deepspeed:
        merged, single = _without_gradients(merged), _without_gradients(single)
    return both(verdict("the ranks train one process's rows", findings), equal_runs(merged, single, within))


def trains_as_one_process(train: Callable[..., Trace], spec: RunSpec) -> Verdict:
    """Check that the ranks train as one process does, and that they agree at the end.

    - train: `harness.runs.cache.Runs.train`.
    - spec: a run in several processes.
    """
    trace = train(spec)
    return both(equals_single(trace, train(one_process_spec(spec))), ranks_agree(trace))


def _without_gradients(trace: Trace) -> Trace:
    """Return the trace without what DeepSpeed's engine hides: gradients, and parameter groups that are empty."""
    steps = [
        dataclasses.replace(step, gradients={}, clipped={}, learning_rates=step.learning_rates[:1])
        for step in trace.steps
    ]
    return dataclasses.replace(trace, steps=steps)


@if_planned
def trains_its_share(trace: Trace) -> Verdict:
    """Check that each rank trains the places of each epoch's order that are its own (`harness.laws.loading.shares`).

    If the order is drawn from torch's global generator, it is read off what the ranks trained: they must agree on it,
    and no row may have two places.
    """
    findings, spec = incomplete_ranks(trace), trace.spec
    traces = [trace, *trace.ranks][: spec.launch.ranks]
    if drawn(spec):
        findings += _no_order(traces)
    else:
        together = spec.launch.ranks // spec.launch.row_ranks
        for rank, one in enumerate(traces):
            findings += [f"rank {rank}, {sentence}" for sentence in out_of_order(one, rank // together)]
    return verdict("each rank trains its share of every epoch", findings, ranks=spec.launch.ranks)


def _no_order(traces: Sequence[Trace]) -> list[str]:
    """Return why there is no order of an epoch's rows of which each rank has trained its share."""
    spec, resumed = traces[0].spec, resumed_from(traces[0])
    orders: dict[int, dict[int, int]] = {}
    for rank, one in enumerate(traces):
        for step in one.steps:
            epoch, places = expected_places(spec, step.number, rank, resumed)
            sizes, expected = [len(batch.rows) for batch in step.batches], [len(batch) for batch in places]
            if sizes != expected:
                return [f"rank {rank}, step {step.number}: micro-batches of {sizes} rows, expected {expected}"]
            order = orders.setdefault(epoch, {})
            for place, row in zip(sum(places, ()), _flat(step), strict=True):
                if order.setdefault(place, row) != row:
                    where = f"rank {rank}, step {step.number}: trained row {row}"
                    return [f"{where}, expected {order[place]}, as another rank has the order of epoch {epoch}"]
    for epoch, order in sorted(orders.items()):
        twice = sorted(row for row, count in Counter(order.values()).items() if count > 1)
        if twice:
            return [f"epoch {epoch}: rows {twice} have several places in the order that the ranks trained"]
    return []


def same_rows(resumed: Trace, whole: Trace, after: int) -> Verdict:
    """Check that after step `after` each rank of a resumed run trains what it trained in the uninterrupted run.

    - resumed: the resumed run.
    - whole: the run that was not interrupted.
    - after: the checkpoint's global step.
    """
    findings = incomplete_ranks(resumed) + [f"(the uninterrupted run) {reason}" for reason in incomplete_ranks(whole)]
    for rank, pair in enumerate(zip([resumed, *resumed.ranks], [whole, *whole.ranks], strict=False)):
        seen, expected = (
            {step.number: [batch.rows for batch in step.batches] for step in one.steps if step.number > after}
            for one in pair
        )
        numbers = sorted({*seen, *expected})
        differ = [number for number in numbers if seen.get(number) != expected.get(number)]
        if differ and not findings:
            step = differ[0]
            findings.append(
                f"rank {rank}, step {step}: trained rows {seen.get(step)}, but {expected.get(step)} in the run that was "
                "not interrupted"
            )
    return verdict("each rank goes on where it was", findings, ranks=1 + len(resumed.ranks))


def same_epochs(trace: Trace) -> Verdict:
    """Check that at each logged step all ranks are at the same place of the same epoch (state.epoch)."""
    findings = incomplete_ranks(trace)
    first = _epochs(trace)
    for rank, one in enumerate(trace.ranks, start=1):
        apart = [step for step, epoch in _epochs(one).items() if epoch != first.get(step)]
        if apart:
            step = apart[0]
            findings.append(f"rank {rank}, step {step}: epoch {_epochs(one)[step]:.4g}, expected {first.get(step)}")
    if not first:
        findings.append("no step was logged")
    return verdict("all ranks are in the same epoch at each step", findings, ranks=1 + len(trace.ranks))


def _epochs(trace: Trace) -> dict[int, float]:
    return {entry["step"]: entry["epoch"] for entry in trace.log_history if "loss" in entry}


def logged_mean(trace: Trace) -> Verdict:
    """Check that the logged loss of each step is the mean over the micro-batches of all ranks."""
    findings = incomplete_ranks(trace)
    merged = whole_run(trace)
    for step in merged.steps:
        if step.number not in merged.losses or any(batch.loss is None for batch in step.batches):
            findings.append(f"step {step.number}: no loss to compare")
            continue
        total = sum(batch.loss or 0.0 for batch in step.batches)
        expected = total if step.batches[0].num_items is not None else total / len(step.batches)
        if unjudged := not_finite(f"step {step.number}: the logged loss", merged.losses[step.number], expected):
            findings += unjudged
        elif not abs(merged.losses[step.number] - expected) <= SUMMATION.loss + logged_rounding(trace):
            findings.append(f"step {step.number}: logged loss {merged.losses[step.number]!r}, expected {expected!r}")
    return verdict("the logged loss is the mean over all ranks", findings, steps=len(merged.steps))


def no_row_twice(resumed: Trace, first: Trace, after: int) -> Verdict:
    """Check that a run and the run resumed from it train each row of one epoch exactly once between them.

    - first: the run that saved; its steps up to `after` count.
    - resumed: the run that was resumed from its checkpoint, perhaps with another number of ranks.
    - after: the checkpoint's global step.
    """
    findings = incomplete_ranks(resumed) + [f"(the run that saved) {reason}" for reason in incomplete_ranks(first)]
    before = [row for step in whole_run(first).steps if step.number <= after for row in _flat(step)]
    since = [row for step in whole_run(resumed).steps for row in _flat(step)]
    left = first.spec.data.rows - len(before)
    again = [row for row in since[:left] if row in before]
    if again:
        findings.append(
            f"{len(again)} of {len(since[:left])} rows had been trained before in this epoch: {sorted(again)}"
        )
    missed = sorted(set(range(first.spec.data.rows)) - {*before, *since[:left]})
    if missed:
        findings.append(f"{len(missed)} rows of the epoch are never trained: {missed}")
    return verdict("every row of the epoch is trained once", findings, before=len(before), since=len(since))


def continues_with_other_ranks(resumed: Trace, first: Trace, after: int, within: Tolerance = RANKS) -> Verdict:
    """Check that a run resumed with another number of ranks continues the run that was not interrupted.

    - resumed: the resumed run. It trains as many rows a step as `first`.
    - first: the uninterrupted run.
    - after: the checkpoint's global step.
    - within: how far losses, gradients and adapters may differ.
    """
    findings = incomplete_ranks(resumed) + [f"(the run that saved) {reason}" for reason in incomplete_ranks(first)]
    seen, expected = (
        [sorted(_flat(step)) for step in whole_run(one).steps if step.number > after] for one in (resumed, first)
    )
    if not findings and seen != expected:
        findings.append(f"after step {after} rows {seen} were trained, expected {expected}")
    return both(
        verdict("the same rows are trained", findings),
        equal_runs(whole_run(resumed), whole_run(first), within, after=after),
    )


def _flat(step: Step) -> list[int]:
    return [row for batch in step.batches for row in batch.rows]


def evaluated_loss(trace: Trace) -> Verdict:
    """Check that eval_loss is the mean over the evaluation rows, each counted once, whatever the number of processes.

    A batch's loss may be the mean over the labels of all ranks' rows, or each rank's over its own: both are accepted.
    Rows that fill up the last batches are fed a second time, but must not be counted a second time.
    """
    merged = whole_run(trace)
    verdicts = []
    single = one_process_spec(trace.spec)
    for spec in (single, dataclasses.replace(trace.spec, launch=single.launch)):
        passes = [dataclasses.replace(one, rows=evaluation.batches(spec)) for one in merged.evaluations]
        verdicts.append(evaluation.losses(dataclasses.replace(merged, spec=spec, evaluations=passes)))
    fed = [sorted({row for batch in one.rows for row in batch}) for one in merged.evaluations]
    first = trace.spec.data.rows
    expected = list(range(first, first + trace.spec.data.eval_rows))
    findings = incomplete_ranks(trace) + [
        f"an evaluation was fed rows {rows}, expected {expected}" for rows in fed if rows != expected
    ]
    return both(
        verdict("all ranks are fed the rows", findings), next((one for one in verdicts if one.holds), verdicts[0])
    )
