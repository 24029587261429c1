"""RES: resuming continues the run that was interrupted."""

from __future__ import annotations

import os

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import PEFT, TRAINER, Patch, nothing, replace


def drawing_afterwards(original, trainer, *args, **options):
    """Draw a number after the generators were restored."""
    import torch

    original(trainer, *args, **options)
    torch.rand(1)


def skipping_the_second(original, model, path, name, **options):
    return None if name == "second" else original(model, path, name, **options)


def last_by_name(original, folder):
    names = [name for name in os.listdir(folder) if name.startswith("checkpoint-")]
    return os.path.join(folder, max(names)) if names else None


def resumed_anyway(original, trainer, resume_from_checkpoint=None, **options):
    chosen = True if resume_from_checkpoint is False else resume_from_checkpoint
    return original(trainer, resume_from_checkpoint=chosen, **options)


def one_epoch_uncounted(original, *args):
    epochs, _ = original(*args)
    return epochs - 1, 0


def one_batch_more_skipped(original, *args):
    epochs, skipped = original(*args)
    return epochs, skipped + (skipped > 0)


def one_batch_less_skipped(original, *args):
    epochs, skipped = original(*args)
    return epochs, skipped - (skipped > 0)


def all_steps_counted(original, trainer, *args):
    trainer._initial_global_step = 0
    return original(trainer, *args)


def whole_window_counted(original, trainer, *args, **options):
    trainer._globalstep_last_logged = 0
    return original(trainer, *args, **options)


def rates_of_the_arguments(original, scheduler, state):
    return original(scheduler, {**state, "base_lrs": scheduler.base_lrs})


def nothing_skipped(original, loader, count):
    return loader


def without(**fields) -> Patch:
    """Return a patch that sets these fields of TrainerState when it is read from a checkpoint."""

    def forgetful(original, *args):
        state = original(*args)
        for name, value in fields.items():
            setattr(state, name, value)
        return state

    return replace("transformers.trainer_callback:TrainerState", "load_from_json", forgetful)


def moments_lost(original, optimizer, state):
    return original(optimizer, {**state, "state": {}})


def going_on(original, callback, args, state, control, **options):
    original(callback, args, state, control, **options)
    control.should_training_stop = False


def still_in_progress(original, manager):
    from pathlib import Path

    original(manager)
    step = manager.trainer.state.global_step
    Path(manager.trainer.args.output_dir, f"checkpoint-{step}", "checkpoint-is-incomplete.txt").touch()


def reading_the_argument(original, trainer, resume_from_checkpoint=None, **options):
    chosen = resume_from_checkpoint or trainer.args.resume_from_checkpoint
    return original(trainer, resume_from_checkpoint=chosen, **options)


_JIT = "transformers.trainer_jit_checkpoint:JITCheckpointCallback"

MUTANTS = (
    Mutant(
        "generators-not-restored",
        "Resuming does not restore the random number generators.",
        replace(TRAINER, "_load_rng_state", nothing),
        cells=("RES-01/step-6", "RES-15", "QLORA-04/step-2"),
    ),
    Mutant(
        "generators-restored-late",
        "Resuming draws a random number after it has restored the generators.",
        replace(TRAINER, "_load_rng_state", drawing_afterwards),
        cells=("RES-01/step-6", "RES-15"),
    ),
    Mutant(
        "optimizer-not-restored",
        "Resuming starts with a new optimizer and a new schedule.",
        replace(TRAINER, "_load_optimizer_and_scheduler", nothing),
        cells=("RES-01/step-6", "RES-11", "QLORA-08/adamw_bnb_8bit/step-2"),
    ),
    Mutant(
        "moments-not-restored",
        "Resuming restores the optimizer's parameter groups, but not its moments.",
        replace("torch.optim:AdamW", "load_state_dict", moments_lost),
        cells=("RES-01/step-6", "RES-01/no-dropout/step-6"),
    ),
    Mutant(
        "schedule-not-restored",
        "Resuming starts the schedule from its beginning.",
        replace("torch.optim.lr_scheduler:LambdaLR", "load_state_dict", nothing),
        cells=("RES-01/step-6", "RES-11/another_learning_rate*"),
    ),
    Mutant(
        "best-forgotten",
        "Resuming forgets the best checkpoint so far.",
        without(best_metric=None, best_model_checkpoint=None, best_global_step=None),
        cells=("BEST-01/a_best*", "RES-10/evaluated-with-each-save/step-4"),
    ),
    Mutant(
        "adapter-not-restored",
        "Resuming does not load the adapter.",
        replace(PEFT, "load_adapter", nothing),
        cells=("RES-01/step-6", "RES-02/step-2", "RES-13/rank", "RES-18/step-2", "RES-21/two-projections"),
        thread="https://github.com/huggingface/transformers/issues/24252",
    ),
    Mutant(
        "second-adapter-not-restored",
        "Resuming restores the first adapter, but not the second.",
        replace(PEFT, "load_adapter", skipping_the_second),
        cells=("RES-17/default-and-second", "RES-17/foo-and-second", "RES-21/default-and-second"),
        thread="https://github.com/huggingface/transformers/issues/30478",
    ),
    Mutant(
        "first-epochs-order-again",
        "Every epoch has the order of the first epoch.",
        replace("accelerate.data_loader:SeedableRandomSampler", "set_epoch", nothing),
        cells=("RES-22/plain/step-6", "RNG-02/two-epochs", "RNG-02/the_order*"),
    ),
    Mutant(
        "resumed-epoch-reshuffled",
        "The rest of the epoch in which a run resumes has the order of the first epoch.",
        replace("accelerate.data_loader:DataLoaderShard", "set_epoch", nothing),
        cells=("RES-22/plain/step-*", "RNG-02/two-epochs"),
        thread="https://github.com/huggingface/accelerate/pull/4071",
    ),
    Mutant(
        "a-batch-skipped",
        "Resuming skips one batch too many.",
        replace(TRAINER, "_init_training_state", one_batch_more_skipped),
        cells=("RES-22/plain/step-2", "RES-23/three-of-eight/step-1", "RES-24/step-2"),
    ),
    Mutant(
        "a-batch-trained-twice",
        "Resuming skips one batch too few.",
        replace(TRAINER, "_init_training_state", one_batch_less_skipped),
        cells=("RES-22/plain/step-2", "RES-01/step-6", "RES-24/step-2"),
    ),
    Mutant(
        "nothing-skipped",
        "Resuming starts the epoch from its beginning.",
        replace("transformers.trainer", "skip_first_batches", nothing_skipped),
        cells=("RES-22/plain/step-6", "RES-12/smaller-batches", "RES-14/inside-the-first-epoch"),
    ),
    Mutant(
        "log-forgotten",
        "Resuming forgets the log so far.",
        without(log_history=[]),
        cells=("RES-10/step-2", "RES-10/evaluated-with-each-save/step-2"),
    ),
    Mutant(
        "operations-forgotten",
        "Resuming counts floating-point operations from 0.",
        without(total_flos=0),
        cells=("RES-10/step-2", "RES-10/step-4", "RES-10/evaluated-with-each-save/step-4"),
    ),
    Mutant(
        "last-checkpoint-by-name",
        "resume_from_checkpoint=True takes the last checkpoint by name: checkpoint-9, not checkpoint-10.",
        replace("transformers.trainer", "get_last_checkpoint", last_by_name),
        cells=("RES-03",),
    ),
    Mutant(
        "resumed-unasked",
        "resume_from_checkpoint=False resumes if there is a checkpoint.",
        replace(TRAINER, "train", resumed_anyway),
        cells=("RES-03",),
    ),
    Mutant(
        "finished-run-goes-on",
        "Resuming a finished run trains another epoch.",
        replace(TRAINER, "_init_training_state", one_epoch_uncounted),
        cells=("RES-07/ended-with-an-epoch",),
    ),
    Mutant(
        "training-loss-over-all-steps",
        "training_loss of a resumed run is divided by all steps, including those before the interruption.",
        replace(TRAINER, "_finalize_training", all_steps_counted),
        cells=("RES-08/step-6",),
    ),
    Mutant(
        "first-log-over-a-whole-window",
        "The first loss logged after resuming is divided by the steps of a whole logging window.",
        replace(TRAINER, "_run_epoch", whole_window_counted),
        cells=("RES-09",),
    ),
    Mutant(
        "new-rate-used-in-an-old-schedule",
        "Resuming takes the learning rate from the arguments, not from the checkpoint.",
        replace("torch.optim.lr_scheduler:LambdaLR", "load_state_dict", rates_of_the_arguments),
        cells=("RES-11/another_learning_rate*",),
    ),
    Mutant(
        "told-to-end-and-going-on",
        "A run that SIGTERM is sent to saves a checkpoint, and trains on.",
        replace(_JIT, "on_step_begin", going_on),
        cells=("RES-27/step_end", "RES-27/evaluate", "RES-27/first-step/step_begin"),
    ),
    Mutant(
        "termination-handler-kept",
        "After train(), SIGTERM still asks for a checkpoint.",
        replace(_JIT, "on_train_end", nothing),
        cells=("RES-27/step_end",),
    ),
    Mutant(
        "marked-as-incomplete-for-good",
        "The checkpoint of a run that SIGTERM has ended stays marked as incomplete.",
        replace("transformers.trainer_jit_checkpoint:CheckpointManager", "execute_jit_checkpoint", still_in_progress),
        cells=("RES-27/step_end",),
    ),
    Mutant(
        "training-argument-read",
        "train() reads the training argument resume_from_checkpoint.",
        replace(TRAINER, "train", reading_the_argument),
        cells=("RES-06/*",),
    ),
    Mutant(
        "checkpoints-batch-size-ignored",
        "Resuming ignores the batch size of the checkpoint.",
        without(train_batch_size=4),
        cells=("RES-20/*",),
    ),
)
