"""The tables of base models and adapter methods: names, rows, the oracle for each task, and pairs that do not fit."""

import copy

import pytest
import torch

from harness.errors import UsageError
from harness.fixtures import data, models
from harness.fixtures.methods import METHODS, misfit
from harness.fixtures.models import FAMILIES
from harness.laws import comparisons, frozen, loss, universal
from harness.laws.recompute import Recomputed, obstacles
from harness.processes.imports import import_upstream
from harness.runs.scenarios import PLAIN, saving, spec_for
from harness.spec import ADD, GET
from harness.subjects.hf_trainer import inject
from harness.tensors.names import canonical, is_adapter
from harness.trace import MicroBatch
from harness.verdict import NOT_COMPARABLE
from tests.traces import made_up, with_checkpoint

PAIRS = [(family, method) for family in FAMILIES for method in METHODS]


def injected(spec):
    import_upstream()
    return inject(models.build(spec.model), spec.adapter)


# ---- names ----

#: A name in memory, the key in the adapter file, and what both are called.
NAMES = {
    "ia3": ("mlp.down_proj.ia3_l.default", "mlp.down_proj.ia3_l", "mlp.down_proj.ia3_l"),
    "loha": ("q_proj.hada_w1_a.default", "q_proj.hada_w1_a", "q_proj.hada_w1_a"),
    "lokr": ("q_proj.lokr_w2.default", "q_proj.lokr_w2", "q_proj.lokr_w2"),
    "oft": ("q_proj.oft_R.default.weight", "q_proj.oft_R.weight", "q_proj.oft_R.weight"),
    "boft": ("q_proj.boft_s.default", "q_proj.boft_s", "q_proj.boft_s"),
    "vera": ("q_proj.vera_lambda_b.default", "q_proj.vera_lambda_b", "q_proj.vera_lambda_b"),
    "prompt-tuning": ("prompt_encoder.default.embedding.weight", "prompt_embeddings", "prompt_embeddings"),
    "p-tuning": (
        "prompt_encoder.default.mlp_head.0.bias",
        "prompt_encoder.mlp_head.0.bias",
        "prompt_encoder.mlp_head.0.bias",
    ),
}


@pytest.mark.parametrize("method", NAMES)
def test_a_tensor_has_one_name_in_memory_and_on_disk(method):
    memory, disk, name = NAMES[method]
    prefix = "" if METHODS[method].peft_type in ("PROMPT_TUNING", "P_TUNING") else "base_model.model."
    assert canonical(prefix + memory) == canonical(prefix + disk) == name
    assert canonical(prefix + memory, "foo") != name
    assert is_adapter(memory)


@pytest.mark.parametrize("method", METHODS)
def test_every_trainable_tensor_is_known_for_one_of_an_adapter(method):
    model = injected(spec_for("llama", method))
    assert [name for name, p in model.named_parameters() if p.requires_grad and not is_adapter(name)] == []


# ---- rows ----


def test_rows_of_a_classifier_have_one_label_each():
    rows, _ = data.rows(spec_for("bert-classifier").data)
    assert {row["labels"] for row in rows} == {0, 1}
    assert [row["labels"] for row in rows] == [row["input_ids"][0] % 2 for row in rows]


def test_an_unknown_task_is_refused():
    with pytest.raises(UsageError, match="data task 'regression' is none of causal, classification, seq2seq"):
        data.rows(PLAIN.but(data={"task": "regression"}).data)


#: Labels that a micro-batch of four rows of 16 tokens predicts.
@pytest.mark.parametrize(("family", "tokens"), [("llama", 60), ("bert-classifier", 4), ("t5", 64)])
def test_the_observer_counts_the_labels_that_are_predicted(family, tokens, runs):
    trace = runs.train(spec_for(family).but(max_steps=1))
    (batch,) = trace.steps[0].batches
    assert (batch.tokens, len(batch.rows)) == (tokens, 4)
    assert -1 not in batch.rows
    assert batch.num_items == tokens


def test_injection_leaves_the_spec_as_it_was():
    spec = spec_for("bert-classifier")
    kept = copy.deepcopy(spec)
    injected(spec)
    assert spec == kept


# ---- the oracle ----


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_computed_anew_is_the_models_own(family):
    spec = spec_for(family).but(data={"min_length": 6})
    model = injected(spec).eval()
    adapter = {canonical(n): p.detach() for n, p in model.named_parameters() if p.requires_grad}
    rows = data.rows(spec.data)[0][:3]
    inputs = {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
    seen, gradients = Recomputed(spec, adapter).window([MicroBatch([0, 1, 2], tokens=0)])
    with torch.no_grad():
        assert abs(seen - float(model(**inputs).loss)) < 1e-5
    assert set(gradients) == set(adapter)


@pytest.mark.parametrize("family", ["bert-classifier", "t5"])
def test_a_loss_twice_too_large_is_seen(family, runs):
    trace = copy.deepcopy(runs.train(spec_for(family).but(max_steps=1)))
    assert loss.window_mean(trace).holds
    trace.steps[0].gradients = {name: 2 * tensor for name, tensor in trace.steps[0].gradients.items()}
    assert "step 1: the gradient is 2 times what it must be" in loss.window_mean(trace).seen


@pytest.mark.parametrize("name", ["lora_dropout", "module_dropout", "encoder_dropout"])
def test_any_dropout_of_an_adapter_is_an_obstacle(name):
    assert obstacles(spec_for("llama").but(lora={name: 0.1}))
    assert not obstacles(spec_for("llama").but(lora={name: 0.0}))


# ---- what the laws say of which spec ----


def test_tokens_normalise_a_window_only_where_the_model_is_given_their_number():
    def judged(family, window):
        return "LOSS-01" in universal.laws_for(
            made_up(spec_for(family).but(gradient_accumulation_steps=window, save_strategy="no"))
        )

    assert [judged("llama", 2), judged("t5", 1), judged("t5", 2)] == [True, True, False]


def test_a_law_that_does_not_fit_says_so_and_trains_nothing():
    ragged = spec_for("t5").but(data={"min_length": 6}, gradient_accumulation_steps=2)
    # Drawn: batches of three and of one row, whose own means are not the mean over four.
    uneven = ragged.but(data={"min_length": None, "rows": 4}, per_device_train_batch_size=3)
    for law, spec in (
        (comparisons.splits, ragged),
        (comparisons.splits, uneven),
        (universal.both_routes, spec_for("llama", "prompt-tuning")),
    ):
        verdict = law(None, spec)
        assert verdict.outcome == NOT_COMPARABLE
        assert verdict.seen


def test_projections_of_vera_may_be_saved_and_of_no_other_method(tmp_path):
    def judged(method):
        trace = made_up(saving(spec_for("llama", method)))
        with_checkpoint(trace, tmp_path / method, 2, {**trace.adapter, "vera_A": torch.ones(2)})
        return universal.LAWS_OF_ONE_RUN["CKPT-25"](trace)

    assert judged("vera").holds
    assert "checkpoint-2: vera_A is saved, but was not trained" in judged("lora").seen


# ---- pairs that do not fit ----


@pytest.mark.parametrize(
    ("family", "method", "route"),
    [
        pytest.param(family, method, route, id=f"{family}/{method}/{route}")
        for family, method in PAIRS
        for route in (GET, ADD)
        if misfit(family, method, add_adapter=route == ADD) is not None
        # One base is enough to see what add_adapter refuses.
        and (route == GET or family == "llama")
    ],
)
def test_a_pair_that_is_left_out_is_refused_by_upstream(family, method, route, runs):
    trace = runs.train(spec_for(family, method, route).but(max_steps=1, save_strategy="steps", save_steps=1))
    assert trace.error
    # RandLoRA trains through add_adapter, and ends when it is saved.
    assert bool(trace.steps) == (method == "randlora")
    assert not trace.checkpoints


@pytest.mark.parametrize("method", METHODS)
def test_methods_merge_that_say_so(method):
    model = injected(spec_for("llama", method))
    assert hasattr(model, "merge_and_unload") == METHODS[method].mergeable


@pytest.mark.parametrize(
    ("peft_type", "config"),
    [
        ("VBLORA", {"num_vectors": 16, "vector_length": 8, "r": 2}),
        ("LILY", {"r": 8}),
    ],
)
def test_what_layers_share_of_an_adapter_is_no_part_of_the_base(runs, peft_type, config):
    adapter = {"peft_type": peft_type, "config": {**config, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}}
    trace = runs.train(spec_for("llama").but(adapter=adapter))
    assert frozen.base_frozen(trace).holds
    assert frozen.adapter_moved(trace).holds
    # It has a name in each layer, and is trained once.
    assert trace.shared and all(is_adapter(name) for name in trace.shared)
    assert not set(trace.shared) & set(trace.trainable)
