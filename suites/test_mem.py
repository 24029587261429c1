"""MEM: the memory that a run holds, and the memory that it does not release."""

import contextlib
import weakref

import pytest

from harness.laws import memory
from harness.runs.scenarios import PLAIN, by_route, cases
from harness.throughput.memory_probe import measure
from harness.verdict import both

# ---- afterwards ----

SHORT = PLAIN.but(max_steps=3)
#: Runs of 10 batches an epoch that stop within an epoch or at its end, each for another reason.
STOPPED = {
    "mid-epoch": SHORT,
    "end-of-epoch": PLAIN.but(max_steps=None, num_train_epochs=1, data={"rows": 8}),
    "bf16": SHORT.but(bf16=True),
    "evaluated": SHORT.but(data={"eval_rows": 8}, eval_strategy="steps", eval_steps=1),
    "activation-checkpointing": SHORT.but(
        activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False}
    ),
}


def dropped(upstream, spec, directory, train=lambda trainer: trainer.train()):
    """Train, drop the Trainer, and return weak references to its parts."""
    trainer = upstream.build(spec, directory)
    trainer.add_callback(loaders := loader_recorder())
    train(trainer)
    parts = {
        "Trainer": trainer,
        "model": trainer.model,
        "optimizer": trainer.optimizer,
        "training dataset": trainer.train_dataset,
        "evaluation dataset": trainer.eval_dataset,
        **loaders.seen,
    }
    return {name: weakref.ref(part) for name, part in parts.items() if part is not None}


def loader_recorder():
    """Return a callback that stores the dataloaders it is given."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def __init__(self):
            self.seen = {}

        def on_step_end(self, args, state, control, train_dataloader=None, **kwargs):
            self.seen["training dataloader"] = train_dataloader

        def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
            self.seen["evaluation dataloader"] = eval_dataloader

    return Recorder()


@pytest.mark.clause("MEM-01")
@cases(by_route(STOPPED))
def test_nothing_is_left_of_a_trainer_that_was_dropped(spec, upstream, tmp_path, judge):
    judge(memory.collected(dropped(upstream, spec, tmp_path)))


@pytest.mark.clause("MEM-01")
def test_nothing_is_left_of_a_trainer_whose_callback_raised(upstream, tmp_path, judge):
    def interrupted(trainer):
        from transformers import TrainerCallback

        class Raises(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                raise KeyboardInterrupt

        trainer.add_callback(Raises())
        with contextlib.suppress(KeyboardInterrupt):
            trainer.train()

    judge(memory.collected(dropped(upstream, SHORT, tmp_path, interrupted)))


# ---- while it trains ----

#: One row of eight tokens a step. The base model is five times as large as a step's activations, and the adapter is
#: small. So a gradient, an optimizer state or a copy of the base shows.
SMALL = PLAIN.but(max_steps=5, per_device_train_batch_size=1, data={"rows": 2, "length": 8}, lora={"r": 1})
MEASURED = {
    "rank-1": SMALL,
    "rank-16": SMALL.but(lora={"r": 16}),
    "accumulation": SMALL.but(gradient_accumulation_steps=2),
}


@pytest.mark.clause("MEM-02")
@cases(by_route(MEASURED))
def test_a_step_holds_the_adapters_states_and_one_micro_batch(spec, upstream, runs, tmp_path, judge):
    spec = runs.on_device(spec)
    seen = measure(upstream, spec, tmp_path)
    judge(
        both(memory.within_bound(seen, spec), memory.held_between_steps(seen, spec), memory.does_not_grow(seen, spec))
    )
