"""API: adapters combined into a new one by add_weighted_adapter, and several adapters that are active at once."""

import itertools

import peft
import pytest
import torch

from harness.fixtures import models
from harness.laws import injection, rebuilt, verbs, weighted
from harness.laws.equal import differences
from harness.runs.scenarios import PLAIN, RANDOM_B, spec_for
from harness.session.state import skip_uncompared
from harness.subjects.hf_trainer import adapter_config, inject, recorded_warnings
from harness.tolerance import MERGED
from harness.verdict import both, raises, verdict

SOURCES = ("default", "second")
FIRST = PLAIN.but(lora=RANDOM_B)


def changed(spec, model, name="default", by=1.1):
    """Return the model in eval mode. Copies of modules, magnitudes and biases of an adapter are moved from the base's."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if f".{name}." in key and any(part in key for part in ("modules_to_save", "magnitude", "bias")):
                parameter.mul_(by).add_(0.01)
    return model.eval()


def several(spec, *configs):
    """Return a PeftModel of the spec with its adapter, and others: second, third ... Each has other values."""
    model = changed(spec, inject(models.build(spec.model), spec.adapter))
    for number, config in enumerate(configs):
        name = ("second", "third")[number]
        torch.manual_seed(7 + number)
        model.add_adapter(name, adapter_config(spec.adapter.peft_type, {**spec.adapter.config, **config}))
        changed(spec, model, name, 0.9)
    return model.eval()


# ---- one adapter, weight 1 ----

#: Adapters that differ in how they are scaled and in what they have besides A and B.
ALONE = {
    "plain": FIRST,
    "rank-pattern": FIRST.but(lora={"rank_pattern": {"q_proj": 2}}),
    "alpha-pattern": FIRST.but(lora={"alpha_pattern": {"v_proj": 32}}),
    "rslora": FIRST.but(lora={"use_rslora": True}),
    "dora": FIRST.but(lora={"use_dora": True}),
    "lora-bias": FIRST.but(model={"family": "gpt2"}, lora={"target_modules": ["c_attn"], "lora_bias": True}),
    "conv1d": FIRST.but(model={"family": "gpt2"}, lora={"target_modules": ["c_attn"]}),
    "conv2d": FIRST.but(model={"family": "harness.fixtures.convolved:llama"}, lora={"target_modules": ["conv"]}),
    "embedding": FIRST.but(lora={"target_modules": ["q_proj", "embed_tokens"]}),
    "modules-to-save": FIRST.but(lora={"modules_to_save": ["lm_head"]}),
    "nf4": FIRST.but(model={"quantization": "nf4"}),
    "experts": FIRST.but(
        model={"family": "qwen3-moe"},
        lora={"lora_dropout": 0.0, "target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]},
    ),
}


@pytest.mark.clause("API-24")
@pytest.mark.parametrize("spec", [pytest.param(spec, id=f"alone/{name}") for name, spec in ALONE.items()])
def test_one_adapter_with_weight_one_is_that_adapter(spec, upstream, tmp_path, judge):
    judge(skip_uncompared(verbs.refusing("add_weighted_adapter", lambda: alone(spec, tmp_path))))


def alone(spec, path):
    model = several(spec)
    before = rebuilt.logits(model, spec)
    sources = injection.adapter_tensors(model, "default")
    model.add_weighted_adapter(["default"], [1.0], "sum", combination_type="linear")
    model.set_adapter("sum")
    seen = rebuilt.logits(model.eval(), spec)
    found = differences(seen, before, MERGED.loss, "combined:")
    found += differences(injection.adapter_tensors(model, "default"), sources, 0.0, "the source:")
    with recorded_warnings([]):
        model.save_pretrained(path, selected_adapters=["sum"])
        again = peft.PeftModel.from_pretrained(models.build(spec.model), path / "sum")
    found += differences(rebuilt.logits(again, spec), seen, 0.0, "saved and loaded:")
    return verdict("an adapter with weight 1 is that adapter, and can be saved and loaded", found)


# ---- two adapters ----


@pytest.mark.clause("API-24")
@pytest.mark.parametrize("kind", weighted.TYPES)
@pytest.mark.parametrize("weights", [(0.7, 0.4), (0.7, -0.4)], ids=["both-added", "one-subtracted"])
def test_two_adapters_are_combined_as_the_type_says(kind, weights, upstream, judge):
    density = 1.0 if kind.startswith("dare") else 0.5
    # The weight of v_proj has 32 rows: an adapter of rank 32 can be any matrix of its shape.
    model = several(FIRST.but(lora={"lora_alpha": 24, "target_modules": ["k_proj", "v_proj"]}), {})
    before = {name: injection.adapter_tensors(model, name) for name in SOURCES}
    rank = {"svd_rank": 32} if kind.endswith("svd") else {}
    with recorded_warnings([]):
        model.add_weighted_adapter(list(SOURCES), list(weights), "sum", combination_type=kind, density=density, **rank)
    layers = {path: layer for path, layer in model.named_modules() if hasattr(layer, "lora_A")}
    left = [
        found
        for name in SOURCES
        for found in differences(injection.adapter_tensors(model, name), before[name], 0.0, f"{name}:")
    ]
    judge(
        both(
            weighted.combines(layers, kind, SOURCES, weights, "sum", density),
            verdict("the sources are as they were", left),
        )
    )


@pytest.mark.clause("API-24")
def test_a_rank_above_the_layers_is_refused_or_used(upstream, judge):
    judge(skip_uncompared(verbs.refusing("svd_rank=64 for weights of 32 rows", too_many_ranks)))


def too_many_ranks():
    spec = FIRST.but(lora={"target_modules": ["v_proj"]})
    model = several(spec)
    before = rebuilt.logits(model, spec)
    model.add_weighted_adapter(["default", "default"], [0.5, 0.5], "sum", combination_type="svd", svd_rank=64)
    model.set_adapter("sum")
    found = differences(rebuilt.logits(model, spec), before, MERGED.loss, "combined:")
    return verdict("two halves of an adapter are that adapter", found)


#: The second adapter's config, the combination, and words of the ValueError that it must raise.
REFUSED = {
    "other-ranks": ({"r": 4}, "linear", "same r value"),
    "two-heads": ({"modules_to_save": ["lm_head"]}, "cat", "modules_to_save"),
    "unknown-type": ({}, "average", "Invalid combination_type"),
}


@pytest.mark.clause("API-24")
@pytest.mark.parametrize(("config", "kind", "words"), [pytest.param(*row, id=id) for id, row in REFUSED.items()])
def test_what_cannot_be_combined_is_refused(config, kind, words, upstream, judge):
    spec = FIRST.but(lora={"modules_to_save": ["lm_head"]}) if "modules_to_save" in config else FIRST
    model = several(spec, config)
    call = lambda: model.add_weighted_adapter(list(SOURCES), [1.0, 1.0], "sum", combination_type=kind)  # noqa: E731
    judge(raises("add_weighted_adapter", ValueError, words, call))


# ---- several active at once ----

#: Methods whose adapters add to what a layer computes, or multiply it, each with whatever the other has done.
METHODS = ("lora", "dora", "rslora", "ia3", "loha", "lokr", "oft", "hra", "vera", "randlora", "miss", "road", "hira")


def active(method):
    """Return the spec and a model of a method with two active adapters whose values differ from the fresh ones."""
    spec = spec_for("llama", method)
    model = inject(models.build(spec.model), spec.adapter)
    model.add_adapter("second", adapter_config(spec.adapter.peft_type, dict(spec.adapter.config)))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(f".{one}" in name for one in SOURCES):
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.05)
    model.base_model.set_adapter(list(SOURCES))
    return spec, model.eval()


@pytest.mark.clause("API-25")
@pytest.mark.parametrize("method", METHODS)
def test_several_active_adapters_merge_into_what_they_compute(method, upstream, judge):
    judge(skip_uncompared(verbs.refusing("two active adapters", lambda: merged(*active(method)))))


def merged(spec, model):
    """Check two active adapters: merged together, merged one after the other, disabled, and one deleted."""
    both_active, findings = rebuilt.logits(model, spec), []
    base = rebuilt.logits(models.build(spec.model), spec)
    with model.disable_adapter():
        findings += differences(rebuilt.logits(model, spec), base, 0.0, "disabled:")
    model.merge_adapter()
    findings += differences(rebuilt.logits(model, spec), both_active, MERGED.loss, "merged:")
    model.unmerge_adapter()
    findings += differences(rebuilt.logits(model, spec), both_active, MERGED.loss, "unmerged:")
    model.set_adapter("second")
    second = rebuilt.logits(model, spec)
    if not differences(second, both_active, MERGED.loss, ""):
        findings.append("two active adapters compute what the second one computes alone")
    model.base_model.set_adapter(list(SOURCES))
    model.merge_adapter(adapter_names=["second"])
    findings += differences(rebuilt.logits(model, spec), second, MERGED.loss, "the second one merged by name:")
    model.unmerge_adapter()
    model.delete_adapter("default")
    model.set_adapter("second")
    findings += differences(rebuilt.logits(model, spec), second, MERGED.loss, "the first one deleted:")
    return verdict("two active adapters merge into what they compute, and are taken out one by one", findings)


@pytest.mark.clause("API-25")
@pytest.mark.parametrize(
    ("first", "second"), [pytest.param(*p, id="/".join(p)) for p in itertools.permutations(SOURCES)]
)
def test_active_loras_add_up_in_each_layer(first, second, upstream, judge):
    _, model = active("lora")
    model.base_model.set_adapter([first, second])
    findings = []
    for path, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1))
            expected = layer.get_base_layer()(x).double()
            for name in SOURCES:
                expected += x.double() @ weighted.added(layer, name).T
            seen = {path: layer(x).detach()}
            findings += differences(seen, {path: expected.float().detach()}, MERGED.loss, "with both:")
    judge(verdict("a layer adds what each active adapter adds", findings))


@pytest.mark.clause("API-25")
def test_training_moves_all_active_adapters(upstream, tmp_path, judge):
    spec, model = active("lora")
    before = {name: injection.adapter_tensors(model, name) for name in SOURCES}
    upstream.build(spec.but(max_steps=2), tmp_path, model=model).train()
    after = {name: injection.adapter_tensors(model, name) for name in SOURCES}
    judge(injection.trained_adapters(before, after, SOURCES))
