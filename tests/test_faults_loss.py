"""Put faults into upstream under which the checks of suites/test_loss.py and suites/test_acc.py must fail."""

from __future__ import annotations

from harness.runs.scenarios import STILL, STILL_RAGGED, STILL_SHORT_WINDOW
from harness.suites import test_acc as acc
from harness.suites import test_loss as loss
from tests.faults import Fault, assert_fails, assert_seen, each, mutant, nothing, proves, replace

TRAINER = "transformers.trainer:Trainer"
PLAIN_LOSS = STILL_SHORT_WINDOW.but(model=acc.PLAIN_LOSS)
SPLIT = acc.SPLIT.but(max_steps=3)


# ---- faults that leave the logged loss as it is; `tests.faults` describes a row ----

A_THIRD = mutant("gradient-divided-by-three")
TWICE = mutant("accumulation-divided-twice")
OF_THE_LARGE_BATCH = "times that of the large batch"


@each(
    [
        (
            loss.test_a_step_is_the_mean_over_the_tokens_of_its_window,
            {"trace": STILL_RAGGED},
            A_THIRD,
            "0.3333 times what it must be",
        ),
        (loss.test_a_normalised_loss_is_not_divided_again, {"trace": STILL}, A_THIRD, "0.3333 times what it must be"),
        (
            loss.test_a_batch_mean_is_divided_once_by_the_micro_batches_of_its_window,
            {"spec": STILL_RAGGED},
            A_THIRD,
            "0.3333 times",
        ),
        (
            loss.test_label_smoothing_mixes_in_the_mean_over_the_vocabulary,
            {"trace": loss.SMOOTHED},
            A_THIRD,
            "0.3333 times",
        ),
        (
            acc.test_a_model_without_loss_keywords_is_divided_by_the_micro_batches_of_its_window,
            {"trace": PLAIN_LOSS},
            A_THIRD,
            "0.3333",
        ),
    ]
)
def test_a_gradient_divided_twice_is_seen(row, runs, tmp_path, monkeypatch):
    assert_seen(row, runs, tmp_path, monkeypatch)


@each(
    [
        (
            acc.test_accumulated_micro_batches_train_as_the_large_batch,
            {"spec": SPLIT},
            TWICE,
            OF_THE_LARGE_BATCH,
        ),
        (
            acc.test_a_model_without_loss_keywords_has_the_gradient_of_the_large_batch,
            {"spec": SPLIT.but(model=acc.PLAIN_LOSS)},
            TWICE,
            OF_THE_LARGE_BATCH,
        ),
        (
            acc.test_label_smoothing_accumulated_trains_as_the_large_batch,
            {"spec": SPLIT.but(label_smoothing_factor=0.1)},
            TWICE,
            OF_THE_LARGE_BATCH,
        ),
        (
            acc.test_a_short_window_is_normalised_by_its_own_tokens,
            {"spec": STILL_SHORT_WINDOW},
            TWICE,
            OF_THE_LARGE_BATCH,
        ),
    ]
)
def test_accumulation_that_divides_twice_is_seen(row, runs, tmp_path, monkeypatch):
    assert_seen(row, runs, tmp_path, monkeypatch)


# ---- wrong counts ----

FIRST_LABEL = mutant("first-label-counted")
SHIFTED_AGAIN = mutant("shift-labels-shifted-again")
MEAN_OF_MEANS = mutant("mean-of-means")


@proves("LOSS-01", says=FIRST_LABEL.says)
def test_a_count_that_includes_the_first_label_is_seen(runs, tmp_path, monkeypatch):
    test = loss.test_a_step_is_the_mean_over_the_tokens_of_its_window
    assert_seen((test, {"trace": STILL_RAGGED}, FIRST_LABEL, "labels are predicted"), runs, tmp_path, monkeypatch)


@proves("LOSS-02", says=SHIFTED_AGAIN.says)
def test_a_count_that_shifts_shift_labels_is_seen(runs, tmp_path, monkeypatch):
    test = loss.test_shift_labels_of_a_collator_are_the_targets_and_are_counted
    spec = STILL_RAGGED.but(trainer={"data_collator": "harness.fixtures.plain_loss:shifted_collator"})
    assert_seen((test, {"trace": spec}, SHIFTED_AGAIN, "labels are predicted"), runs, tmp_path, monkeypatch)


@proves("ACC-01", says=MEAN_OF_MEANS.says)
def test_a_count_of_each_micro_batch_alone_is_seen(runs, tmp_path, monkeypatch):
    # Accumulation before transformers 4.46 did this. The logged loss looks right.
    test = acc.test_accumulated_micro_batches_train_as_the_large_batch
    spec = SPLIT.but(data=acc.RAGGED)
    assert_seen((test, {"spec": spec}, MEAN_OF_MEANS, OF_THE_LARGE_BATCH), runs, tmp_path, monkeypatch)


# ---- label smoothing ----


def unsmoothed(original, trainer, model, *args, **options):
    """Label smoothing is left out for a model of get_peft_model."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        trainer.label_smoother = None
    return original(trainer, model, *args, **options)


WINDOW_IGNORED = mutant("smoothing-ignores-the-window")
TWICE_THE_FACTOR = mutant("smoothing-by-twice-the-factor")
ONE_ROUTE = replace(TRAINER, "compute_loss", unsmoothed)
CLASSIFIER_SHIFTED = mutant("smoothing-shifts-a-classifiers-labels")
UNWARNED = replace(
    "warnings", "warn", nothing, "Label smoothing of multi-label classification is left out without a warning."
)
TWICE_THE_LOSS = replace(
    "torch.nn:BCEWithLogitsLoss",
    "forward",
    lambda original, *args: 2 * original(*args),
    "Multi-label classification trains with another loss.",
)
MULTI_LABEL = {"spec": loss.CLASSIFIER.but(model={"config": {"problem_type": "multi_label_classification"}})}


@proves("ACC-09", says=WINDOW_IGNORED.says)
def test_smoothing_that_ignores_the_window_is_seen(runs, tmp_path, monkeypatch):
    WINDOW_IGNORED(monkeypatch)
    test = acc.test_label_smoothing_accumulated_trains_as_the_large_batch
    spec = SPLIT.but(label_smoothing_factor=0.1, data=acc.RAGGED)
    assert_fails(test, OF_THE_LARGE_BATCH, runs, tmp_path / "large", spec=spec)
    test = acc.test_label_smoothing_is_the_mean_over_the_tokens_of_its_window
    spec = STILL_RAGGED.but(label_smoothing_factor=0.1)
    assert_fails(test, "times what it must be", runs, tmp_path / "window", trace=spec)


@proves("LOSS-04", says=TWICE_THE_FACTOR.says)
def test_smoothing_by_another_factor_is_seen(runs, tmp_path, monkeypatch):
    test = loss.test_label_smoothing_mixes_in_the_mean_over_the_vocabulary
    assert_seen((test, {"trace": loss.SMOOTHED}, TWICE_THE_FACTOR, "gradient of"), runs, tmp_path, monkeypatch)


@proves("LOSS-04", "LOSS-05", says=ONE_ROUTE.says)
def test_smoothing_that_differs_between_routes_is_seen(runs, tmp_path, monkeypatch):
    ONE_ROUTE(monkeypatch)
    test = loss.test_label_smoothing_is_the_same_through_both_routes
    spec = SPLIT.but(label_smoothing_factor=0.1)
    assert_fails(test, "step 1: gradients", runs, tmp_path / "routes", spec=spec)
    test = loss.test_with_label_smoothing_the_model_runs_without_labels
    assert_fails(test, "the model was given", runs, tmp_path / "labels", trace=loss.SMOOTHED)


@proves("LOSS-05", says=CLASSIFIER_SHIFTED.says)
def test_smoothing_that_shifts_a_classifiers_labels_is_seen(runs, tmp_path, monkeypatch):
    test = loss.test_label_smoothing_does_not_shift_the_labels_of_a_classifier
    assert_seen((test, {"spec": loss.CLASSIFIER}, CLASSIFIER_SHIFTED, "expected"), runs, tmp_path, monkeypatch)


@proves("LOSS-07", says=UNWARNED.says)
def test_smoothing_that_is_dropped_without_a_word_is_seen(runs, tmp_path, monkeypatch):
    test = loss.test_multi_label_classification_warns_and_trains_with_its_own_loss
    assert_seen((test, MULTI_LABEL, UNWARNED, "False"), runs, tmp_path, monkeypatch)


@proves("LOSS-07", says=TWICE_THE_LOSS.says)
def test_another_loss_for_multi_label_classification_is_seen(runs, tmp_path, monkeypatch):
    test = loss.test_multi_label_classification_warns_and_trains_with_its_own_loss
    assert_seen((test, MULTI_LABEL, TWICE_THE_LOSS, ", expected 0."), runs, tmp_path, monkeypatch)


# ---- a subclass's loss and compute_loss_func ----


def scaled_already():
    """Return a Trainer that says its loss is divided by the micro-batches already, although it is not."""
    from harness.fixtures.plain_loss import mean_loss_trainer

    class Scaled(mean_loss_trainer()):
        loss_is_scaled_for_ga = True

    return Scaled


NOT_DIVIDED = Fault(
    "The batch mean that a subclass computes is not divided by the micro-batches of its window.",
    lambda monkeypatch: monkeypatch.setattr(loss, "mean_loss_trainer", scaled_already),
)


@proves("LOSS-03", says=NOT_DIVIDED.says)
def test_a_batch_mean_that_is_not_divided_is_seen(runs, tmp_path, monkeypatch):
    test = loss.test_a_batch_mean_is_divided_once_by_the_micro_batches_of_its_window
    words = "step 1: the gradient is 3 times what it must be"
    assert_seen((test, {"spec": STILL_SHORT_WINDOW}, NOT_DIVIDED, words), runs, tmp_path, monkeypatch)


@proves("LOSS-08", says=A_THIRD.says)
def test_a_loss_function_whose_result_is_divided_is_seen(runs, tmp_path, monkeypatch):
    test, words = loss.test_compute_loss_func_has_the_last_word, "0.3333 times what it must be"
    spec = STILL_RAGGED.but(trainer={"compute_loss_func": "harness.fixtures.plain_loss:window_loss"})
    assert_seen((test, {"trace": spec}, A_THIRD, words), runs, tmp_path, monkeypatch)


# ---- accumulation: windows, accelerate, zeroing, dropout ----


def num_steps_ignored(original, trainer):
    """num_steps of accelerate's configuration is ignored."""
    trainer.args.accelerator_config.gradient_accumulation_kwargs = None
    original(trainer)


WINDOW_SHORT = mutant("window-a-micro-batch-short")
ACCELERATE_TOO = mutant("accelerate-accumulates-too")
NUM_STEPS_IGNORED = replace(TRAINER, "create_accelerator_and_postprocess", num_steps_ignored)
OUTLIVING = mutant("gradients-outlive-the-window")
NO_SUBSTEP = mutant("substep-not-told")
NO_DROPOUT = replace("torch.nn:Dropout", "forward", lambda original, layer, value: value, "Dropout is off.")


@proves("ACC-02", says=WINDOW_SHORT.says)
def test_a_window_that_drops_a_micro_batch_is_seen(runs, tmp_path, monkeypatch):
    test = acc.test_an_epoch_ends_with_a_window_of_what_is_left
    assert_seen((test, {"trace": STILL_SHORT_WINDOW}, WINDOW_SHORT, "micro-batches of"), runs, tmp_path, monkeypatch)


@proves("ACC-03", says=ACCELERATE_TOO.says)
def test_accelerate_that_accumulates_is_seen(runs, tmp_path, monkeypatch):
    row = (acc.test_accelerate_itself_accumulates_nothing, {}, ACCELERATE_TOO, "3")
    assert_seen(row, runs, tmp_path, monkeypatch)


@proves("ACC-03", says=NUM_STEPS_IGNORED.says)
def test_num_steps_that_is_ignored_or_taken_beside_another_is_seen(runs, tmp_path, monkeypatch):
    NUM_STEPS_IGNORED(monkeypatch)
    test = acc.test_num_steps_beside_gradient_accumulation_steps_is_refused
    assert_fails(test, "raised nothing", runs, tmp_path / "both")
    test = acc.test_num_steps_of_accelerate_is_gradient_accumulation_steps
    spec = SPLIT.but(gradient_accumulation_steps=None, accelerator_config=acc.ACCELERATE)
    assert_fails(test, "step 1: trained rows", runs, tmp_path / "alone", spec=spec)


@proves("ACC-05", says=OUTLIVING.says)
def test_gradients_that_outlive_the_window_are_seen(runs, tmp_path, monkeypatch):
    test = acc.test_gradients_live_from_the_first_micro_batch_to_the_optimizer_step
    words = "('step_end', True), expected ('step_end', False)"
    assert_seen((test, {}, OUTLIVING, words), runs, tmp_path, monkeypatch)


@proves("ACC-05", says=NO_SUBSTEP.says)
def test_an_optimizer_step_that_is_not_reported_is_seen(runs, tmp_path, monkeypatch):
    test = acc.test_a_window_is_substeps_and_one_optimizer_step
    assert_seen((test, {"trace": STILL_RAGGED}, NO_SUBSTEP, "step 1: events"), runs, tmp_path, monkeypatch)


@proves("ACC-07", says=NO_DROPOUT.says)
def test_dropout_that_is_off_is_seen(runs, tmp_path, monkeypatch):
    test, words = acc.test_dropout_parts_two_splits_of_the_same_rows, "the same dropout masks, or none"
    assert_seen((test, {"spec": SPLIT.but(lora={"lora_dropout": 0.1})}, NO_DROPOUT, words), runs, tmp_path, monkeypatch)
