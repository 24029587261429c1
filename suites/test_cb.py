"""CB: callbacks: which events come when, with which arguments, and the state of callbacks."""

from typing import Any

import pytest

from harness.laws import callbacks
from harness.runs.scenarios import PLAIN, SCENARIOS, by_route, cases, continued, over, saving
from harness.subjects.hf_trainer import recorded_warnings
from harness.verdict import both, raises, same

#: Three micro-batches in windows of two, evaluated and saved at the end of the epoch.
SHORT_WINDOW = PLAIN.but(
    data={"rows": 12, "eval_rows": 4},
    max_steps=None,
    num_train_epochs=1,
    gradient_accumulation_steps=2,
    eval_strategy="epoch",
    save_strategy="epoch",
)
EVALUATED: dict[str, Any] = {"data": {"eval_rows": 10}, "eval_strategy": "steps"}
ORDERED = {
    "short-window": SHORT_WINDOW,
    "two-epochs": SHORT_WINDOW.but(num_train_epochs=2, logging_strategy="epoch"),
    "each-third-step": PLAIN.but(**EVALUATED, eval_steps=5, logging_steps=3, save_strategy="steps", save_steps=4),
    "first-step": PLAIN.but(logging_steps=4, logging_first_step=True),
    "nothing-logged": PLAIN.but(logging_strategy="no"),
    "saved-at-the-end": saving(PLAIN),
}


@pytest.mark.clause("CB-01")
@over(by_route(SCENARIOS | ORDERED))
def test_events_come_in_the_order_of_the_loop(trace, judge):
    judge(callbacks.event_order(trace))


@pytest.mark.clause("CB-01")
@over(
    {f"resumed-{name}": continued(PLAIN.but(max_steps=14), at) for name, at in (("mid-epoch", 6), ("at-its-end", 10))}
)
def test_a_resumed_run_begins_in_the_epoch_of_its_checkpoint(trace, judge):
    judge(callbacks.event_order(trace))


# ---- early stopping ----


def stopping(patience, threshold=0.0, **changes):
    """Return a run of 20 steps with early stopping, evaluated and saved every second step."""
    options = {"early_stopping_patience": patience, "early_stopping_threshold": threshold}
    return PLAIN.but(
        data={"eval_rows": 8},
        trainer={"callbacks": [["early_stopping", options]]},
        **{
            "max_steps": 20,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "metric_for_best_model": "loss",
            # EarlyStoppingCallback required it until transformers 4.52.
            "load_best_model_at_end": True,
            **changes,
        },
    )


#: With learning rate 0 every evaluation returns the same loss, so only the first one improves.
FLAT = stopping(3, learning_rate=0.0)


@pytest.mark.clause("CB-02")
@pytest.mark.parametrize(
    ("spec", "patience", "threshold"),
    [
        pytest.param(stopping(2, learning_rate=0.0), 2, 0.0, id="flat"),
        pytest.param(FLAT, 3, 0.0, id="flat-patience-3"),
        pytest.param(stopping(2, threshold=10.0), 2, 10.0, id="below-the-threshold"),
        pytest.param(stopping(2), 2, 0.0, id="improving"),
    ],
)
def test_a_run_stops_when_patience_is_spent(spec, patience, threshold, train, judge):
    judge(callbacks.stops_early(train(spec), patience, threshold))


@pytest.mark.clause("CB-02")
def test_a_flat_run_of_patience_2_stops_at_step_6_and_its_best_is_step_2(train, judge):
    trace = train(stopping(2, learning_rate=0.0))
    saved = {
        "args": {"early_stopping_patience": 2, "early_stopping_threshold": 0.0},
        "attributes": {"early_stopping_patience_counter": 2},
    }
    judge(
        both(
            callbacks.stops_at(trace, 6),
            callbacks.states_saved(trace.checkpoint(6), "EarlyStoppingCallback", [saved]),
            same("best checkpoint", trace.best["checkpoint"].rpartition("/")[2], "checkpoint-2"),
        )
    )


@pytest.mark.clause("CB-02")
@pytest.mark.parametrize(
    ("metrics", "steps"),
    [
        # Binary fractions: each gain equals the threshold to the last bit, so it does not exceed it.
        pytest.param([1.0, 1.5, 2.0, 9.0], 3, id="gains-equal-to-the-threshold"),
        pytest.param([1.0, 1.5, 2.25, 2.5, 2.75, 9.0], 5, id="a-gain-above-it-resets"),
        pytest.param([1.0, 0.5, 1.25, 1.25, 9.0], 3, id="compared-with-the-best-not-the-last"),
    ],
)
def test_a_gain_counts_only_above_the_threshold(metrics, steps, upstream, tmp_path, judge):
    spec = stopping(
        2,
        0.5,
        metric_for_best_model="score",
        greater_is_better=True,
        max_steps=len(metrics),
        eval_steps=1,
        save_steps=1,
    )
    trainer = upstream.build(spec, tmp_path)
    coming = iter(metrics)
    trainer.compute_metrics = lambda prediction: {"score": next(coming)}
    judge(same(f"steps made with scores {metrics}", trainer.train().global_step, steps))


@pytest.mark.clause("CB-02")
@pytest.mark.parametrize(
    "changes", [{"metric_for_best_model": None}, {"eval_strategy": "no"}], ids=["metric", "evaluation"]
)
def test_early_stopping_refuses_to_start_without(changes, upstream, tmp_path, judge):
    trainer = upstream.build(stopping(2, load_best_model_at_end=False).but(**changes), tmp_path)
    judge(raises("train()", AssertionError, "EarlyStoppingCallback requires", trainer.train))


@pytest.mark.clause("CB-03")
@pytest.mark.parametrize("kept", [pytest.param(False, id="by-default"), pytest.param(True, id="restored")])
def test_the_counter_of_a_resumed_run(kept, train, judge):
    changes = {"restore_callback_states_from_checkpoint": True} if kept else {}
    spec = FLAT.but(**changes)
    judge(callbacks.stops_early(train(spec.resumed(4)), 3, before=train(spec), counter_restored=kept))


@pytest.mark.clause("CB-03")
@pytest.mark.parametrize(("kept", "last"), [(False, 10), (True, 8)], ids=["by-default", "restored"])
def test_a_flat_run_resumed_at_step_4_stops_later_unless_its_counter_is_restored(kept, last, train, judge):
    judge(callbacks.stops_at(train(FLAT.but(restore_callback_states_from_checkpoint=kept).resumed(4)), last))


# ---- what callbacks are given ----


@pytest.mark.clause("CB-04")
@cases(
    by_route(
        {
            "plain": PLAIN.but(max_steps=2),
            "bf16": PLAIN.but(max_steps=2, bf16=True),
            "evaluated": PLAIN.but(max_steps=2, **EVALUATED, eval_steps=1, save_strategy="steps", save_steps=1),
        }
    )
)
def test_callbacks_are_given_the_model_itself_and_what_trains_it(spec, upstream, tmp_path, judge):
    from accelerate.optimizer import AcceleratedOptimizer

    trainer = upstream.build(spec, tmp_path)
    given, seen = trainer.model, []
    trainer.add_callback(recorder(lambda event, keywords: seen.append((event, keywords))))
    trainer.train()
    judge(
        both(
            callbacks.given_to_callbacks(
                seen, {"model": given, "optimizer": trainer.optimizer, "lr_scheduler": trainer.lr_scheduler}
            ),
            same(
                "type of the optimizer", {type(keywords["optimizer"]) for _, keywords in seen}, {AcceleratedOptimizer}
            ),
            same("rows of the dataloader", {len(keywords["train_dataloader"].dataset) for _, keywords in seen}, {40}),
        )
    )


def recorder(report):
    """Return a TrainerCallback that reports each event of training and its keyword arguments."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def __getattribute__(self, name):
            if not name.startswith("on_"):
                return super().__getattribute__(name)
            return lambda args, state, control, **keywords: report(name.removeprefix("on_"), keywords)

    return Recorder()


# ---- several callbacks of one class ----


@pytest.mark.clause("CB-05")
def test_a_second_callback_of_a_class_is_warned_of_and_used(upstream, tmp_path, judge):
    from transformers import TrainerCallback

    class Counting(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **kwargs):
            self.steps += 1

    first, second = Counting(), Counting()
    trainer = upstream.build(PLAIN.but(max_steps=3), tmp_path)
    trainer.add_callback(first)
    warned: list[str] = []
    with recorded_warnings(warned):
        trainer.add_callback(second)
    trainer.train()
    told = ["Counting" in line and "there is already one" in line for line in warned]
    judge(
        both(same("warned of once", told, [True]), same("steps counted by each", [first.steps, second.steps], [3, 3]))
    )


#: Two early stoppings. The second one stops a flat run at step 12, the fifth evaluation after the first.
TWO = FLAT.but(
    trainer={"callbacks": [["early_stopping", {"early_stopping_patience": patience}] for patience in (9, 5)]},
    restore_callback_states_from_checkpoint=True,
)


@pytest.mark.clause("CB-05")
def test_states_of_two_callbacks_of_one_class_are_saved_in_order(train, judge):
    expected = [
        {
            "args": {"early_stopping_patience": patience, "early_stopping_threshold": 0.0},
            "attributes": {"early_stopping_patience_counter": 1},
        }
        for patience in (9, 5)
    ]
    judge(callbacks.states_saved(train(TWO).checkpoint(4), "EarlyStoppingCallback", expected))


@pytest.mark.clause("CB-05")
@cases({"uninterrupted": TWO, "resumed": TWO.resumed(4)})
def test_two_callbacks_of_one_class_count_on_when_they_are_restored(spec, train, judge):
    judge(callbacks.stops_at(train(spec), 12))
