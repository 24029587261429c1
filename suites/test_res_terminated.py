"""RES-27: a run that is told to end (SIGTERM) anywhere in a step, and that saves itself there (enable_jit_checkpoint)."""

import os
import signal
import threading

import pytest

from harness.laws import resume
from harness.runs.scenarios import PLAIN
from harness.subjects.hf_trainer import recorded_warnings

#: Four windows of two micro-batches an epoch, evaluated after every second step.
RUN = PLAIN.but(
    data={"rows": 16, "eval_rows": 4},
    max_steps=7,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    eval_strategy="steps",
    eval_steps=2,
    enable_jit_checkpoint=True,
)
STILL = RUN.but(lora={"lora_dropout": 0.0})

#: Event -> how many steps are done when the signal comes. Step 4 ends an epoch. Steps 2, 4 and 6 are evaluated.
EVENTS = {
    "step_begin": 2,
    "substep_end": 2,
    "pre_optimizer_step": 2,
    "optimizer_step": 2,
    "step_end": 3,
    "prediction_step": 2,
    "evaluate": 2,
    "log": 3,
    "epoch_end": 4,
    "epoch_begin": 4,
}
AT = [pytest.param(event, done, id=event) for event, done in EVENTS.items()]
#: Where the generators have drawn since the last step, where they have not, and before the first step.
DRAWN = {
    "dropout/step_begin": (RUN, "step_begin", 2),
    "dropout/substep_end": (RUN, "substep_end", 2),
    "dropout/step_end": (RUN, "step_end", 3),
    "first-step/step_begin": (STILL, "step_begin", 0),
    "first-step/pre_optimizer_step": (STILL, "pre_optimizer_step", 0),
}


def at_event(event, done, act):
    """Return a callback that calls `act` once, at an event after so many steps."""
    from transformers import TrainerCallback

    class Once(TrainerCallback):
        def __getattribute__(self, name):
            return reached if name == f"on_{event}" else super().__getattribute__(name)

    waiting = [act]

    def reached(args, state, control, **given):
        if waiting and state.global_step == done:
            waiting.pop()()

    return Once()


def terminate():
    """Send this process SIGTERM, and wait until the Trainer has taken notice of it."""
    os.kill(os.getpid(), signal.SIGTERM)
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join()


def stopped(spec, event, done, upstream, path):
    """Train a spec until SIGTERM comes at an event. Return (the Trainer's state, the handler of SIGTERM afterwards).

    The Trainer takes notice of SIGTERM after three seconds. Here it does at once.
    """
    before = signal.getsignal(signal.SIGTERM)
    trainer = upstream.build(spec, path)
    for callback in trainer.callback_handler.callbacks:
        if manager := getattr(callback, "jit_manager", None):
            manager.kill_wait = 0
    trainer.add_callback(at_event(event, done, terminate))
    try:
        with recorded_warnings([]):
            trainer.train()
        return trainer.state, signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, before)


def judged(spec, event, done, upstream, train, path):
    whole = train(spec)
    state, given_back = stopped(spec, event, done, upstream, path)
    saved = resume.one_checkpoint(path, done, state.global_step, given_back)
    if not saved.holds:
        return saved
    return resume.goes_on(upstream.train(spec.resumed(True), path), whole, path)


@pytest.mark.clause("RES-27")
@pytest.mark.parametrize(("event", "done"), AT)
def test_a_run_that_is_told_to_end_goes_on_as_if_it_had_not_been(event, done, upstream, train, tmp_path, judge):
    judge(judged(STILL, event, done, upstream, train, tmp_path))


@pytest.mark.clause("RES-27")
@pytest.mark.parametrize("name", DRAWN)
def test_random_numbers_and_first_steps_go_on_as_well(name, upstream, train, tmp_path, judge):
    judge(judged(*DRAWN[name], upstream, train, tmp_path))
