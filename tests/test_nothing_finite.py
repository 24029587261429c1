"""No law holds on numbers that are all NaN or infinite, on nothing at all, or on a run that did not train."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.gate import cell_findings, numbers
from harness.gate import throughput as gate_throughput
from harness.gate.findings import LOST
from harness.laws import (
    accumulation,
    best,
    callbacks,
    checkpoint,
    data_order,
    embeddings,
    evaluation,
    frozen,
    injection,
    logs,
    optimizer_file,
    output,
    precision,
    quantized,
    rank_files,
    resume,
    scaler,
    schedule,
    search,
    several,
    throughput,
)
from harness.laws.equal import differences, equal_runs, has_moved, is_finite, same_adapter
from harness.subjects.hyperparameter_search import Search, Trial
from harness.throughput import judgement
from harness.throughput.counters import Counters
from harness.tolerance import ACCUMULATION, Tolerance
from harness.trace import Checkpoint, Evaluation
from harness.verdict import FAIL, NOT_COMPARABLE, PASS, Unjudged, both, not_finite, spelled, verdict
from tests.traces import A, B, made_up, two_ranks, with_checkpoint

NOT_NUMBERS = (math.nan, math.inf, -math.inf)


def filled(trace, value):
    """Return a copy of a trace in which each loss, norm, metric, gradient and trained tensor is `value`."""
    made = copy.deepcopy(trace)
    for one in (made, *made.ranks):
        for step in one.steps:
            for tensors in (step.gradients, step.clipped):
                fill(tensors, value)
            for batch in step.batches:
                batch.loss = value
        for entry in one.log_history:
            entry |= {key: value for key in ("loss", "grad_norm", "train_loss", "eval_loss") if key in entry}
        for evaluated in one.evaluations:
            evaluated.metrics = dict.fromkeys(evaluated.metrics, value)
        for tensors in (one.adapter, one.adapter_resumed, *one.optimizer_state.values()):
            fill(tensors, value)
        for saved in one.checkpoints:
            fill(saved.adapter, value)
            saved.state = {key: value if key == "best_metric" else item for key, item in saved.state.items()}
        one.output = {**one.output, "training_loss": value, "metrics": {"train_loss": value}}
        if one.best:
            one.best["metric"] = value
    return made


def fill(tensors, value):
    for tensor in tensors.values():
        tensor.fill_(value)


def saved():
    """Return a trace with a checkpoint at its last step, which lives in memory alone, and an evaluation beside it."""
    trace = made_up()
    trace.adapter_resumed = copy.deepcopy(trace.adapter)
    trace.evaluations = [Evaluation(2, [[40]], {"eval_loss": 2.0}), Evaluation(4, [[40]], {"eval_loss": 3.0})]
    for step in (2, 4):
        adapter, state = copy.deepcopy(trace.adapter), {"global_step": step, "best_metric": 2.0}
        trace.checkpoints.append(Checkpoint(step, f"checkpoint-{step}", {}, {}, adapter, state, [step]))
    trace.best = {"metric": 2.0, "step": 2, "checkpoint": "checkpoint-2"}
    trace.spec = trace.spec.but(max_steps=4, logging_steps=1, data={"rows": 8, "eval_rows": 1})
    return trace


def trial(trace):
    value = trace.evaluations[-1].metrics["eval_loss"]
    return Trial(0, trace, 1, {"seed": 1}, "COMPLETE", value, reported(trace))


def reported(trace):
    return {one.step: one.metrics["eval_loss"] for one in trace.evaluations}


def searched(trace):
    one = trial(trace)
    found = SimpleNamespace(run_id="0", objective=one.value, hyperparameters=one.params)
    return Search(found, [one], [None, 0], None, [])


def shown(trace):
    """Return what the console prints for a trace's log. Upstream prints NaN with and without quotes."""
    return "\n".join(str({k: v for k, v in e.items() if k != "step"}) for e in trace.log_history)


#: A law with its arguments made of a trace -> it holds on `saved()`, and must not hold if all numbers are NaN or infinite.
LAWS = {
    "equal.equal_runs": lambda t: equal_runs(t, copy.deepcopy(t)),
    "equal.equal_runs, within": lambda t: equal_runs(t, copy.deepcopy(t), ACCUMULATION),
    "equal.equal_runs, no bound": lambda t: equal_runs(
        t, copy.deepcopy(t), Tolerance("none", math.inf, math.inf, math.inf, "none")
    ),
    "equal.equal_runs, after": lambda t: equal_runs(t, copy.deepcopy(t), after=2),
    "equal.same_adapter": lambda t: same_adapter(t.adapter, copy.deepcopy(t.adapter)),
    "resume.continues": lambda t: resume.continues(t, copy.deepcopy(t), 2),
    "resume.restored": lambda t: resume.restored(t, copy.deepcopy(t), 4, 2),
    "resume.same_log": lambda t: resume.same_log(t, copy.deepcopy(t)),
    "resume.same_state": lambda t: resume.same_state(t, copy.deepcopy(t)),
    "resume.first_logged": lambda t: resume.first_logged(t, 2, digits=5),
    "resume.stays_finished": lambda t: resume.stays_finished(finished(t), t),
    "accumulation.same_split": lambda t: accumulation.same_split(t, copy.deepcopy(t)),
    "accumulation.draws_differ": lambda t: accumulation.draws_differ(t, other_gradients(t)),
    "data_order.other_draws": lambda t: data_order.other_draws(t, other_gradients(t)),
    "frozen.adapter_moved": frozen.adapter_moved,
    "frozen.gradients_arrive": frozen.gradients_arrive,
    "injection.trained_adapters": lambda t: injection.trained_adapters(
        {"default": t.adapter_before}, {"default": t.adapter}, ["default"]
    ),
    "embeddings.moved": lambda t: embeddings.moved(t, trained=[A, B]),
    "precision.not_silently_float32": lambda t: precision.not_silently_float32(t, other_gradients(t), "no such"),
    "quantized.learns": quantized.learns,
    "quantized.same_model": lambda t: quantized.same_model(
        {"x.quant_state": t.adapter[A]}, t.adapter[B], {"x.quant_state": t.adapter[A]}, t.adapter[B]
    ),
    "checkpoint.last_is_current": checkpoint.last_is_current,
    "checkpoint.trained_values_saved": checkpoint.trained_values_saved,
    "schedule.clipping": schedule.clipping,
    "output.training_loss": output.training_loss,
    "output.same_training_loss": lambda t: output.same_training_loss({"one": t, "other": copy.deepcopy(t)}),
    "logs.entries": logs.entries,
    "logs.console": lambda t: logs.console(t.log_history, shown(t)),
    "evaluation.reported": lambda t: evaluation.reported(t, [2, 4]),
    "evaluation.same_predictions": lambda t: evaluation.same_predictions(t.adapter, copy.deepcopy(t.adapter)),
    "evaluation.leaves_no_trace": lambda t: evaluation.leaves_no_trace(t, copy.deepcopy(t)),
    "best.best_loaded": best.best_loaded,
    "best.evaluates_to_best": lambda t: best.evaluates_to_best(t.best["metric"], t.best["metric"], reported(t)),
    "scaler.rounds_only": lambda t: scaler.rounds_only(t, other_gradients(t)),
    "search.as_own_runs": lambda t: search.as_own_runs(searched(t), lambda spec: copy.deepcopy(t)),
    "search.best_run": lambda t: search.best_run(searched(t)),
    "search.objectives": lambda t: search.objectives(searched(t), lambda metrics: metrics["eval_loss"]),
    "search.reported": lambda t: search.reported(searched(t)),
    "rank_files.adapter_restored": lambda t: rank_files.adapter_restored(t, made_up(t.spec)),
}


def finished(trace):
    made = copy.deepcopy(trace)
    made.steps, made.output = [], {"global_step": 4, "training_loss": 0.0}
    return made


def other_gradients(trace):
    made = copy.deepcopy(trace)
    for step in made.steps:
        for tensors in (step.gradients, step.clipped):
            for tensor in tensors.values():
                tensor.mul_(1.01)
    return made


@pytest.mark.parametrize("law", LAWS)
def test_a_law_holds_on_numbers_and_never_on_what_is_none(law):
    trace = saved()
    if law == "accumulation.draws_differ":
        trace = other_gradients(other_gradients(trace))
    assert LAWS[law](trace).outcome == PASS, LAWS[law](trace).seen
    for value in NOT_NUMBERS:
        judged = LAWS[law](filled(trace, value))
        assert judged.outcome != PASS, (value, judged)
        assert judged.seen, value


@pytest.mark.parametrize("law", [name for name in LAWS if name not in ("quantized.learns", "evaluation.reported")])
def test_equal_nan_is_no_evidence_against_anybody(law):
    """NaN on both sides: there was nothing to compare. The two laws left out say that a number must be finite."""
    trace = saved()
    if law == "accumulation.draws_differ":
        trace = other_gradients(other_gradients(trace))
    assert LAWS[law](filled(trace, math.nan)).outcome == NOT_COMPARABLE, LAWS[law](filled(trace, math.nan)).seen


def test_nan_on_one_side_is_a_difference_within_any_bound():
    anything = Tolerance("none", math.inf, math.inf, math.inf, "none")
    for value in NOT_NUMBERS:
        for broken, whole in ((filled(made_up(), value), made_up()), (made_up(), filled(made_up(), value))):
            assert equal_runs(broken, whole, anything).outcome == FAIL
            assert output.same_training_loss({"one": broken, "other": whole}).outcome == FAIL
        assert differences({"t": torch.tensor([1.0, value])}, {"t": torch.tensor([1.0, 2.0])}, math.inf, "")


def test_numbers_that_are_nan_in_places_are_counted_and_the_others_compared():
    one, other = torch.tensor([1.0, math.nan, math.inf]), torch.tensor([1.0, math.nan, math.inf])
    (said,) = differences({"t": one}, {"t": other}, 0.0, "here:")
    assert said == "here: t: 2 of 3 numbers are NaN or infinite on both sides, so not compared"
    assert isinstance(said, Unjudged)
    other[0] = 1.5
    (said,) = differences({"t": one}, {"t": other}, 0.0, "here:")
    assert not isinstance(said, Unjudged) and "differs by 0.5 at most (1, expected 1.5)" in said


def test_a_step_that_overflows_leaves_the_others_to_be_compared():
    """A gradient scaler skips a step whose gradient overflows. The run is judged all the same."""
    trace = made_up()
    fill(trace.steps[1].gradients, math.inf)
    fill(trace.steps[1].clipped, math.nan)
    trace.log_history[1]["grad_norm"] = math.nan
    assert equal_runs(trace, copy.deepcopy(trace)).holds
    assert several.ranks_agree(two_ranks()).holds


def test_nothing_at_all_is_not_equal():
    empty = made_up()
    empty.adapter, empty.adapter_before, empty.trainable, empty.groups = {}, {}, [], []
    assert equal_runs(empty, copy.deepcopy(empty)).outcome == NOT_COMPARABLE
    for law in (frozen.optimizer_holds_trainables, frozen.adapter_moved, frozen.gradients_arrive):
        assert law(empty).seen[0] == "nothing is trainable"
    assert quantized.state_in_8_bits(empty).outcome == FAIL
    for step in empty.steps:
        step.gradients = step.clipped = {}
    assert schedule.clipping(empty).outcome != PASS
    assert evaluation.same_predictions({}, {}).outcome == NOT_COMPARABLE
    unlogged = made_up()
    unlogged.log_history = []
    assert scaler.rounds_only(unlogged, other_gradients(unlogged)).outcome == NOT_COMPARABLE


def test_training_loss_does_not_depend_on_which_side_is_nan():
    whole, broken = made_up(), filled(made_up(), math.nan)
    for pair in ((whole, broken), (broken, whole)):
        assert output.same_training_loss(dict(zip("ab", pair, strict=True))).outcome == FAIL


def test_ranks_that_hold_nan_do_not_agree():
    assert several.ranks_agree(filled(two_ranks(), math.nan)).outcome == NOT_COMPARABLE
    assert several.logged_mean(filled(two_ranks(), math.nan)).outcome == NOT_COMPARABLE
    assert several.differing_starts(filled(two_ranks(), math.nan)) == []


def test_adapters_of_nan_are_not_saved_as_trained(tmp_path):
    trace = with_checkpoint(filled(made_up(), math.nan), tmp_path, 4)
    assert checkpoint.every_adapter_saved(trace).outcome == NOT_COMPARABLE
    # Names and sizes are judged as ever.
    assert checkpoint.adapter_only(trace).holds and checkpoint.size_law(trace).holds
    trace.optimizer_state = {}
    torch.save({"state": {}}, Path(trace.checkpoints[0].path) / "optimizer.pt")
    assert optimizer_file.optimizer_is_current(trace).outcome != PASS


def test_early_stopping_on_nan_is_not_judged():
    trace = made_up()
    trace.evaluations = [Evaluation(step, [[40]], {"eval_loss": math.nan}) for step in (1, 2, 3, 4)]
    assert callbacks.stops_early(trace, patience=9).outcome == NOT_COMPARABLE


def test_a_base_of_nan_is_frozen_as_any_other():
    """Digests compare bits: whether training changed the base is judged whatever the base holds."""
    assert frozen.base_frozen(filled(made_up(), math.nan)).holds


def test_a_gate_is_inconclusive_about_nan():
    part = numbers.parting(filled(made_up(), math.nan), filled(made_up(), math.nan))
    assert part.kind == numbers.UNJUDGED and "not comparable" in str(part)
    assert [one.means for one in cell_findings.changed(None, None, {"cell": part})] == [LOST]
    assert numbers.parting(made_up(), filled(made_up(), math.nan)).kind == numbers.CHANGED
    assert numbers.parting(made_up(), made_up()).kind == numbers.EQUAL


def test_a_gate_that_counted_nothing_is_inconclusive():
    def counted(values):
        answer = {"data": Counters(values).to_json()}
        done = {f"counters/{name}": answer for name in gate_throughput.counted_runs("cpu")}
        return SimpleNamespace(done=done, judged=SimpleNamespace(device="cpu"), name="a side")

    names = list(gate_throughput.counted_runs("cpu"))
    found = list(gate_throughput.counters(counted({}), counted({})))
    assert [(one.where, one.means) for one in found] == [(name, LOST) for name in names]
    assert list(gate_throughput.counters(counted({"flops": [1]}), counted({"flops": [1]}))) == []


def test_times_that_are_no_numbers_decide_nothing():
    for value in (math.nan, math.inf, -math.inf):
        ratios = [[0.001, -0.001, 0.002, -0.002, 0.0, 0.001, value, 0.0] for _ in range(4)]
        assert judgement.judge({"wall": ratios}, 0.01, 1.0).word == judgement.UNCLEAR
    assert judgement.judge({}, 0.01, 1.0).word == judgement.UNCLEAR
    assert throughput.as_recorded(Counters({}), Counters({})).outcome == NOT_COMPARABLE


def test_findings_that_are_no_evidence_make_no_failure():
    assert verdict("x", [Unjudged("nothing there")]).outcome == NOT_COMPARABLE
    assert verdict("x", [Unjudged("nothing there"), "wrong"]).outcome == FAIL
    assert both(verdict("x", []), verdict("y", [Unjudged("nothing there")])).outcome == NOT_COMPARABLE
    assert not_finite("x", 1.0, math.nan) == [] == not_finite("x", None, math.nan)
    assert not_finite("x", math.nan, math.inf) == ["x is nan, so there was nothing finite to compare"]
    assert spelled({"a": [math.nan, 1.0]}) == {"a": ["nan", 1.0]} == spelled({"a": (float("nan"), 1.0)})


def test_movement_is_finite():
    still = torch.tensor([1.0])
    assert has_moved(still, torch.tensor([2.0])) and not has_moved(still, still.clone())
    assert not has_moved(still, torch.tensor([math.nan])) and not is_finite(torch.tensor([math.inf]))
    assert is_finite(torch.tensor([1])) and is_finite(torch.empty(0))
