"""FRZ: which modules are adapted."""

import re
from typing import Any

import pytest

from harness.fixtures import models, tensor_shapes
from harness.laws.frozen import trainable_names, trains_exactly
from harness.runs.scenarios import PLAIN, by_route, cases
from harness.session.state import skip_if
from harness.spec import GET
from harness.subjects.hf_trainer import adapter_config, inject
from harness.tensors.names import canonical
from harness.verdict import raises, same

LLAMA = list(tensor_shapes.linears())
GPT2 = [
    f"transformer.h.{index}.{name}"
    for index in range(models.FAMILIES["gpt2"].config["n_layer"])
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
]
BERT = ["bert.pooler.dense"] + [
    f"bert.encoder.layer.{index}.{name}"
    for index in range(models.FAMILIES["bert-classifier"].config["num_hidden_layers"])
    for name in (
        *(f"attention.self.{name}" for name in ("query", "key", "value")),
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
]


def lora_of(paths):
    """Return the names of A and B of these modules."""
    return {f"{path}.{part}.weight" for path in paths for part in ("lora_A", "lora_B")}


def matching(pattern):
    return [path for path in LLAMA if re.search(pattern, path)]


def make(upstream, spec):
    skip_if(upstream.unsupported(spec))
    return inject(models.build(spec.model), spec.adapter)


def given(family="llama", **config):
    """Return a spec with exactly this LoraConfig."""
    return PLAIN.but(model={"family": family}, adapter={"config": {"r": 4, **config}})


FOUR = {"config": {"num_hidden_layers": 4}}
FOUR_LAYERS = list(tensor_shapes.linears(FOUR["config"]))
#: A spec, and the modules that it adapts.
NAMED = {
    "suffixes": (given(target_modules=["q_proj", "v_proj"]), matching("[qv]_proj$")),
    "path": (given(target_modules=["model.layers.0.self_attn.q_proj"]), matching("0.self_attn.q_proj$")),
    "pattern": (given(target_modules=r".*layers\.1\..*\.(q|k)_proj"), matching("1.self_attn.[qk]_proj$")),
    "layers_to_transform": (
        given(target_modules=["q_proj", "v_proj"], layers_to_transform=[1]),
        matching("1.self_attn.[qv]_proj$"),
    ),
    "exclude_modules": (
        given(target_modules=["q_proj", "v_proj"], exclude_modules=["layers.0.self_attn.v_proj"]),
        matching("q_proj$|1.self_attn.v_proj$"),
    ),
    "all-linear": (given(target_modules="all-linear"), LLAMA),
    # From twenty names on, peft looks for fewer names that match the same modules. For three layers of four there are none.
    "every-path": (given(target_modules=FOUR_LAYERS).but(model=FOUR), FOUR_LAYERS),
    "paths-of-three-layers": (given(target_modules=FOUR_LAYERS[:21]).but(model=FOUR), FOUR_LAYERS[:21]),
    "all-linear/gpt2": (given("gpt2", target_modules="all-linear"), GPT2),
}


def with_expected(table):
    """Parametrize a test with (spec, expected) of a table, by both routes."""
    by_name = by_route({name: spec for name, (spec, _) in table.items()})
    return [pytest.param(spec, table[id.removesuffix("/add_adapter")][1], id=id) for id, spec in by_name.items()]


@pytest.mark.clause("FRZ-14")
@pytest.mark.parametrize(("spec", "paths"), with_expected(NAMED))
def test_adapters_sit_on_the_modules_that_are_named(spec, paths, upstream, judge):
    judge(trains_exactly(trainable_names(make(upstream, spec)), lora_of(paths)))


@pytest.mark.clause("FRZ-14")
@cases(by_route({"nowhere": given(target_modules=["nowhere"])}))
def test_names_that_no_module_has_are_refused(spec, upstream, judge):
    judge(raises("injection", ValueError, "not found in the base model", lambda: make(upstream, spec)))


@pytest.mark.clause("FRZ-14")
@cases(by_route({"all-linear/second": given(target_modules="all-linear")}))
def test_a_second_adapter_sits_on_the_same_modules(spec, upstream, judge):
    model = make(upstream, spec)
    config = adapter_config("LORA", {"r": 4, "target_modules": "all-linear"})
    if spec.adapter.route == GET:
        model.add_adapter("second", config)
    else:
        model.add_adapter(config, adapter_name="second")
    of_second = [canonical(name, "second") for name, _ in model.named_parameters() if ".second." in name]
    judge(same("tensors of the second adapter", set(of_second), lora_of(LLAMA)))


# ---- the head of the task ----

LLAMA_CLASSIFIER = "llama-classifier"
SEQ_CLS: dict[str, Any] = {"target_modules": "all-linear", "task_type": "SEQ_CLS"}
HEADS = {
    "bert": (given("bert-classifier", **SEQ_CLS), {*lora_of(BERT), "classifier.weight", "classifier.bias"}),
    "llama": (given(LLAMA_CLASSIFIER, **SEQ_CLS), {*lora_of(LLAMA), "score.weight"}),
}


@pytest.mark.clause("FRZ-14")
@pytest.mark.parametrize(("spec", "names"), with_expected({f"head/{name}": case for name, case in HEADS.items()}))
def test_a_classification_head_is_trained_whole(spec, names, upstream, judge):
    judge(trains_exactly(trainable_names(make(upstream, spec)), names))


@pytest.mark.clause("FRZ-14")
@pytest.mark.parametrize(
    ("spec", "names"),
    with_expected(
        {
            "head-without-task-type/bert": (given("bert-classifier", target_modules="all-linear"), lora_of(BERT)),
            "head-without-task-type/llama": (given(LLAMA_CLASSIFIER, target_modules="all-linear"), lora_of(LLAMA)),
        }
    ),
)
def test_all_linear_leaves_a_head_alone_that_no_task_type_names(spec, names, upstream, judge):
    judge(same("trainable tensors", set(trainable_names(make(upstream, spec))), names))
