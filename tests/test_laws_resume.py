"""Tests of harness/laws/resume.py on made-up traces: each law holds, and each fault is found and named."""

import copy

import pytest
import torch

from harness.laws import resume
from harness.runs.scenarios import PLAIN, continued
from harness.verdict import NOT_COMPARABLE
from tests.traces import BASE, A, B, made_up, with_checkpoint

SPEC = PLAIN.but(max_steps=4, per_device_train_batch_size=2)


@pytest.fixture
def whole(tmp_path):
    """Return the uninterrupted run of four steps, with checkpoints of step 2 and of the end."""
    trace = made_up(SPEC)
    halfway = {name: tensor / 2 for name, tensor in trace.adapter.items()}
    with_checkpoint(trace, tmp_path / "whole", 2, adapter=halfway)
    return with_checkpoint(trace, tmp_path / "whole", 4)


@pytest.fixture
def resumed(whole):
    """Return the run resumed from step 2, which continues as the whole one did."""
    trace = copy.deepcopy(whole)
    trace.spec = continued(SPEC, 2)
    trace.steps = trace.steps[2:]
    trace.adapter_resumed = dict(whole.checkpoint(2).adapter)
    trace.output["training_loss"] = sum(torch.tensor(step.batches[0].loss).item() for step in trace.steps) / 2
    trace.output["metrics"] = {"train_steps_per_second": 20.0, "train_runtime": 0.1}
    return trace


def words(verdict):
    assert not verdict.holds
    return "\n".join(verdict.seen)


# ---- the run that was interrupted ----


def test_a_run_is_not_resumed_from_its_end_even_if_that_was_written_twice(whole):
    assert resume.steps_to_resume(whole) == [2]
    whole.checkpoints.append(whole.checkpoints[-1])
    assert resume.steps_to_resume(whole) == [2]


def test_a_run_that_goes_on_holds(resumed, whole):
    assert resume.continues(resumed, whole, after=2).holds


def test_another_step_is_named(resumed, whole):
    resumed.steps[0].gradients[A][0, 0] += 1e-7
    assert "step 3: gradients of" in words(resume.continues(resumed, whole, after=2))


def test_a_tensor_that_is_not_trained_counts_too(resumed, whole):
    resumed.base = {BASE: "9999"}
    assert f"{BASE}, which is not trained" in words(resume.continues(resumed, whole, after=2))


def test_an_error_is_the_finding_not_what_follows_from_it(resumed, whole):
    resumed.error, resumed.base = "ValueError: no", {}
    assert words(resume.continues(resumed, whole, after=2)) == "the run ended with ValueError: no"


def test_nothing_is_said_of_a_resume_where_the_whole_run_fails(resumed, whole):
    whole.error = "RuntimeError: no kernel"
    for verdict in (resume.continues(resumed, whole, after=2), resume.restored(resumed, whole, after=2, count=2)):
        assert verdict.outcome == NOT_COMPARABLE
        assert verdict.seen == ("the uninterrupted run ended with RuntimeError: no kernel",)


def test_restored_counts_and_compares(resumed, whole):
    assert resume.restored(resumed, whole, after=2, count=2).measured == {"saved": 2, "restored": 2}
    assert "holds 2 adapter tensors, expected 3" in words(resume.restored(resumed, whole, after=2, count=3))
    resumed.adapter_resumed[B] = torch.zeros(4, 2)
    verdict = resume.restored(resumed, whole, after=2, count=2)
    assert f"after loading checkpoint-2: {B} differs" in words(verdict)
    assert verdict.measured["restored"] == 1
    resumed.adapter_resumed = {}
    assert "0 adapter tensors are trained on, expected 2" in words(resume.restored(resumed, whole, after=2, count=2))


# ---- logs, state and losses ----


def test_the_log_is_compared_entry_for_entry(resumed, whole):
    whole.log_history.append({"step": 4, "train_loss": 5.25, "train_runtime": 0.4})
    resumed.log_history[3]["train_runtime"] = 0.1
    assert resume.same_log(resumed, whole).holds
    resumed.log_history.insert(2, {"step": 2, "eval_loss": 5.0})
    assert "log_history[2] is {'step': 2, 'eval_loss': 5.0}" in words(resume.same_log(resumed, whole))
    del resumed.log_history[2:4]
    assert "log_history[2] is" in words(resume.same_log(resumed, whole))
    resumed.log_history = []
    assert "log_history[0] is None" in words(resume.same_log(resumed, whole))


def test_the_state_is_compared_field_for_field(resumed, whole):
    resumed.checkpoints[-1].state = {"global_step": 4, "best_model_checkpoint": "elsewhere", "log_history": []}
    assert resume.same_state(resumed, whole).holds
    resumed.checkpoints[-1].state["total_flos"] = 0
    assert "trainer_state.json, total_flos: 0, expected None" in words(resume.same_state(resumed, whole))
    resumed.checkpoints = []
    assert "saved no checkpoint" in words(resume.same_state(resumed, whole))


def test_the_loss_of_this_call_is_not_diluted(resumed):
    assert resume.loss_of_this_call(resumed).holds
    resumed.output["training_loss"] /= 2
    assert "the mean of these 2 steps" in words(resume.loss_of_this_call(resumed))


def test_the_throughput_counts_the_steps_of_this_call(resumed):
    resumed.output["metrics"]["train_steps_per_second"] = 40.0
    assert "is 4.0 steps, expected 2" in words(resume.loss_of_this_call(resumed))


def test_a_lost_loss_is_no_evidence(resumed):
    resumed.steps[0].batches[0].loss = None
    assert "expected nan" in words(resume.loss_of_this_call(resumed))


def test_the_first_log_is_the_mean_since_the_checkpoint(resumed):
    first, second = (torch.tensor(step.batches[0].loss) for step in resumed.steps)
    mean = (first + second).item() / 2
    resumed.log_history = [{"step": 4, "loss": mean}]
    assert resume.first_logged(resumed, after=2).holds
    assert "the mean of the 2 steps since" in words(resume.first_logged(resumed, after=2, digits=2))
    resumed.log_history[0]["loss"] = mean * 2 / 3
    assert "step 4: logged loss" in words(resume.first_logged(resumed, after=2))
    resumed.log_history = []
    assert "no loss was logged after step 2" in words(resume.first_logged(resumed, after=2))


def test_a_finished_run_that_trains_on_is_named(whole):
    done = copy.deepcopy(whole)
    done.steps, done.output["training_loss"] = [], 0.0
    assert resume.stays_finished(done, whole).holds
    done.output["training_loss"] = 1.0
    assert "training_loss is 1.0, expected 0.0" in words(resume.stays_finished(done, whole))
    done.adapter[A] = done.adapter[A] + 1
    assert "adapter at the end:" in words(resume.stays_finished(done, whole))
    done.steps = copy.deepcopy(whole.steps[:1])
    done.steps[0].number, done.output["global_step"] = 5, 5
    assert "it trained step 5, past the last step 4\nglobal_step is 5, expected 4" in words(
        resume.stays_finished(done, whole)
    )
    done.error = "ValueError: no"
    assert "the run ended with" in words(resume.stays_finished(done, whole))


# ---- what cannot be resumed ----


def failed(error, steps=0):
    trace = made_up(SPEC, error=error)
    trace.steps = trace.steps[:steps]
    return trace


def test_refused_wants_the_error_the_words_and_no_step():
    assert resume.refused(failed("ValueError: not there"), "ValueError", words="not there").holds
    assert resume.refused(failed("OSError: 22"), "OSError", "RuntimeError", words=("zip", "22")).holds
    assert resume.refused(failed("KeyError: 1"), words="KeyError").holds
    assert "no error: it trained steps 1 to 4" in words(resume.refused(made_up(), "ValueError", words="no"))
    assert "ended with KeyError" in words(resume.refused(failed("KeyError: 1"), "ValueError", words="1"))
    assert "ended with ValueError: no" in words(resume.refused(failed("ValueError: no"), "ValueError", words="yes"))
    assert "after steps 1 to 2" in words(resume.refused(failed("ValueError: no", steps=2), "ValueError", words="no"))


def test_loud_wants_an_early_error_or_a_fitting_warning():
    assert resume.loud(failed("ValueError: no Optimizer"), "no optimizer.pt", ["optimizer"]).holds
    assert "ended with ValueError" in words(
        resume.loud(failed("ValueError: too old"), "no optimizer.pt", ["optimizer"])
    )
    assert resume.loud(made_up(warnings=["The Optimizer is gone"]), "no optimizer.pt", ["optimizer"]).holds
    silent = resume.loud(made_up(warnings=["is deprecated"]), "no optimizer.pt", ["optimizer"])
    assert "neither an error nor a warning: with no optimizer.pt it trained steps 1 to 4" in words(silent)
    assert "after steps 1 to 1" in words(resume.loud(failed("ValueError: no", steps=1), "x", ["x"]))


def test_a_warning_of_a_change_names_the_argument_and_both_values():
    assert resume.warns_of_change(made_up(warnings=["save_steps: 3 (args) != 2 (state)"]), "save_steps", 3, 2).holds
    verdict = resume.warns_of_change(made_up(warnings=["save_steps changed"]), "save_steps", 3, 2)
    assert words(verdict) == "no warning names save_steps, 3 here and 2 in the checkpoint"


def test_falling_back_means_to_go_on_from_the_complete_checkpoint(resumed, whole):
    missing = ["trainer_state.json"]
    assert resume.falls_back(resumed, whole, torn=3, complete=2, missing=missing).holds
    resumed.steps[0].gradients[A][0, 0] += 1e-7
    assert "step 3: gradients" in words(resume.falls_back(resumed, whole, torn=3, complete=2, missing=missing))
    taken = resume.falls_back(resumed, whole, torn=2, complete=1, missing=missing)
    assert "it resumed at step 2, with neither an error nor a warning" in words(taken)


def test_an_error_about_a_torn_checkpoint_names_directory_and_file(whole):
    def judged(error):
        return resume.falls_back(failed(error), whole, torn=3, complete=2, missing=["optimizer.pt"])

    assert judged("FileNotFoundError: /x/checkpoint-3/optimizer.pt").holds
    for error in ("ValueError: no valid checkpoint at /x/checkpoint-3", "OSError: optimizer.pt", "KeyError"):
        assert "names no missing file of checkpoint-3" in words(judged(error))
