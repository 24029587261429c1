"""Laws that train further runs of a spec and compare them: resume, repeat, accumulation, one process, the reference.

Each is given `train` and a spec, of one process or of several, and decides for all ranks. If a law cannot judge the spec,
its verdict is NOT_COMPARABLE, with the reason. `harness.laws.universal` says which clause each judges.

Runs that need not train the same rows in every step, such as several ranks that fill up the last batch of an epoch, are
compared over the first steps that do (`alike`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from harness import compat, subjects
from harness.fixtures import models
from harness.laws import accumulation, checkpoint, recompute, resume
from harness.laws.data_order import drawn, expected_places
from harness.laws.equal import equal_runs, unless_rounding
from harness.laws.loading import NotModelled, accelerator_config, loading
from harness.laws.plan import Plan, if_planned, plan
from harness.laws.rates import follows_metric
from harness.laws.several import OF_RANKS, equals_single, one_process_spec, ranks_agree, whole_run
from harness.spec import RunSpec
from harness.trace import Trace
from harness.verdict import NOT_COMPARABLE, Verdict, both, verdict

#: train(spec, subject=None, again=False) -> Trace, as `harness.runs.cache.Runs.train`.
Train = Callable[..., Trace]

#: dtypes of a base in which rounding is as large as the faults that the laws look for.
HALF = ("bfloat16", "float16")

_ROUNDING = "in half precision the noise is as large as a fault"


def not_comparable(reason: str) -> Verdict:
    """Return the verdict of a law that does not apply to a spec."""
    return Verdict(NOT_COMPARABLE, "the law applies to the spec", (reason,))


# ---- the same run again ----


def repeats(train: Train, spec: RunSpec) -> Verdict:
    """Check that training the same spec twice gives the same run on every rank, bit for bit."""
    return _on_each_rank(equal_runs, train(spec, again=True), train(spec))


def resumes(train: Train, spec: RunSpec) -> Verdict:
    """Check that every rank, resumed from each checkpoint but the last, continues as if it had never stopped.

    If the run has no such checkpoint, it is trained once more with one (`_saving`).
    """
    whole = train(spec)
    if not resume.steps_to_resume(whole) and (saving := _saving(spec)) is not None:
        spec, whole = saving, train(saving)
    left = {saved.step for saved in checkpoint.there(whole).checkpoints}
    if not (steps := [step for step in resume.steps_to_resume(whole) if step in left]):
        return not_comparable("no checkpoint but the last lies between two entries of the log")
    return both(*[_on_each_rank(_continuing(step), train(spec.resumed(step)), whole) for step in steps])


def _continuing(step: int) -> Callable[[Trace, Trace], Verdict]:
    return lambda resumed, whole: resume.continues(resumed, whole, step)


def _saving(spec: RunSpec) -> RunSpec | None:
    """Return the spec as a run that also saves a checkpoint in its second half, inside an epoch if it can.

    None if it cannot be said where that is, or if saving would change the run (load_best_model_at_end).
    """
    try:
        planned = plan(spec)
    except NotModelled:
        return None
    later = range(planned.total // 2, planned.total)
    inside = [step for step in later if step % len(planned.windows)]
    if spec.arguments.get("load_best_model_at_end") or not (steps := [step for step in inside or later if step > 0]):
        return None
    return spec.but(save_strategy="steps", save_steps=steps[0], save_total_limit=None)


def _on_each_rank(compare: Callable[[Trace, Trace], Verdict], seen: Trace, expected: Trace) -> Verdict:
    """Compare what each rank of two runs did. A sentence on another rank than rank 0 begins with its number."""
    ours, theirs = [seen, *seen.ranks], [expected, *expected.ranks]
    found = [compare(*pair) for pair in zip(ours, theirs, strict=False)]
    for rank, one in enumerate(found[1:], start=1):
        found[rank] = dataclasses.replace(one, seen=tuple(f"rank {rank}: {sentence}" for sentence in one.seen))
    if len(ours) != len(theirs):
        found.append(verdict("every rank leaves a trace", [f"{len(ours)} ranks left one, expected {len(theirs)}"]))
    return both(*found)


# ---- the same rows, in other batches ----


@if_planned
def splits(train: Train, spec: RunSpec) -> Verdict:
    """Check that accumulated micro-batches train as one large batch does."""
    if reason := recompute.drawn_by(spec.adapter):
        return not_comparable(reason)
    found = loading(spec)
    if found.window == 1:
        return not_comparable("nothing is accumulated")
    if rounds(spec):
        return not_comparable(_ROUNDING)
    if not models.family(spec.model).normalises:
        planned = plan(spec)
        same_size = all(len(set(planned.row_counts(step + 1))) == 1 for step in range(len(planned.windows)))
        if spec.data.min_length or spec.data.ignored or not same_size:
            return not_comparable(
                "the model returns the mean of each micro-batch, and these have different numbers of labels"
            )
    small = steady(spec)
    large = small.but(per_device_train_batch_size=found.size * found.window, gradient_accumulation_steps=None)
    config = {k: v for k, v in accelerator_config(spec).items() if k != "gradient_accumulation_kwargs"}
    large = large.but(accelerator_config=config or None)
    if not (steps := alike(small, large)):
        return not_comparable("no step of a run with larger batches trains the same rows")
    small, large = (_first(one, steps) for one in (small, large))
    return accumulation.same_split(whole_run(train(small)), whole_run(train(large)))


@if_planned
def reordered(train: Train, spec: RunSpec) -> Verdict:
    """Check that a window's gradient is the same if its rows are in another order, in other micro-batches."""
    if reason := recompute.drawn_by(spec.adapter):
        return not_comparable(reason)
    if rounds(spec):
        return not_comparable(_ROUNDING)
    if spec.data.order:
        return not_comparable("the rows are in an order of their own already (data.order)")
    if spec.data.augment:
        return not_comparable("a row's random token depends on when the row is read (data.augment)")
    planned = plan(spec)
    if not models.family(spec.model).normalises and max(planned.windows) > 1:
        return not_comparable("each micro-batch's loss is a mean of its own, so it matters which rows share one")
    if spec.data.rows == 1 or sum(planned.row_counts(1)) == 1:
        return not_comparable("a window has one row")
    if not (steps := _without_fill(spec, planned)):
        return not_comparable("the first step trains a row twice")
    plain = _first(steady(spec), min(3, steps))
    return accumulation.same_windows(whole_run(train(accumulation.rows_reversed(plain))), whole_run(train(plain)))


def _without_fill(spec: RunSpec, planned: Plan) -> int:
    """Return how many steps of the first epoch train places in a row, none of which fills up a batch."""
    done = 0
    for step in range(1, len(planned.windows) + 1 - planned.leftover):
        places = _places(spec, step)[1]
        if places != list(range(done, done + len(places))):
            return step - 1
        done += len(places)
    return len(planned.windows) - planned.leftover


# ---- the same run by another hand ----


@if_planned
def as_one_process(train: Train, spec: RunSpec) -> Verdict:
    """Check that the ranks of a spec together train as one process does, and agree at the end.

    Both runs train without dropout and by SGD (`steady`), over the first steps in which they have the same rows.
    """
    if reason := _not_alone(spec):
        return not_comparable(reason)
    ranks, single, reason = _with_one_process(spec)
    if reason:
        return not_comparable(reason)
    trace = train(ranks)
    return _over(both(equals_single(trace, train(single)), ranks_agree(trace)), spec, ranks)


@if_planned
def as_reference(train: Train, spec: RunSpec) -> Verdict:
    """Check that the run is the reference's: bit for bit, or if it has several ranks, within `harness.tolerance.RANKS`.

    The reference trains in one process (`_for_reference`). Ranks are compared with it as in `as_one_process`.
    """
    reference = subjects.load("reference")
    if not spec.launch.several:
        if reason := reference.unsupported(_for_reference(spec)):
            return not_comparable(reason)
        if spec.data.iterable:
            if not (steps := alike(spec, _for_reference(spec))):
                return not_comparable("no step trains the rows of the list")
            asked, spec = spec, _first(spec, steps)
            one = _as_logged(train(_for_reference(spec), subject=reference))
            return _over(equal_runs(train(spec), one), asked, spec)
        seen, one = train(spec), _as_logged(train(_for_reference(spec), subject=reference))
        half = bool(spec.arguments.get("bf16") or spec.arguments.get("fp16"))
        return unless_rounding(equal_runs(seen, one), seen, one.steps[0].gradients if one.steps else {}, half)
    if reason := _not_alone(spec) or reference.unsupported(_for_reference(spec)):
        return not_comparable(reason)
    ranks, single, reason = _with_one_process(spec)
    if reason:
        return not_comparable(reason)
    return _over(equals_single(train(ranks), train(_for_reference(single), subject=reference)), spec, ranks)


def _as_logged(trace: Trace) -> Trace:
    """Return the reference's trace with its logged losses rounded as the installed Trainer rounds them, if it does."""
    digits = compat.logged_digits()
    if digits is None:
        return trace
    log = [{**entry, "loss": round(entry["loss"], digits)} if "loss" in entry else entry for entry in trace.log_history]
    return dataclasses.replace(trace, log_history=log)


def _for_reference(spec: RunSpec) -> RunSpec:
    """Return the spec in words that the reference has: one process, and a dataset with a length.

    The rows of an IterableDataset are read in their order, and drop_last is not given to it.
    """
    config = accelerator_config(spec)
    if spec.data.iterable:
        spec = spec.but(data={"iterable": False}, train_sampling_strategy="sequential", dataloader_drop_last=None)
    if any(name in config for name in OF_RANKS) or spec.launch.several:
        spec = one_process_spec(spec)
    return spec


def _not_alone(spec: RunSpec) -> str | None:
    """Return why one process cannot train what the ranks of a spec train; None if it can."""
    if rounds(spec):
        return _ROUNDING
    if reason := drawn(spec):
        return f"{reason}, of which several ranks draw otherwise than one process"
    if spec.data.augment:
        return "each rank draws its rows' random tokens from a generator of its own (data.augment)"
    if spec.arguments.get("neftune_noise_alpha"):
        return "each rank draws its own noise (neftune_noise_alpha)"
    return None


def _with_one_process(spec: RunSpec) -> tuple[RunSpec, RunSpec, str]:
    """Return the run of the ranks and that of one process, over the steps that are alike; or why there are none."""
    ranks = steady(spec)
    single = one_process_spec(ranks)
    steps = alike(ranks, single)
    reason = "" if steps else "the ranks fill up the batches of the first step with rows that it has already"
    return _first(ranks, steps), _first(single, steps), reason


# ---- specs that can be compared ----


def rounds(spec: RunSpec) -> bool:
    """Return whether a run computes in half precision."""
    return any(spec.arguments.get(name) for name in ("bf16", "fp16")) or spec.model.dtype in HALF


def steady(spec: RunSpec) -> RunSpec:
    """Return the spec as a run that can be compared with one of other micro-batches. It saves and evaluates nothing.

    It has no dropout, since each micro-batch draws a mask of its own. Its optimizer is SGD: AdamW divides by the second
    moment, and if that is tiny, rounding noise grows without a bound.
    """
    # A schedule that follows a metric needs evaluations.
    schedule: dict[str, Any] = {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": None}
    return spec.but(
        lora=_without_dropout(spec.adapter.config),
        model={"config": {**spec.model.config, **_without_dropout(models.config_of(spec.model))}},
        # Some callbacks need evaluations, or the best checkpoint. An optimizer that is handed over would not be SGD.
        trainer={"callbacks": None, "optimizers": None, "optimizer_cls_and_kwargs": None},
        load_best_model_at_end=None,
        optim="sgd",
        optim_args=None,
        save_strategy="no",
        eval_strategy=None,
        **(schedule if follows_metric(spec) else {}),
    )


def _without_dropout(config: Mapping[str, Any]) -> dict[str, float]:
    return {name: 0.0 for name in config if "drop" in name}


def alike(one: RunSpec, other: RunSpec) -> int:
    """Return how many steps, from the first on, train the same rows in both runs, however they are cut into batches.

    Raises NotModelled if that does not follow from the specs.
    """
    ours, theirs = plan(one), plan(other)
    # Where a short window at the end of a pass goes is a question of its own (ACC-02).
    length = min(len(planned.windows) - planned.leftover for planned in (ours, theirs))
    total = min(ours.total, theirs.total)
    for step in range(1, min(total, length) + 1):
        if _places(one, step) != _places(other, step):
            return step - 1
    same_epochs = len(ours.windows) == len(theirs.windows) and not (ours.leftover or theirs.leftover)
    return total if same_epochs else min(total, length)


def _places(spec: RunSpec, step: int) -> tuple[int, list[int]]:
    epoch, batches = expected_places(spec, step)
    return epoch, [place for batch in batches for place in batch]


def _over(judged: Verdict, asked: RunSpec, trained: RunSpec) -> Verdict:
    """Return a verdict that says over how many steps the runs were compared, if these are not all of the spec's."""
    steps = plan(trained).total
    if steps == plan(asked).total:
        return judged
    return dataclasses.replace(judged, expected=f"{judged.expected}, over the first {steps} steps")


def _first(spec: RunSpec, steps: int) -> RunSpec:
    """Return the spec, ended after some steps."""
    return spec if plan(spec).total == steps else spec.but(max_steps=steps, num_train_epochs=None)
