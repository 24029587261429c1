"""QLORA: adapters on a quantized base, and the set-up of a QLoRA run."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.compat import dtype_argument
from harness.fixtures import models, tensor_shapes
from harness.fixtures.methods import METHODS
from harness.laws import comparisons, embeddings, frozen, model_card, quantized, resume
from harness.laws import nf4 as nf4_by_hand
from harness.laws.equal import equal_runs
from harness.runs.scenarios import PLAIN, by_route, cases, continued, over
from harness.session.state import skip_if
from harness.spec import ADD, GET, AdapterSpec, ModelSpec
from harness.subjects.hf_trainer import inject, recorded_warnings
from harness.suites import test_tables
from harness.suites.test_api_layers import injected
from harness.verdict import both, raises, same

#: QLoRA as it is usually set up, saved every two steps.
NF4: dict[str, Any] = {"quantization": "nf4", "prepare_for_kbit": True}
QLORA = PLAIN.but(model=NF4, activation_checkpointing=True, max_steps=4)
SAVED = continued(QLORA, 2).first_leg()
#: The shortest run that shows which tensors there are.
BRIEF = PLAIN.but(max_steps=2, save_strategy="steps", save_steps=2)


@pytest.fixture
def loads_nf4(upstream):
    """The subject, for clauses about a quantized model that is not trained. Skips if none can be loaded."""
    skip_if(upstream.unsupported(QLORA))
    return upstream


@pytest.mark.clause("QLORA-01")
@over(by_route({"nf4": SAVED}))
def test_a_prepared_nf4_base_trains_under_checkpointing(trace, judge):
    judge(both(quantized.packed(trace, tensor_shapes.linears()), quantized.learns(trace), frozen.adapter_moved(trace)))


#: Rows of an input. bitsandbytes has special kernels for few rows (`_gemm_4bit_use_custom_cuda`: up to 1536).
ROWS = {"": 3, "-many-rows": 2048}


@pytest.mark.clause("QLORA-14")
@pytest.mark.parametrize(
    ("spec", "rows"),
    [
        pytest.param(
            ModelSpec(quantization="nf4", dtype=dtype, quant_storage=storage),
            rows,
            id=f"{dtype}{name}/{storage or 'bytes'}",
        )
        for dtype in ("float32", "bfloat16")
        for storage in (None, "bfloat16")
        for name, rows in ROWS.items()
    ],
)
def test_a_packed_layer_computes_with_what_it_stands_for(spec, rows, upstream, runs, judge):
    skip_if(upstream.unsupported(BRIEF.but(model=dataclasses.asdict(spec))))
    packed = models.build(spec).to(runs.device)
    whole = models.build(dataclasses.replace(spec, quantization=None, quant_storage=None))
    judge(nf4_by_hand.stands_for(packed, whole, getattr(torch, spec.dtype), rows))


# ---- which modules ----


@pytest.mark.clause("QLORA-02")
@pytest.mark.parametrize(
    ("spec", "modules"),
    [
        pytest.param(spec, modules, id=id)
        for family, modules in {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}.items()
        for id, spec in by_route({family: BRIEF.but(model={"family": family})}).items()
    ],
)
def test_no_target_modules_are_those_of_the_model_type(spec, modules, train, judge):
    default = train(spec.but(adapter={"config": {**spec.adapter.config, "target_modules": None}}))
    named = train(spec.but(lora={"target_modules": modules}))
    written = json.loads(Path(default.checkpoint(2).path, "adapter_config.json").read_text())
    judge(
        both(
            equal_runs(default, named),
            same("target_modules in adapter_config.json", set(written["target_modules"]), set(modules)),
        )
    )


def model_of(model_type):
    """Return a model with one linear layer and, unless the type is None, the config of a model of this type."""
    from transformers import PretrainedConfig

    model = torch.nn.Module()
    model.q_proj = torch.nn.Linear(4, 4)
    if model_type is not None:
        model.config = type("UnknownConfig", (PretrainedConfig,), {"model_type": model_type})()
    return model


@pytest.mark.clause("QLORA-02")
@pytest.mark.parametrize("model_type", ["unheard-of", None], ids=["unknown-type", "no-config"])
def test_an_unknown_model_type_is_refused(model_type, upstream, judge):
    judge(
        raises(
            f"no target_modules for a model of type {model_type}",
            ValueError,
            "Please specify `target_modules`",
            lambda: inject(model_of(model_type), AdapterSpec(config={"r": 2})),
        )
    )


ALL = BRIEF.but(lora={"target_modules": "all-linear"})
ALL_OF_NF4 = ALL.but(model={"quantization": "nf4"})


@pytest.mark.clause("QLORA-03")
@over({"float32": ALL, "int8": ALL.but(model={"quantization": "int8"}), **by_route({"nf4": ALL_OF_NF4})})
def test_all_linear_adapts_the_decoder_and_not_the_output_layer(trace, judge):
    # All seven projections are adapted: r * (inputs + outputs) over them, in two layers: 16384 numbers.
    expected = tensor_shapes.lora(projections=("_proj",))
    judge(both(quantized.adapts(trace, expected), embeddings.tensors_saved(trace, expected)))


# ---- the same run ----


@pytest.mark.clause("QLORA-04")
@cases({"step-2": continued(QLORA, 2)})
def test_a_run_on_nf4_resumes(spec, train, judge):
    judge(resume.continues(train(spec), train(spec.first_leg()), after=spec.resume.checkpoint))


@pytest.mark.clause("QLORA-04")
def test_both_routes_are_one_run(train, judge):
    judge(equal_runs(train(SAVED.but(adapter={"route": ADD})), train(SAVED)))


@pytest.mark.clause("GEN-01")
@cases(
    by_route(
        {
            "nf4": QLORA.but(lora={"target_modules": "all-linear"}),
            "nf4/bfloat16": QLORA.but(model={"dtype": "bfloat16", "prepare_for_kbit": False}, bf16=True),
            "nf4/bfloat16-storage": QLORA.but(model={"dtype": "bfloat16", "quant_storage": "bfloat16"}, bf16=True),
        }
    )
)
def test_a_run_on_nf4_is_the_references(spec, train, runs, judge):
    train(spec)
    judge(comparisons.as_reference(runs.train, spec))


@pytest.mark.clause("QLORA-06")
@cases({"nf4": QLORA.but(activation_checkpointing_kwargs={"use_reentrant": False})})
def test_without_preparation_a_float32_base_trains_the_same(spec, train, judge):
    judge(equal_runs(train(spec.but(model={"prepare_for_kbit": False})), train(spec)))


# ---- preparation ----

BF16 = BRIEF.but(model={"quantization": "nf4", "dtype": "bfloat16"})
PREPARED_BF16 = BF16.but(model={"prepare_for_kbit": True}, activation_checkpointing=True)


@pytest.mark.clause("QLORA-05")
@pytest.mark.parametrize(
    ("spec", "base"),
    [
        pytest.param(PREPARED_BF16, "float32", id="prepared"),
        pytest.param(BF16, "bfloat16", id="not-prepared"),
    ],
)
def test_preparation_casts_what_is_not_packed(spec, base, train, judge):
    judge(quantized.computes_in(train(spec), base=base, adapter="float32"))


@pytest.mark.clause("QLORA-05")
def test_preparation_freezes_the_base(loads_nf4, judge):
    model = models.build(ModelSpec(**NF4))
    judge(same("trainable parameters", [name for name, p in model.named_parameters() if p.requires_grad], []))


@pytest.mark.clause("QLORA-05")
@pytest.mark.parametrize(("prepared", "switched"), [(True, True), (False, False)], ids=["prepared", "not-prepared"])
def test_preparation_switches_checkpointing_on(prepared, switched, loads_nf4, judge):
    model = models.build(ModelSpec(quantization="nf4", prepare_for_kbit=prepared))
    entering = model.get_input_embeddings()(torch.tensor([[1, 2, 3]], device=model.device))
    seen = {"checkpointing": model.is_gradient_checkpointing, "inputs require gradients": entering.requires_grad}
    # Embeddings that are not frozen yet require gradients anyway.
    judge(same("the prepared model", seen, {"checkpointing": switched, "inputs require gradients": True}))


@pytest.mark.clause("QLORA-15")
@cases(test_tables.table(GET, [("llama-nf4", name) for name, method in METHODS.items() if method.targeted]))
def test_a_method_trains_on_a_packed_base_or_refuses_it(spec, loads_nf4, train, judge):
    try:
        injected(loads_nf4, spec)
    except (ValueError, TypeError) as error:
        judge(quantized.refused(error))
        return
    trace = train(spec)
    judge(both(quantized.learns(trace), frozen.adapter_moved(trace)))


# ---- what is saved ----


@pytest.mark.clause("QLORA-07")
@over({"float32": SAVED, f"float32/{ADD}": SAVED.but(adapter={"route": ADD}), "bfloat16": PREPARED_BF16})
def test_the_file_holds_the_adapter_in_float32_alone(trace, judge):
    judge(embeddings.tensors_saved(trace, tensor_shapes.lora(), dtype="F32"))


@pytest.mark.clause("QLORA-07")
@pytest.mark.parametrize("spec", [pytest.param(spec, id=id) for id, spec in by_route({"named": BRIEF}).items()])
def test_the_config_names_the_base(spec, loads_nf4, tmp_path, judge):
    base = models.build(ModelSpec(**NF4))
    base.name_or_path = base.config._name_or_path = "someone/their-base"
    with recorded_warnings([]):
        loads_nf4.build(spec, tmp_path, model=inject(base, spec.adapter)).train()
    written = json.loads((tmp_path / "checkpoint-2" / "adapter_config.json").read_text())
    judge(same("base_model_name_or_path", written["base_model_name_or_path"], "someone/their-base"))


@pytest.mark.clause("QLORA-07")
@over({"model-card": SAVED})
def test_the_model_card_lists_the_quantization(trace, upstream, judge):
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    judge(model_card.names_quantization(model_card.cards(trace), settings))


#: A and B of q_proj and A of v_proj have 8192 numbers, B of v_proj has 4096: the fewest that bitsandbytes keeps in 8 bits.
WIDE = QLORA.but(lora={"r": 64}, model={"config": {"hidden_size": 128}})
EIGHT_BITS = ("adamw_bnb_8bit", "paged_adamw_8bit")


@pytest.mark.clause("QLORA-08")
@over(
    {
        **{f"{optim}/wide": continued(WIDE.but(optim=optim), 2).first_leg() for optim in EIGHT_BITS},
        **{f"{optim}/narrow": BRIEF.but(optim=optim) for optim in EIGHT_BITS},
    }
)
def test_moments_are_8_bit_from_4096_numbers_on(trace, judge):
    judge(quantized.state_in_8_bits(trace))


@pytest.mark.clause("QLORA-08")
@cases({f"{optim}/step-2": continued(WIDE.but(optim=optim), 2) for optim in (*EIGHT_BITS, "paged_adamw_32bit")})
def test_runs_with_8_bit_and_paged_optimizers_resume(spec, train, judge):
    judge(resume.continues(train(spec), train(spec.first_leg()), after=2))


# ---- what survives ----


@pytest.mark.clause("QLORA-11")
@pytest.mark.parametrize("adapted", [True, False], ids=["adapted", "without-adapters"])
def test_a_compiled_quantized_model_is_refused(adapted, loads_nf4, tmp_path, judge):
    model = torch.compile(inject(nf4(seed=0), QLORA.adapter) if adapted else nf4(seed=0), backend="eager")
    build = lambda: loads_nf4.build(QLORA, tmp_path, model=model)  # noqa: E731
    judge(raises("Trainer() of a compiled NF4 model", ValueError, "with `torch.compile()`", build))


@pytest.mark.clause("QLORA-12")
@cases({"step-2": continued(QLORA, 2)})
def test_the_packed_base_is_the_same_in_a_continued_run(spec, train, judge):
    judge(quantized.same_base(train(spec), train(spec.first_leg())))


@pytest.mark.clause("QLORA-12")
def test_the_packed_base_survives_save_pretrained(loads_nf4, tmp_path, judge):
    saved = nf4(seed=0)
    saved.save_pretrained(tmp_path)
    judge(same_model(type(saved).from_pretrained(tmp_path, **dtype_argument(torch.float32)), saved))


@pytest.mark.clause("QLORA-12")
@pytest.mark.parametrize("strict", [True, False], ids=["load_state_dict", "load_state_dict-not-strict"])
def test_the_packed_base_survives_load_state_dict(strict, loads_nf4, judge):
    saved, loaded = nf4(seed=0), nf4(seed=1)
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()), strict=strict)
    judge(same_model(loaded, saved))


def nf4(seed):
    return models.build(ModelSpec(quantization="nf4", seed=seed))


def same_model(loaded, saved):
    tokens = torch.arange(16, device=saved.device)[None]
    with torch.no_grad():
        logits = [model.eval()(tokens).logits for model in (loaded, saved)]
    return quantized.same_model(loaded.state_dict(), logits[0], saved.state_dict(), logits[1])
