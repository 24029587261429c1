"""RES: what a resumed run reports, and which value of an argument counts that was changed in between."""

from typing import Any

import pytest

from harness import compat
from harness.laws import data_order, resume
from harness.runs.scenarios import PLAIN, cases, continued
from harness.spec import ResumeSpec
from harness.verdict import both, same

#: Four steps an epoch, two epochs, saved every two steps.
SHORT = PLAIN.but(data={"rows": 16}, max_steps=8)


# ---- what is reported ----


@pytest.mark.clause("RES-07")
@cases(
    {
        f"ended-{where}": continued(SHORT.but(max_steps=steps), steps)
        for where, steps in {"with-an-epoch": 8, "inside-an-epoch": 6, "inside-the-first-epoch": 2}.items()
    }
)
def test_a_finished_run_stays_finished(spec, train, judge):
    judge(resume.stays_finished(train(spec), train(spec.first_leg())))


@pytest.mark.clause("RES-08")
@cases({"step-6": continued(SHORT, 6), "logged-every-3/step-4": continued(SHORT.but(logging_steps=3), 4)})
def test_training_loss_and_throughput_are_those_of_this_call(spec, train, judge):
    judge(resume.loss_of_this_call(train(spec)))


@pytest.mark.clause("RES-09")
@cases(
    {
        f"logged-every-{every}/step-{step}": continued(SHORT.but(logging_steps=every), step)
        for every, step in [(3, 2), (3, 4), (4, 6)]
    }
)
def test_the_first_log_covers_the_steps_since_the_checkpoint(spec, train, judge):
    judge(resume.first_logged(train(spec), spec.resume.checkpoint, compat.logged_digits()))


#: Both legs save and evaluate. The best evaluation so far and the number of tokens seen must survive.
REPORTED = SHORT.but(
    data={"rows": 16, "eval_rows": 4},
    save_strategy="steps",
    save_steps=2,
    eval_strategy="steps",
    eval_steps=2,
    metric_for_best_model="loss",
    include_num_input_tokens_seen=True,
)
BY_EPOCH = SHORT.but(data={"rows": 16, "eval_rows": 4}, eval_strategy="epoch", lora={"lora_dropout": 0.0})


@pytest.mark.clause("RES-10")
@cases(
    {
        "evaluated-with-each-save/step-2": REPORTED.resumed(2),
        "evaluated-with-each-save/step-4": REPORTED.resumed(4),
        "evaluated-at-each-epoch/step-2": continued(BY_EPOCH, 2),
        "evaluated-at-each-epoch/step-4": continued(BY_EPOCH, 4),
    }
)
def test_the_log_is_restored_and_extended(spec, train, judge):
    judge(resume.same_log(train(spec), train(spec.first_leg())))


@pytest.mark.clause("RES-10")
@cases({f"step-{step}": REPORTED.resumed(step) for step in (2, 4)})
def test_totals_and_best_metric_are_restored(spec, train, judge):
    judge(resume.same_state(train(spec), train(spec.first_leg())))


# ---- arguments that changed in between ----


@pytest.mark.clause("RES-11")
def test_another_learning_rate_is_not_used(train, judge):
    spec = continued(SHORT.but(learning_rate=1.0), 4, learning_rate=1e-2)
    judge(resume.continues(train(spec), train(spec.first_leg()), after=4))


@pytest.mark.clause("RES-11")
def test_another_number_of_steps_stretches_the_schedule(train, judge):
    spec = continued(SHORT.but(max_steps=12), 4, max_steps=8)
    linear = [(8 - 4) / 8] + [(12 - step) / 12 for step in range(5, 12)]
    judge(
        same(
            "learning rates of steps 5 to 12",
            [step.learning_rates[0] for step in train(spec).steps],
            [1e-2 * factor for factor in linear],
        )
    )


#: Argument -> its value here, and its value (the default) in the run that wrote the checkpoint.
CHANGES = {
    "per_device_train_batch_size": (2, 4),
    "gradient_accumulation_steps": (2, 1),
    "logging_steps": (3, 1),
    "save_steps": (3, 2),
    "eval_steps": (3, 2),
}
SAVED = SHORT.but(save_strategy="steps", save_steps=2)
EVALUATED = SAVED.but(data={"rows": 16, "eval_rows": 4}, eval_strategy="steps", eval_steps=2)


@pytest.mark.clause("RES-12")
@pytest.mark.parametrize("argument", list(CHANGES))
def test_a_changed_interval_or_size_is_warned_of(argument, upstream, train, judge):
    here, there = CHANGES[argument]
    first = EVALUATED if argument == "eval_steps" else SAVED
    changed: dict[str, Any] = {argument: here}
    spec = first.but(**changed, resume=ResumeSpec(4, first_leg={argument: first.arguments.get(argument)}))
    judge(resume.warns_of_change(train(spec), argument, here, there))


@pytest.mark.clause("RES-12")
@cases(
    {
        "smaller-batches": continued(SHORT.but(per_device_train_batch_size=2), 4, per_device_train_batch_size=4),
        "larger-batches": continued(SHORT.but(per_device_train_batch_size=8), 4, per_device_train_batch_size=4),
        "accumulation": continued(SHORT.but(gradient_accumulation_steps=2), 2, gradient_accumulation_steps=None),
    }
)
def test_the_data_position_is_that_of_the_new_sizes(spec, train, judge):
    judge(data_order.follows_seed(train(spec)))


@pytest.mark.clause("RES-14")
@cases(
    {
        "inside-the-first-epoch": continued(SHORT.but(ignore_data_skip=True), 2),
        "inside-the-second-epoch": continued(SHORT.but(ignore_data_skip=True), 6),
    }
)
def test_ignore_data_skip_starts_the_epoch_again(spec, train, judge):
    trace, step = train(spec), spec.resume.checkpoint
    steps = same("steps made after resuming", [one.number for one in trace.steps], list(range(step + 1, 8 + 1)))
    judge(both(steps, data_order.follows_seed(trace)))


@pytest.mark.clause("RES-20")
def test_auto_find_batch_size_keeps_the_size_of_the_checkpoint(train, judge):
    spec = continued(SHORT.but(auto_find_batch_size=True), 4, per_device_train_batch_size=2)
    judge(resume.continues(train(spec), train(spec.first_leg()), after=4))


@pytest.mark.clause("RES-20")
def test_without_it_the_size_is_that_of_the_arguments(train, judge):
    trace = train(continued(SHORT, 4, per_device_train_batch_size=2))
    judge(same("rows in a batch", {len(batch.rows) for step in trace.steps for batch in step.batches}, {4}))
