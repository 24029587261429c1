"""CB: callbacks."""

from __future__ import annotations

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import HANDLER, TRAINER, nothing, replace

EARLY_STOPPING = "transformers.trainer_callback:EarlyStoppingCallback"


def patience_plus_one(original, callback, early_stopping_patience=1, *args, **options):
    original(callback, early_stopping_patience + 1, *args, **options)


def lenient(original, callback, *args):
    callback.early_stopping_threshold -= 0.125
    original(callback, *args)
    callback.early_stopping_threshold += 0.125


def always_restored(original, trainer):
    trainer.args.restore_callback_states_from_checkpoint = True
    original(trainer)


def wrapped(original, handler, *args, **kwargs):
    import torch

    model, handler.model = handler.model, torch.nn.Sequential(handler.model)
    try:
        return original(handler, *args, **kwargs)
    finally:
        handler.model = model


def added_without_warning(original, handler, callback):
    handler.callbacks.append(callback() if isinstance(callback, type) else callback)


def event_not_sent(original, handler, args, state, control, **kwargs):
    return control


def events_swapped(original, handler, event, *args, **kwargs):
    other = {"on_pre_optimizer_step": "on_optimizer_step", "on_optimizer_step": "on_pre_optimizer_step"}
    return original(handler, other.get(event, event), *args, **kwargs)


MUTANTS = (
    Mutant(
        "events-swapped",
        "on_optimizer_step is sent before the optimizer's step, and on_pre_optimizer_step after it.",
        replace(HANDLER, "call_event", events_swapped),
        cells=("CB-01/plain", "ACC-05/plain"),
    ),
    Mutant(
        "patience-off-by-one",
        "Early stopping stops a run one evaluation too late.",
        replace(EARLY_STOPPING, "__init__", patience_plus_one),
        cells=("CB-02/flat*", "CB-02/a_flat*", "CB-03"),
    ),
    Mutant(
        "threshold-not-kept",
        "Early stopping counts an improvement that is below its threshold.",
        replace(EARLY_STOPPING, "check_metric_value", lenient),
        cells=("CB-02/*gain*", "CB-02/below-the-threshold"),
    ),
    Mutant(
        "pre-optimizer-step-not-told",
        "on_pre_optimizer_step is not sent.",
        replace(HANDLER, "on_pre_optimizer_step", event_not_sent),
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
        "The states of callbacks are restored although nobody asked for it.",
        replace(TRAINER, "_load_callback_state", always_restored),
        cells=("CB-03",),
    ),
    Mutant(
        "callbacks-given-a-wrapper",
        "Callbacks get a wrapper around the model, not the model.",
        replace(HANDLER, "call_event", wrapped),
        cells=("CB-04/plain",),
    ),
    Mutant(
        "second-callback-not-warned-of",
        "A second callback of a class is added without a warning.",
        replace(HANDLER, "add_callback", added_without_warning),
        cells=("CB-05/a_second*",),
    ),
)
