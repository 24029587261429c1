"""EVAL: what an evaluation reports, and what it leaves behind."""

from typing import Any

import pytest

from harness.environment import REPACKS, repacks
from harness.fixtures import data, metrics
from harness.laws import evaluation
from harness.runs.scenarios import PLAIN, by_route, cases, over
from harness.spec import ADD
from harness.verdict import both, same

#: Ten rows of 6 to 16 tokens in batches of 4, 4 and 2, after steps 2 and 4.
RAGGED = PLAIN.but(
    data={"eval_rows": 10, "min_length": 6},
    max_steps=4,
    per_device_eval_batch_size=4,
    eval_strategy="steps",
    eval_steps=2,
)
SAVED = RAGGED.but(save_strategy="steps", save_steps=2)
NO_DROPOUT = RAGGED.but(lora={"lora_dropout": 0.0})
COUNTS = {"compute_metrics": "harness.fixtures.metrics:counts"}
NO_TASK_TYPE = RAGGED.but(lora={"task_type": None}, trainer=COUNTS)
#: A metric that is not reported.
MISSING = SAVED.but(metric_for_best_model="accuracy")

GPT2: dict[str, Any] = {"model": {"family": "gpt2"}, "lora": {"target_modules": ["c_attn"]}}
CHECKPOINTING: dict[str, Any] = {
    "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {"use_reentrant": False},
}
#: Two steps an epoch.
EACH_EPOCH: dict[str, Any] = {"data": {"rows": 8}, "eval_strategy": "epoch", "eval_steps": None}
#: Three steps an epoch, and a third epoch that is cut short.
EPOCHS: dict[str, Any] = {"eval_strategy": "epoch", "eval_steps": None, "max_steps": 8}


#: When evaluations are due: a delay that is no multiple of eval_steps, and one that cuts off the first epoch.
DUE = {
    "steps": RAGGED,
    "delayed-steps": RAGGED.but(eval_steps=1, eval_delay=3),
    "delayed-past-the-start": RAGGED.but(eval_delay=1.5, eval_on_start=True),
    "delayed-past-the-end": RAGGED.but(eval_delay=9),
    "delayed-epochs": RAGGED.but(data={"rows": 10}, **EPOCHS, eval_delay=2),
    "epochs": RAGGED.but(data={"rows": 10}, **EPOCHS),
}


# ---- when ----


@pytest.mark.clause("EVAL-10")
@over(by_route({"plain": RAGGED}) | DUE)
def test_evaluations_happen_when_they_are_due(trace, judge):
    judge(evaluation.evaluated_when_due(trace))


# ---- eval_loss ----


@pytest.mark.clause("EVAL-01")
@over(
    by_route(
        {
            "ragged": SAVED,
            "ignored-labels": SAVED.but(data={"ignored": 0.3}),
            "label-smoothing": SAVED.but(label_smoothing_factor=0.1),
        }
    )
    | {
        "one-batch": SAVED.but(per_device_eval_batch_size=16),
        "row-by-row": SAVED.but(per_device_eval_batch_size=1),
        "before-the-first-step": SAVED.but(eval_on_start=True),
        "with-predictions": SAVED.but(trainer=COUNTS),
        "gpt2": SAVED.but(**GPT2),
    }
)
def test_eval_loss_is_weighted_by_rows(trace, judge):
    judge(evaluation.losses(trace))


@pytest.mark.clause("EVAL-09")
@over(by_route({"llama": NO_TASK_TYPE, "gpt2": NO_TASK_TYPE.but(**GPT2)}))
def test_a_config_without_task_type_is_evaluated_as_any_other(trace, judge):
    judge(both(evaluation.reported(trace, [2, 4], "eval_rows", "eval_labels"), evaluation.counted(trace)))


# ---- the state after an evaluation ----


@pytest.mark.clause("EVAL-04")
@cases(
    by_route({"each-second-step": NO_DROPOUT})
    | {
        "each-epoch": NO_DROPOUT.but(**EACH_EPOCH),
        "before-the-first-step": NO_DROPOUT.but(eval_on_start=True),
        "with-predictions": NO_DROPOUT.but(trainer=COUNTS),
        "accumulation": NO_DROPOUT.but(gradient_accumulation_steps=2),
        "bf16": NO_DROPOUT.but(bf16=True),
        "checkpointing": NO_DROPOUT.but(**CHECKPOINTING),
        "int8": NO_DROPOUT.but(model={"quantization": "int8"}),
    }
)
def test_a_run_with_evaluations_is_the_run_without(spec, train, judge):
    judge(evaluation.leaves_no_trace(train(spec), train(without_evaluations(spec))))


@pytest.mark.clause("EVAL-04")
@pytest.mark.parametrize("repacked", [pytest.param(False, id="nf4"), pytest.param(True, id="nf4/avx512-bf16")])
def test_a_4_bit_base_is_not_changed_by_evaluations(repacked, runs, train, judge):
    if repacked != repacks(runs.device):
        pytest.skip(REPACKS)
    spec = NO_DROPOUT.but(model={"quantization": "nf4"})
    judge(evaluation.leaves_no_trace(train(spec), train(without_evaluations(spec))))


def without_evaluations(spec):
    return spec.but(eval_strategy="no", eval_on_start=None)


@pytest.mark.clause("EVAL-04")
@pytest.mark.parametrize(
    ("spec", "events", "passes"),
    [
        pytest.param(RAGGED, [("step_end", 2)], 2, id="each-second-step"),
        pytest.param(RAGGED.but(adapter={"route": ADD}), [("step_end", 2)], 2, id=f"each-second-step/{ADD}"),
        pytest.param(RAGGED.but(**EACH_EPOCH), [("epoch_end", 1)], 2, id="each-epoch"),
        pytest.param(
            RAGGED.but(eval_on_start=True), [("train_begin", 1), ("step_end", 2)], 3, id="before-the-first-step"
        ),
        pytest.param(RAGGED.but(trainer=COUNTS), [("step_end", 2)], 2, id="with-predictions"),
        pytest.param(RAGGED.but(per_device_eval_batch_size=1), [("step_end", 2)], 2, id="row-by-row"),
        pytest.param(
            RAGGED.but(train_sampling_strategy="group_by_length"), [("step_end", 2)], 2, id="grouped-by-length"
        ),
    ],
)
def test_with_dropout_an_evaluation_counts_as_one_number_drawn(spec, events, passes, train, judge):
    callbacks = [["harness.fixtures.metrics:draws", {"at": at, "every": every}] for at, every in events]
    drawn = without_evaluations(spec).but(trainer={"compute_metrics": None, "callbacks": callbacks})
    judge(evaluation.draws_one_number(train(spec), train(drawn), passes))


# ---- what compute_metrics is given ----


class Kept:
    """A compute_metrics that stores its argument and reports nothing."""

    def __init__(self):
        self.given = []

    def __call__(self, prediction):
        self.given.append(prediction)
        return {}


@pytest.mark.clause("EVAL-05")
@cases(by_route({"plain": RAGGED}) | {"gathered-every-batch": RAGGED.but(eval_accumulation_steps=1)})
def test_all_predictions_and_labels_are_given_in_order(spec, upstream, tmp_path, judge):
    import torch

    trainer, kept = upstream.build(spec.but(max_steps=2), tmp_path), Kept()
    trainer.compute_metrics = kept
    trainer.train()
    rows, outputs = data.rows(spec.data)[1], []
    for batch in evaluation.batches(spec):
        chosen = [rows[row - spec.data.rows] for row in batch]
        names, device = ("input_ids", "attention_mask"), trainer.model.device
        inputs = {name: torch.tensor([row[name] for row in chosen], device=device) for name in names}
        with torch.no_grad():
            outputs.append(trainer.model.eval()(**inputs)["logits"].cpu())
    given = kept.given[-1]
    judge(
        evaluation.same_predictions(
            {"logits": torch.tensor(given.predictions), "labels": torch.tensor(given.label_ids)},
            {"logits": torch.cat(outputs), "labels": torch.tensor([row["labels"] for row in rows])},
        )
    )


LOGITS, HIDDEN = (10, 16, 256), (10, 16, 64)


@pytest.mark.clause("EVAL-05")
@pytest.mark.parametrize("how", ["evaluate", "train"])
@pytest.mark.parametrize(
    ("config", "keys", "expected"),
    [
        pytest.param({}, None, LOGITS, id="default"),
        pytest.param({"use_cache": True}, None, LOGITS, id="cache-left-out-by-default"),
        pytest.param({"output_hidden_states": True}, None, (LOGITS, (HIDDEN,) * 3), id="hidden-states"),
        pytest.param({"output_hidden_states": True}, ["hidden_states"], LOGITS, id="hidden-states-ignored"),
        pytest.param(
            {"output_hidden_states": True, "keys_to_ignore_at_inference": ["hidden_states"]},
            None,
            LOGITS,
            id="ignored-by-the-config",
        ),
        pytest.param(
            {"output_hidden_states": True, "keys_to_ignore_at_inference": ["hidden_states"]},
            ["logits"],
            (HIDDEN,) * 3,
            id="keys-replace-the-config's",
        ),
        pytest.param({}, ["logits"], (), id="nothing-left"),
    ],
)
def test_keys_to_ignore_are_left_out_of_the_predictions(config, keys, expected, how, upstream, tmp_path, judge):
    # By add_adapter: a PeftModel asks for no hidden states, whatever the config says.
    trainer, kept = upstream.build(RAGGED.but(adapter={"route": ADD}, max_steps=2), tmp_path), Kept()
    trainer.compute_metrics = kept
    for name, value in {"use_cache": False, **config}.items():
        setattr(trainer.model.config, name, value)
    if how == "train":
        trainer.train(ignore_keys_for_eval=keys)
    else:
        trainer.evaluate(ignore_keys=keys)
    judge(same("shapes of the predictions", [shapes(one.predictions) for one in kept.given], [expected]))


def shapes(predictions):
    if isinstance(predictions, (tuple, list)):
        return tuple(shapes(one) for one in predictions)
    return tuple(predictions.shape)


# ---- which metrics there are ----


@pytest.mark.clause("EVAL-06")
@over(by_route({"plain": RAGGED}))
def test_without_compute_metrics_the_loss_is_all_there_is(trace, judge):
    judge(evaluation.reported(trace, [2, 4]))


@pytest.mark.clause("EVAL-06")
@pytest.mark.parametrize(
    ("function", "batches"),
    [pytest.param(None, 0, id="no-compute-metrics"), pytest.param(metrics.counts, 3, id="compute-metrics")],
)
def test_predictions_are_gathered_for_compute_metrics_only(function, batches, upstream, tmp_path, judge):
    trainer, gathered = upstream.build(RAGGED, tmp_path), []
    trainer.compute_metrics = function
    trainer.preprocess_logits_for_metrics = lambda logits, labels: gathered.append(1) or logits
    trainer.evaluate()
    judge(same("batches whose predictions were gathered", len(gathered), batches))


@pytest.mark.clause("EVAL-06")
@over({"before-the-first-step": RAGGED.but(eval_on_start=True)})
def test_eval_on_start_evaluates_once_before_the_first_step(trace, judge):
    before = trace.events[: trace.events.index("step_begin")] if "step_begin" in trace.events else trace.events
    judge(
        both(
            evaluation.reported(trace, [0, 2, 4]),
            same("evaluations before the first step", before.count("evaluate"), 1),
        )
    )


@pytest.mark.clause("EVAL-06")
def test_each_of_several_evaluation_sets_has_metrics_of_its_own(upstream, tmp_path, judge):
    trainer = upstream.build(RAGGED.but(max_steps=2), tmp_path)
    rows = data.rows(RAGGED.data)[1]
    sets = {"first": data.dataset(rows[:4], RAGGED.data), "second": data.dataset(rows[4:], RAGGED.data)}
    trainer.eval_dataset = sets
    trainer.train()
    logged = {
        name: value for entry in trainer.state.log_history for name, value in entry.items() if name.startswith("eval_")
    }
    alone = {f"eval_{name}_loss": trainer.evaluate(eval_dataset=rows)["eval_loss"] for name, rows in sets.items()}
    judge(
        both(
            same("metrics logged in training", evaluation.plain_metrics(logged), alone),
            same("metrics of evaluate()", evaluation.plain_metrics(trainer.evaluate()), alone),
        )
    )


TIME = "eval_model_preparation_time"


@pytest.mark.clause("EVAL-07")
@pytest.mark.parametrize(
    ("before", "expected"), [pytest.param(True, True, id="evaluated"), pytest.param(False, False, id="not-evaluated")]
)
def test_an_evaluation_before_training_adds_its_preparation_time_for_good(before, expected, upstream, tmp_path, judge):
    trainer = upstream.build(RAGGED, tmp_path)
    reported = [trainer.evaluate()] if before else []
    trainer.train()
    reported += [entry for entry in trainer.state.log_history if "eval_loss" in entry] + [trainer.evaluate()]
    judge(same(f"evaluations with {TIME}", [TIME in one for one in reported], [expected] * len(reported)))


@pytest.mark.clause("EVAL-08")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        pytest.param(MISSING, ["eval_accuracy", "eval_loss"], id="loss-only"),
        pytest.param(MISSING.but(load_best_model_at_end=True), ["eval_accuracy", "eval_loss"], id="load-best"),
        pytest.param(MISSING.but(trainer=COUNTS), ["eval_accuracy", "eval_loss", "eval_rows"], id="other-metrics"),
    ],
)
def test_a_metric_that_is_not_reported_ends_the_run(spec, words, train, judge):
    trace = train(spec)
    steps = same("steps made", [step.number for step in trace.steps], [1, 2])
    judge(both(evaluation.ended_with(trace, "KeyError", *words), steps))
