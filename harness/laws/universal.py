"""The laws that every run obeys, whatever its spec, by the clause that each judges.

`OF_ONE` judge a single trace. `OF_MORE` train further runs and compare; they are given the way to train.
A verdict that is not comparable means that the law has nothing to say of such a spec.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from harness import subjects
from harness.fixtures import models
from harness.fixtures.methods import METHODS
from harness.laws import (
    accumulation,
    checkpoint,
    data_order,
    frozen,
    loss,
    optimizer_file,
    output,
    rebuilt,
    resume,
    schedule,
)
from harness.laws.equal import equal_runs
from harness.laws.rotation import saved_when_due
from harness.spec import ADD, GET, RunSpec
from harness.trace import Trace
from harness.verdict import NOT_COMPARABLE, Verdict, both

#: Adapter types of which PeftAdapterMixin.add_adapter says that it does not take them.
GET_ONLY = {method.peft_type for method in METHODS.values() if not method.add_adapter}

#: train(spec, subject=None, again=False) -> Trace, as `harness.runs.cache.Runs.train`.
Train = Callable[..., Trace]

OF_ONE: dict[str, Callable[[Trace], Verdict]] = {
    "API-02": rebuilt.switched_off,
    "API-15": rebuilt.merged,
    "FRZ-01": frozen.base_frozen,
    "FRZ-02": frozen.optimizer_holds_trainables,
    "FRZ-03": frozen.base_without_gradients,
    "LOSS-01": loss.window_mean,
    "ACC-02": accumulation.windows,
    "ACC-05": accumulation.events,
    "LOOP-02": schedule.learning_rates,
    "LOOP-04": schedule.all_steps,
    "LOOP-05": schedule.clipping,
    "LOOP-06": schedule.epochs,
    "LOOP-09": output.training_loss,
    "CKPT-04": checkpoint.size_law,
    "CKPT-07": optimizer_file.holds_the_trained_tensors,
    "CKPT-12": saved_when_due,
    "CKPT-21": rebuilt.reloads,
    "CKPT-25": checkpoint.adapter_only,
    "CKPT-27": optimizer_file.size_law,
    "RNG-02": data_order.follows_seed,
}


def resumes(train: Train, spec: RunSpec) -> Verdict:
    """From each of its checkpoints but the last, the run continues as if it had never stopped."""
    whole = train(spec)
    steps = [c.step for c in whole.checkpoints[:-1] if not _cuts_a_log_window(whole, c.step)]
    return (
        both(*[resume.continues(train(spec.resumed(step)), whole, step) for step in steps])
        if steps
        else _nothing("no checkpoint but the last lies between two windows of the log")
    )


def _cuts_a_log_window(trace: Trace, step: int) -> bool:
    """Whether a mean is logged over steps on both sides of this one: a resumed run's mean has fewer steps (RES-09)."""
    return step not in trace.losses and any(logged > step for logged in trace.losses)


def both_routes(train: Train, spec: RunSpec) -> Verdict:
    """get_peft_model and add_adapter train the same run."""
    if spec.adapter.peft_type in GET_ONLY:
        return _nothing(f"add_adapter does not take {spec.adapter.peft_type}")
    if spec.model.dtype in HALF:
        return _nothing("of a base in half precision only get_peft_model casts the adapter up (AMP-04)")
    other = GET if spec.adapter.route == ADD else ADD
    return equal_runs(train(spec.but(adapter={"route": other})), train(spec))


def splits(train: Train, spec: RunSpec) -> Verdict:
    """Micro-batches accumulated are the large batch."""
    window = spec.arguments.get("gradient_accumulation_steps", 1)
    if window == 1:
        return _nothing("nothing is accumulated")
    if spec.arguments.get("dataloader_drop_last"):
        return _nothing("drop_last drops other rows of a large batch")
    if _rounds(spec):
        return _nothing("in half precision the noise is as large as a fault")
    if not models.family(spec.model).normalises:
        planned = schedule.plan(spec)
        alike = all(len(set(planned.row_counts(step + 1))) == 1 for step in range(len(planned.windows)))
        if spec.data.min_length or spec.data.ignored or not alike:
            return _nothing("the model returns its micro-batch's own mean, and these have different numbers of labels")
    small = _plain(spec)
    batch = spec.arguments["per_device_train_batch_size"] * window
    return accumulation.same_split(
        train(small), train(small.but(per_device_train_batch_size=batch, gradient_accumulation_steps=1))
    )


def reordered(train: Train, spec: RunSpec) -> Verdict:
    """The rows of a window in another order, in other micro-batches: the same gradient."""
    if _rounds(spec):
        return _nothing("in half precision the noise is as large as a fault")
    if not models.family(spec.model).normalises and spec.arguments.get("gradient_accumulation_steps", 1) > 1:
        return _nothing("each micro-batch's loss is a mean of its own, so it matters which rows share one")
    planned = schedule.plan(spec)
    if spec.data.rows == 1 or max(planned.row_counts(1)) * max(planned.windows) == 1:
        return _nothing("a window has one row")
    plain = _plain(spec).but(max_steps=min(3, len(planned.windows)), num_train_epochs=None)
    return accumulation.same_windows(train(accumulation.rows_reversed(plain)), train(plain))


def bystander(train: Train, spec: RunSpec) -> Verdict:
    """A second adapter beside the trained one stays as it was, is saved whole, and changes nothing in the run."""
    if spec.adapter.others:
        return _nothing("the run has other adapters already")
    beside = train(spec.but(adapter={"others": {"bystander": {}}}))
    # add_adapter saves the active adapter only, which is CKPT-16's; VeRA's frozen matrices belong to all of its adapters.
    apart = spec.adapter.route == GET and not any(
        m.saves for m in METHODS.values() if m.peft_type == spec.adapter.peft_type
    )
    saved = [checkpoint.every_adapter_saved(beside)] if apart and beside.checkpoints else []
    return both(equal_runs(beside, train(spec)), frozen.base_frozen(beside), *saved)


#: dtypes of a base whose rounding is as large as the faults that a law looks for.
HALF = ("bfloat16", "float16")


def _rounds(spec: RunSpec) -> bool:
    return bool(spec.arguments.get("bf16")) or spec.model.dtype in HALF


def _plain(spec: RunSpec) -> RunSpec:
    """The spec without dropout, which draws anew for each batch, and without AdamW, whose quotient of tiny moments has
    noise without a bound; the gradients of SGD are the same. It saves and evaluates nothing."""
    return spec.but(
        lora=_without_dropout(spec.adapter.config),
        model={"config": {**spec.model.config, **_without_dropout(spec.model.config)}},
        optim="sgd",
        save_strategy="no",
        eval_strategy=None,
    )


def _without_dropout(config: Mapping[str, Any]) -> dict[str, float]:
    return {name: 0.0 for name in config if "drop" in name}


def repeats(train: Train, spec: RunSpec) -> Verdict:
    """The same run made twice is the same run."""
    return equal_runs(train(spec, again=True), train(spec))


def as_reference(train: Train, spec: RunSpec) -> Verdict:
    """The run is the reference's, bit for bit."""
    reference = subjects.load("reference")
    reason = reference.unsupported(spec)
    return _nothing(reason) if reason else equal_runs(train(spec), train(spec, subject=reference))


OF_MORE: dict[str, Callable[[Train, RunSpec], Verdict]] = {
    "GEN-01": as_reference,
    "GEN-02": repeats,
    "RES-01": resumes,
    "API-05": both_routes,
    "ACC-01": splits,
    "ACC-10": reordered,
    "FRZ-15": bystander,
}


def laws_for(trace: Trace) -> dict[str, Callable[[Trace], Verdict]]:
    """Clause id -> law of one trace, for the laws that have something to say of a run of this spec."""
    silent = {clause for clauses, applies in _APPLIES.items() if not applies(trace) for clause in clauses}
    return {clause: law for clause, law in OF_ONE.items() if clause not in silent}


def _saves(trace: Trace) -> bool:
    return trace.spec.arguments.get("save_strategy") != "no"


def _has_moments(trace: Trace) -> bool:
    return _saves(trace) and str(trace.spec.arguments.get("optim", "adamw_torch")).startswith("adamw_torch")


def _logs(trace: Trace) -> bool:
    return bool(trace.losses) or trace.error is not None


def _tokens_normalise(trace: Trace) -> bool:
    window = trace.spec.arguments.get("gradient_accumulation_steps", 1)
    return window == 1 or models.family(trace.spec.model).normalises


def _model_computes_loss(trace: Trace) -> bool:
    return not trace.spec.arguments.get("label_smoothing_factor")


#: Laws that ask for something that not every run has: the optimizer's moments, a log entry, the model's own loss.
_APPLIES: dict[tuple[str, ...], Callable[[Trace], bool]] = {
    ("CKPT-04", "CKPT-12", "CKPT-21", "CKPT-25", "CKPT-27"): _saves,
    ("CKPT-07",): _has_moments,
    # ACC-08 is about models that return the mean of their micro-batch.
    ("LOSS-01",): _tokens_normalise,
    ("LOOP-06",): _logs,
    ("LOOP-09",): _model_computes_loss,
}


def _nothing(reason: str) -> Verdict:
    return Verdict(NOT_COMPARABLE, "the law says nothing of such a spec", (reason,))
