"""LOSS: which loss is minimised, and by what it is divided."""

from typing import Any

import pytest
import torch

from harness import lacking
from harness.fixtures.plain_loss import every_third_ignored, mean_loss_trainer
from harness.laws import loss
from harness.laws.equal import equal_runs
from harness.laws.recompute import BATCHES, GIVEN
from harness.runs.scenarios import PLAIN, RANDOM_B, STILL, STILL_RAGGED, STILL_SHORT_WINDOW, by_route, cases, over
from harness.session.state import skip_if
from harness.spec import ADD
from harness.subjects.hf_trainer import HFTrainer, recorded_warnings
from harness.tolerance import ORACLE
from harness.verdict import both, same, verdict

PROMPT: dict[str, Any] = {"peft_type": "PROMPT_TUNING", "config": {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}}
SMOOTHED = STILL_RAGGED.but(label_smoothing_factor=0.1, gradient_accumulation_steps=None)
CLASSIFIER = PLAIN.but(
    model={"family": "bert-classifier"},
    lora={"target_modules": ["query", "value"], "task_type": "SEQ_CLS"},
    label_smoothing_factor=0.1,
)

#: Collators that put several rows into one sequence, or pad each batch to its own longest row.
COLLATORS: dict[str, Any] = {
    "packed": ["harness.fixtures.collators:packed", {"length": 40}],
    "padding-free": "harness.fixtures.collators:padding_free",
    "padded-by-batch": "harness.fixtures.collators:for_seq2seq",
}

#: After one step, the adapter is so large that the forward pass overflows.
OVERFLOW = PLAIN.but(learning_rate=1e36, lora={"lora_alpha": 10**6})


@pytest.mark.clause("LOSS-01")
@over(
    by_route(
        {
            "full-rows": STILL,
            "ragged": STILL_RAGGED,
            "ragged-random-b": STILL_RAGGED.but(lora=RANDOM_B),
            "gpt2": STILL.but(model={"family": "gpt2"}, lora={"target_modules": ["c_attn"], "fan_in_fan_out": True}),
        }
    )
    | {"prompt-tuning": PLAIN.but(adapter=PROMPT)}
    | {name: STILL_RAGGED.but(trainer={"data_collator": collator}) for name, collator in COLLATORS.items()}
    | {"eager": STILL_RAGGED.but(model={"attn_implementation": "eager"})}
)
def test_a_step_is_the_mean_over_the_tokens_of_its_window(trace, judge):
    judge(loss.window_mean(trace))


@pytest.mark.clause("LOSS-02")
@over(
    by_route(
        {"shift-labels": STILL_RAGGED.but(trainer={"data_collator": "harness.fixtures.plain_loss:shifted_collator"})}
    )
)
def test_shift_labels_of_a_collator_are_the_targets_and_are_counted(trace, judge):
    judge(loss.window_mean(trace, targets=every_third_ignored))


@pytest.mark.clause("LOSS-03")
@over(by_route({f"window-of-{count}": STILL.but(gradient_accumulation_steps=count) for count in (2, 5)}))
def test_a_normalised_loss_is_not_divided_again(trace, judge):
    judge(loss.window_mean(trace, GIVEN))


@pytest.mark.clause("LOSS-03")
@cases(by_route({"batch-mean": STILL_SHORT_WINDOW}))
def test_a_batch_mean_is_divided_once_by_the_micro_batches_of_its_window(spec, upstream, runs, judge):
    skip_if(lacking.loss_switch(upstream.trainer_class))
    trace = runs.train(spec, HFTrainer(mean_loss_trainer()))
    judge(loss.window_mean(trace, BATCHES))


@pytest.mark.clause("LOSS-04")
@over(by_route({"smoothed": SMOOTHED, "smoothed-random-b": SMOOTHED.but(lora=RANDOM_B)}))
def test_label_smoothing_mixes_in_the_mean_over_the_vocabulary(trace, judge):
    judge(loss.window_mean(trace))


@pytest.mark.clause("LOSS-04")
@cases({"routes": PLAIN.but(label_smoothing_factor=0.1)})
def test_label_smoothing_is_the_same_through_both_routes(spec, train, judge):
    judge(equal_runs(train(spec), train(spec.but(adapter={"route": ADD}))))


@pytest.mark.clause("LOSS-05")
@over(by_route({"smoothed": SMOOTHED}))
def test_with_label_smoothing_the_model_runs_without_labels(trace, judge):
    judge(loss.labels_taken(trace))


@pytest.mark.clause("LOSS-05")
@over(by_route({"subclass-of-a-causal-model": SMOOTHED.but(model={"family": "harness.fixtures.plain_loss:llama"})}))
def test_label_smoothing_shifts_the_labels_of_any_causal_model(trace, judge):
    judge(loss.window_mean(trace, mean=BATCHES))


@pytest.mark.clause("LOSS-05")
@cases(by_route({"classifier": CLASSIFIER}))
def test_label_smoothing_does_not_shift_the_labels_of_a_classifier(spec, upstream, tmp_path, judge):
    seen, logits, labels = classifier_loss(upstream.build(spec, tmp_path), torch.tensor([0, 1, 1]))
    negative = -torch.log_softmax(logits.double(), dim=-1)
    expected = (0.9 * negative[range(3), labels] + 0.1 * negative.mean(-1)).mean()
    judge(near("smoothed loss of the classifier", seen, expected))


@pytest.mark.clause("LOSS-06")
@over({"prompt-tuning": PLAIN.but(adapter=PROMPT, label_smoothing_factor=0.1)})
def test_label_smoothing_works_with_prompt_learning(trace, judge):
    judge(loss.window_mean(trace))


@pytest.mark.clause("LOSS-07")
@cases(by_route({"multi-label": CLASSIFIER.but(model={"config": {"problem_type": "multi_label_classification"}})}))
def test_multi_label_classification_warns_and_trains_with_its_own_loss(spec, upstream, tmp_path, judge):
    warnings: list[str] = []
    with recorded_warnings(warnings):
        trainer = upstream.build(spec, tmp_path)
    warned = any("Label smoothing is not compatible with multi-label classification" in one for one in warnings)
    seen, logits, labels = classifier_loss(trainer, torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]))
    scores = logits.double()
    expected = (torch.nn.functional.softplus(scores) - scores * labels).mean()
    judge(both(same("warned of label smoothing", warned, True), near("binary cross entropy", seen, expected)))


@pytest.mark.clause("LOSS-08")
@over(
    by_route(
        {"loss-function": STILL_RAGGED.but(trainer={"compute_loss_func": "harness.fixtures.plain_loss:window_loss"})}
    )
)
def test_compute_loss_func_has_the_last_word(trace, judge):
    judge(both(loss.labels_taken(trace), loss.window_mean(trace, GIVEN)))


@pytest.mark.clause("LOSS-10")
@over(
    {
        "default": OVERFLOW,
        "logging_nan_inf_filter-off": OVERFLOW.but(logging_nan_inf_filter=False),
    }
)
def test_a_loss_that_is_not_finite_shows(trace, judge):
    judge(loss.nonfinite_shows(trace))


def classifier_loss(trainer, labels):
    """Return the Trainer's loss of three short rows in eval mode, with its logits and labels."""
    model = trainer.model.eval()
    place = trainer.args.device
    inputs = {
        "input_ids": torch.tensor([[5, 6], [7, 8], [9, 10]], device=place),
        "attention_mask": torch.ones(3, 2, dtype=torch.long, device=place),
    }
    with torch.no_grad():
        seen = trainer.compute_loss(model, {**inputs, "labels": labels.to(place)})
        return float(seen), model(**inputs).logits.cpu(), labels


def near(what, seen, expected):
    """Compare a loss in float32 with one in float64."""
    findings = [] if abs(seen - float(expected)) <= ORACLE.loss else [f"{seen:.9g}, expected {float(expected):.9g}"]
    return verdict(f"{what}: {float(expected):.9g}", findings)
