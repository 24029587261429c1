"""Tests of harness/laws/loss.py and recompute.py: a right trace holds, and each wrong loss or gradient is named."""

import copy
import functools
import math

import pytest
import torch

from harness.fixtures import data, models
from harness.fixtures.plain_loss import every_third_ignored
from harness.laws import loss
from harness.laws.recompute import BATCHES, GIVEN, Recomputed
from harness.processes.imports import import_upstream
from harness.runs.scenarios import PLAIN, RANDOM_B, STILL_RAGGED
from harness.subjects.hf_trainer import inject
from harness.trace import MicroBatch, Step, Trace
from harness.verdict import NOT_COMPARABLE
from tests.traces import made_up

SPEC = STILL_RAGGED.but(max_steps=2, lora=RANDOM_B)


@functools.cache
def honest():
    """Return a right trace of SPEC: two steps of two micro-batches, their losses and gradients in float32."""
    import_upstream()
    model = inject(models.build(SPEC.model), SPEC.adapter)
    named = {n.removeprefix("base_model.model.").replace(".default", ""): p for n, p in model.named_parameters()}
    adapter = {name: p.detach().clone() for name, p in named.items() if p.requires_grad}
    trace = Trace(SPEC, "made-up", {}, adapter_before=adapter, adapter=adapter, trainable=list(adapter))
    rows = data.rows(SPEC.data)[0]
    for number in (1, 2):
        chosen = [list(range(start, start + 4)) for start in (8 * number - 8, 8 * number - 4)]
        tokens = sum(label != -100 for batch in chosen for row in batch for label in rows[row]["labels"][1:])
        model.zero_grad()
        batches = []
        for batch in chosen:
            ids, labels = (torch.tensor([rows[row][key] for row in batch]) for key in ("input_ids", "labels"))
            share = cross_entropy(model(input_ids=ids).logits, labels) / tokens
            share.backward()
            batches.append(MicroBatch(batch, tokens=0, num_items=float(tokens), loss=share.item()))
        gradients = {name: named[name].grad.clone() for name in adapter}
        trace.steps.append(Step(number, batches, [0.0], gradients, gradients))
        trace.log_history.append({"step": number, "loss": sum(batch.loss for batch in batches)})
    trace.output = {"global_step": 2}
    return trace


def cross_entropy(logits, labels):
    """Return the loss summed over next tokens, by torch's own function, so that it is independent of the law's formula."""
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100, reduction="sum"
    )


def changed(change):
    trace = copy.deepcopy(honest())
    change(trace)
    return trace


def test_an_honest_trace_holds():
    assert loss.window_mean(honest()).holds
    assert loss.window_mean(honest(), GIVEN).holds


def _scaled(factor):
    def scale(trace):
        trace.steps[1].gradients = {name: g * factor for name, g in trace.steps[1].gradients.items()}

    return scale


def _one_element(trace):
    next(iter(trace.steps[0].gradients.values()))[0, 0] += 1e-5


def _lost(trace):
    trace.steps[0].gradients.popitem()


def _logged(trace):
    trace.log_history[0]["loss"] *= 1.001


def _not_logged(trace):
    del trace.log_history[0]


def _nan(trace):
    next(iter(trace.steps[0].gradients.values()))[0, 0] = math.nan


def _other_rows(trace):
    trace.steps[0].batches[0].rows = [30, 31, 32, 33]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_scaled(0.25), "step 2: the gradient is 0.25 times what it must be"),
        (_scaled(1.27), "step 2: the gradient is 1.27 times what it must be"),
        (_one_element, "step 1: gradient of model.layers.0.self_attn.q_proj.lora_A.weight differs by 1e-05"),
        (_lost, "is missing"),
        (_logged, "step 1: logged loss"),
        (_not_logged, "step 1: no loss was logged"),
        (_nan, "differs by inf"),
        (_other_rows, "step 1: logged loss"),
        (lambda trace: setattr(trace, "error", "ValueError: no"), "the run ended with ValueError: no"),
    ],
)
def test_a_wrong_gradient_or_loss_is_seen_and_named(change, words):
    verdict = loss.window_mean(changed(change))
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


def test_a_wrong_count_is_named_before_what_it_does():
    def miscounted(trace):
        for step in trace.steps:
            for batch in step.batches:
                batch.num_items += 8
        _scaled(0.9)(trace)

    seen = loss.window_mean(changed(miscounted)).seen
    assert seen[0].startswith("step 2: the model was given num_items_in_batch")
    assert "labels are predicted" in seen[0]
    assert not loss.window_mean(changed(miscounted), GIVEN).holds


@pytest.mark.parametrize("otherwise", [{"mean": BATCHES}, {"smoothing": 0.1}, {"targets": every_third_ignored}])
def test_another_normalisation_is_another_gradient(otherwise):
    assert not loss.window_mean(honest(), **otherwise).holds


def test_a_run_with_dropout_cannot_be_computed_anew():
    verdict = loss.window_mean(made_up(PLAIN))
    assert verdict.outcome == NOT_COMPARABLE
    assert "dropout" in verdict.seen[0]


def a_layer_that_raises(monkeypatch, words):
    """Have each adapted layer of LoRA raise RuntimeError in float64."""
    from peft.tuners.lora import Linear

    computes = Linear.forward

    def forward(self, x, *args, **options):
        if x.dtype == torch.float64:
            raise RuntimeError(words)
        return computes(self, x, *args, **options)

    monkeypatch.setattr(Linear, "forward", forward)


@pytest.mark.parametrize(
    "words",
    [
        "expected m1 and m2 to have the same dtype, but got: float != double",
        "mat1 and mat2 must have the same dtype, but got Float and Double",
        "expected scalar type Double but found Float",
    ],
)
def test_a_method_that_does_not_compute_in_float64_is_not_judged(monkeypatch, words):
    a_layer_that_raises(monkeypatch, words)
    verdict = loss.window_mean(honest())
    assert verdict.outcome == NOT_COMPARABLE
    assert verdict.seen == (f"LORA does not compute in float64 ({words})",)


def test_another_error_of_the_recomputation_is_no_reason(monkeypatch):
    a_layer_that_raises(monkeypatch, "mat1 and mat2 shapes cannot be multiplied (16x64 and 32x8)")
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        loss.window_mean(honest())


def test_the_first_step_alone_is_judged_where_the_adapter_moves():
    moving = changed(lambda trace: setattr(trace, "spec", SPEC.but(learning_rate=1e-2)))
    assert loss.window_mean(moving).measured["steps"] == 1


def test_virtual_tokens_predict_the_first_label_too():
    import_upstream()
    adapter = {"peft_type": "PROMPT_TUNING", "config": {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}}
    spec = PLAIN.but(adapter=adapter)
    model = inject(models.build(spec.model), spec.adapter)
    prompt = {"prompt_embeddings": model.prompt_encoder["default"].embedding.weight.detach()}
    rows = data.rows(spec.data)[0][:2]
    ids, labels = (torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels"))
    anew = Recomputed(spec, prompt)
    batch = MicroBatch([0, 1], tokens=0)
    seen, _ = anew.window([batch])
    assert anew.tokens([batch]) == 32
    with torch.no_grad():
        assert abs(seen - float(model.eval()(input_ids=ids, labels=labels).loss)) < 1e-5


def test_four_digits_in_every_logged_loss_are_taken_for_rounding():
    def rounded(trace):
        for entry in trace.log_history:
            entry["loss"] = round(entry["loss"], 4)

    assert loss.window_mean(changed(rounded)).holds
    assert loss.logged_rounding(honest()) == 0.0


# ---- labels given to the model, losses that are not finite ----


def without_labels():
    trace = made_up()
    for step in trace.steps:
        step.batches[0].tokens, step.batches[0].loss = 0, None
    return trace


def test_labels_given_to_the_model_are_seen():
    assert loss.labels_taken(without_labels()).holds
    assert "step 1: the model was given 30 labels" in loss.labels_taken(made_up()).seen
    returned = without_labels()
    returned.steps[2].batches[0].loss = 5.0
    assert loss.labels_taken(returned).seen == ("step 3: the model returned the loss 5",)


def nan_at(step, logged, total):
    trace = made_up()
    trace.steps[step - 1].batches[0].loss = math.nan
    trace.log_history[step - 1]["loss"] = logged
    trace.output["training_loss"] = total
    return trace


def test_a_loss_that_is_not_finite_must_show():
    assert loss.nonfinite_shows(nan_at(3, math.nan, math.nan)).holds
    hidden = loss.nonfinite_shows(nan_at(3, 0.0, 2.2))
    assert hidden.seen[0] == "step 3: a micro-batch's loss is not finite, but 0.0 is logged"
    assert hidden.seen[1].startswith("training_loss is 2.2")


def test_a_run_of_finite_losses_is_no_evidence():
    assert "nothing could show" in loss.nonfinite_shows(made_up()).seen[0]
