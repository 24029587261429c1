"""The laws that apply to runs of any spec, by the clause that each judges.

`LAWS_OF_ONE_RUN` are given one trace. `LAWS_OF_SEVERAL_RUNS` are given `train` and a spec: they train further runs, and
compare. If a law does not apply to a spec, its verdict is NOT_COMPARABLE, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from harness import subjects
from harness.fixtures import models
from harness.fixtures.methods import METHODS
from harness.laws import (
    accumulation,
    base_weights,
    checkpoint,
    data_order,
    frozen,
    loss,
    optimizer_file,
    output,
    rebuilt,
    recompute,
    resume,
    schedule,
)
from harness.laws.equal import equal_runs
from harness.laws.rotation import saved_when_due
from harness.spec import ADD, GET, RunSpec
from harness.trace import Trace
from harness.verdict import NOT_COMPARABLE, Verdict, both

#: peft types that transformers/integrations/peft.py:PeftAdapterMixin.add_adapter refuses.
GET_ONLY = {method.peft_type for method in METHODS.values() if not method.add_adapter}

#: train(spec, subject=None, again=False) -> Trace, as `harness.runs.cache.Runs.train`.
Train = Callable[..., Trace]

#: Clause id -> the law that judges one trace.
LAWS_OF_ONE_RUN: dict[str, Callable[[Trace], Verdict]] = {
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
    """Check that the run, resumed from each of its checkpoints but the last, continues as if it had never stopped."""
    whole = train(spec)
    steps = [c.step for c in whole.checkpoints[:-1] if not _cuts_a_log_window(whole, c.step)]
    return (
        both(*[resume.continues(train(spec.resumed(step)), whole, step) for step in steps])
        if steps
        else _not_comparable("no checkpoint but the last lies between two entries of the log")
    )


def _cuts_a_log_window(trace: Trace, step: int) -> bool:
    """Return whether a logged mean covers steps before and after this one. A resumed run's mean has fewer (RES-09)."""
    return step not in trace.losses and any(logged > step for logged in trace.losses)


def both_routes(train: Train, spec: RunSpec) -> Verdict:
    """Check that get_peft_model and add_adapter train the same run."""
    if spec.adapter.peft_type in GET_ONLY:
        return _not_comparable(f"add_adapter does not take {spec.adapter.peft_type}")
    if spec.model.dtype in HALF:
        return _not_comparable("if the base is in half precision, only get_peft_model casts the adapter up (AMP-04)")
    task = spec.adapter.config.get("task_type")
    if task in ("SEQ_CLS", "TOKEN_CLS") and not spec.adapter.config.get("modules_to_save"):
        return _not_comparable(f"with task_type {task} get_peft_model trains the head unasked, add_adapter does not")
    other = GET if spec.adapter.route == ADD else ADD
    added = train(spec.but(adapter={"route": other}))
    if reason := refused(added):
        return _not_comparable(f"upstream does not inject it by {other}: {reason}")
    return equal_runs(added, train(spec))


def refused(trace: Trace) -> str | None:
    """Return with which words upstream refused a run before it began to train, None if it did not.

    A refusal is a ValueError or a NotImplementedError. Any other exception is a fault.
    """
    began = bool(trace.steps) or "train_begin" in trace.events
    kind, _, words = (trace.error or "").partition(": ")
    return None if began or kind not in ("ValueError", "NotImplementedError") else words.partition("\n")[0]


def splits(train: Train, spec: RunSpec) -> Verdict:
    """Check that accumulated micro-batches train as one large batch does."""
    if reason := recompute.DRAWS.get(spec.adapter.peft_type):
        return _not_comparable(f"adapter.peft_type = {spec.adapter.peft_type!r}: {reason}")
    window = spec.arguments.get("gradient_accumulation_steps", 1)
    if window == 1:
        return _not_comparable("nothing is accumulated")
    if spec.arguments.get("dataloader_drop_last"):
        return _not_comparable("dataloader_drop_last drops different rows if the batch is larger")
    if _rounds(spec):
        return _not_comparable("in half precision the noise is as large as a fault")
    if not models.family(spec.model).normalises:
        planned = schedule.plan(spec)
        alike = all(len(set(planned.row_counts(step + 1))) == 1 for step in range(len(planned.windows)))
        if spec.data.min_length or spec.data.ignored or not alike:
            return _not_comparable(
                "the model returns the mean of each micro-batch, and these have different numbers of labels"
            )
    small = _plain(spec)
    batch = spec.arguments["per_device_train_batch_size"] * window
    return accumulation.same_split(
        train(small), train(small.but(per_device_train_batch_size=batch, gradient_accumulation_steps=1))
    )


def reordered(train: Train, spec: RunSpec) -> Verdict:
    """Check that a window's gradient is the same if its rows are in another order, in other micro-batches."""
    if reason := recompute.DRAWS.get(spec.adapter.peft_type):
        return _not_comparable(f"adapter.peft_type = {spec.adapter.peft_type!r}: {reason}")
    if _rounds(spec):
        return _not_comparable("in half precision the noise is as large as a fault")
    if not models.family(spec.model).normalises and spec.arguments.get("gradient_accumulation_steps", 1) > 1:
        return _not_comparable("each micro-batch's loss is a mean of its own, so it matters which rows share one")
    planned = schedule.plan(spec)
    if spec.data.rows == 1 or max(planned.row_counts(1)) * max(planned.windows) == 1:
        return _not_comparable("a window has one row")
    plain = _plain(spec).but(max_steps=min(3, len(planned.windows)), num_train_epochs=None)
    return accumulation.same_windows(train(accumulation.rows_reversed(plain)), train(plain))


def bystander(train: Train, spec: RunSpec) -> Verdict:
    """Check that a second, untrained adapter stays as it was, is saved whole, and changes nothing in the run."""
    if spec.adapter.others:
        return _not_comparable("the run has other adapters already")
    if reason := base_weights.changed_by_injection(spec.adapter):
        return _not_comparable(reason)
    beside = train(spec.but(adapter={"others": {"bystander": {}}}))
    if reason := refused(beside):
        return _not_comparable(f"upstream takes no second adapter here: {reason}")
    # Its file is not judged if add_adapter injected it: only the active adapter is saved then (CKPT-16). Nor if a method
    # saves tensors that all of its adapters share, such as VeRA's random matrices, has no row that says what it saves, or
    # names the tensors of a prompt in memory otherwise than in the file.
    rows = [method for method in METHODS.values() if method.peft_type == spec.adapter.peft_type]
    apart = spec.adapter.route == GET and bool(rows) and all(row.targeted and not row.saves for row in rows)
    saved = [checkpoint.every_adapter_saved(beside)] if apart and beside.checkpoints else []
    return both(equal_runs(beside, train(spec)), frozen.base_frozen(beside), *saved)


#: dtypes of a base in which rounding is as large as the faults that the laws look for.
HALF = ("bfloat16", "float16")


def _rounds(spec: RunSpec) -> bool:
    return bool(spec.arguments.get("bf16")) or spec.model.dtype in HALF


def _plain(spec: RunSpec) -> RunSpec:
    """Return the spec as a run that can be compared with one of other micro-batches. It saves and evaluates nothing.

    It has no dropout, since each micro-batch draws a mask of its own. Its optimizer is SGD: AdamW divides by the second
    moment, and if that is tiny, rounding noise grows without a bound.
    """
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
    """Check that training the same spec twice gives the same run, bit for bit."""
    return equal_runs(train(spec, again=True), train(spec))


def as_reference(train: Train, spec: RunSpec) -> Verdict:
    """Check that the run is the reference's, bit for bit."""
    reference = subjects.load("reference")
    reason = reference.unsupported(spec)
    return _not_comparable(reason) if reason else equal_runs(train(spec), train(spec, subject=reference))


#: Clause id -> the law that trains further runs of a spec and compares them.
LAWS_OF_SEVERAL_RUNS: dict[str, Callable[[Train, RunSpec], Verdict]] = {
    "GEN-01": as_reference,
    "GEN-02": repeats,
    "RES-01": resumes,
    "API-05": both_routes,
    "ACC-01": splits,
    "ACC-10": reordered,
    "FRZ-15": bystander,
}


def laws_for(trace: Trace) -> dict[str, Callable[[Trace], Verdict]]:
    """Return clause id -> law, for the laws of one run that apply to this trace."""
    excluded = left_out(trace)
    return {clause: law for clause, law in LAWS_OF_ONE_RUN.items() if clause not in excluded}


def left_out(trace: Trace) -> dict[str, str]:
    """Return clause id -> reason, for the laws of one run that do not apply to this trace."""
    return {
        clause: reason for clauses, (applies, reason) in _APPLIES.items() if not applies(trace) for clause in clauses
    }


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


#: Laws that need something which not every run has -> whether a trace has it, and the reason if it does not.
_APPLIES: dict[tuple[str, ...], tuple[Callable[[Trace], bool], str]] = {
    ("CKPT-04", "CKPT-12", "CKPT-21", "CKPT-25", "CKPT-27"): (_saves, "nothing is saved"),
    ("CKPT-07",): (_has_moments, "no AdamW of torch's is saved"),
    # ACC-08 is about models that return the mean of their micro-batch.
    ("LOSS-01",): (_tokens_normalise, "the model returns the mean of each micro-batch (ACC-08)"),
    ("LOOP-06",): (_logs, "nothing is logged"),
    ("LOOP-09",): (_model_computes_loss, "the Trainer computes the loss, with label_smoothing_factor"),
}


def _not_comparable(reason: str) -> Verdict:
    return Verdict(NOT_COMPARABLE, "the law applies to the spec", (reason,))


# ---- runs in several processes ----

_FILES = "the optimizer's state is saved in a form of FSDP's or DeepSpeed's own (FSDP-06, FSDP-07, DS-07)"
_NO_OPTIMIZER = "no optimizer is saved if the base was sharded while it was loaded (FSDP-09)"
_HIDDEN = "DeepSpeed's engine keeps gradients and parameter groups to itself"
_NO_FILE = "a checkpoint of shards has no adapter file (FSDP-07)"


def why_not_judged(clause: str, spec: RunSpec) -> str | None:
    """Return why the law of a clause, made for one process, does not apply to a run in several; None if it applies."""
    if clause in ("CKPT-07", "CKPT-27") and spec.launch.several and spec.launch.strategy != "ddp":
        return _NO_OPTIMIZER if spec.arguments.get("save_only_model") else _FILES
    if clause in ("FRZ-02", "FRZ-03", "LOSS-01", "LOOP-05") and spec.launch.deepspeed:
        return _HIDDEN
    if clause.startswith("CKPT-") and spec.arguments.get("save_strategy") == "no":
        return "nothing is saved"
    if clause in ("CKPT-04", "CKPT-21", "CKPT-25") and spec.launch.state_dict_type == "SHARDED_STATE_DICT":
        return _NO_FILE
    return None
