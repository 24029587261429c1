"""The laws that apply to runs of any spec, by the clause that each judges.

`LAWS_OF_ONE_RUN` are given one trace. `LAWS_OF_SEVERAL_RUNS` are given `train` and a spec: they train further runs, and
compare. If a law does not apply to a spec, its verdict is NOT_COMPARABLE, with the reason. `laws_of` gives all of them for
a spec, of one process or of several.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from harness.fixtures import models
from harness.fixtures.methods import FURTHER, METHODS, rows_of
from harness.laws import (
    accumulation,
    base_weights,
    checkpoint,
    comparisons,
    data_order,
    evaluation,
    frozen,
    loss,
    modelled,
    optimizer_file,
    output,
    rates,
    rebuilt,
    schedule,
    several,
)
from harness.laws.comparisons import HALF, Train, not_comparable
from harness.laws.completion import REFUSALS
from harness.laws.equal import equal_runs
from harness.laws.rotation import saved_when_due
from harness.spec import ADD, GET, RunSpec
from harness.subjects.rows import unclear as rows_unclear
from harness.tolerance import EXACT, RANKS, Tolerance
from harness.trace import Trace
from harness.verdict import Verdict, both

#: peft types that transformers/integrations/peft.py:PeftAdapterMixin.add_adapter refuses.
GET_ONLY = {method.peft_type for method in (*METHODS.values(), *FURTHER.values()) if not method.add_adapter}

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
    "LOOP-02": rates.learning_rates,
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
    "EVAL-10": evaluation.evaluated_when_due,
    "RNG-02": data_order.follows_seed,
}


#: task_types whose head get_peft_model adds to modules_to_save (peft/peft_model.py).
_HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def both_routes(train: Train, spec: RunSpec) -> Verdict:
    """Check that get_peft_model and add_adapter train the same run."""
    if spec.adapter.peft_type in GET_ONLY:
        return not_comparable(f"add_adapter does not take {spec.adapter.peft_type}")
    if spec.model.dtype in HALF:
        return not_comparable("if the base is in half precision, only get_peft_model casts the adapter up (AMP-04)")
    if spec.adapter.config.get("task_type") in _HEADS and not spec.adapter.config.get("modules_to_save"):
        return not_comparable(
            "for this task_type get_peft_model trains the model's head unasked, and add_adapter does not"
        )
    other = GET if spec.adapter.route == ADD else ADD
    added = train(spec.but(adapter={"route": other}))
    if reason := refused(added):
        return not_comparable(f"upstream does not inject it by {other}: {reason}")
    return equal_runs(added, train(spec), _other_units(spec))


def _other_units(spec: RunSpec) -> Tolerance:
    """Return the bound for two runs with other adapters, or with the same by another route.

    With get_peft_model, FSDP1 makes a unit of each trained module (peft/utils/other.py:fsdp_auto_wrap_policy), with
    add_adapter of each layer, where a second adapter lies, too. So the gradient norm is summed in another order.
    """
    return RANKS if spec.launch.strategy == "fsdp1" else EXACT


def refused(trace: Trace) -> str | None:
    """Return with which words upstream refused a run before it began to train, None if it did not.

    A refusal is an exception of `completion.REFUSALS`.
    """
    began = bool(trace.steps) or "train_begin" in trace.events
    kind, _, words = (trace.error or "").partition(": ")
    return None if began or kind not in REFUSALS else words.partition("\n")[0]


def bystander(train: Train, spec: RunSpec) -> Verdict:
    """Check that a second, untrained adapter stays as it was, is saved whole, and changes nothing in the run."""
    if spec.adapter.others:
        return not_comparable("the run has other adapters already")
    if reason := base_weights.changed_by_injection(spec.adapter):
        return not_comparable(reason)
    beside = train(spec.but(adapter={"others": {"bystander": {}}}))
    if reason := refused(beside):
        return not_comparable(f"upstream takes no second adapter here: {reason}")
    # Its file is not judged if add_adapter injected it: only the active adapter is saved then (CKPT-16). Nor if a method
    # saves tensors that all of its adapters share, such as VeRA's random matrices, has no row that says what it saves, or
    # names the tensors of a prompt in memory otherwise than in the file.
    rows = rows_of(spec.adapter.peft_type)
    apart = spec.adapter.route == GET and bool(rows) and all(row.targeted and not row.saves for row in rows)
    apart = apart and not base_weights.own_tensors(spec.adapter)
    saved = [checkpoint.every_adapter_saved(checkpoint.there(beside))] if apart and beside.checkpoints else []
    return both(equal_runs(beside, train(spec), _other_units(spec)), frozen.base_frozen(beside), *saved)


#: Clause id -> the law that trains further runs of a spec and compares them.
LAWS_OF_SEVERAL_RUNS: dict[str, Callable[[Train, RunSpec], Verdict]] = {
    "GEN-01": comparisons.as_reference,
    "GEN-02": comparisons.repeats,
    "RES-01": comparisons.resumes,
    "API-05": both_routes,
    "ACC-01": comparisons.splits,
    "ACC-10": comparisons.reordered,
    "FRZ-15": bystander,
}


#: What a law gives for a spec: a function that decides, or the reason why the law does not apply.
Applied = Callable[[], Verdict] | str


def laws_of(train: Train, spec: RunSpec) -> Iterator[tuple[str, Applied]]:
    """Yield each clause, with its law applied to a spec: a function without arguments, or why the law does not apply.

    - train: trains the spec, and the runs to compare with. Traces of several ranks are put together here.
    - spec: in one process or in several.
    """
    trace = train(spec)
    whole = train
    if spec.launch.several:
        trace = several.whole_run(trace)
        whole = functools.partial(_whole, train)
    excluded = left_out(trace)
    for clause, law in LAWS_OF_ONE_RUN.items():
        reason = excluded.get(clause) or (why_not_judged(clause, spec) if spec.launch.several else None)
        judged = checkpoint.there(trace) if clause in _OF_FILES else trace
        yield clause, reason or modelled.why_not(clause, spec) or functools.partial(law, judged)
    for clause, compare in LAWS_OF_SEVERAL_RUNS.items():
        reason = "it compares runs that resume nothing" if spec.resume else modelled.why_not(clause, spec)
        yield clause, reason or functools.partial(compare, train if clause in COMPARISONS else whole, spec)
    if spec.launch.several:
        clause = CLAUSES_OF_RANKS.get(spec.launch.strategy, "FSDP-17")
        reason = "it compares runs that resume nothing" if spec.resume else modelled.why_not(clause, spec)
        yield clause, reason or functools.partial(comparisons.as_one_process, train, spec)


#: Laws that read files of checkpoints. They judge those that save_total_limit has left.
_OF_FILES = ("CKPT-04", "CKPT-07", "CKPT-21", "CKPT-27")

#: Strategy -> the clause that says that its ranks train as one process does; FSDP-17 for the others.
CLAUSES_OF_RANKS = {"ddp": "DIST-02", "tp": "TP-02", "zero1": "DS-08", "zero2": "DS-08", "zero3": "DS-08"}


def clauses_of(spec: RunSpec) -> tuple[str, ...]:
    """Return the clauses for which `laws_of` has a law, in its order."""
    ranks = [CLAUSES_OF_RANKS.get(spec.launch.strategy, "FSDP-17")] if spec.launch.several else []
    return (*LAWS_OF_ONE_RUN, *LAWS_OF_SEVERAL_RUNS, *ranks)


#: Laws that compare a run with another one, so that numbers are judged that nobody wrote down. They look at each rank.
COMPARISONS = ("GEN-01", "GEN-02", "RES-01", "ACC-01", "ACC-10")


def _whole(train: Train, spec: RunSpec, **options: Any) -> Trace:
    trace = train(spec, **options)
    return several.whole_run(trace) if spec.launch.several else trace


def laws_for(trace: Trace) -> dict[str, Callable[[Trace], Verdict]]:
    """Return clause id -> law, for the laws of one run that apply to this trace."""
    excluded = left_out(trace)
    return {clause: law for clause, law in LAWS_OF_ONE_RUN.items() if clause not in excluded}


def left_out(trace: Trace) -> dict[str, str]:
    """Return clause id -> reason, for the laws of one run that do not apply to this trace."""
    reasons = {
        clause: reason for clauses, (applies, reason) in _APPLIES.items() if not applies(trace) for clause in clauses
    }
    rows = rows_unclear(trace)
    return reasons if rows is None else {**dict.fromkeys(_BY_ROWS, rows), **reasons}


def _saves(trace: Trace) -> bool:
    strategy = trace.spec.arguments.get("save_strategy")
    # "best" saves nothing if no evaluation comes. CKPT-12 says when a checkpoint is due.
    return strategy != "no" and (strategy != "best" or bool(trace.checkpoints))


def _has_moments(trace: Trace) -> bool:
    return _saves(trace) and str(trace.spec.arguments.get("optim", "adamw_torch")).startswith("adamw_torch")


def _logs(trace: Trace) -> bool:
    return bool(trace.losses) or trace.error is not None


def _tokens_normalise(trace: Trace) -> bool:
    window = trace.spec.arguments.get("gradient_accumulation_steps", 1)
    return window == 1 or models.family(trace.spec.model).normalises


def _model_computes_loss(trace: Trace) -> bool:
    return not trace.spec.arguments.get("label_smoothing_factor")


#: Laws that compare which rows the batches held.
_BY_ROWS = ("ACC-02", "LOSS-01", "RNG-02")

#: Laws that need something which not every run has -> whether a trace has it, and the reason if it does not.
_APPLIES: dict[tuple[str, ...], tuple[Callable[[Trace], bool], str]] = {
    ("CKPT-04", "CKPT-12", "CKPT-21", "CKPT-25", "CKPT-27"): (_saves, "nothing is saved"),
    ("CKPT-07",): (_has_moments, "no AdamW of torch's is saved"),
    # ACC-08 is about models that return the mean of their micro-batch.
    ("LOSS-01",): (_tokens_normalise, "the model returns the mean of each micro-batch (ACC-08)"),
    ("LOOP-06",): (_logs, "nothing is logged"),
    ("LOOP-09",): (_model_computes_loss, "the Trainer computes the loss, with label_smoothing_factor"),
}


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
