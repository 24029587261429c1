"""Tests of harness/laws/rotation.py on made-up runs: when checkpoints are written, and which are left."""

import pytest

from harness.laws import rotation
from harness.spec import RunSpec
from harness.trace import Checkpoint, Evaluation
from tests.checkpoints import says
from tests.traces import made_up


def run_of(spec, saved_at, epochs=(), evaluations=(), siblings=None):
    """Return a made-up run of `spec` with checkpoints at these steps.

    - epochs: the step at the end of each epoch.
    """
    total = spec.arguments.get("max_steps") or epochs[-1]
    trace = made_up(spec, steps=total)
    for step in range(1, total + 1):
        trace.events += ["step_end"] + ["epoch_end"] * (step in epochs)
    trace.evaluations = [Evaluation(step, [], {"eval_loss": loss}) for step, loss in evaluations]
    for index, step in enumerate(saved_at):
        left = list(saved_at[: index + 1]) if siblings is None else siblings[index]
        trace.checkpoints.append(Checkpoint(step, f"checkpoint-{step}", {}, {}, {}, {}, left))
    return trace


TEN = RunSpec().but(save_strategy="steps", save_steps=3)
BEST = TEN.but(save_strategy="best", metric_for_best_model="loss")
BY_DEFAULT = TEN.but(save_strategy="best", load_best_model_at_end=True)
EPOCH = TEN.but(save_strategy="epoch", max_steps=None, num_train_epochs=1.5)


@pytest.mark.parametrize(
    ("spec", "due", "more"),
    [
        (TEN, [3, 6, 9, 10], {}),
        (TEN.but(save_steps=5), [5, 10], {}),
        (TEN.but(save_steps=0.25), [3, 6, 9, 10], {}),
        (TEN.but(save_strategy="no"), [], {}),
        (EPOCH, [10, 15], {"epochs": (10, 15)}),
        (BEST, [2, 6], {"evaluations": [(2, 5.0), (4, 5.0), (6, 4.0), (8, 4.5)]}),
        (BY_DEFAULT, [2, 6], {"evaluations": [(2, 5.0), (4, 5.0), (6, 4.0), (8, 4.5)]}),
        (
            TEN.but(save_strategy="best", lr_scheduler_type="reduce_lr_on_plateau"),
            [2],
            {"evaluations": [(2, 5.0), (4, 5.0)]},
        ),
        (BEST, [2], {"evaluations": [(0, 4.0), (2, 5.0)]}),  # eval_on_start
        (TEN.but(save_strategy="best"), [], {"evaluations": [(2, 5.0)]}),
        (BEST.but(greater_is_better=True), [2, 8], {"evaluations": [(2, 4.0), (4, 3.0), (8, 4.5)]}),
    ],
)
def test_a_checkpoint_too_many_or_too_few_is_named(spec, due, more):
    assert rotation.saved_when_due(run_of(spec, due, **more)).holds
    says(rotation.saved_when_due(run_of(spec, [1, *due], **more)), "a checkpoint at step 1, unexpected")
    if due:
        says(rotation.saved_when_due(run_of(spec, due[:-1], **more)), f"no checkpoint at step {due[-1]}")
        says(rotation.saved_when_due(run_of(spec, [*due, due[-1]], **more)), f"at step {due[-1]} was written twice")


EVALUATIONS = [(3, 4.0), (6, 5.0), (9, 5.0), (10, 5.0)]


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, False, [[3], [3, 6], [3, 6, 9], [3, 6, 9, 10]]),
        (1, False, [[3], [6], [9], [10]]),
        (2, False, [[3], [3, 6], [6, 9], [9, 10]]),
        (2, True, [[3], [3, 6], [3, 9], [3, 10]]),
        (1, True, [[3], [3, 6], [3, 9], [3, 10]]),
        (3, True, [[3], [3, 6], [3, 6, 9], [3, 9, 10]]),
    ],
)
def test_rotation_that_deletes_another_checkpoint_is_named(limit, best, left):
    spec = TEN.but(save_total_limit=limit, metric_for_best_model="loss" if best else None)
    steps = [3, 6, 9, 10]
    assert rotation.rotated(run_of(spec, steps, evaluations=EVALUATIONS, siblings=left)).holds
    wrong = [*left[:-1], [6, 10]]
    says(
        rotation.rotated(run_of(spec, steps, evaluations=EVALUATIONS, siblings=wrong)),
        f"after the save at step 10: [6, 10] are left, expected {left[-1]}",
    )


def test_what_is_left_is_what_lies_there(tmp_path):
    for name in ("checkpoint-2", "checkpoint-10", "runs"):
        (tmp_path / name).mkdir()
    assert rotation.left_at_the_end(made_up(directory=str(tmp_path))) == [2, 10]
