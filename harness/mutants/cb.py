"""CB: callbacks."""

from __future__ import annotations

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import HANDLER, TRAINER, nothing, replace

EARLY_STOPPING = "transformers.trainer_callback:EarlyStoppingCallback"


def one_more(original, callback, early_stopping_patience=1, *args, **options):
    original(callback, early_stopping_patience + 1, *args, **options)


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


def unnoticed(original, handler, args, state, control, **kwargs):
    return control


def swapped(original, handler, event, *args, **kwargs):
    other = {"on_pre_optimizer_step": "on_optimizer_step", "on_optimizer_step": "on_pre_optimizer_step"}
    return original(handler, other.get(event, event), *args, **kwargs)


MUTANTS = (
    Mutant(
        "events-swapped",
        "on_optimizer_step is sent before the optimizer steps, and on_pre_optimizer_step after.",
        replace(HANDLER, "call_event", swapped),
        cells=("CB-01/plain", "ACC-05/plain"),
    ),
    Mutant(
        "patience-off-by-one",
        "A run stops one evaluation later than its patience.",
        replace(EARLY_STOPPING, "__init__", one_more),
        cells=("CB-02/flat*", "CB-02/a_flat*", "CB-03"),
    ),
    Mutant(
        "threshold-not-kept",
        "A gain counts as one that is below the threshold.",
        replace(EARLY_STOPPING, "check_metric_value", lenient),
        cells=("CB-02/*gain*", "CB-02/below-the-threshold"),
    ),
    Mutant(
        "pre-optimizer-step-not-told",
        "on_pre_optimizer_step is not sent.",
        replace(HANDLER, "on_pre_optimizer_step", unnoticed),
        cells=("CB-01/plain", "CB-01/accumulation", "ACC-05/plain"),
    ),
    Mutant(
        "counter-not-restored",
        "restore_callback_states_from_checkpoint restores nothing.",
        replace(TRAINER, "_load_callback_state", nothing),
        cells=("CB-03",),
    ),
    Mutant(
        "counter-always-restored",
        "The states of callbacks are restored where nobody asked for it.",
        replace(TRAINER, "_load_callback_state", restoring_always),
        cells=("CB-03",),
    ),
    Mutant(
        "callbacks-given-a-wrapper",
        "Callbacks are given a module around the model.",
        replace(HANDLER, "call_event", wrapping),
        cells=("CB-04/plain",),
    ),
    Mutant(
        "second-callback-not-warned-of",
        "A second callback of a class is added without a word.",
        replace(HANDLER, "add_callback", unwarned),
        cells=("CB-05/a_second*",),
    ),
)
