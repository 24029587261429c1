"""Put faults into upstream under which the checks of suites/test_{cb,log,hpo,mem}.py must fail, and mend known defects."""

import pytest

from harness.mutants.cb import event_not_sent
from harness.subjects.hyperparameter_search import search
from harness.suites import test_cb as cb
from harness.suites import test_hpo as hpo
from harness.suites import test_log as log
from harness.suites import test_mem as mem
from tests.faults import assert_holds, assert_seen, each, mutant, nothing, replace

TRAINER = "transformers.trainer:Trainer"
HANDLER = "transformers.trainer_callback:CallbackHandler"
EARLY_STOPPING = "transformers.trainer_callback:EarlyStoppingCallback"
TENSORBOARD = "transformers.integrations.integration_utils:TensorBoardCallback"


@pytest.fixture
def offered(runs, tmp_path, capsys):
    """Return the fixtures that the checks take, by name. A search writes into the directory that the check gets."""

    def searched(values, spec=hpo.SHORT, **options):
        return search(runs.subject, spec, tmp_path / "test", values, **options)

    return {"searched": searched, "capsys": capsys}


def need(name):
    """Skip a case whose optional package is not installed."""
    if name.startswith("HPO"):
        pytest.importorskip("optuna", reason="hyperparameter search needs optuna")
    if name.startswith("LOG-02"):
        pytest.importorskip("tensorboard", reason="the TensorBoard callback needs tensorboard")


# ---- faults ----


def without_directory(original, callback, *args, **kwargs):
    """The TensorBoard callback ignores TENSORBOARD_LOGGING_DIR."""
    callback.logging_dir = None
    original(callback, *args, **kwargs)


def applying(original, trainer, trial):
    """A fixed trial outside a search changes the learning rate."""
    trainer.args.learning_rate = trial.params["learning_rate"]
    original(trainer, trial)


TWICE = {"metrics": [1.0, 1.5, 2.0, 9.0], "steps": 3}
COUNTS_NOTHING = "Early stopping never compares the metric, so it never stops a run."

#: By clause; `tests.faults` describes a row.
FAULTS = {
    "CB-01": (
        cb.test_events_come_in_the_order_of_the_loop,
        {"trace": cb.SHORT_WINDOW},
        mutant("substep-not-told"),
        "event 5 is pre_optimizer_step, expected substep_end, after train_begin, epoch_begin, step_begin",
    ),
    "CB-02/count": (
        cb.test_a_run_stops_when_patience_is_spent,
        {"spec": cb.stopping(2, learning_rate=0.0), "patience": 2, "threshold": 0.0},
        replace(EARLY_STOPPING, "check_metric_value", nothing, COUNTS_NOTHING),
        "the last step is 20, expected 6: patience is 2",
    ),
    "CB-02/threshold": (
        cb.test_a_gain_counts_only_above_the_threshold,
        TWICE,
        mutant("threshold-not-kept"),
        "4",
    ),
    "CB-02/refusal": (
        cb.test_early_stopping_refuses_to_start_without,
        {"changes": {"eval_strategy": "no"}},
        replace(EARLY_STOPPING, "on_train_begin", nothing, "Early stopping does not check the arguments."),
        "raised nothing",
    ),
    "CB-03/restored": (
        cb.test_a_flat_run_resumed_at_step_4_stops_later_unless_its_counter_is_restored,
        {"kept": True, "last": 8},
        mutant("counter-not-restored"),
        "the run stopped at step 10, expected 8",
    ),
    "CB-03/by-default": (
        cb.test_the_counter_of_a_resumed_run,
        {"kept": False},
        mutant("counter-always-restored"),
        "the last step is 8, expected 20: patience is 3, the count 1 at step 6, 2 at step 8",
    ),
    "CB-04": (
        cb.test_callbacks_are_given_the_model_itself_and_what_trains_it,
        {"spec": cb.PLAIN.but(max_steps=1)},
        mutant("callbacks-given-a-wrapper"),
        "model is Sequential at",
    ),
    "CB-05/warning": (
        cb.test_a_second_callback_of_a_class_is_warned_of_and_used,
        {},
        mutant("second-callback-not-warned-of"),
        "[]",
    ),
    "CB-05/count": (
        cb.test_two_callbacks_of_one_class_count_on_when_they_are_restored,
        {"spec": cb.TWO},
        replace(EARLY_STOPPING, "check_metric_value", nothing, COUNTS_NOTHING),
        "the run stopped at step 20, expected 12",
    ),
    "LOG-01/keys": (
        log.test_an_entry_for_each_logging_step_has_the_mean_loss_since_the_one_before,
        {"trace": log.SHORT},
        mutant("norm-not-logged"),
        "entry of step 1 lacks grad_norm",
    ),
    "LOG-01/mean": (
        log.test_an_entry_for_each_logging_step_has_the_mean_loss_since_the_one_before,
        {"trace": log.LOGGED["each-third-step"]},
        mutant("logged-loss-since-the-start"),
        "the mean of its 3 steps is",
    ),
    "LOG-01/tokens": (
        log.test_tokens_fed_are_counted_in_every_entry,
        {"spec": log.PADDED.but(include_num_input_tokens_seen="non_padding"), "padding": False},
        replace(TRAINER, "_track_num_input_tokens", nothing, "The tokens that are fed are not counted."),
        "training entry of step 1: num_input_tokens_seen 0, expected",
    ),
    "LOG-02/values": (
        log.test_tensorboard_has_what_log_history_has,
        {"spec": log.SHORT.but(report_to=["tensorboard"])},
        mutant("tensorboard-rounded"),
        "train/loss: (1, 5.",
    ),
    "LOG-02/directory": (
        log.test_an_environment_variable_names_another_directory,
        {},
        replace(TENSORBOARD, "on_train_begin", without_directory),
        "besides: ['output']",
    ),
    "LOG-03": (
        log.test_the_last_entry_is_the_metrics_of_training,
        {"trace": log.SHORT},
        mutant("metrics-of-training-not-logged"),
        "the last entry lacks train_runtime",
    ),
    "LOG-04": (
        log.test_the_console_shows_each_entry,
        {"disable_tqdm": True},
        mutant("console-silent"),
        "0 entries on standard output",
    ),
    "HPO-01/model_init": (
        hpo.test_model_init_makes_the_adapters_of_each_trial,
        {"spec": hpo.SHORT},
        mutant("model-init-without-its-trial"),
        "model_init was called for [None, None, None, None]",
    ),
    "HPO-01/best": (
        hpo.test_the_best_run_is_the_trial_with_the_lowest_eval_loss,
        {},
        mutant("best-run-numbered"),
        "run_id is",
    ),
    "HPO-02": (
        hpo.test_each_trial_saves_adapters_below_a_directory_of_its_own,
        {"spec": hpo.SHORT.but(save_strategy="steps", save_steps=2)},
        mutant("trials-save-into-one-directory"),
        "run-0/checkpoint-2 is missing",
    ),
    "HPO-03": (
        hpo.test_a_trial_trains_as_a_run_of_its_own_would,
        {"values": {"learning_rate": [1e-3]}},
        mutant("trial-not-applied"),
        "step 1: learning rates [0.01, 0.01], expected [0.001, 0.001]",
    ),
    "HPO-04": (
        hpo.test_the_default_objective_is_eval_loss,
        {},
        mutant("objective-is-the-time"),
        "eval_runtime, not",
    ),
    "HPO-05/reported": (
        hpo.test_every_evaluation_is_reported,
        {},
        mutant("evaluations-not-reported"),
        "reported {}, evaluated {2:",
    ),
    "HPO-05/train_end": (
        hpo.test_a_pruned_trial_ends_with_train_end,
        {},
        replace(HANDLER, "on_train_end", event_not_sent, "on_train_end is not sent."),
        "expected one train_end",
    ),
    "HPO-06/dict": (
        hpo.test_a_dict_is_no_trial_without_ray_and_wandb,
        {},
        replace(
            "transformers.integrations",
            "hp_params",
            lambda original, trial: dict(trial),
            "A dict is accepted as a trial although neither ray nor wandb is installed.",
        ),
        "raised nothing",
    ),
    "HPO-06/fixed": (
        hpo.test_a_fixed_trial_outside_a_search_is_noted_and_not_applied,
        {},
        replace(TRAINER, "_hp_search_setup", applying),
        "learning_rate: 1.0, expected 0.01",
    ),
    "HPO-07/kept": (
        hpo.test_arguments_keep_the_values_of_the_last_trial,
        {},
        mutant("arguments-put-back"),
        "learning_rate: 0.01, expected 0.02",
    ),
    "HPO-07/warned": (
        hpo.test_a_name_that_is_no_argument_is_warned_of_and_left_out,
        {},
        replace("transformers.trainer:logger", "warning", nothing, "The Trainer logs no warning."),
        "0",
    ),
    "MEM-01": (
        mem.test_nothing_is_left_of_a_trainer_that_was_dropped,
        {"spec": mem.SHORT},
        mutant("dataloader-kept"),
        "the training dataloader is still there",
    ),
    "MEM-02/grows": (
        mem.test_a_step_holds_the_adapters_states_and_one_micro_batch,
        {"spec": mem.SMALL},
        mutant("a-leak-per-step"),
        "step 4: ",
    ),
    "MEM-02/gradients": (
        mem.test_a_step_holds_the_adapters_states_and_one_micro_batch,
        {"spec": mem.SMALL},
        mutant("gradients-never-freed"),
        "after step 1: 5808 bytes, expected",
    ),
    "MEM-02/base": (
        mem.test_a_step_holds_the_adapters_states_and_one_micro_batch,
        {"spec": mem.SMALL},
        mutant("base-in-the-optimizer"),
        "bytes at the peak, expected",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, offered, runs, tmp_path, monkeypatch):
    need(name)
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch, **offered)


# ---- known defects, mended ----


def states_as_new_lists(original, trainer, *args, **kwargs):
    states = trainer.state.stateful_callbacks
    states.update({name: [] for name, value in states.items() if isinstance(value, list)})
    return original(trainer, *args, **kwargs)


def seeded_after_the_suggestion(original, trainer, trial=None):
    from transformers import set_seed

    if trial is not None:
        trainer._hp_search_setup(trial)
        set_seed(trainer.args.seed)
    return original(trainer, trial)


def without_preparation(original, metrics):
    return original({name: value for name, value in metrics.items() if not name.endswith("_preparation_time")})


MENDED = {
    "CB-05/saved": (
        cb.test_states_of_two_callbacks_of_one_class_are_saved_in_order,
        {},
        replace(TRAINER, "_save_checkpoint", states_as_new_lists),
    ),
    "CB-05/restored": (
        cb.test_two_callbacks_of_one_class_count_on_when_they_are_restored,
        {"spec": cb.TWO.resumed(4)},
        replace(TRAINER, "_save_checkpoint", states_as_new_lists),
    ),
    "HPO-03/run": (
        hpo.test_a_trial_trains_as_a_run_of_its_own_would,
        {"values": {"seed": [1, 2, 3]}},
        replace(TRAINER, "call_model_init", seeded_after_the_suggestion),
    ),
    "HPO-03/seed": (
        hpo.test_a_suggested_seed_is_the_seed_of_its_trial,
        {},
        replace(TRAINER, "call_model_init", seeded_after_the_suggestion),
    ),
    "HPO-04": (
        hpo.test_the_default_objective_is_eval_loss_after_an_evaluation_too,
        {},
        replace("transformers.trainer", "default_compute_objective", without_preparation),
    ),
}


@pytest.mark.parametrize("name", list(MENDED))
def test_a_known_defect_that_is_mended_holds(name, offered, runs, tmp_path, monkeypatch):
    need(name)
    assert_holds(MENDED[name], runs, tmp_path, monkeypatch, **offered)
