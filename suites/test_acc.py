"""ACC: gradient accumulation."""

import pytest

from harness.laws import accumulation, loss
from harness.laws.equal import equal_runs
from harness.laws.recompute import BATCHES
from harness.runs.scenarios import (
    PLAIN,
    RAGGED,
    SCENARIOS,
    STILL,
    STILL_RAGGED,
    STILL_SHORT_WINDOW,
    by_route,
    cases,
    over,
)
from harness.verdict import raises, same

#: Six steps of two micro-batches each. No dropout, since its masks would differ (ACC-07). SGD, since AdamW magnifies
#: differences in the last bits.
SPLIT = PLAIN.but(lora={"lora_dropout": 0.0}, gradient_accumulation_steps=2, max_steps=6, optim="sgd")
PLAIN_LOSS = {"family": "harness.fixtures.plain_loss:llama"}


def large_batch(spec):
    """Return the spec with each accumulation window as one batch."""
    size = spec.arguments["per_device_train_batch_size"] * spec.arguments["gradient_accumulation_steps"]
    return spec.but(per_device_train_batch_size=size, gradient_accumulation_steps=None)


@pytest.mark.clause("ACC-01")
@cases(
    by_route(
        {
            "windows-of-4": SPLIT.but(gradient_accumulation_steps=4, max_steps=3),
            "full-rows": SPLIT,
            "ragged": SPLIT.but(data=RAGGED),
            "ragged-5": SPLIT.but(data=RAGGED, gradient_accumulation_steps=5),
            "ragged-adamw": SPLIT.but(data=RAGGED, optim=None),
            "clipped": SPLIT.but(max_grad_norm=0.1),
        }
    )
)
def test_accumulated_micro_batches_train_as_the_large_batch(spec, train, judge):
    judge(accumulation.same_split(train(spec), train(large_batch(spec))))


@pytest.mark.clause("ACC-02")
@over(
    SCENARIOS
    | {
        "short-last-window": STILL_SHORT_WINDOW,
        "short-last-window-and-batch": PLAIN.but(data={"rows": 37}, gradient_accumulation_steps=4, max_steps=7),
        "drop-last": PLAIN.but(data={"rows": 37}, dataloader_drop_last=True, gradient_accumulation_steps=2),
        "fewer-batches-than-a-window": PLAIN.but(data={"rows": 7}, gradient_accumulation_steps=4, max_steps=3),
    }
)
def test_an_epoch_ends_with_a_window_of_what_is_left(trace, judge):
    judge(accumulation.windows(trace))


@pytest.mark.clause("ACC-02")
@cases(by_route({"short-last-window": STILL_SHORT_WINDOW}))
def test_a_short_window_is_normalised_by_its_own_tokens(spec, train, judge):
    judge(accumulation.same_split(train(spec), train(large_batch(spec))))


ACCELERATE = {"gradient_accumulation_kwargs": {"num_steps": 3}}


@pytest.mark.clause("ACC-03")
@cases({"num_steps": PLAIN.but(accelerator_config=ACCELERATE)})
def test_num_steps_of_accelerate_is_gradient_accumulation_steps(spec, train, judge):
    judge(equal_runs(train(spec), train(spec.but(accelerator_config=None, gradient_accumulation_steps=3))))


@pytest.mark.clause("ACC-03")
def test_accelerate_itself_accumulates_nothing(upstream, tmp_path, judge):
    trainer = upstream.build(PLAIN.but(gradient_accumulation_steps=3), tmp_path)
    judge(same("accelerator.gradient_accumulation_steps", trainer.accelerator.gradient_accumulation_steps, 1))


@pytest.mark.clause("ACC-03")
def test_num_steps_beside_gradient_accumulation_steps_is_refused(upstream, tmp_path, judge):
    spec = PLAIN.but(accelerator_config=ACCELERATE, gradient_accumulation_steps=2)
    build = lambda: upstream.build(spec, tmp_path)  # noqa: E731
    judge(raises("a Trainer with both settings", ValueError, "`num_steps` is set", build))


@pytest.mark.clause("ACC-05")
@over(SCENARIOS | {"short-last-window": STILL_SHORT_WINDOW})
def test_a_window_is_substeps_and_one_optimizer_step(trace, judge):
    judge(accumulation.events(trace))


@pytest.mark.clause("ACC-05")
def test_gradients_live_from_the_first_micro_batch_to_the_optimizer_step(upstream, tmp_path, judge):
    trainer = upstream.build(STILL.but(gradient_accumulation_steps=3, max_steps=2), tmp_path)
    trainer.add_callback(watcher := gradient_watcher())
    trainer.train()
    window = [
        ("step_begin", False),
        ("substep_end", True),
        ("substep_end", True),
        ("pre_optimizer_step", True),
        ("optimizer_step", True),
        ("step_end", False),
    ]
    judge(same("whether gradients are present at each event", watcher.seen, window * 2))


def gradient_watcher():
    """Return a callback that records, at each event of a window, whether any parameter has a gradient."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def __init__(self):
            self.seen = []

        def _note(self, event, model):
            self.seen.append((event, any(p.grad is not None for p in model.parameters())))

        def on_step_begin(self, args, state, control, model=None, **kwargs):
            self._note("step_begin", model)

        def on_substep_end(self, args, state, control, model=None, **kwargs):
            self._note("substep_end", model)

        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            self._note("pre_optimizer_step", model)

        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            self._note("optimizer_step", model)

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self._note("step_end", model)

    return Watcher()


@pytest.mark.clause("ACC-07")
@cases(by_route({"dropout": SPLIT.but(lora={"lora_dropout": 0.1}, max_steps=2)}))
def test_dropout_parts_two_splits_of_the_same_rows(spec, train, judge):
    judge(accumulation.draws_differ(train(spec), train(large_batch(spec))))


@pytest.mark.clause("ACC-08")
@cases(
    by_route(
        {
            "large-batch": SPLIT.but(model=PLAIN_LOSS),
            "large-batch-5": SPLIT.but(model=PLAIN_LOSS, gradient_accumulation_steps=5),
        }
    )
)
def test_a_model_without_loss_keywords_has_the_gradient_of_the_large_batch(spec, train, judge):
    judge(accumulation.same_split(train(spec), train(large_batch(spec))))


@pytest.mark.clause("ACC-08")
@over(by_route({"short-last-window": STILL_SHORT_WINDOW.but(model=PLAIN_LOSS)}))
def test_a_model_without_loss_keywords_is_divided_by_the_micro_batches_of_its_window(trace, judge):
    judge(loss.window_mean(trace, BATCHES))


@pytest.mark.clause("ACC-09")
@cases(
    by_route(
        {
            "full-rows": SPLIT.but(label_smoothing_factor=0.1),
            "ragged": SPLIT.but(label_smoothing_factor=0.1, data=RAGGED),
            "ragged-adamw": SPLIT.but(label_smoothing_factor=0.1, data=RAGGED, optim=None),
        }
    )
)
def test_label_smoothing_accumulated_trains_as_the_large_batch(spec, train, judge):
    judge(accumulation.same_split(train(spec), train(large_batch(spec))))


@pytest.mark.clause("ACC-09")
@over(by_route({"window-of-5": STILL_RAGGED.but(gradient_accumulation_steps=5, label_smoothing_factor=0.1)}))
def test_label_smoothing_is_the_mean_over_the_tokens_of_its_window(trace, judge):
    judge(loss.window_mean(trace))


@pytest.mark.clause("ACC-10")
@cases(
    by_route(
        {
            "one-micro-batch": SPLIT.but(gradient_accumulation_steps=1),
            "window-of-2": SPLIT,
            "ragged-window-of-4": SPLIT.but(data=RAGGED, gradient_accumulation_steps=4),
            "smoothed": SPLIT.but(data=RAGGED, label_smoothing_factor=0.1),
        }
    )
)
def test_the_order_of_a_windows_rows_does_not_matter(spec, train, judge):
    reordered = accumulation.rows_reversed(spec)
    judge(accumulation.same_windows(train(reordered), train(spec)))
