"""Faults put into upstream, under which the checks of suites/test_{cb,log,hpo,mem}.py must fail; and mended ones."""

import pytest

from harness import subjects
from harness.runs import Runs
from harness.search import search
from harness.warm import warm
from suites import test_cb as cb
from suites import test_hpo as hpo
from suites import test_log as log
from suites import test_mem as mem
from tests.faults import each, nothing, replace, verdict_of

TRAINER = "transformers.trainer:Trainer"
HANDLER = "transformers.trainer_callback:CallbackHandler"
EARLY_STOPPING = "transformers.trainer_callback:EarlyStoppingCallback"
TENSORBOARD = "transformers.integrations.integration_utils:TensorBoardCallback"

#: What a fault below holds on to.
KEPT = []


@pytest.fixture
def runs(tmp_path):
    warm()
    yield Runs(subjects.load("hf-trainer"), tmp_path)
    KEPT.clear()


@pytest.fixture
def checked(runs, tmp_path, capsys):
    """checked(test, **parameters): the verdict of a test of suites/; `trace` may be a spec."""

    def check(test, **parameters):
        own = tmp_path / "own"
        if "trace" in parameters:
            parameters["trace"] = runs.train(parameters["trace"])
        searched = lambda values, spec=hpo.SHORT, **options: search(runs.subject, spec, own, values, **options)  # noqa: E731
        return verdict_of(test, runs, own, **{"searched": searched, "capsys": capsys, **parameters})

    return check


# ---- faults: what upstream does instead ----


def unnoticed(original, handler, args, state, control, **kwargs):
    return control


def lenient(original, callback, *args):
    callback.early_stopping_threshold -= 0.125
    original(callback, *args)
    callback.early_stopping_threshold += 0.125


def restoring_always(original, trainer):
    trainer.args.restore_callback_states_from_checkpoint = True
    original(trainer)


def wrapping(original, handler, *args, **kwargs):
    import torch

    kept, handler.model = handler.model, torch.nn.Sequential(handler.model)
    try:
        return original(handler, *args, **kwargs)
    finally:
        handler.model = kept


def unwarned(original, handler, callback):
    handler.callbacks.append(callback() if isinstance(callback, type) else callback)


def without_norm(original, trainer, logs, *args):
    logs.pop("grad_norm", None)
    original(trainer, logs, *args)


def since_the_start(original, trainer, *args, **kwargs):
    trainer._globalstep_last_logged = 0
    original(trainer, *args, **kwargs)


def but_the_last(original, trainer, logs, *args):
    if "train_loss" not in logs:
        original(trainer, logs, *args)


def rounding(original, callback, args, state, control, logs=None, **kwargs):
    rounded = {name: round(value, 3) for name, value in logs.items()}
    original(callback, args, state, control, logs=rounded, **kwargs)


def without_directory(original, callback, *args, **kwargs):
    callback.logging_dir = None
    original(callback, *args, **kwargs)


def without_trial(original, trainer, trial=None):
    return original(trainer, None)


def numbered(original, *args, **kwargs):
    best = original(*args, **kwargs)
    return best._replace(run_id=int(best.run_id))


def quickest(original, metrics):
    return metrics["eval_runtime"]


def applying(original, trainer, trial):
    trainer.args.learning_rate = trial.params["learning_rate"]
    original(trainer, trial)


def putting_back(original, trainer, **options):
    kept = trainer.args.learning_rate
    best = original(trainer, **options)
    trainer.args.learning_rate = kept
    return best


def holding(original, state, loader):
    KEPT.append(loader)
    original(state, loader)


def hoarding(original, *args, **kwargs):
    KEPT.append(original(*args, **kwargs).repeat(1000))
    return KEPT[-1][0]


def unfreezing(original, trainer, *args):
    trainer.model.requires_grad_(True)
    return original(trainer, *args)


TWICE = {"metrics": [1.0, 1.5, 2.0, 9.0], "steps": 3}

#: Clause: the test of suites/, its parameters, the fault, and words of the sentence that names what it did.
FAULTS = {
    "CB-01": (
        cb.test_events_come_in_the_order_of_the_loop,
        {"trace": cb.SHORT_WINDOW},
        replace(HANDLER, "on_substep_end", unnoticed),
        "event 5 is pre_optimizer_step, expected substep_end, after train_begin, epoch_begin, step_begin",
    ),
    "CB-02/count": (
        cb.test_a_run_stops_when_patience_is_spent,
        {"spec": cb.stopping(2, learning_rate=0.0), "patience": 2, "threshold": 0.0},
        replace(EARLY_STOPPING, "check_metric_value", nothing),
        "the last step is 20, expected 6: patience is 2",
    ),
    "CB-02/threshold": (
        cb.test_a_gain_counts_only_above_the_threshold,
        TWICE,
        replace(EARLY_STOPPING, "check_metric_value", lenient),
        "4",
    ),
    "CB-02/refusal": (
        cb.test_early_stopping_refuses_to_start_without,
        {"changes": {"eval_strategy": "no"}},
        replace(EARLY_STOPPING, "on_train_begin", nothing),
        "raised nothing",
    ),
    "CB-03/restored": (
        cb.test_a_flat_run_resumed_at_step_4_stops_later_unless_its_counter_is_restored,
        {"kept": True, "last": 8},
        replace(TRAINER, "_load_callback_state", nothing),
        "the run stopped at step 10, expected 8",
    ),
    "CB-03/by-default": (
        cb.test_the_counter_of_a_resumed_run,
        {"kept": False},
        replace(TRAINER, "_load_callback_state", restoring_always),
        "the last step is 8, expected 20: patience is 3, the count 1 at step 6, 2 at step 8",
    ),
    "CB-04": (
        cb.test_callbacks_are_given_the_model_itself_and_what_trains_it,
        {"spec": cb.PLAIN.but(max_steps=1)},
        replace(HANDLER, "call_event", wrapping),
        "model is Sequential at",
    ),
    "CB-05/warning": (
        cb.test_a_second_callback_of_a_class_is_warned_of_and_used,
        {},
        replace(HANDLER, "add_callback", unwarned),
        "[]",
    ),
    "CB-05/count": (
        cb.test_two_callbacks_of_one_class_count_on_when_they_are_restored,
        {"spec": cb.TWO},
        replace(EARLY_STOPPING, "check_metric_value", nothing),
        "the run stopped at step 20, expected 12",
    ),
    "LOG-01/keys": (
        log.test_an_entry_for_each_logging_step_has_the_mean_loss_since_the_one_before,
        {"trace": log.SHORT},
        replace(TRAINER, "log", without_norm),
        "entry of step 1 lacks grad_norm",
    ),
    "LOG-01/mean": (
        log.test_an_entry_for_each_logging_step_has_the_mean_loss_since_the_one_before,
        {"trace": log.LOGGED["each-third-step"]},
        replace(TRAINER, "_maybe_log_save_evaluate", since_the_start),
        "the mean of its 3 steps is",
    ),
    "LOG-01/tokens": (
        log.test_tokens_fed_are_counted_in_every_entry,
        {"spec": log.PADDED.but(include_num_input_tokens_seen="non_padding"), "padding": False},
        replace(TRAINER, "_track_num_input_tokens", nothing),
        "training entry of step 1: num_input_tokens_seen 0, expected",
    ),
    "LOG-02/values": (
        log.test_tensorboard_has_what_log_history_has,
        {"spec": log.SHORT.but(report_to=["tensorboard"])},
        replace(TENSORBOARD, "on_log", rounding),
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
        replace(TRAINER, "log", but_the_last),
        "the last entry lacks train_runtime",
    ),
    "LOG-04": (
        log.test_the_console_shows_each_entry,
        {"disable_tqdm": True},
        replace("transformers.trainer_callback:PrinterCallback", "on_log", nothing),
        "0 entries on standard output",
    ),
    "HPO-01/model_init": (
        hpo.test_model_init_makes_the_adapters_of_each_trial,
        {"spec": hpo.SHORT},
        replace(TRAINER, "call_model_init", without_trial),
        "model_init was called for [None, None, None, None]",
    ),
    "HPO-01/best": (
        hpo.test_the_best_run_is_the_trial_with_the_lowest_eval_loss,
        {},
        replace("transformers.hyperparameter_search", "run_hp_search_optuna", numbered),
        "run_id is",
    ),
    "HPO-02": (
        hpo.test_each_trial_saves_adapters_below_a_directory_of_its_own,
        {"spec": hpo.SHORT.but(save_strategy="steps", save_steps=2)},
        replace(TRAINER, "_get_output_dir", without_trial),
        "run-0/checkpoint-2 is missing",
    ),
    "HPO-03": (
        hpo.test_a_trial_trains_as_a_run_of_its_own_would,
        {"values": {"learning_rate": [1e-3]}},
        replace(TRAINER, "_hp_search_setup", nothing),
        "step 1: learning rates [0.01, 0.01], expected [0.001, 0.001]",
    ),
    "HPO-04": (
        hpo.test_the_default_objective_is_eval_loss,
        {},
        replace("transformers.trainer", "default_compute_objective", quickest),
        "eval_runtime, not",
    ),
    "HPO-05/reported": (
        hpo.test_every_evaluation_is_reported,
        {},
        replace(TRAINER, "_report_to_hp_search", nothing),
        "reported {}, evaluated {2:",
    ),
    "HPO-05/train_end": (
        hpo.test_a_pruned_trial_ends_with_train_end,
        {},
        replace(HANDLER, "on_train_end", unnoticed),
        "expected one train_end",
    ),
    "HPO-06/dict": (
        hpo.test_a_dict_is_no_trial_without_ray_and_wandb,
        {},
        replace("transformers.integrations", "hp_params", lambda original, trial: dict(trial)),
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
        replace(TRAINER, "hyperparameter_search", putting_back),
        "learning_rate: 0.01, expected 0.02",
    ),
    "HPO-07/warned": (
        hpo.test_a_name_that_is_no_argument_is_warned_of_and_left_out,
        {},
        replace("transformers.trainer:logger", "warning", nothing),
        "0",
    ),
    "MEM-01": (
        mem.test_nothing_is_left_of_a_trainer_that_was_dropped,
        {"spec": mem.SHORT},
        replace("accelerate.state:GradientState", "_add_dataloader", holding),
        "the training dataloader is still there",
    ),
    "MEM-02/grows": (
        mem.test_a_step_holds_the_adapters_states_and_one_micro_batch,
        {"spec": mem.SMALL},
        replace(TRAINER, "training_step", hoarding),
        "step 4: ",
    ),
    "MEM-02/gradients": (
        mem.test_a_step_holds_the_adapters_states_and_one_micro_batch,
        {"spec": mem.SMALL},
        replace("torch.nn:Module", "zero_grad", nothing),
        "after step 1: 5808 bytes, expected",
    ),
    "MEM-02/base": (
        mem.test_a_step_holds_the_adapters_states_and_one_micro_batch,
        {"spec": mem.SMALL},
        replace(TRAINER, "create_optimizer", unfreezing),
        "bytes at the peak, expected",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, checked, monkeypatch):
    if name.startswith("HPO"):
        pytest.importorskip("optuna")
    if name.startswith("LOG-02"):
        pytest.importorskip("tensorboard")
    test, parameters, put, words = FAULTS[name]
    if "monkeypatch" in test.__code__.co_varnames:
        parameters = {**parameters, "monkeypatch": monkeypatch}
    put(monkeypatch)
    verdict = checked(test, **parameters)
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


# ---- known defects, mended: the checks that they fail then hold ----


def a_list_anew(original, trainer, *args, **kwargs):
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
        replace(TRAINER, "_save_checkpoint", a_list_anew),
    ),
    "CB-05/restored": (
        cb.test_two_callbacks_of_one_class_count_on_when_they_are_restored,
        {"spec": cb.TWO.resumed(4)},
        replace(TRAINER, "_save_checkpoint", a_list_anew),
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
def test_a_known_defect_that_is_mended_holds(name, checked, monkeypatch):
    if name.startswith("HPO"):
        pytest.importorskip("optuna")
    test, parameters, put = MENDED[name]
    put(monkeypatch)
    verdict = checked(test, **parameters)
    assert verdict.holds, verdict.seen
