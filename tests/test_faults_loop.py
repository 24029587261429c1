"""Put faults into the Trainer under which the checks of suites/test_loop.py must fail."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch

from harness.runs.scenarios import PLAIN
from harness.suites import test_loop as loop
from tests.faults import assert_fails, assert_seen, each, mutant, proves, replace

TRAINER = "transformers.trainer:Trainer"
SHORT = PLAIN.but(max_steps=4)
TRACE = {"trace": SHORT}


# ---- faults ----


def sgd(original, trainer):
    """The Trainer creates SGD, not AdamW."""
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    trainer.optimizer = torch.optim.SGD(trained, lr=trainer.args.learning_rate)
    return trainer.optimizer


def adam(original, trainer):
    """The Trainer creates Adam, not AdamW."""
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    trainer.optimizer = torch.optim.Adam(trained, lr=trainer.args.learning_rate, fused=True)
    return trainer.optimizer


def constant(original, trainer, num_training_steps, optimizer=None):
    """The learning rate stays what it is at the first step."""
    trainer.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer or trainer.optimizer, factor=1.0)
    trainer._created_lr_scheduler = True
    return trainer.lr_scheduler


def norm_not_logged(original, trainer, logs, *args):
    """Without clipping no gradient norm is logged."""
    logs.pop("grad_norm", None)
    original(trainer, logs, *args)


def logged_late(original, trainer, logs, *args):
    """Learning rate and epoch are logged one step late."""
    if "learning_rate" in logs:
        logs["learning_rate"] = trainer.lr_scheduler.get_last_lr()[0]
        trainer.state.epoch += 1 / 10
    original(trainer, logs, *args)


def divided_again(original, trainer, *args, **options):
    """TrainOutput.training_loss depends on logging_steps."""
    output = original(trainer, *args, **options)
    return output._replace(training_loss=output.training_loss * trainer.args.logging_steps / 2)


def another_tuple(original, trainer, *args, **options):
    """train() returns a tuple with other names than TrainOutput has."""
    return namedtuple("Output", "global_step loss metrics")(*original(trainer, *args, **options))


def with_arguments(says="", **values):
    """Return a fault with which the Trainer changes its arguments when it is made."""

    def init(original, trainer, *args, **options):
        for name, value in values.items():
            setattr(options["args"], name, value)
        original(trainer, *args, **options)

    return replace(TRAINER, "__init__", init, says)


# ---- one row for each fault; `tests.faults` describes a row ----


@each(
    [
        (
            loop.test_every_update_is_adamw_of_the_clipped_gradient,
            TRACE,
            replace(TRAINER, "create_optimizer", sgd),
            "adapter at the end",
        ),
        (
            loop.test_each_update_uses_the_rate_of_the_schedule,
            TRACE,
            replace(TRAINER, "create_scheduler", constant),
            "step 2: learning rates",
        ),
        (
            loop.test_warmup_is_a_number_of_steps_or_a_share_of_all,
            TRACE,
            with_arguments("warmup_steps is 2, whatever was asked for.", warmup_steps=2),
            "step 1: learning rates [0.0, 0.0], expected 0.01",
        ),
        (
            loop.test_the_norm_is_logged_before_clipping_and_the_optimizer_sees_it_after,
            TRACE,
            with_arguments("max_grad_norm is 0.01, whatever was asked for.", max_grad_norm=0.01),
            "step 1: clipped gradient of",
        ),
    ]
)
def test_a_run_of_a_faulty_trainer_fails(row, runs, tmp_path, monkeypatch):
    assert_seen(row, runs, tmp_path, monkeypatch)


@each(
    [
        (
            loop.test_a_run_makes_the_steps_and_epochs_it_was_asked_for,
            TRACE,
            mutant("a-step-less"),
            "made 3 optimizer steps",
        ),
        (
            loop.test_total_flos_is_six_per_token_and_parameter,
            TRACE,
            mutant("operations-halved"),
            "total_flos",
        ),
        (
            loop.test_drop_last_leaves_out_the_short_batch,
            {"trace": SHORT.but(data={"rows": 6})},
            mutant("short-batch-dropped"),
            "step 2: micro-batches of [4] rows, expected [2]",
        ),
        (
            loop.test_the_norm_is_logged_before_clipping_and_the_optimizer_sees_it_after,
            {"trace": SHORT.but(max_grad_norm=0.01)},
            mutant("norm-logged-after-clipping"),
            "step 1: logged grad_norm",
        ),
        (
            loop.test_a_second_train_goes_on_with_weights_and_optimizer_but_not_with_the_schedule,
            {"spec": SHORT},
            mutant("second-train-forgets-the-optimizer"),
            "4.0",
        ),
    ]
)
def test_a_fault_of_upstream_is_seen(row, runs, tmp_path, monkeypatch):
    assert_seen(row, runs, tmp_path, monkeypatch)


SCHEDULE_FAULTS = {
    "options-dropped": (
        loop.test_each_update_uses_the_rate_of_the_schedule,
        {"trace": SHORT.but(lr_scheduler_type="polynomial", lr_scheduler_kwargs={"power": 2.0})},
        mutant("schedule-options-dropped"),
        "step 2: learning rates",
    ),
    "plateau-at-each-step": (
        loop.test_each_update_uses_the_rate_of_the_schedule,
        {
            "trace": SHORT.but(
                data={"eval_rows": 4},
                eval_strategy="steps",
                eval_steps=2,
                lr_scheduler_type="reduce_lr_on_plateau",
                lr_scheduler_kwargs={"patience": 0},
            )
        },
        mutant("plateau-at-each-step"),
        "step 2: learning rates [0.001, 0.001], expected 0.01",
    ),
}


@each(SCHEDULE_FAULTS)
def test_a_faulty_schedule_is_seen(name, runs, tmp_path, monkeypatch):
    assert_seen(SCHEDULE_FAULTS[name], runs, tmp_path, monkeypatch)


# ---- logs and output ----

NOT_LOGGED = replace(TRAINER, "log", norm_not_logged)
LATE = replace(TRAINER, "log", logged_late)
DIVIDED = replace(TRAINER, "train", divided_again)
ANOTHER_TUPLE = replace(TRAINER, "train", another_tuple)


@proves("LOOP-05", says=NOT_LOGGED.says)
def test_a_norm_that_is_not_logged_without_clipping_is_seen(runs, tmp_path, monkeypatch):
    test, parameters = (
        loop.test_without_clipping_the_norm_is_logged_all_the_same,
        {"spec": SHORT.but(max_grad_norm=0.0)},
    )
    assert_seen((test, parameters, NOT_LOGGED, "no gradient norm was logged"), runs, tmp_path, monkeypatch)


@proves("LOOP-02", "LOOP-06", says=LATE.says)
def test_rates_and_epochs_logged_one_step_late_are_seen(runs, tmp_path, monkeypatch):
    LATE(monkeypatch)
    words = "step 1: logged learning rate 0.0075, but the step used 0.01"
    assert_fails(loop.test_the_logged_rate_is_the_one_just_used, words, runs, tmp_path / "rates", **TRACE)
    words = "step 1: epoch 0.2, expected 0.1"
    assert_fails(loop.test_the_epoch_counts_micro_batches, words, runs, tmp_path / "epochs", **TRACE)


@proves("LOOP-08", "LOOP-09", says=DIVIDED.says)
def test_a_training_loss_divided_again_is_seen(runs, tmp_path, monkeypatch):
    DIVIDED(monkeypatch)
    spec = SHORT.but(disable_tqdm=False)
    test = loop.test_training_loss_is_the_mean_over_optimizer_steps
    assert_fails(test, "training_loss is", runs, tmp_path / "mean", trace=spec)
    test = loop.test_training_loss_does_not_depend_on_what_is_logged
    assert_fails(test, "(each third step)", runs, tmp_path / "logged", spec=spec)
    test = loop.test_metrics_are_complete_and_fit_each_other
    assert_fails(test, "train_loss is", runs, tmp_path / "metrics", trace=spec)


@proves("LOOP-08", says=ANOTHER_TUPLE.says)
def test_an_output_that_is_no_named_tuple_is_seen(runs, tmp_path, monkeypatch):
    row = (loop.test_train_returns_a_named_tuple, {}, ANOTHER_TUPLE, "('global_step', 'loss', 'metrics')")
    assert_seen(row, runs, tmp_path, monkeypatch)


# ---- arguments ----


@proves("LOOP-01", says="The Trainer creates Adam in place of AdamW, or AdamW with another adam_beta2.")
@pytest.mark.parametrize(
    ("methods", "words"),
    [
        (replace(TRAINER, "create_optimizer", adam), "torch.optim.adam.Adam"),
        (with_arguments(adam_beta2=0.99), "betas: (0.9, 0.99), expected (0.9, 0.999)"),
    ],
)
def test_another_default_optimizer_is_seen(methods, words, runs, tmp_path, monkeypatch):
    test = loop.test_the_default_optimizer_is_torch_adamw_wrapped_by_accelerate
    assert_seen((test, {}, methods, words), runs, tmp_path, monkeypatch)


@proves("LOOP-11", says="A dataset without a length is accepted without max_steps.")
def test_a_dataset_without_length_that_is_accepted_is_seen(runs, tmp_path, monkeypatch):
    row = (loop.test_a_dataset_without_length_needs_max_steps, {}, with_arguments(max_steps=5), "raised nothing")
    assert_seen(row, runs, tmp_path, monkeypatch)


@proves("LOOP-12", says="Activation checkpointing recomputes a layer with other dropout masks.")
def test_checkpointing_that_draws_other_dropout_masks_is_seen(runs, tmp_path):
    spec = SHORT.but(activation_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False})
    test = loop.test_activation_checkpointing_changes_no_bit
    assert_fails(test, "step 1: gradients", runs, tmp_path / "test", spec=spec)


@proves("LOOP-13", says="activation_checkpointing recomputes nothing, or is reentrant unless asked otherwise.")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation_checkpointing": False}, "runs of each mlp: [1.0, 1.0], expected [2, 2]"),
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "reentrant checkpoints: True, expected False"),
    ],
)
def test_checkpointing_that_is_off_or_reentrant_is_seen(change, words, runs, tmp_path, monkeypatch):
    test = loop.test_checkpointing_recomputes_each_layer_and_is_not_reentrant_by_default
    row = (test, {"switch": "on", "route": "get"}, with_arguments(**change), words)
    assert_seen(row, runs, tmp_path, monkeypatch)
