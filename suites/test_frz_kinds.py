"""FRZ: what is trained besides A and B: biases, copies of modules, magnitudes, parameters unfrozen by hand."""

from typing import Any

import pytest

from harness.fixtures import models, tensor_shapes
from harness.fixtures.models import FAMILIES
from harness.laws import checkpoint, embeddings, frozen, resume, universal
from harness.laws.equal import equal_runs
from harness.runs.scenarios import SAVING, SHORT, by_route, cases, continued, over, saving, spec_for
from harness.subjects.hf_trainer import inject
from harness.verdict import both, same

QUANTIZED = SAVING["nf4"]


@pytest.mark.clause("FRZ-04")
@over(by_route({"nf4": QUANTIZED}))
def test_an_nf4_base_is_bit_identical(trace, judge):
    # 14 linear layers of 6 tensors each, and 7 other tensors: 91.
    judge(frozen.quantized_base_frozen(trace, tensor_shapes.linears()))


@pytest.mark.clause("FRZ-04")
@over(by_route({"int8": SHORT.but(model={"quantization": "int8"})}))
def test_an_int8_base_is_bit_identical(trace, judge):
    judge(frozen.base_frozen(trace))


# ---- biases ----


def gpt2_biases(*modules):
    """Return the biases of the tiny GPT-2 by canonical name: those of these modules, or all if none are named."""
    fields = FAMILIES["gpt2"].config
    hidden = fields["n_embd"]
    layer = {
        "ln_1": hidden,
        "attn.c_attn": 3 * hidden,
        "attn.c_proj": hidden,
        "ln_2": hidden,
        "mlp.c_fc": 4 * hidden,
        "mlp.c_proj": hidden,
    }
    found = {
        f"transformer.h.{index}.{name}.bias": [size]
        for index in range(fields["n_layer"])
        for name, size in layer.items()
        if not modules or name in modules
    }
    return found if modules else {**found, "transformer.ln_f.bias": [hidden]}


def gpt2_lora(r=8):
    hidden = FAMILIES["gpt2"].config["n_embd"]
    paths = [f"transformer.h.{index}.attn.c_attn" for index in range(FAMILIES["gpt2"].config["n_layer"])]
    return {f"{path}.lora_A.weight": [r, hidden] for path in paths} | {
        f"{path}.lora_B.weight": [3 * hidden, r] for path in paths
    }


LORA_ONLY = saving(SHORT.but(model={"family": "gpt2"}, lora={"bias": "lora_only", "target_modules": ["c_attn"]}))
BIASED = {"all": (SAVING["bias-all"], gpt2_biases()), "lora_only": (LORA_ONLY, gpt2_biases("attn.c_attn"))}


@pytest.mark.clause("FRZ-05")
@pytest.mark.parametrize(
    ("spec", "biases"),
    [
        pytest.param(spec, BIASED[id.partition("/")[0]][1], id=id)
        for id, spec in by_route({name: spec for name, (spec, _) in BIASED.items()}).items()
    ],
)
def test_biases_are_trained_without_decay_and_saved(spec, biases, train, judge):
    # bias="all" means 13 biases of gpt2: with the 4 LoRA tensors, 17 tensors are in the file.
    trace = train(spec)
    judge(
        both(
            frozen.groups_hold(trace, gpt2_lora(), biases),
            frozen.adapter_moved(trace),
            embeddings.tensors_saved(trace, {**gpt2_lora(), **biases}),
        )
    )


# ---- modules_to_save ----

HEAD = f"{tensor_shapes.HEAD}.weight"
WITH_HEAD = {**tensor_shapes.lora(), HEAD: tensor_shapes.embeddings()[HEAD]}


@pytest.mark.clause("FRZ-06")
@over(by_route({"lm_head": SAVING["modules-to-save"]}))
def test_a_copy_of_the_module_is_trained_and_saved(trace, judge):
    keys = {key for c in trace.checkpoints for key in c.tensors["adapter_model.safetensors"] if "lora" not in key}
    judge(
        both(
            frozen.groups_hold(trace, WITH_HEAD),
            embeddings.moved(trace, trained=[HEAD], frozen=[f"{tensor_shapes.HEAD}.original_module.weight"]),
            embeddings.tensors_saved(trace, WITH_HEAD),
            same("keys of the copy in the adapter file", keys, {f"base_model.model.{HEAD}"}),
        )
    )


@pytest.mark.clause("FRZ-06")
@cases({"lm_head/resumed": continued(SHORT.but(lora={"modules_to_save": ["lm_head"]}), 3, every=3)})
def test_a_copy_is_restored_by_resuming(spec, train, judge):
    judge(resume.continues(train(spec), train(spec.first_leg()), after=3))


# ---- unfrozen by hand ----

NORM = "model.norm.weight"


def unfrozen(upstream, spec, directory):
    """Return the trace of a run whose last norm was unfrozen after injection."""
    model = inject(models.build(spec.model), spec.adapter)
    next(p for name, p in model.named_parameters() if name.endswith(NORM)).requires_grad_(True)
    return upstream.train(spec, directory, model=model)


@pytest.mark.clause("FRZ-07")
@cases(by_route({"trained": saving(SHORT)}))
def test_a_parameter_unfrozen_by_hand_is_trained(spec, upstream, tmp_path, judge):
    trace = unfrozen(upstream, spec, tmp_path)
    judge(
        both(
            frozen.groups_hold(trace, tensor_shapes.lora(), {NORM: [64]}),
            frozen.adapter_moved(trace),
            frozen.base_frozen(trace),
        )
    )


@pytest.mark.clause("FRZ-07")
@cases(by_route({"saved": saving(SHORT)}))
def test_a_parameter_unfrozen_by_hand_is_saved(spec, upstream, tmp_path, judge):
    judge(checkpoint.adapter_only(unfrozen(upstream, spec, tmp_path)))


# ---- DoRA ----

MAGNITUDES: dict[str, Any] = {
    f"{path}.lora_magnitude_vector": [outputs]
    for path, (outputs, _) in tensor_shapes.linears().items()
    if path.endswith(("q_proj", "v_proj"))
}


@pytest.mark.clause("FRZ-08")
@over(by_route({"dora": SAVING["dora"]}))
def test_dora_trains_and_saves_a_magnitude_for_each_output(trace, judge):
    expected = {**tensor_shapes.lora(), **MAGNITUDES}
    judge(
        both(
            frozen.groups_hold(trace, expected),
            frozen.adapter_moved(trace),
            embeddings.tensors_saved(trace, expected),
        )
    )


# ---- a second adapter ----


def beside(spec, **other):
    """Return the spec with an adapter "bystander" beside the trained one."""
    return spec.but(adapter={"others": {"bystander": other}})


@pytest.mark.clause("FRZ-15")
@cases(
    by_route(
        {
            "same-config": saving(SHORT),
            "dora": SAVING["dora"],
            "named-foo": SAVING["named-foo"],
            "reentrant-checkpointing": SHORT.but(
                activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True}
            ),
        }
    )
)
def test_a_bystander_stays_as_it_is_and_changes_nothing(spec, train, judge):
    trace = train(beside(spec))
    judge(both(equal_runs(trace, train(spec)), frozen.base_frozen(trace)))


@pytest.mark.clause("FRZ-15")
@cases(
    {method: saving(spec_for("llama", method)) for method in ("ia3", "prompt-tuning", "prefix-tuning")}
    | {
        "embedding": saving(SHORT.but(lora={"target_modules": ["q_proj", "embed_tokens"]})),
        "tied-rows-lora": saving(SHORT.but(model={"family": "llama-tied"}, lora={"trainable_token_indices": [3, 5]})),
        "tied-rows": saving(
            SHORT.but(
                model={"family": "llama-tied"},
                adapter={
                    "peft_type": "TRAINABLE_TOKENS",
                    "config": {"token_indices": [3, 5], "task_type": "CAUSAL_LM"},
                },
            )
        ),
    }
)
def test_a_bystander_of_the_same_method_changes_nothing(spec, train, judge):
    judge(universal.bystander(train, spec))


@pytest.mark.clause("FRZ-15")
@cases(by_route({"other-rank": SHORT, "other-modules": SHORT, "embeddings": SHORT}))
def test_a_bystander_of_another_kind_changes_nothing(spec, request, train, judge):
    others: dict[str, dict[str, Any]] = {
        "other-rank": {"r": 2},
        "other-modules": {"target_modules": ["k_proj", "o_proj"]},
        "embeddings": {"target_modules": ["embed_tokens"]},
    }
    other = others[request.node.callspec.id.partition("/")[0]]
    trace = train(beside(spec, **other))
    judge(both(equal_runs(trace, train(spec)), frozen.base_frozen(trace)))
