"""LOG: log_history, TensorBoard, the console."""

from __future__ import annotations

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import TRAINER, nothing, replace


def without_norm(original, trainer, logs, *args):
    logs.pop("grad_norm", None)
    original(trainer, logs, *args)


def steps_counted_from_the_start(original, trainer, *args, **kwargs):
    trainer._globalstep_last_logged = 0
    original(trainer, *args, **kwargs)


def without_the_last_entry(original, trainer, logs, *args):
    if "train_loss" not in logs:
        original(trainer, logs, *args)


def rounded_for_tensorboard(original, callback, args, state, control, logs=None, **kwargs):
    rounded = {name: round(value, 3) for name, value in logs.items()}
    original(callback, args, state, control, logs=rounded, **kwargs)


MUTANTS = (
    Mutant(
        "norm-not-logged",
        "Log entries have no grad_norm.",
        replace(TRAINER, "log", without_norm),
        cells=("LOG-01/plain", "LOOP-05/plain", "LOOP-05/max_grad_norm=0"),
    ),
    Mutant(
        "logged-loss-since-the-start",
        "The logged loss is divided by all steps so far, not by those since the last entry.",
        replace(TRAINER, "_maybe_log_save_evaluate", steps_counted_from_the_start),
        cells=("LOG-01/plain", "LOG-01/each-third-step"),
    ),
    Mutant(
        "metrics-of-training-not-logged",
        "The log does not end with the metrics of the whole training.",
        replace(TRAINER, "log", without_the_last_entry),
        cells=("LOG-03/plain", "LOOP-08/disable_tqdm=True"),
    ),
    Mutant(
        "tensorboard-rounded",
        "TensorBoard gets rounded numbers.",
        replace("transformers.integrations.integration_utils:TensorBoardCallback", "on_log", rounded_for_tensorboard),
        cells=("LOG-02/evaluated",),
    ),
    Mutant(
        "console-silent",
        "Log entries are not printed.",
        replace("transformers.trainer_callback:PrinterCallback", "on_log", nothing),
        cells=("LOG-04/printed",),
    ),
)
