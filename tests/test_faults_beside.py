"""Put faults into upstream under which the checks of saves inside a run, of what calls leave, and of generation must fail."""

from harness.suites import test_api_interrupted as interrupted
from harness.suites import test_ckpt_live as live
from harness.suites import test_eval_generate as generate
from harness.suites import test_res_terminated as terminated
from tests.faults import assert_seen, each, mutant

#: By clause; `tests.faults` describes a row.
FAULTS = {
    "API-27/mode": (
        interrupted.test_evaluate_and_predict_only_evaluate,
        {"spec": interrupted.RUN},
        mutant("evaluation-ends-in-training-mode"),
        "modules are not in evaluation mode",
    ),
    "API-27/interrupted": (
        interrupted.test_an_interrupted_train_leaves_nothing_behind,
        dict(zip(("spec", "event", "error"), interrupted.ENDS["interrupt/substep_end"], strict=True)),
        mutant("interrupted-gradient-kept"),
        "step 1: gradients of",
    ),
    "CKPT-30": (
        live.test_a_callback_may_save_at_any_event,
        {"spec": live.RUN},
        mutant("first-values-saved-again"),
        "lora_B.weight differs by",
    ),
    "CKPT-31": (
        live.test_weights_for_evaluation_are_saved,
        {"spec": live.SCHEDULE_FREE, "afterwards": False},
        mutant("evaluated-as-trained"),
        "checkpoint-2: model.layers",
    ),
    "EVAL-11": (
        generate.test_what_is_predicted_is_what_the_trained_model_generates,
        {"spec": generate.RUN},
        mutant("generation-ends-a-token-early"),
        "and padding",
    ),
    "RES-27": (
        terminated.test_a_run_that_is_told_to_end_goes_on_as_if_it_had_not_been,
        {"event": "step_end", "done": 3},
        mutant("termination-handler-kept"),
        "SIGTERM's handler is not the one before train()",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)
