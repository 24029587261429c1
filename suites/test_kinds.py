"""Kinds of method, model and task that are judged by one run each, by the laws that need few further runs.

`harness/runs/kinds.py` is the table. Each run has two steps on a tiny model; it is trained once more from its first
checkpoint, and those about an adapter once by the other route. A law that does not apply to a run is skipped with the reason.
"""

import pytest

from harness import defaults
from harness.laws import frozen, modelled, universal
from harness.runs import judging
from harness.runs.kinds import ADAPTERS, KINDS
from harness.runs.scenarios import cases
from harness.session.state import skip_uncompared


@pytest.fixture
def judge_by(train, judge):
    """judge_by(clause, spec): train a spec, and judge it by the clause's law, if it applies to such a run."""

    def judge_one(clause, spec):
        plain = defaults.plain(spec)
        trace = train(plain)
        reason = universal.left_out(trace).get(clause) or modelled.why_not(clause, plain)
        if clause in universal.LAWS_OF_ONE_RUN:
            judge(skip_uncompared(judging.decided(reason or (lambda: universal.LAWS_OF_ONE_RUN[clause](trace)))))
        else:
            law = universal.LAWS_OF_SEVERAL_RUNS[clause]
            judge(skip_uncompared(judging.decided(reason or (lambda: law(train, plain)))))

    return judge_one


@pytest.mark.clause("API-02")
@cases(KINDS)
def test_what_is_disabled_is_the_base(spec, judge_by):
    judge_by("API-02", spec)


@pytest.mark.clause("API-05")
@cases(ADAPTERS)
def test_both_routes_train_the_same_run(spec, judge_by):
    judge_by("API-05", spec)


@pytest.mark.clause("API-15")
@cases(KINDS)
def test_what_is_merged_computes_the_same(spec, judge_by):
    judge_by("API-15", spec)


@pytest.mark.clause("FRZ-01")
@cases(KINDS)
def test_the_base_is_bit_identical(spec, judge_by):
    judge_by("FRZ-01", spec)


@pytest.mark.clause("FRZ-02")
@cases(KINDS)
def test_the_optimizer_holds_what_requires_gradients(spec, judge_by):
    judge_by("FRZ-02", spec)


@pytest.mark.clause("FRZ-03")
@cases(KINDS)
def test_the_base_gets_no_gradient(spec, judge_by):
    judge_by("FRZ-03", spec)


@pytest.mark.clause("FRZ-13")
@cases(KINDS)
def test_two_steps_move_every_tensor(spec, train, judge):
    judge(frozen.adapter_moved(train(defaults.plain(spec))))


@pytest.mark.clause("LOSS-01")
@cases(KINDS)
def test_a_step_is_the_mean_over_the_labels_of_its_window(spec, judge_by):
    judge_by("LOSS-01", spec)


@pytest.mark.clause("CKPT-04")
@cases(KINDS)
def test_an_adapter_file_is_its_tensors_and_a_header(spec, judge_by):
    judge_by("CKPT-04", spec)


@pytest.mark.clause("CKPT-07")
@cases(KINDS)
def test_optimizer_pt_holds_the_state_of_the_trained_tensors(spec, judge_by):
    judge_by("CKPT-07", spec)


@pytest.mark.clause("CKPT-21")
@cases(KINDS)
def test_an_adapter_that_is_loaded_is_the_trained_one(spec, judge_by):
    judge_by("CKPT-21", spec)


@pytest.mark.clause("CKPT-25")
@cases(KINDS)
def test_a_checkpoint_holds_exactly_the_trained_tensors(spec, judge_by):
    judge_by("CKPT-25", spec)


@pytest.mark.clause("RES-01")
@cases(KINDS)
def test_a_resumed_run_is_the_run_that_was_interrupted(spec, judge_by):
    judge_by("RES-01", spec)
