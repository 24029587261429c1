"""Runs in several processes: what the ranks did together is what one process would have done."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from harness.laws import evaluation
from harness.laws.completion import incomplete
from harness.laws.data_order import epoch_order
from harness.laws.equal import differences, equal_runs
from harness.laws.loss import logged_rounding
from harness.laws.schedule import number
from harness.spec import LaunchSpec, RunSpec
from harness.subjects.observer import inspect_checkpoint
from harness.tensors import names
from harness.tolerance import RANKS, SUMMATION, Tolerance
from harness.trace import MicroBatch, Step, Trace
from harness.verdict import Verdict, both, verdict


def alone(spec: RunSpec) -> RunSpec:
    """The run in one process that a run in several is: batches as large as those of all ranks together."""
    sizes = {
        name: spec.launch.ranks * int(spec.arguments[name])
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size")
        if name in spec.arguments
    }
    return dataclasses.replace(
        spec,
        # One process has no one to talk to, and refuses a backend for it.
        arguments={name: value for name, value in {**spec.arguments, **sizes}.items() if name != "ddp_backend"},
        launch=LaunchSpec(device=spec.launch.device, threads=spec.launch.threads),
    )


def as_one(trace: Trace) -> Trace:
    """What the ranks saw, as one process would have: each micro-batch has the rows of all ranks, rank 0's first.

    A rank's losses are shares of the whole window's where it was given the labels of all ranks as num_items_in_batch,
    and means over its own otherwise. The laws on one process then say the same of several.
    """
    together = [trace, *trace.ranks]
    steps = []
    for index, step in enumerate(trace.steps):
        parts = [one.steps[index].batches for one in together if index < len(one.steps)]
        own, total = (sum(batch.tokens for part in some for batch in part) for some in (parts[:1], parts))
        given = step.batches[0].num_items if step.batches else None
        # Releases count the first labels of rows in or not, so that neither number need be met.
        shares = given is not None and (len(parts) == 1 or 2 * given > own + total)
        batches = [_joined(column, shares) for column in zip(*parts, strict=False)]
        steps.append(dataclasses.replace(step, batches=batches))
    evaluations = []
    for index, pass_ in enumerate(trace.evaluations):
        rows = [one.evaluations[index].rows for one in together if index < len(one.evaluations)]
        joined = [[row for part in column for row in part] for column in zip(*rows, strict=False)]
        evaluations.append(dataclasses.replace(pass_, rows=joined))
    return dataclasses.replace(trace, spec=alone(trace.spec), steps=steps, evaluations=evaluations, ranks=[])


def _joined(column: Sequence[MicroBatch], shares: bool) -> MicroBatch:
    losses = [batch.loss for batch in column if batch.loss is not None]
    loss = sum(losses) / (1 if shares else len(losses)) if len(losses) == len(column) else None
    return MicroBatch(
        [row for batch in column for row in batch.rows],
        sum(batch.tokens for batch in column),
        column[0].num_items,
        loss,
    )


# ---- all ranks ----


def present(trace: Trace) -> list[str]:
    """Why a run is no evidence on its ranks: it failed, or a rank left no trace. Empty where it is."""
    findings = incomplete(trace)
    seen = 1 + len(trace.ranks)
    if seen != trace.spec.launch.ranks:
        findings.append(f"{seen} ranks left a trace, expected {trace.spec.launch.ranks}")
    return findings


def ranks_agree(trace: Trace) -> Verdict:
    """Every rank has rank 0's adapter, optimizer state, gradients and base, bit for bit."""
    findings = present(trace)
    for rank, other in enumerate(trace.ranks, start=1):
        where = f"rank {rank}:"
        findings += differences(other.adapter, trace.adapter, 0.0, f"{where} adapter at the end:")[:1]
        if other.base != trace.base:
            findings.append(f"{where} its base is another than rank 0's at the end")
        for ours, theirs in zip(other.steps, trace.steps, strict=False):
            gap = differences(ours.clipped, theirs.clipped, 0.0, f"{where} step {ours.number}: gradient of")
            findings += gap[:1]
            if gap:
                break
        for name, state in trace.optimizer_state.items():
            findings += differences(other.optimizer_state.get(name, {}), state, 0.0, f"{where} state of {name}:")[:1]
    return verdict("all ranks hold the same", findings, ranks=1 + len(trace.ranks))


def own_starts(trace: Trace) -> list[str]:
    """Names of adapter tensors with which some rank started from another value than rank 0."""
    return sorted(
        {
            name
            for other in trace.ranks
            for name, value in trace.adapter_before.items()
            if not value.equal(other.adapter_before[name])
        }
    )


def first_rank_wins(trace: Trace, single: Trace) -> Verdict:
    """Ranks that start from adapters of their own train rank 0's: they end alike, and as one process does."""
    findings = present(trace)
    if not findings and not own_starts(trace):
        findings.append("all ranks started from the same adapter, so nothing could be overwritten")
    return both(
        verdict("each rank started from an adapter of its own", findings),
        ranks_agree(trace),
        equals_single(trace, single),
    )


def equals_single(trace: Trace, single: Trace, within: Tolerance = RANKS) -> Verdict:
    """The ranks together trained the rows of one process in the same micro-batches, to the same adapter.

    Gradients are compared where they could be seen: DeepSpeed keeps them to itself.
    """
    merged = as_one(trace)
    findings = present(trace)
    for ours, theirs in zip(merged.steps, single.steps, strict=False):
        rows, wanted = [[batch.rows for batch in step.batches] for step in (ours, theirs)]
        if rows != wanted:
            findings.append(f"step {ours.number}: the ranks trained rows {rows}, expected {wanted}")
            break
    if trace.spec.launch.strategy.startswith("zero"):
        merged, single = (_without_gradients(one) for one in (merged, single))
    return both(verdict("the ranks train one process's rows", findings), equal_runs(merged, single, within))


def as_one_process(train: Callable[..., Trace], spec: RunSpec) -> Verdict:
    """The ranks train as one process does, and end alike."""
    trace = train(spec)
    return both(equals_single(trace, train(alone(spec))), ranks_agree(trace))


def _without_gradients(trace: Trace) -> Trace:
    """The trace without what DeepSpeed's engine hides: gradients, and groups that have no parameter."""
    steps = [
        dataclasses.replace(step, gradients={}, clipped={}, learning_rates=step.learning_rates[:1])
        for step in trace.steps
    ]
    return dataclasses.replace(trace, steps=steps)


def trains_its_share(trace: Trace) -> Verdict:
    """Rank r of W trains the batches r, r + W, ... of the epoch's order; the last ones are filled from its start."""
    findings, spec = present(trace), trace.spec
    size, ranks = int(number(spec, "per_device_train_batch_size")), spec.launch.ranks
    window = int(number(spec, "gradient_accumulation_steps"))
    rounds = math.ceil(spec.data.rows / (size * ranks))
    per_epoch = math.ceil(rounds / window)
    for rank, one in enumerate([trace, *trace.ranks]):
        for step in one.steps:
            epoch, update = divmod(step.number - 1, per_epoch)
            order = epoch_order(spec, epoch)
            places = range(update * window, min((update + 1) * window, rounds))
            starts = [(place * ranks + rank) * size for place in places]
            wanted = [[order[at % len(order)] for at in range(start, start + size)] for start in starts]
            seen = [batch.rows for batch in step.batches]
            if seen != wanted:
                findings.append(f"rank {rank}, step {step.number}: trained rows {seen}, expected {wanted}")
                break
    return verdict("each rank trains its share of every epoch", findings, ranks=ranks)


def logged_mean(trace: Trace) -> Verdict:
    """The logged loss of a step is that of all ranks' micro-batches together."""
    findings = present(trace)
    merged = as_one(trace)
    for step in merged.steps:
        if step.number not in merged.losses or any(batch.loss is None for batch in step.batches):
            findings.append(f"step {step.number}: no loss to compare")
            continue
        total = sum(batch.loss or 0.0 for batch in step.batches)
        expected = total if step.batches[0].num_items is not None else total / len(step.batches)
        if not abs(merged.losses[step.number] - expected) <= SUMMATION.loss + logged_rounding(trace):
            findings.append(f"step {step.number}: logged loss {merged.losses[step.number]!r}, expected {expected!r}")
    return verdict("the logged loss is the mean over all ranks", findings, steps=len(merged.steps))


def no_row_twice(resumed: Trace, first: Trace, after: int) -> Verdict:
    """The rows that a run trained until its checkpoint, and those of the run resumed from it, are one epoch's, each once."""
    findings = present(resumed) + [f"(the run that saved) {one}" for one in present(first)]
    before = [row for step in as_one(first).steps if step.number <= after for row in _flat(step)]
    since = [row for step in as_one(resumed).steps for row in _flat(step)]
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


def goes_on(resumed: Trace, first: Trace, after: int, within: Tolerance = RANKS) -> Verdict:
    """Resumed with another number of ranks, which train the same rows a step, the run is the one that was not."""
    findings = present(resumed) + [f"(the run that saved) {one}" for one in present(first)]
    seen, wanted = (
        [sorted(_flat(step)) for step in as_one(one).steps if step.number > after] for one in (resumed, first)
    )
    if not findings and seen != wanted:
        findings.append(f"after step {after} rows {seen} were trained, expected {wanted}")
    return both(
        verdict("the same rows are trained", findings),
        equal_runs(as_one(resumed), as_one(first), within, after=after),
    )


def _flat(step: Step) -> list[int]:
    return [row for batch in step.batches for row in batch.rows]


def evaluated_loss(trace: Trace) -> Verdict:
    """eval_loss is the mean over the evaluation rows, each counted once, in however many processes.

    A batch's loss is the mean over the labels of all ranks' rows, or each rank's over its own: both are taken. Rows that
    fill the last batches up come a second time: they are fed, and must not be counted.
    """
    merged = as_one(trace)
    verdicts = []
    for spec in (merged.spec, dataclasses.replace(trace.spec, launch=merged.spec.launch)):
        passes = [dataclasses.replace(one, rows=evaluation.batches(spec)) for one in merged.evaluations]
        verdicts.append(evaluation.losses(dataclasses.replace(merged, spec=spec, evaluations=passes)))
    fed = [sorted({row for batch in one.rows for row in batch}) for one in merged.evaluations]
    first = trace.spec.data.rows
    missing = [rows for rows in fed if rows != list(range(first, first + trace.spec.data.eval_rows))]
    findings = present(trace) + [
        f"an evaluation was fed rows {rows[0]} to {rows[-1]}, {len(rows)} of them" for rows in missing
    ]
    return both(
        verdict("all ranks are fed the rows", findings), next((one for one in verdicts if one.holds), verdicts[0])
    )


# ---- how it is spread ----

#: Kind of parameter that each strategy makes, and the class that does it.
_SHARDED = {"fsdp1": ("FlatParameter", "FullyShardedDataParallel"), "fsdp2": ("DTensor", "FSDPModule")}


def sharded(trace: Trace, strategy: str | None = None) -> Verdict:
    """What asked for FSDP is sharded: each parameter is a DTensor, or a part of a FlatParameter, and each element of it
    lies on one rank alone. strategy: None for the spec's.
    """
    kind, unit = _SHARDED[strategy or trace.spec.launch.strategy]
    findings = present(trace)
    kinds = trace.distributed.get("kinds", {})
    units = [path for path, name in trace.distributed.get("units", {}).items() if name == unit]
    if not units:
        wrapper = trace.distributed.get("wrapper")
        findings.append(f"no module is an {unit}: the model is wrapped in {wrapper}")
    plain = sorted(name for name, one in kinds.items() if one != kind)
    if plain or not kinds:
        findings.append(f"{len(plain)} of {len(kinds)} parameters are no {kind}, {plain[:1]} for one")
    if kind == "FlatParameter" and not trace.distributed.get("flat"):
        findings.append("no module has a FlatParameter")
    local = [one.distributed.get("local", {}) for one in (trace, *trace.ranks)]
    for name, (_, shape) in trace.parameters.items():
        parts = [one.get(name, 0) for one in local]
        if sum(parts) != math.prod(shape):
            findings.append(f"{name} has {math.prod(shape)} elements, but {parts} of them lie on the ranks")
            break
    return verdict(f"every parameter is sharded, as {kind}", findings, units=len(units), parameters=len(kinds))


def loaded(trace: Trace) -> Verdict:
    """Of a base that was sharded as it was loaded each element lies on one rank alone, and what was put on it is whole on
    every one.
    """
    findings = present(trace)
    kinds = trace.distributed.get("kinds", {})
    local = [one.distributed.get("local", {}) for one in (trace, *trace.ranks)]
    for name, (_, shape) in trace.parameters.items():
        size, parts = math.prod(shape), [one.get(name, 0) for one in local]
        if name in trace.trainable and (kinds.get(name) != "Parameter" or set(parts) != {size}):
            findings.append(f"{name}, which is trained, is a {kinds.get(name)} with {parts} of its {size} elements")
        if name not in trace.trainable and (kinds.get(name) != "DTensor" or sum(parts) != size):
            findings.append(f"{name}, of the base, is a {kinds.get(name)} with {parts} of its {size} elements")
    return verdict(
        "the base is sharded, and what is trained is whole on each rank", findings[:4], parameters=len(kinds)
    )


def same_tokens(trace: Trace, length: int = 12) -> Verdict:
    """What each rank generated at the end (Trace.distributed["afterwards"]) is of this length, and the same."""
    seen = [one.distributed.get("afterwards", []) for one in (trace, *trace.ranks)]
    findings = [f"tokens {tokens}" for tokens in seen if len(tokens) != length or tokens != seen[0]]
    return verdict("every rank generates the same tokens", present(trace) + findings)


def units(trace: Trace, wanted: Sequence[str]) -> Verdict:
    """Exactly these modules (paths in the base model, "" for the whole) are units of FSDP."""
    seen = {
        path
        for path, name in trace.distributed.get("units", {}).items()
        if name in ("FullyShardedDataParallel", "FSDPModule")
    }
    findings = present(trace)
    findings += [f"{path or 'the model'} is a unit, unexpected" for path in sorted(seen - set(wanted))]
    findings += [f"{path or 'the model'} is no unit" for path in sorted(set(wanted) - seen)]
    return verdict(f"{len(wanted)} modules are units of FSDP", findings, units=len(seen))


def dtypes_kept(trace: Trace) -> Verdict:
    """Spread over ranks, each frozen parameter has the dtype that it had before."""
    findings = present(trace)
    spread = trace.distributed.get("dtypes", {})
    for name, (dtype, _) in trace.parameters.items():
        if name not in trace.trainable and spread.get(name) != dtype:
            findings.append(f"{name} was {dtype}, spread it is {spread.get(name)}")
    return verdict("frozen parameters keep their dtype", findings[:4], parameters=len(spread))


def rank_files(trace: Trace, wanted: Sequence[str]) -> Verdict:
    """Each checkpoint has exactly these entries at its top: names of files, and of directories with a / at the end."""
    findings = present(trace)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    for checkpoint in trace.checkpoints:
        seen = {name.partition("/")[0] + "/" * ("/" in name) for name in checkpoint.files}
        where = f"checkpoint-{checkpoint.step}"
        findings += [f"{where} has {name}, unexpected" for name in sorted(seen - set(wanted))]
        findings += [f"{where} has no {name}" for name in sorted(set(wanted) - seen)]
    return verdict(f"a checkpoint has the files {', '.join(sorted(wanted))}", findings)


def model_file(trace: Trace) -> Verdict:
    """pytorch_model_fsdp.bin holds every trained tensor, whole and as the adapter was at the last step, and no other."""
    findings = present(trace)
    held = [saved for saved in trace.checkpoints if "pytorch_model_fsdp.bin" in saved.files]
    if not held:
        findings.append("no checkpoint has a pytorch_model_fsdp.bin")
    for saved in held:
        file = torch.load(Path(saved.path) / "pytorch_model_fsdp.bin", map_location="cpu", weights_only=True)
        tensors = {names.canonical(key, trace.spec.adapter.name): value for key, value in file.items()}
        where = f"checkpoint-{saved.step}/pytorch_model_fsdp.bin:"
        parts = [name for name, value in tensors.items() if hasattr(value, "to_local")]
        if parts:
            findings.append(f"{where} {len(parts)} tensors are DTensors of the rank that saved, {parts[0]} for one")
            continue
        if saved.step == trace.output.get("global_step"):
            findings += differences(tensors, trace.adapter, 0.0, where)[:2]
        else:
            findings += [f"{where} no {name}" for name in trace.trainable if name not in tensors][:1]
            findings += [f"{where} {name}, which is not trained" for name in tensors if name not in trace.trainable][:1]
    return verdict("the model's file holds the adapter alone", findings)


def engine_files(trace: Trace) -> Verdict:
    """The engine's model file of each checkpoint is smaller than the frozen parameters are: it has none of them."""
    findings = present(trace)
    frozen = sum(4 * math.prod(shape) for name, (_, shape) in trace.parameters.items() if name not in trace.trainable)
    sizes = {
        f"checkpoint-{saved.step}/{name}": size
        for saved in trace.checkpoints
        for name, size in saved.files.items()
        if name.endswith("model_states.pt")
    }
    if not sizes:
        findings.append("no checkpoint has a file of the engine's model")
    findings += [
        f"{name} has {size} bytes, the frozen parameters {frozen}" for name, size in sizes.items() if size >= frozen
    ]
    return verdict("the engine saves no frozen parameter", findings, bytes=max(sizes.values(), default=0))


def engine_optimizer(trace: Trace) -> Verdict:
    """Each checkpoint has the engine's optimizer state of every rank, scheduler.pt, and no optimizer.pt."""
    findings = present(trace)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    for saved in trace.checkpoints:
        where = f"checkpoint-{saved.step}"
        states = [name for name in saved.files if name.endswith("_optim_states.pt")]
        if len(states) != trace.spec.launch.ranks:
            findings.append(f"{where} has {len(states)} files of optimizer state for {trace.spec.launch.ranks} ranks")
        findings += [f"{where} has optimizer.pt"] if "optimizer.pt" in saved.files else []
        findings += [] if "scheduler.pt" in saved.files else [f"{where} has no scheduler.pt"]
    return verdict("the engine saves the optimizer's state, the Trainer the schedule", findings)


def saved_at_the_end(trace: Trace, directory: Path) -> Verdict:
    """A directory that save_model() wrote holds the trained adapter, bit for bit, and no tensor of the base."""
    findings = present(trace)
    if not any(directory.glob("*.safetensors")):
        there = sorted(file.name for file in directory.glob("*"))
        findings.append(f"save_model() wrote no adapter: {', '.join(there) or 'nothing'} in {directory.name}/")
    else:
        saved = inspect_checkpoint(directory, trace.spec.adapter.name)
        findings += differences(saved.adapter, trace.adapter, 0.0, "save_model():")[:2]
        others = [name for name in saved.files if name.startswith(("model", "pytorch_model"))]
        findings += [f"save_model() wrote {name} besides" for name in others]
    return verdict("save_model() leaves the trained adapter", findings)


def restored_to(resumed: Trace, whole: Trace) -> Verdict:
    """Before its first step a resumed run has none of the values that its adapter started from: all are the checkpoint's.

    What a checkpoint of shards holds is told by the whole run: its steps from there on.
    """
    findings = present(resumed) + [f"(the run that saved) {one}" for one in present(whole)]
    fresh = [
        name
        for name in resumed.trainable
        if name not in resumed.adapter_resumed or resumed.adapter_resumed[name].equal(whole.adapter_before[name])
    ]
    total = len(resumed.trainable)
    if fresh or not total:
        findings.append(f"{total - len(fresh)} of {total} adapter tensors are restored; {fresh[:1]} is as at the start")
    return verdict("every adapter tensor is restored before the first step", findings, restored=total - len(fresh))


# ---- what a law on one process cannot say of several ----

_FILES = "the optimizer's state is saved in a form of FSDP's or DeepSpeed's own (FSDP-06, FSDP-07, DS-07)"
_NO_OPTIMIZER = "no optimizer is saved of a base that was sharded as it was loaded (FSDP-09)"
_HIDDEN = "DeepSpeed's engine keeps gradients and parameter groups to itself"
_NO_FILE = "a checkpoint of shards has no adapter file (FSDP-07)"


def silent(clause: str, spec: RunSpec) -> str | None:
    """Why the law of a clause on one process says nothing of a run spread like this; None where it does."""
    strategy = spec.launch.strategy
    if clause in ("CKPT-07", "CKPT-27") and strategy != "ddp":
        return _NO_OPTIMIZER if spec.arguments.get("save_only_model") else _FILES
    if clause in ("FRZ-02", "FRZ-03", "LOSS-01", "LOOP-05") and strategy.startswith("zero"):
        return _HIDDEN
    if clause.startswith("CKPT-") and spec.arguments.get("save_strategy") == "no":
        return "nothing is saved"
    if clause in ("CKPT-04", "CKPT-21", "CKPT-25") and spec.launch.state_dict_type == "SHARDED_STATE_DICT":
        return _NO_FILE
    return None
