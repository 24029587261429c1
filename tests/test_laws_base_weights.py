"""Which weights of the base a checkpoint may hold, and which adapters leave no base to compare with.

Each law that has learned to accept something is shown to fail still on what is wrong.
"""

import copy

import pytest
import torch

from harness.laws import base_weights, checkpoint, loss, rebuilt, universal
from harness.runs.scenarios import PLAIN, saving, spec_for
from harness.verdict import FAIL, NOT_COMPARABLE, PASS
from tests.checkpoints import says
from tests.traces import made_up, with_checkpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROWS = "model.embed_tokens.lora_embedding_A"


def of_embeddings(directory, saved, spec=None):
    """Return a run that adapts embed_tokens of an untied base, and has these frozen tensors in its checkpoint."""
    trace = made_up(spec)
    trace.trainable.append(ROWS)
    trace.adapter[ROWS] = trace.adapter_before[ROWS] = torch.ones(2, 8)
    trace.parameters |= {ROWS: ["float32", [2, 8]], EMBEDDING: ["float32", [8, 4]], HEAD: ["float32", [8, 4]]}
    trace.base |= {EMBEDDING: "45", HEAD: "67"}
    return with_checkpoint(trace, directory, 4, {**trace.adapter, **{name: torch.ones(8, 4) for name in saved}})


# ---- embeddings ----


def test_the_weight_of_an_adapted_embedding_may_be_saved(tmp_path):
    trace = of_embeddings(tmp_path, [EMBEDDING])
    assert base_weights.saved_beside(trace) == {EMBEDDING}
    assert checkpoint.adapter_only(trace).holds
    trace.adapter = dict(trace.checkpoints[0].adapter)
    del trace.adapter[EMBEDDING]
    assert checkpoint.every_adapter_saved(trace).holds


def test_the_weight_of_a_layer_that_is_not_adapted_may_not(tmp_path):
    trace = of_embeddings(tmp_path, [EMBEDDING, HEAD])
    says(checkpoint.adapter_only(trace), f"checkpoint-4: {HEAD} is saved, but was not trained")
    says(checkpoint.every_adapter_saved(trace), f"its file holds {HEAD}, which is not its own")


def test_the_whole_embedding_may_not_if_single_rows_are_trained(tmp_path):
    trace = of_embeddings(tmp_path, [EMBEDDING], PLAIN.but(lora={"trainable_token_indices": [1]}))
    says(checkpoint.adapter_only(trace), f"{EMBEDDING} is saved, but was not trained")


# ---- shared tensors, methods without a row ----

BANK = "model.layers.0.self_attn.q_proj.vblora_vector_bank"


def sharing(directory, saved):
    """Return a run that trains one tensor which two layers share, and saves these tensors."""
    adapter = {"peft_type": "VBLORA", "config": {}}
    trace = made_up(PLAIN.but(adapter=adapter), trainable=[BANK], shared=["base_model.vblora_vector_bank"])
    trace.adapter = {BANK: torch.ones(2, 2)}
    return with_checkpoint(trace, directory, 4, saved)


def test_a_shared_tensor_may_be_saved_under_any_of_its_names(tmp_path):
    trace = sharing(tmp_path, {"base_model.vblora_vector_bank": torch.ones(2, 2)})
    trace.checkpoints[0].adapter = {"base_model.vblora_vector_bank": torch.ones(2, 2)}
    assert checkpoint.adapter_only(trace).holds
    assert checkpoint.last_is_current(trace).holds
    trace.checkpoints[0].adapter = {"base_model.vblora_vector_bank": torch.zeros(2, 2)}
    says(checkpoint.last_is_current(trace), f"{BANK} differs")
    trace.checkpoints[0].adapter = {"base_model.vblora_logits": torch.ones(2, 2)}
    says(checkpoint.adapter_only(trace), f"no tensor for {BANK}")


def test_what_a_method_without_a_row_saves_of_its_own_is_not_judged(tmp_path):
    trace = sharing(tmp_path, {"lily_A": torch.ones(2)})
    trace.spec = PLAIN.but(adapter={"peft_type": "POLY", "config": {}})
    assert not base_weights.is_known(trace.spec.adapter)
    verdict = checkpoint.adapter_only(trace)
    assert verdict.outcome == NOT_COMPARABLE
    assert "adapter.peft_type = 'POLY'" in verdict.seen[0]
    trace.checkpoints[0].adapter[HEAD] = torch.ones(2)
    assert f"checkpoint-4: {HEAD} is saved, but was not trained" in checkpoint.adapter_only(trace).seen


# ---- adapters that change the base ----


@pytest.mark.parametrize(
    ("field", "value"),
    [("init_lora_weights", "pissa_niter_4"), ("init_lora_weights", "OLoRA"), ("layer_replication", [[0, 2], [1, 2]])],
)
def test_an_adapter_that_changes_the_base_is_not_compared_with_it(field, value):
    spec = PLAIN.but(lora={field: value})
    for verdict in (rebuilt.switched_off(made_up(spec)), universal.bystander(None, spec)):
        assert verdict.outcome == NOT_COMPARABLE
        assert f"adapter.config.{field}" in verdict.seen[0]


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "eva"])
def test_other_initial_values_leave_the_base_alone(start):
    assert base_weights.changed_by_injection(PLAIN.but(lora={"init_lora_weights": start}).adapter) is None


def test_what_peft_says_it_does_not_merge_is_not_judged():
    for lora in ({"lora_bias": True}, {"layer_replication": [[0, 2], [1, 2]]}):
        assert rebuilt.merged(made_up(PLAIN.but(lora=lora))).outcome == NOT_COMPARABLE


def test_a_model_that_raises_when_it_is_loaded_fails(tmp_path, monkeypatch, runs):
    trace = runs.train(saving(PLAIN.but(max_steps=1), every=1))
    assert rebuilt.reloads(trace).holds
    right = rebuilt.loaded

    def broken(*args):
        model = right(*args)
        model.forward = None
        return model

    monkeypatch.setattr(rebuilt, "loaded", broken)
    says(rebuilt.reloads(trace), "loaded: the model raises TypeError")


def test_the_base_of_another_adapter_that_changed_it_is_not_made_again():
    pissa = PLAIN.but(lora={"init_lora_weights": "pissa"})
    assert base_weights.changed_by_others(pissa.adapter) is None
    both = pissa.but(adapter={"others": {"second": {}}})
    judged = rebuilt.reloads(made_up(both))
    assert judged.outcome == NOT_COMPARABLE
    assert "of another adapter, adapter.config.init_lora_weights = 'pissa'" in judged.seen[0]
    # An adapter that starts as usual leaves the base alone.
    assert base_weights.changed_by_others(PLAIN.but(adapter={"others": {"second": {}}}).adapter) is None
    usual = pissa.but(adapter={"others": {"second": {"init_lora_weights": True}}})
    assert base_weights.changed_by_others(usual.adapter) is None


def test_a_checkpoint_before_the_last_step_is_not_compared_with_the_end(tmp_path):
    early = with_checkpoint(made_up(), tmp_path / "early", 2)
    judged = rebuilt.reloads(early)
    assert judged.outcome == NOT_COMPARABLE
    assert judged.seen == ("the last checkpoint is of step 2, not of the last step 4",)
    assert rebuilt.reloads(made_up()).outcome == FAIL


def test_what_unmerging_loses_grows_with_what_was_merged():
    base = {"weight": torch.full((2, 2), 0.05)}
    change = torch.full((2, 2), 7.3)
    sums = {"weight": base["weight"] + change}
    back = {"weight": sums["weight"] - change}
    assert not torch.equal(back["weight"], base["weight"])
    assert rebuilt.not_restored(back, base, sums) == []
    # As much after a small change, or a thousandth of the change left, is no rounding.
    assert rebuilt.not_restored(back, base, base)
    assert rebuilt.not_restored({"weight": sums["weight"] - 0.999 * change}, base, sums)


# ---- refusals ----


@pytest.mark.parametrize(
    ("error", "events", "outcome"),
    [
        ("ValueError: AdaLoraModel supports only 1 trainable adapter.", [], NOT_COMPARABLE),
        ("ValueError: AdaLoraModel supports only 1 trainable adapter.", ["init_end", "train_begin"], FAIL),
        ("RuntimeError: a view of a leaf", [], FAIL),
        (None, [], PASS),
    ],
)
@pytest.mark.parametrize("law", [universal.bystander, universal.both_routes])
def test_a_refusal_before_training_is_no_failure(law, error, events, outcome):
    spec = PLAIN.but(max_steps=4, per_device_train_batch_size=2)

    def train(asked):
        trace = made_up(spec)
        if asked != spec and error:
            trace.steps, trace.error, trace.events = [], error, events
        return trace

    verdict = law(train, spec)
    assert verdict.outcome == outcome, verdict.seen
    if outcome == NOT_COMPARABLE:
        assert "AdaLoraModel supports only 1 trainable adapter." in verdict.seen[0]


# ---- the loss of AdaLoRA, and of experts ----


@pytest.mark.parametrize("name", ["adalora", "experts"])
def test_the_loss_of_further_adapters_is_recomputed(name, runs):
    spec = spec_for("llama", "adalora") if name == "adalora" else spec_for("qwen3-moe")
    if name == "experts":
        spec = spec.but(lora={"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]})
    trace = copy.deepcopy(runs.train(spec.but(max_steps=1)))
    assert loss.window_mean(trace).holds
    (step,) = trace.steps
    wrong = next(tensor for key, tensor in step.gradients.items() if "lora_B" in key)
    wrong += 0.001
    assert not loss.window_mean(trace).holds
    trace.log_history[0]["loss"] -= 0.01
    says(loss.window_mean(trace), "step 1: logged loss")
