"""Tests of harness/laws/evaluation.py. Most use made-up traces; those of eval_loss use a real adapter."""

import copy

import pytest
import torch

from harness.fixtures.data import rows
from harness.laws import evaluation
from harness.laws.evaluation import batches, losses
from harness.processes.imports import import_upstream
from harness.runs.scenarios import PLAIN
from harness.subjects.hf_trainer import inject
from harness.trace import Evaluation
from harness.verdict import NOT_COMPARABLE
from tests.traces import A, made_up

SPEC = PLAIN.but(data={"rows": 4, "eval_rows": 5, "min_length": 6}, eval_strategy="steps", per_device_eval_batch_size=2)


def evaluated(steps=(2, 4), spec=None, **metrics):
    trace = made_up(spec)
    for step in steps:
        trace.evaluations.append(
            Evaluation(step, [[20]], {"eval_loss": 5.0, "eval_runtime": 0.1, "epoch": 1.0, **metrics})
        )
    return trace


# ---- eval_loss ----


@pytest.fixture(scope="module")
def before_training():
    """Return a trace with an evaluation before the first step. Its loss is computed here from the model's logits."""
    from harness.fixtures import models

    import_upstream()
    model = inject(models.build(SPEC.model), SPEC.adapter).eval()
    adapter = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(0.01)  # lora_B starts at zero, where no adapter would do as well
            adapter[name.removeprefix("base_model.model.").replace(".default", "")] = parameter.detach().clone()
    per_row = []
    for row in rows(SPEC.data)[1]:
        logits = model(torch.tensor([row["input_ids"]]), torch.tensor([row["attention_mask"]])).logits[0, :-1]
        wanted = torch.tensor(row["labels"][1:])
        each = torch.nn.functional.cross_entropy(logits.detach(), wanted, ignore_index=-100, reduction="none")
        per_row.append((float(each.sum()), int((wanted != -100).sum())))
    by_batch = [per_row[0:2], per_row[2:4], per_row[4:5]]
    means = [sum(loss for loss, _ in batch) / sum(count for _, count in batch) for batch in by_batch]
    trace = made_up(SPEC, adapter_before=adapter)
    metrics = {"eval_loss": (2 * means[0] + 2 * means[1] + means[2]) / 5}
    trace.evaluations.append(Evaluation(0, [[4, 5], [6, 7], [8]], metrics))
    trace.token_mean = sum(loss for loss, _ in per_row) / sum(count for _, count in per_row)  # type: ignore[attr-defined]
    return trace


def test_the_mean_weighted_by_rows_holds(before_training):
    judged = losses(before_training)
    assert judged.holds, judged.seen
    assert judged.measured["largest_distance_of_the_token_mean"] > 100 * judged.measured["largest_loss_difference"]


def test_the_mean_over_all_labels_does_not(before_training):
    trace = copy.deepcopy(before_training)
    trace.evaluations[0].metrics["eval_loss"] = before_training.token_mean
    (sentence,) = losses(trace).seen
    assert "evaluation at step 0: eval_loss" in sentence
    assert f"(weighted by tokens {before_training.token_mean:.6g}"[:-2] in sentence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda trace: trace.evaluations[0].rows.reverse(), "batches of rows [[8], [6, 7], [4, 5]]"),
        (lambda trace: trace.evaluations[0].rows.pop(), "batches of rows [[4, 5], [6, 7]]"),
        (lambda trace: trace.evaluations[0].metrics.clear(), "eval_loss nan"),
        (lambda trace: setattr(trace, "error", "ValueError: no"), "the run ended with ValueError: no"),
    ],
)
def test_other_rows_and_no_loss_are_seen(change, words, before_training):
    trace = copy.deepcopy(before_training)
    change(trace)
    judged = losses(trace)
    assert not judged.holds
    assert words in "\n".join(judged.seen)


def test_what_cannot_be_computed_anew_is_not_comparable():
    assert losses(made_up(SPEC.but(bf16=True))).outcome == NOT_COMPARABLE
    assert losses(evaluated([3], SPEC)).outcome == NOT_COMPARABLE


def test_batches_are_the_evaluation_rows_in_order():
    assert batches(SPEC) == [[4, 5], [6, 7], [8]]
    assert batches(SPEC.but(per_device_eval_batch_size=None)) == [[4, 5, 6, 7, 8]]


# ---- what an evaluation changes in the run ----


def test_a_run_that_is_the_same_without_evaluations_holds():
    assert evaluation.leaves_no_trace(evaluated(), made_up()).holds


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda trace: trace.evaluations.clear(), "nothing was evaluated"),
        (lambda trace: trace.adapter[A].add_(1e-6), f"adapter at the end: {A} differs by"),
        (lambda trace: trace.steps[2].gradients.pop(A), f"step 3: gradients of {A} is missing"),
        (lambda trace: trace.base.update({next(iter(trace.base)): "4567"}), "which is not trained, is another"),
        (lambda trace: setattr(trace, "error", "ValueError: no"), "the run ended with ValueError: no"),
    ],
)
def test_what_an_evaluation_changed_is_seen(change, words):
    trace = evaluated()
    change(trace)
    assert words in "\n".join(evaluation.leaves_no_trace(trace, made_up()).seen)


def test_another_number_of_draws_or_evaluations_is_seen():
    assert evaluation.draws_one_number(evaluated(), made_up(), 2).holds
    assert "2 evaluations, expected 3" in evaluation.draws_one_number(evaluated(), made_up(), 3).seen
    other = evaluated()
    other.steps[2].gradients[A] += 0.1
    assert f"step 3: gradients of {A}" in "\n".join(evaluation.draws_one_number(other, made_up(), 2).seen)


# ---- metrics ----


@pytest.mark.parametrize(
    ("trace", "words"),
    [
        (evaluated([2]), "evaluations at steps [2], expected [2, 4]"),
        (evaluated(eval_rows=1, eval_other=2), "evaluation at step 2: eval_other besides"),
        (evaluated(), "evaluation at step 4: no eval_rows among eval_loss"),
        (evaluated(eval_loss=float("nan"), eval_rows=1), "evaluation at step 2: eval_loss is nan"),
        (made_up(error="ValueError: no"), "the run ended with ValueError: no"),
    ],
)
def test_other_metrics_are_seen(trace, words):
    assert evaluation.reported(evaluated(eval_rows=1), [2, 4], "eval_rows").holds
    assert words in evaluation.reported(trace, [2, 4], "eval_rows").seen


def test_lost_rows_and_labels_are_seen():
    wanted = sum(label != -100 for row in rows(SPEC.data)[1] for label in row["labels"])
    assert evaluation.counted(evaluated(spec=SPEC, eval_rows=5, eval_labels=wanted)).holds
    fewer = evaluation.counted(evaluated([2], SPEC, eval_rows=4, eval_labels=wanted - 1))
    assert fewer.seen == (
        "evaluation at step 2: eval_rows is 4, expected 5",
        f"evaluation at step 2: eval_labels is {wanted - 1}, expected {wanted}",
    )
    assert "eval_rows is absent, expected 5" in evaluation.counted(evaluated(spec=SPEC)).seen[0]
    assert evaluation.counted(made_up(SPEC)).seen == ("nothing was evaluated",)


def test_predictions_in_another_order_are_seen():
    wanted = {"logits": torch.arange(6.0).reshape(3, 2)}
    assert evaluation.same_predictions(copy.deepcopy(wanted), wanted).holds
    assert "logits differs by 4" in evaluation.same_predictions({"logits": wanted["logits"].flip(0)}, wanted).seen[0]
    assert "logits is float32 (2, 2)" in evaluation.same_predictions({"logits": wanted["logits"][:2]}, wanted).seen[0]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (None, "no error: it made 4 steps"),
        ("ValueError: eval_accuracy", "the run ended with ValueError: eval_accuracy"),
        ("KeyError: 'accuracy'", "'eval_accuracy' is not in the message: KeyError: 'accuracy'"),
    ],
)
def test_an_error_that_says_something_else_is_seen(error, words):
    assert evaluation.ended_with(made_up(error="KeyError: no eval_accuracy"), "KeyError", "eval_accuracy").holds
    assert evaluation.ended_with(made_up(error=error), "KeyError", "eval_accuracy").seen == (words,)
