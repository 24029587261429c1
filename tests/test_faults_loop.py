"""Faulty Trainers, under which the checks of suites/test_loop.py must fail."""

from __future__ import annotations

import inspect

import pytest
import torch
from harness.suites import test_loop as loop

from harness.runs.cache import Runs
from harness.runs.scenarios import PLAIN
from harness.subjects.hf_trainer import HFTrainer
from tests.faults import each, mutant, proves, verdict_of

SHORT = PLAIN.but(max_steps=4)


def subject_of(**methods):
    """A subject that is a Trainer with some methods of its own."""
    import transformers

    return HFTrainer(type("Faulty", (transformers.Trainer,), methods))


def before_init(change):
    """An __init__ that changes the arguments first."""

    def init(self, *args, **options):
        change(options["args"])
        super(type(self), self).__init__(*args, **options)

    return {"__init__": init}


def judged(test, tmp_path, methods, spec=None, **arguments):
    """The verdict of a check on a faulty Trainer; `spec` is for the check, or for the trace that it judges."""
    faulty = Runs(subject_of(**methods), tmp_path / "faulty")
    if spec is not None:
        takes_trace = "trace" in inspect.signature(test).parameters
        arguments |= {"trace": faulty.train(spec)} if takes_trace else {"spec": spec}
    return verdict_of(test, faulty, tmp_path, **arguments)


def _sgd(self):
    self.optimizer = torch.optim.SGD(
        [p for p in self.model.parameters() if p.requires_grad], lr=self.args.learning_rate
    )
    return self.optimizer


def _constant(self, num_training_steps, optimizer=None):
    self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer or self.optimizer, factor=1.0)
    self._created_lr_scheduler = True
    return self.lr_scheduler


@each(
    [
        (loop.test_every_update_is_adamw_of_the_clipped_gradient, {"create_optimizer": _sgd}, "adapter at the end"),
        (
            loop.test_each_update_uses_the_rate_of_the_schedule,
            {"create_scheduler": _constant},
            "step 2: learning rates",
        ),
        (
            loop.test_warmup_is_a_number_of_steps_or_a_share_of_all,
            before_init(lambda args: setattr(args, "warmup_steps", 2)),
            "step 1: learning rates [0.0, 0.0], expected 0.01",
        ),
        (
            loop.test_the_norm_is_logged_before_clipping_and_the_optimizer_sees_it_after,
            before_init(lambda args: setattr(args, "max_grad_norm", 0.01)),
            "step 1: clipped gradient of",
        ),
    ],
    "test, methods, words",
)
def test_a_run_of_a_faulty_trainer_fails(test, methods, words, runs, tmp_path):
    verdict = judged(test, tmp_path, methods, SHORT)
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


@each(
    [
        (
            loop.test_a_run_makes_the_steps_and_epochs_it_was_asked_for,
            mutant("a-step-less"),
            SHORT,
            "made 3 optimizer steps",
        ),
        (
            loop.test_total_flos_is_six_per_token_and_parameter,
            mutant("operations-halved"),
            SHORT,
            "total_flos",
        ),
        (
            loop.test_drop_last_leaves_out_the_short_batch,
            mutant("short-batch-dropped"),
            SHORT.but(data={"rows": 6}),
            "step 2: micro-batches of [4] rows, expected [2]",
        ),
        (
            loop.test_the_norm_is_logged_before_clipping_and_the_optimizer_sees_it_after,
            mutant("norm-logged-after-clipping"),
            SHORT.but(max_grad_norm=0.01),
            "step 1: logged grad_norm",
        ),
        (
            loop.test_a_second_train_goes_on_with_weights_and_optimizer_but_not_with_the_schedule,
            mutant("second-train-forgets-the-optimizer"),
            SHORT,
            "4.0",
        ),
    ],
    "test, fault, spec, words",
)
def test_a_fault_of_upstream_is_seen(test, fault, spec, words, runs, tmp_path, monkeypatch):
    fault(monkeypatch)
    takes_trace = "trace" in inspect.signature(test).parameters
    verdict = verdict_of(test, runs, tmp_path, **({"trace": runs.train(spec)} if takes_trace else {"spec": spec}))
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


@proves("LOOP-05")
def test_a_norm_that_is_not_logged_without_clipping_is_seen(runs, tmp_path):
    def silent(self, logs, *args):
        logs.pop("grad_norm", None)
        super(type(self), self).log(logs, *args)

    test = loop.test_without_clipping_the_norm_is_logged_all_the_same
    verdict = judged(test, tmp_path, {"log": silent}, SHORT.but(max_grad_norm=0.0))
    assert "no gradient norm was logged" in verdict.seen[0]


@proves("LOOP-02", "LOOP-06")
def test_rates_and_epochs_logged_one_step_late_are_seen(runs, tmp_path):
    def late(self, logs, *args):
        if "learning_rate" in logs:
            logs["learning_rate"] = self.lr_scheduler.get_last_lr()[0]
            self.state.epoch += 1 / 10
        super(type(self), self).log(logs, *args)

    rates = judged(loop.test_the_logged_rate_is_the_one_just_used, tmp_path, {"log": late}, SHORT)
    assert rates.seen[0] == "step 1: logged learning rate 0.0075, but the step used 0.01"
    epochs = judged(loop.test_the_epoch_counts_micro_batches, tmp_path / "epochs", {"log": late}, SHORT)
    assert epochs.seen[0] == "step 1: epoch 0.2, expected 0.1"


@proves("LOOP-08", "LOOP-09")
def test_a_training_loss_divided_again_is_seen(runs, tmp_path):
    def halved(self, *args, **options):
        output = super(type(self), self).train(*args, **options)
        return output._replace(training_loss=output.training_loss * self.args.logging_steps / 2)

    spec = SHORT.but(disable_tqdm=False)
    verdict = judged(loop.test_training_loss_is_the_mean_over_optimizer_steps, tmp_path, {"train": halved}, spec)
    assert "training_loss is" in verdict.seen[0]
    verdict = judged(loop.test_training_loss_does_not_depend_on_what_is_logged, tmp_path / "2", {"train": halved}, spec)
    assert "(each third step)" in verdict.seen[0]
    verdict = judged(loop.test_metrics_are_complete_and_fit_each_other, tmp_path / "3", {"train": halved}, spec)
    assert "train_loss is" in verdict.seen[0]


@proves("LOOP-08")
def test_an_output_that_is_no_named_tuple_is_seen(runs, tmp_path):
    from collections import namedtuple

    def other(self, *args, **options):
        return namedtuple("Output", "global_step loss metrics")(*super(type(self), self).train(*args, **options))

    verdict = judged(loop.test_train_returns_a_named_tuple, tmp_path, {"train": other})
    assert not verdict.holds


def _adam(self):
    trained = [p for p in self.model.parameters() if p.requires_grad]
    self.optimizer = torch.optim.Adam(trained, lr=self.args.learning_rate, fused=True)
    return self.optimizer


@proves("LOOP-01")
@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ({"create_optimizer": _adam}, "torch.optim.adam.Adam"),
        (before_init(lambda args: setattr(args, "adam_beta2", 0.99)), "betas: (0.9, 0.99), expected (0.9, 0.999)"),
    ],
)
def test_another_default_optimizer_is_seen(methods, words, runs, tmp_path):
    verdict = judged(loop.test_the_default_optimizer_is_torch_adamw_wrapped_by_accelerate, tmp_path, methods)
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


@proves("LOOP-11")
def test_a_dataset_without_length_that_is_accepted_is_seen(runs, tmp_path):
    test = loop.test_a_dataset_without_length_needs_max_steps
    verdict = judged(test, tmp_path, before_init(lambda args: setattr(args, "max_steps", 5)))
    assert "raised nothing" in verdict.seen[0]


@proves("LOOP-12")
def test_checkpointing_that_draws_other_dropout_masks_is_seen(runs, tmp_path):
    kwargs = {"use_reentrant": False, "preserve_rng_state": False}
    spec = SHORT.but(activation_checkpointing_kwargs=kwargs)
    verdict = judged(loop.test_activation_checkpointing_changes_no_bit, tmp_path, {}, spec)
    assert "step 1: gradients" in verdict.seen[0]


@proves("LOOP-13")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation_checkpointing": False}, "runs of each mlp: [1.0, 1.0], expected [2, 2]"),
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "reentrant checkpoints: True, expected False"),
    ],
)
def test_checkpointing_that_is_off_or_reentrant_is_seen(change, words, runs, tmp_path):
    def put(args):
        for name, value in change.items():
            setattr(args, name, value)

    test = loop.test_checkpointing_recomputes_each_layer_and_is_not_reentrant_by_default
    verdict = judged(test, tmp_path, before_init(put), switch="on", route="get")
    assert words in "\n".join(verdict.seen)
