"""LOOP: optimizer, schedule, steps, and the return value of train()."""

from __future__ import annotations

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import ARGUMENTS, TRAINER, replace


def another_beta(original, arguments):
    original(arguments)
    arguments.adam_beta2 = 0.99


def one_step_less(original, trainer, args, dataloader):
    *plan, total = original(trainer, args, dataloader)
    return *plan, total - 1


def a_step_ahead(original, trainer, *args, **options):
    fresh = trainer.lr_scheduler is None
    scheduler = original(trainer, *args, **options)
    if fresh:
        scheduler.step()
    return scheduler


def no_warmup(original, arguments, *args, **options):
    return 0


def without_options(original, *args, scheduler_specific_kwargs=None, **options):
    return original(*args, **options)


def moved_on_each_step(original, trainer):
    """Let a schedule that follows a metric go on at each step, with a metric that is never better."""
    if type(trainer.lr_scheduler).__name__ == "ReduceLROnPlateau":
        trainer.lr_scheduler.step(float("inf"))
    return original(trainer)


def clipped_before_measuring(original, parameters, max_norm, *args, **options):
    original(parameters := list(parameters), max_norm, *args, **options)
    return original(parameters, float("inf"))


def measured_only(original, parameters, max_norm, *args, **options):
    return original(parameters, float("inf"), *args, **options)


def last_batch_dropped(original, arguments):
    original(arguments)
    arguments.dataloader_drop_last = True


def half_of_the_operations(original, trainer, inputs):
    return original(trainer, inputs) // 2


def optimizer_forgotten(original, trainer, *args, **options):
    trainer.optimizer = None
    return original(trainer, *args, **options)


def generators_not_preserved(original, arguments):
    if arguments.activation_checkpointing:
        arguments.activation_checkpointing_kwargs = {"use_reentrant": False, "preserve_rng_state": False}
    original(arguments)


def checkpointing_off(original, arguments):
    original(arguments)
    arguments.activation_checkpointing = False


def next_rate_logged(original, trainer, logs, *args):
    if "learning_rate" in logs:
        logs["learning_rate"] = trainer.lr_scheduler.get_last_lr()[0]
    return original(trainer, logs, *args)


def halved(original, trainer, *args, **options):
    output = original(trainer, *args, **options)
    return output._replace(training_loss=output.training_loss / 2)


def without_bias_correction(original, optimizer, *args, **options):
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] += 1000
    result = original(optimizer, *args, **options)
    for state in optimizer.state.values():
        if "step" in state and float(state["step"]) > 1000:
            state["step"] -= 1000
    return result


MUTANTS = (
    Mutant(
        "another-beta",
        "adam_beta2 is 0.99, whatever was asked for.",
        replace(ARGUMENTS, "__post_init__", another_beta),
        cells=("LOOP-01/plain", "LOOP-01/the_default*"),
    ),
    Mutant(
        "no-bias-correction",
        "From the second step on, AdamW corrects its moments as if 1000 more steps had been made.",
        replace("torch.optim:AdamW", "step", without_bias_correction),
        cells=("LOOP-01/unfused-adamw",),
    ),
    Mutant(
        "a-step-less",
        "A run makes one optimizer step too few.",
        replace(TRAINER, "set_initial_training_values", one_step_less),
        cells=("LOOP-04/plain", "LOOP-04/epochs-1.5", "CB-01/plain"),
    ),
    Mutant(
        "schedule-a-step-ahead",
        "Each step uses the learning rate of the next step.",
        replace(TRAINER, "create_scheduler", a_step_ahead),
        cells=("LOOP-02/plain", "LOOP-02/cosine", "CKPT-08/plain"),
    ),
    Mutant(
        "warmup-left-out",
        "warmup_steps is ignored.",
        replace(ARGUMENTS, "get_warmup_steps", no_warmup),
        cells=("LOOP-03/warmup_steps=3", "LOOP-03/warmup_steps=0.25", "LOOP-02/warmup-decay-clip"),
    ),
    Mutant(
        "schedule-options-dropped",
        "lr_scheduler_kwargs are ignored.",
        replace("transformers.trainer", "get_scheduler", without_options),
        cells=("LOOP-02/restarts/*", "LOOP-02/polynomial/*", "GEN-01/wsd/*"),
        thread="https://github.com/huggingface/transformers/issues/44908",
    ),
    Mutant(
        "plateau-at-each-step",
        "reduce_lr_on_plateau lowers the rate after steps, too.",
        replace(TRAINER, "_get_learning_rate", moved_on_each_step),
        cells=("LOOP-02/plateau/*",),
    ),
    Mutant(
        "norm-logged-after-clipping",
        "The logged gradient norm is that of the clipped gradient.",
        replace("torch.nn.utils", "clip_grad_norm_", clipped_before_measuring),
        cells=("LOOP-05/warmup-decay-clip", "LOOP-05/max_grad_norm=0.01"),
    ),
    Mutant(
        "not-clipped",
        "Gradients are measured, but not clipped.",
        replace("torch.nn.utils", "clip_grad_norm_", measured_only),
        cells=("LOOP-05/warmup-decay-clip", "LOOP-01/warmup-decay-clip"),
    ),
    Mutant(
        "short-batch-dropped",
        "The last batch of an epoch is dropped if it is short.",
        replace(ARGUMENTS, "__post_init__", last_batch_dropped),
        cells=("LOOP-04/n37", "RNG-02/n37", "ACC-02/n37"),
    ),
    Mutant(
        "operations-halved",
        "total_flos is half of what it must be.",
        replace(TRAINER, "floating_point_ops", half_of_the_operations),
        cells=("LOOP-10/plain", "LOOP-10/ragged"),
    ),
    Mutant(
        "second-train-forgets-the-optimizer",
        "A second train() starts with a new optimizer.",
        replace(TRAINER, "train", optimizer_forgotten),
        cells=("LOOP-07",),
    ),
    Mutant(
        "recomputed-with-other-masks",
        "Activation checkpointing recomputes a layer with other dropout masks.",
        replace(ARGUMENTS, "__post_init__", generators_not_preserved),
        cells=("LOOP-12/non-reentrant",),
    ),
    Mutant(
        "checkpointing-not-switched-on",
        "activation_checkpointing recomputes nothing.",
        replace(ARGUMENTS, "__post_init__", checkpointing_off),
        cells=("LOOP-13/get-*",),
    ),
    Mutant(
        "rate-logged-a-step-late",
        "The logged learning rate is that of the next step.",
        replace(TRAINER, "log", next_rate_logged),
        cells=("LOOP-02/plain", "LOG-01/plain"),
    ),
    Mutant(
        "training-loss-halved",
        "TrainOutput.training_loss is half the mean loss of the steps.",
        replace(TRAINER, "train", halved),
        cells=("LOOP-09/plain", "LOOP-08/disable_tqdm=False", "LOG-03/plain"),
    ),
)
