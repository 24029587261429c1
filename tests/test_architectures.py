"""ModelSpec.family "config:MODEL_TYPE": the rows of FAMILIES are found by looking at the models."""

import dataclasses

import pytest

from harness.errors import UsageError
from harness.fixtures import models
from harness.fixtures.architectures import AUTO_CLASSES
from harness.fixtures.models import CAUSAL, CLASSIFICATION, FAMILIES
from harness.runs.scenarios import PLAIN
from harness.spec import ModelSpec, RunSpec

#: Rows whose model an Auto class makes -> its model_type.
TYPES = {
    "llama": "llama",
    "gpt2": "gpt2",
    "opt": "opt",
    "bert-classifier": "bert",
    "llama-classifier": "llama",
    "t5": "t5",
}
MOE = {
    **FAMILIES["llama"].config,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "head_dim": 8,
}


@pytest.mark.parametrize("name", TYPES)
def test_what_is_found_is_what_the_table_says(name):
    row = FAMILIES[name]
    found = models.family(ModelSpec(family=f"config:{TYPES[name]}", config=row.config, task=row.task))
    assert dataclasses.replace(found, config=row.config, targets=()) == dataclasses.replace(row, targets=())
    assert set(found.targets) == set(row.targets)
    assert row.config.items() <= found.config.items()


def test_a_mixture_of_experts_has_no_linear_layer_in_its_feed_forward_block():
    if "qwen3_moe" not in _types():
        pytest.skip("transformers before 4.51 has no qwen3_moe")
    spec = ModelSpec(family="config:qwen3_moe", config=MOE)
    found = models.family(spec)
    assert set(found.targets) == {"q_proj", "v_proj"}
    assert any(name.endswith(found.feedforward) for name, _ in models.build(spec).named_modules())
    assert found.normalises


def _types():
    import transformers

    return list(transformers.CONFIG_MAPPING.keys())


def test_weights_are_drawn_from_the_seed():
    spec = ModelSpec(family="config:llama", config=FAMILIES["llama"].config)
    one, other = models.build(spec), models.build(ModelSpec(family="llama"))
    for name, tensor in one.state_dict().items():
        assert tensor.equal(other.state_dict()[name]), name
    again = models.build(dataclasses.replace(spec, seed=1))
    assert not again.lm_head.weight.equal(one.lm_head.weight)


def test_the_task_is_that_of_the_rows():
    spec = PLAIN.but(model={"family": "config:llama"}, data={"task": CLASSIFICATION})
    assert spec.model.task == CLASSIFICATION and spec.but(data={"task": CAUSAL}).model.task == CAUSAL
    assert "task" not in spec.to_json()["model"]
    assert RunSpec.from_json(spec.to_json()) == spec
    assert set(AUTO_CLASSES) == set(models.TASK_TYPES)


@pytest.mark.parametrize(
    ("kind", "config", "task", "words"),
    [
        ("lama", {}, CAUSAL, "has no model_type 'lama'; did you mean 'llama'?"),
        ("vit", {}, CAUSAL, "has no AutoModelForCausalLM for 'vit'"),
        ("llama", {"vocab_size": 10**7, "hidden_size": 10**5, "num_attention_heads": 4}, CAUSAL, "GB of memory"),
        ("llama", {"vocab_size": "many"}, CAUSAL, "model, config: transformers"),
    ],
)
def test_what_transformers_cannot_make_gets_one_sentence(kind, config, task, words):
    with pytest.raises(UsageError) as caught:
        models.build(ModelSpec(family=f"config:{kind}", config=config, task=task))
    assert words in str(caught.value) and "\n" not in str(caught.value)
