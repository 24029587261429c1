"""Put faults into upstream under which the checks of suites/test_eval.py must fail, and mend known defects."""

import pytest

from harness.fixtures.metrics import counts
from harness.suites import test_eval as evaluation
from tests.faults import assert_seen, each, mutant, nothing, replace, verdict_of

TRAINER = "transformers.trainer:Trainer"


# ---- faults ----


def moving_the_base(original, trainer, *args, **options):
    """The last evaluation changes a weight of the base."""
    result = original(trainer, *args, **options)
    if trainer.state.global_step == trainer.state.max_steps:
        next(p for p in trainer.model.parameters() if not p.requires_grad).data.add_(1e-3)
    return result


def no_keys(original, trainer, model, inputs, loss_only, ignore_keys=None):
    """Evaluation ignores ignore_keys."""
    return original(trainer, model, inputs, loss_only, ignore_keys=None)


def always_gathered(original, trainer, model, inputs, loss_only, ignore_keys=None):
    """Evaluation gathers predictions although no compute_metrics takes them."""
    return original(trainer, model, inputs, False, ignore_keys=ignore_keys)


def another_metric(original, *args, **options):
    """Evaluation reports a metric that nobody asked for."""
    result = original(*args, **options)
    result.metrics["eval_other"] = 0.0
    return result


def not_on_start(original, trainer, *args, **options):
    """eval_on_start is ignored."""
    trainer.args.eval_on_start = False
    return original(trainer, *args, **options)


def forgotten(original, trainer, *args, **options):
    """The preparation time of the model is reported once only."""
    result = original(trainer, *args, **options)
    vars(trainer).pop("model_preparation_time", None)
    return result


STEP, LOOP = (TRAINER, "prediction_step"), (TRAINER, "evaluation_loop")
GIVEN = evaluation.test_all_predictions_and_labels_are_given_in_order
KEYS = {"config": {}, "keys": ["logits"], "expected": ()}
#: By clause; `tests.faults` describes a row.
FAULTS = {
    "EVAL-01/adapter": (
        evaluation.test_eval_loss_is_weighted_by_rows,
        {"trace": evaluation.SAVED},
        mutant("evaluated-without-the-adapter"),
        "evaluation at step 2: eval_loss",
    ),
    "EVAL-01/weights": (
        evaluation.test_eval_loss_is_weighted_by_rows,
        {"trace": evaluation.SAVED},
        mutant("eval-loss-by-labels"),
        "evaluation at step 2: eval_loss",
    ),
    "EVAL-01/order": (
        evaluation.test_eval_loss_is_weighted_by_rows,
        {"trace": evaluation.SAVED},
        mutant("evaluated-backwards"),
        "batches of rows [[49, 48, 47, 46]",
    ),
    "EVAL-04/draw": (
        evaluation.test_with_dropout_an_evaluation_counts_as_one_number_drawn,
        {"spec": evaluation.RAGGED, "events": [("step_end", 2)], "passes": 2},
        mutant("evaluation-draws-a-number"),
        "step 3: gradients of",
    ),
    "EVAL-04/adapter": (
        evaluation.test_a_run_with_evaluations_is_the_run_without,
        {"spec": evaluation.NO_DROPOUT},
        mutant("evaluation-moves-the-adapter"),
        "step 3: gradients of",
    ),
    "EVAL-04/base": (
        evaluation.test_a_run_with_evaluations_is_the_run_without,
        {"spec": evaluation.NO_DROPOUT},
        replace(*LOOP, moving_the_base),
        "embed_tokens.weight, which is not trained, is another",
    ),
    "EVAL-05/order": (GIVEN, {"spec": evaluation.RAGGED}, mutant("predictions-out-of-order"), "logits differs by"),
    "EVAL-05/evaluate": (
        evaluation.test_keys_to_ignore_are_left_out_of_the_predictions,
        {**KEYS, "how": "evaluate"},
        replace(*STEP, no_keys),
        "(10, 16, 256), expected ()",
    ),
    "EVAL-05/train": (
        evaluation.test_keys_to_ignore_are_left_out_of_the_predictions,
        {**KEYS, "how": "train"},
        replace(
            TRAINER,
            "_evaluate",
            lambda original, trainer, trial, keys, **options: original(trainer, trial, None),
            "An evaluation during training ignores ignore_keys_for_eval.",
        ),
        "(10, 16, 256), expected ()",
    ),
    "EVAL-06/metrics": (
        evaluation.test_without_compute_metrics_the_loss_is_all_there_is,
        {"trace": evaluation.RAGGED},
        replace(*LOOP, another_metric),
        "evaluation at step 2: eval_other besides",
    ),
    "EVAL-06/gathered": (
        evaluation.test_predictions_are_gathered_for_compute_metrics_only,
        {"function": None, "batches": 0},
        replace(*STEP, always_gathered),
        "3",
    ),
    "EVAL-06/not-gathered": (
        evaluation.test_predictions_are_gathered_for_compute_metrics_only,
        {"function": counts, "batches": 3},
        replace(
            *STEP,
            lambda original, *args, **options: (original(*args, **options)[0], None, None),
            "Evaluation gathers no predictions for compute_metrics.",
        ),
        "0",
    ),
    "EVAL-06/on-start": (
        evaluation.test_eval_on_start_evaluates_once_before_the_first_step,
        {"trace": evaluation.RAGGED.but(eval_on_start=True)},
        replace(TRAINER, "train", not_on_start),
        "evaluations at steps [2, 4], expected [0, 2, 4]",
    ),
    "EVAL-06/sets": (
        evaluation.test_each_of_several_evaluation_sets_has_metrics_of_its_own,
        {},
        mutant("evaluation-sets-share-a-name"),
        "eval_first_loss: absent",
    ),
    "EVAL-07": (
        evaluation.test_an_evaluation_before_training_adds_its_preparation_time_for_good,
        {"before": True, "expected": True},
        replace(*LOOP, forgotten),
        "differs first at index 1: False, expected True",
    ),
    "EVAL-08": (
        evaluation.test_a_metric_that_is_not_reported_ends_the_run,
        {"spec": evaluation.MISSING, "words": ["eval_accuracy"]},
        replace(
            TRAINER, "_determine_best_metric", nothing, "A metric_for_best_model that is not reported is no error."
        ),
        "no error: it made 4 steps",
    ),
    "EVAL-09/labels": (
        evaluation.test_a_config_without_task_type_is_evaluated_as_any_other,
        {"trace": evaluation.NO_TASK_TYPE},
        mutant("no-eval-loss"),
        "evaluation at step 2: no eval_loss among no metrics",
    ),
    "EVAL-10/steps": (
        evaluation.test_evaluations_happen_when_they_are_due,
        {"trace": evaluation.DUE["delayed-steps"]},
        mutant("eval-delay-ignored"),
        "an evaluation at step 1, unexpected",
    ),
    "EVAL-10/epochs": (
        evaluation.test_evaluations_happen_when_they_are_due,
        {"trace": evaluation.DUE["delayed-epochs"]},
        mutant("eval-delay-ignored"),
        "an evaluation at step 3, unexpected",
    ),
    "EVAL-09/label_ids": (
        evaluation.test_a_config_without_task_type_is_evaluated_as_any_other,
        {"trace": evaluation.NO_TASK_TYPE},
        mutant("label-ids-missing"),
        "evaluation at step 2: no eval_labels among eval_loss",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)


# ---- known defects, mended ----


def test_gpt2_holds_once_its_labels_are_counted(runs, tmp_path, monkeypatch):
    def all_but_the_first(original, trainer, samples, device):
        return sum(int((sample["labels"][:, 1:] != -100).sum()) for sample in samples)

    replace(TRAINER, "_get_num_items_in_batch", all_but_the_first)(monkeypatch)
    trace = runs.train(evaluation.SAVED.but(**evaluation.GPT2))
    assert verdict_of(evaluation.test_eval_loss_is_weighted_by_rows, runs, tmp_path, trace=trace).holds


def test_a_4_bit_base_that_is_not_repacked_holds(runs, tmp_path, monkeypatch):
    modules = pytest.importorskip("bitsandbytes.nn.modules", reason="bitsandbytes is not installed")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)
    monkeypatch.setattr(evaluation, "repacks", lambda device: False)
    test = evaluation.test_a_4_bit_base_is_not_changed_by_evaluations
    verdict = verdict_of(test, runs, tmp_path, repacked=False)
    assert verdict.holds, verdict.seen
