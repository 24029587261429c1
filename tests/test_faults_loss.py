"""Faults put into upstream, under which the checks of suites/test_loss.py and suites/test_acc.py must fail."""

from __future__ import annotations

import inspect

import torch
from harness.suites import test_acc as acc
from harness.suites import test_loss as loss

from harness.runs.cache import Runs
from harness.runs.scenarios import STILL, STILL_RAGGED, STILL_SHORT_WINDOW
from harness.subjects.hf_trainer import HFTrainer
from tests.faults import each, mutant, nothing, proves, replace, verdict_of

TRAINER = "transformers.trainer:Trainer"
SMOOTHER = "transformers.trainer_pt_utils:LabelSmoother"
PLAIN_LOSS = STILL_SHORT_WINDOW.but(model=acc.PLAIN_LOSS)
SPLIT = acc.SPLIT.but(max_steps=3)


def fails(runs, tmp_path, test, words, **arguments):
    """The check must fail and say why; `spec` is for the check, or for the trace that it judges."""
    if "spec" in arguments and "trace" in inspect.signature(test).parameters:
        arguments["trace"] = runs.train(arguments.pop("spec"))
    verdict = verdict_of(test, runs, tmp_path, **arguments)
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


# ---- faults that leave the logged loss as it is ----


@each(
    [
        (loss.test_a_step_is_the_mean_over_the_tokens_of_its_window, STILL_RAGGED, "0.3333 times what it must be"),
        (loss.test_a_normalised_loss_is_not_divided_again, STILL, "0.3333 times what it must be"),
        (loss.test_a_batch_mean_is_divided_once_by_the_micro_batches_of_its_window, STILL_RAGGED, "0.3333 times"),
        (loss.test_label_smoothing_mixes_in_the_mean_over_the_vocabulary, loss.SMOOTHED, "0.3333 times"),
        (acc.test_a_model_without_loss_keywords_is_divided_by_the_micro_batches_of_its_window, PLAIN_LOSS, "0.3333"),
    ],
    "test, spec, words",
)
def test_a_gradient_divided_twice_is_seen(test, spec, words, runs, tmp_path, monkeypatch):
    mutant("gradient-divided-by-three")(monkeypatch)
    fails(runs, tmp_path, test, words, spec=spec)


@each(
    [
        (acc.test_accumulated_micro_batches_train_as_the_large_batch, SPLIT),
        (acc.test_a_model_without_loss_keywords_has_the_gradient_of_the_large_batch, SPLIT.but(model=acc.PLAIN_LOSS)),
        (acc.test_label_smoothing_accumulated_trains_as_the_large_batch, SPLIT.but(label_smoothing_factor=0.1)),
        (acc.test_a_short_window_is_normalised_by_its_own_tokens, STILL_SHORT_WINDOW),
    ],
    "test, spec",
)
def test_accumulation_that_divides_twice_is_seen(test, spec, runs, tmp_path, monkeypatch):
    mutant("accumulation-divided-twice")(monkeypatch)
    fails(runs, tmp_path, test, "times that of the large batch", spec=spec)


# ---- wrong counts ----


@proves("LOSS-01")
def test_a_count_that_includes_the_first_label_is_seen(runs, tmp_path, monkeypatch):
    mutant("first-label-counted")(monkeypatch)
    words = "labels are predicted"
    fails(runs, tmp_path, loss.test_a_step_is_the_mean_over_the_tokens_of_its_window, words, spec=STILL_RAGGED)


@proves("LOSS-02")
def test_a_count_that_shifts_shift_labels_is_seen(runs, tmp_path, monkeypatch):
    mutant("shift-labels-shifted-again")(monkeypatch)
    spec = STILL_RAGGED.but(trainer={"data_collator": "harness.fixtures.plain_loss:shifted_collator"})
    test = loss.test_shift_labels_of_a_collator_are_the_targets_and_are_counted
    fails(runs, tmp_path, test, "labels are predicted", spec=spec)


@proves("ACC-01")
def test_a_count_of_each_micro_batch_alone_is_seen(runs, tmp_path, monkeypatch):
    # What accumulation did before transformers 4.46: the mean over micro-batches, with a logged loss that looks right.
    mutant("mean-of-means")(monkeypatch)
    spec = SPLIT.but(data=acc.RAGGED)
    words = "times that of the large batch"
    fails(runs, tmp_path, acc.test_accumulated_micro_batches_train_as_the_large_batch, words, spec=spec)


# ---- label smoothing ----


@proves("ACC-09")
def test_smoothing_that_ignores_the_window_is_seen(runs, tmp_path, monkeypatch):
    mutant("smoothing-ignores-the-window")(monkeypatch)
    smoothed = SPLIT.but(label_smoothing_factor=0.1, data=acc.RAGGED)
    words = "times that of the large batch"
    fails(runs, tmp_path, acc.test_label_smoothing_accumulated_trains_as_the_large_batch, words, spec=smoothed)
    test = acc.test_label_smoothing_is_the_mean_over_the_tokens_of_its_window
    fails(runs, tmp_path, test, "times what it must be", spec=STILL_RAGGED.but(label_smoothing_factor=0.1))


@proves("LOSS-04")
def test_smoothing_by_another_factor_is_seen(runs, tmp_path, monkeypatch):
    mutant("smoothing-by-twice-the-factor")(monkeypatch)
    test = loss.test_label_smoothing_mixes_in_the_mean_over_the_vocabulary
    fails(runs, tmp_path, test, "gradient of", spec=loss.SMOOTHED)


@proves("LOSS-04", "LOSS-05")
def test_smoothing_that_differs_between_routes_is_seen(runs, tmp_path, monkeypatch):
    from peft import PeftModel

    def unsmoothed(original, self, model, *args, **options):
        if isinstance(model, PeftModel):
            self.label_smoother = None
        return original(self, model, *args, **options)

    replace(TRAINER, "compute_loss", unsmoothed)(monkeypatch)
    spec = SPLIT.but(label_smoothing_factor=0.1)
    fails(runs, tmp_path, loss.test_label_smoothing_is_the_same_through_both_routes, "step 1: gradients", spec=spec)
    smoothed = {"spec": loss.SMOOTHED}
    test = loss.test_with_label_smoothing_the_model_runs_without_labels
    fails(runs, tmp_path, test, "the model was given", **smoothed)


@proves("LOSS-05")
def test_smoothing_that_shifts_a_classifiers_labels_is_seen(runs, tmp_path, monkeypatch):
    mutant("smoothing-shifts-a-classifiers-labels")(monkeypatch)
    test = loss.test_label_smoothing_does_not_shift_the_labels_of_a_classifier
    fails(runs, tmp_path, test, "expected", spec=loss.CLASSIFIER)


@proves("LOSS-07")
def test_smoothing_that_is_dropped_without_a_word_is_seen(runs, tmp_path, monkeypatch):
    replace("warnings", "warn", nothing)(monkeypatch)
    spec = loss.CLASSIFIER.but(model={"config": {"problem_type": "multi_label_classification"}})
    test = loss.test_multi_label_classification_warns_and_trains_with_its_own_loss
    fails(runs, tmp_path, test, "False", spec=spec)


@proves("LOSS-07")
def test_another_loss_for_multi_label_classification_is_seen(runs, tmp_path, monkeypatch):
    replace("torch.nn:BCEWithLogitsLoss", "forward", lambda original, *args: 2 * original(*args))(monkeypatch)
    spec = loss.CLASSIFIER.but(model={"config": {"problem_type": "multi_label_classification"}})
    test = loss.test_multi_label_classification_warns_and_trains_with_its_own_loss
    fails(runs, tmp_path, test, ", expected 0.", spec=spec)


# ---- a subclass's loss and compute_loss_func ----


@proves("LOSS-03")
def test_a_batch_mean_that_is_not_divided_is_seen(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(loss, "mean_loss_trainer", scaled_already)
    test = loss.test_a_batch_mean_is_divided_once_by_the_micro_batches_of_its_window
    fails(runs, tmp_path, test, "step 1: the gradient is 3 times what it must be", spec=STILL_SHORT_WINDOW)


def scaled_already():
    from harness.fixtures.plain_loss import mean_loss_trainer

    class Scaled(mean_loss_trainer()):
        loss_is_scaled_for_ga = True

    return Scaled


@proves("LOSS-08")
def test_a_loss_function_whose_result_is_divided_is_seen(runs, tmp_path, monkeypatch):
    mutant("gradient-divided-by-three")(monkeypatch)
    spec = STILL_RAGGED.but(trainer={"compute_loss_func": "harness.fixtures.plain_loss:window_loss"})
    fails(runs, tmp_path, loss.test_compute_loss_func_has_the_last_word, "0.3333 times what it must be", spec=spec)


# ---- accumulation: windows, accelerate, zeroing, dropout ----


@proves("ACC-02")
def test_a_window_that_drops_a_micro_batch_is_seen(runs, tmp_path, monkeypatch):
    mutant("window-a-micro-batch-short")(monkeypatch)
    test = acc.test_an_epoch_ends_with_a_window_of_what_is_left
    fails(runs, tmp_path, test, "micro-batches of", spec=STILL_SHORT_WINDOW)


def subject_of(**methods):
    """A subject that is a Trainer with some methods of its own."""
    import transformers

    return HFTrainer(type("Faulty", (transformers.Trainer,), methods))


@proves("ACC-03")
def test_accelerate_that_accumulates_is_seen(runs, tmp_path, monkeypatch):
    mutant("accelerate-accumulates-too")(monkeypatch)
    fails(runs, tmp_path, acc.test_accelerate_itself_accumulates_nothing, "3")


@proves("ACC-03")
def test_num_steps_that_is_ignored_or_taken_beside_another_is_seen(runs, tmp_path):
    def ignore(self):
        self.args.accelerator_config.gradient_accumulation_kwargs = None
        super(type(self), self).create_accelerator_and_postprocess()

    faulty = subject_of(create_accelerator_and_postprocess=ignore)
    test = acc.test_num_steps_beside_gradient_accumulation_steps_is_refused
    fails(runs, tmp_path, test, "raised nothing", upstream=faulty)
    spec = SPLIT.but(gradient_accumulation_steps=None, accelerator_config=acc.ACCELERATE)
    test = acc.test_num_steps_of_accelerate_is_gradient_accumulation_steps
    fails(Runs(faulty, tmp_path / "faulty"), tmp_path, test, "step 1: trained rows", spec=spec)


@proves("ACC-05")
def test_gradients_that_outlive_the_window_are_seen(runs, tmp_path, monkeypatch):
    mutant("gradients-outlive-the-window")(monkeypatch)
    test = acc.test_gradients_live_from_the_first_micro_batch_to_the_optimizer_step
    fails(runs, tmp_path, test, "('step_end', True), expected ('step_end', False)")


@proves("ACC-05")
def test_an_optimizer_step_that_is_not_reported_is_seen(runs, tmp_path, monkeypatch):
    mutant("substep-not-told")(monkeypatch)
    test = acc.test_a_window_is_substeps_and_one_optimizer_step
    fails(runs, tmp_path, test, "step 1: events", spec=STILL_RAGGED)


@proves("ACC-07")
def test_dropout_that_is_off_is_seen(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, value: value)
    test = acc.test_dropout_parts_two_splits_of_the_same_rows
    fails(runs, tmp_path, test, "the same dropout masks, or none", spec=SPLIT.but(lora={"lora_dropout": 0.1}))
