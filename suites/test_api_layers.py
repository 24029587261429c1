"""API: what injection puts into a layer: initial values, and what is added to the layer's output."""

import math

import pytest
import torch

from harness.fixtures import models, tensor_shapes
from harness.laws import injection, rebuilt
from harness.runs.scenarios import PLAIN, RANDOM_B, SAVING, SHORT, by_route, over, spec_for
from harness.session.state import skip_if
from harness.spec import ADD, GET
from harness.subjects.hf_trainer import inject
from harness.tensors.names import canonical

TOKENS = torch.arange(16)[None]
#: Base models and LoRA configs that differ in the kind of layer and in the initialisation.
FRESH = {
    "float32": PLAIN,
    "bfloat16": PLAIN.but(model={"dtype": "bfloat16"}),
    "nf4": PLAIN.but(model={"quantization": "nf4"}),
    "gpt2": PLAIN.but(model={"family": "gpt2"}, lora={"target_modules": ["c_attn", "c_fc"]}),
    "all-linear": PLAIN.but(lora={"target_modules": "all-linear"}),
    "embeddings": PLAIN.but(lora={"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "dora-embeddings": PLAIN.but(lora={"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
    "lora-bias": PLAIN.but(model={"family": "gpt2"}, lora={"target_modules": ["c_attn"], "lora_bias": True}),
    "gaussian": PLAIN.but(lora={"init_lora_weights": "gaussian"}),
    "rslora": PLAIN.but(lora={"use_rslora": True}),
    "dora": PLAIN.but(lora={"use_dora": True}),
    "modules-to-save": PLAIN.but(lora={"modules_to_save": ["lm_head"]}),
}


def injected(upstream, spec):
    """Return the spec's model with its adapter, in eval mode. Skips the test if this stack cannot make it."""
    skip_if(upstream.unsupported(spec))
    return inject(models.build(spec.model), spec.adapter).eval()


@torch.no_grad()
def logits(model):
    return model(TOKENS.to(model.device)).logits


def base_beside(model, spec):
    """Return the spec's base model without an adapter, on the device of `model`: a GPU's bits differ from a CPU's."""
    base = models.build(spec.model)
    return base if spec.model.quantization else base.to(model.device)


# ---- a fresh adapter ----


@pytest.mark.clause("API-02")
@pytest.mark.parametrize("spec", [pytest.param(spec, id=id) for id, spec in by_route(FRESH).items()])
def test_a_fresh_lora_is_an_identity(spec, upstream, judge):
    model = injected(upstream, spec)
    judge(injection.same_tensor("logits", logits(model), logits(base_beside(model, spec))))


@pytest.mark.clause("API-02")
@pytest.mark.parametrize("route", [pytest.param(GET, id=f"disabled/{GET}"), pytest.param(ADD, id=f"disabled/{ADD}")])
def test_a_disabled_lora_is_an_identity_after_training(route, upstream, tmp_path, judge):
    spec = PLAIN.but(max_steps=2, adapter={"route": route})
    model = injected(upstream, spec)
    upstream.build(spec, tmp_path, model=model).train()
    model.eval()
    if route == GET:
        with model.disable_adapter():
            seen = logits(model)
    else:
        model.disable_adapters()
        seen = logits(model)
    judge(injection.same_tensor("logits", seen, logits(base_beside(model, spec))))


@pytest.mark.clause("API-03")
@over(
    by_route(
        {
            "plain": PLAIN,
            "another-seed": PLAIN.but(max_steps=2, adapter={"seed": 5}),
            "rank-1": SAVING["rank-1"],
            "rank-16": SAVING["rank-16"],
            "all-linear": PLAIN.but(max_steps=2, lora={"target_modules": "all-linear"}),
        }
    )
)
def test_an_adapter_is_drawn_from_its_seed(trace, judge):
    judge(injection.initialised(trace))


# ---- what an adapter adds ----

LAYER = "model.layers.1.self_attn.q_proj"
#: The spec, and the scaling that it asks for.
SCALED = {
    "alpha-16-r-8": (PLAIN, 2.0),
    "alpha-16-r-3": (PLAIN.but(lora={"r": 3}), 16 / 3),
    "rslora": (PLAIN.but(lora={"use_rslora": True}), 16 / math.sqrt(8)),
    "rank-and-alpha-patterns": (
        PLAIN.but(lora={"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 6}}),
        6 / 4,
    ),
    "bfloat16": (PLAIN.but(model={"dtype": "bfloat16"}), 2.0),
    "nf4": (PLAIN.but(model={"quantization": "nf4"}), 2.0),
}
ADAPTED = [
    pytest.param(spec, SCALED[id.partition("/")[0]][1], id=id)
    for id, spec in by_route({name: spec for name, (spec, _) in SCALED.items()}).items()
]


def parts(upstream, spec):
    """Return the adapted layer, the base's own layer, A, B, and inputs. The adapter's B is not zero."""
    spec = spec.but(lora=RANDOM_B)
    model = injected(upstream, spec)
    named = {canonical(name): parameter.detach() for name, parameter in model.named_parameters()}
    dtype = getattr(torch, spec.model.dtype)
    x = torch.randn(2, 5, tensor_shapes.linears()[LAYER][1], generator=torch.Generator().manual_seed(0)).to(dtype)
    root = model.base_model.model if spec.adapter.route == GET else model
    base = models.build(spec.model).get_submodule(LAYER)
    a, b = named[f"{LAYER}.lora_A.weight"], named[f"{LAYER}.lora_B.weight"]
    return root.get_submodule(LAYER), base, a, b, x.to(a.device)


@pytest.mark.clause("API-04")
@pytest.mark.parametrize(("spec", "scaling"), ADAPTED)
@torch.no_grad()
def test_a_layer_adds_its_scaled_adapter(spec, scaling, upstream, judge):
    layer, base, a, b, x = parts(upstream, spec)
    judge(injection.same_tensor("the layer's output", layer(x), injection.adapted(x, base, a, b, scaling)))


@pytest.mark.clause("API-04")
@pytest.mark.parametrize("route", [pytest.param(GET, id=f"dropout/{GET}"), pytest.param(ADD, id=f"dropout/{ADD}")])
@torch.no_grad()
def test_dropout_is_of_the_adapters_input_alone(route, upstream, judge):
    layer, base, a, b, x = parts(upstream, PLAIN.but(adapter={"route": route}))
    torch.manual_seed(7)
    seen = layer.train()(x)
    torch.manual_seed(7)
    expected = injection.adapted(x, base, a, b, 2.0, dropout=lambda y: torch.nn.functional.dropout(y, 0.1))
    judge(injection.same_tensor("the layer's output in training mode", seen, expected))


# ---- merged ----

#: Adapters by either route: on linear layers, on transposed ones (Conv1D), with a magnitude (DoRA), and a large one.
MERGED = by_route(
    {
        "plain": SAVING["plain"],
        "all-linear": SHORT.but(lora={"target_modules": "all-linear"}),
        "dora": SAVING["dora"],
        "rslora": SHORT.but(lora={"use_rslora": True, "r": 2, "lora_alpha": 32}),
        "gpt2": SHORT.but(model={"family": "gpt2"}, lora={"target_modules": ["c_attn"], "fan_in_fan_out": True}),
        "tied-embeddings": SAVING["tied-embeddings"],
        "embeddings": SHORT.but(lora={"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        **{
            f"tied-adapted/{name}": SHORT.but(model={"family": "llama-tied"}, lora={"target_modules": ["q_proj", name]})
            for name in ("embed_tokens", "lm_head")
        },
        "tied-adapted/ensure-weight-tying": SHORT.but(
            model={"family": "llama-tied"},
            lora={"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        ),
    }
)


@pytest.mark.clause("API-15")
@over(MERGED)
def test_merged_it_computes_what_it_did_beside_its_layers(trace, judge):
    judge(rebuilt.merged(trace))


@pytest.mark.clause("API-02")
@over({f"after-training/{name}": spec for name, spec in MERGED.items()})
def test_switched_off_it_leaves_the_base(trace, judge):
    judge(rebuilt.switched_off(trace))


#: Prompts on a model that can generate, and on one that cannot. They change nothing in the base.
PROMPTS = {
    f"{method}/{family}": spec_for(family, method).but(max_steps=2)
    for method in ("prompt-tuning", "p-tuning")
    for family in ("llama", "bert-classifier")
}


@pytest.mark.clause("API-02")
@over({f"after-training/{name}": spec for name, spec in PROMPTS.items()})
def test_prompts_switched_off_leave_the_base(trace, judge):
    judge(rebuilt.switched_off(trace))
