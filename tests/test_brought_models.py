"""Models and adapters that people bring: configs made small by rule, and adapters that are made to fit."""

import dataclasses
from typing import Any, cast

import pytest

from harness import brought
from harness.brought import fit, small_config
from harness.brought.notes import Notes
from harness.brought.quantization import quantized
from harness.brought.skeleton import Skeleton, of_family, skeleton
from harness.errors import UsageError
from harness.spec import AdapterSpec, ModelSpec
from tests.brought import LLAMA, adapter, written


def read(tmp_path, model=None, fields=(), **options):
    """Read a run with an adapter, and a model's config.json if there is one."""
    if isinstance(model, dict):
        model = written(tmp_path, "model/config.json", model).parent
    return brought.read(adapter=adapter(tmp_path, **dict(fields)), model=model, device="cpu", **options)


def bones(kind, config, task="causal"):
    """Return what a small model of a config is made of."""
    fields = {name: value for name, value in config.items() if name not in ("model_type", "architectures")}
    return skeleton(ModelSpec(family=f"config:{kind}", config=small_config.small(fields, Notes()), task=task), kind)


# ---- configs ----


def test_a_large_llama_becomes_a_small_one_of_the_same_kind(tmp_path):
    found = read(tmp_path, LLAMA)
    model = found.spec.model
    assert (model.family, model.dtype) == ("config:llama", "bfloat16")
    wanted: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 128,
        "intermediate_size": 128,
        "tie_word_embeddings": False,
        "rope_theta": 500000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
    }
    assert {name: model.config[name] for name in wanted} == wanted
    assert model.config["rope_scaling"] == {
        **cast(dict[str, Any], LLAMA["rope_scaling"]),
        "original_max_position_embeddings": 8,
    }
    assert "transformers_version" not in model.config and "torch_dtype" not in model.config
    assert any("hidden_size 4096 -> 64" in sentence for sentence in found.sentences)


def test_as_is_keeps_the_model_and_the_steps(tmp_path):
    arguments = written(tmp_path, "a.json", {"max_steps": 1000, "save_steps": 300})
    config = {**LLAMA, "hidden_size": 128, "num_hidden_layers": 3, "intermediate_size": 256, "num_attention_heads": 8}
    found = read(tmp_path, config, {"r": 200}, as_is=True, arguments=arguments)
    assert found.spec.model.config["num_hidden_layers"] == 3 and found.spec.model.config["vocab_size"] == 128256
    assert found.spec.arguments["max_steps"] == 1000 and found.spec.arguments["save_steps"] == 300
    assert found.spec.adapter.config["r"] == 200


GEMMA = {
    "num_hidden_layers": 26,
    "hidden_size": 1152,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
}

KINDS = {
    "grouped attention": ({"num_attention_heads": 64, "num_key_value_heads": 8}, {"num_key_value_heads": 2}),
    "multi-query attention": ({"num_attention_heads": 32, "num_key_value_heads": 1}, {"num_key_value_heads": 1}),
    "plain attention": ({"num_attention_heads": 32, "num_key_value_heads": 32}, {"num_key_value_heads": 4}),
    "three heads": ({"num_attention_heads": 3, "num_key_value_heads": 3}, {"num_attention_heads": 3}),
    "a small model": (
        {"hidden_size": 32, "num_attention_heads": 2, "vocab_size": 99},
        {"hidden_size": 32, "vocab_size": 99},
    ),
    "wide heads": ({"hidden_size": 2048, "num_attention_heads": 16, "head_dim": 256}, {"head_dim": 32}),
    "narrow heads": (GEMMA | {"head_dim": 64}, {"head_dim": 8}),
    "heads that fit": ({"hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128}, {"head_dim": 16}),
    "few experts a token": (
        {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "all experts": (
        {"num_local_experts": 2, "num_experts_per_tok": 2},
        {"num_local_experts": 2, "num_experts_per_tok": 2},
    ),
    "groups of experts": ({"n_routed_experts": 256, "n_group": 8, "topk_group": 4}, {"n_group": 2, "topk_group": 1}),
    "kinds of layers": (
        {"num_hidden_layers": 6, "layer_types": ["sliding"] * 5 + ["full"]},
        {"num_hidden_layers": 2, "layer_types": ["sliding", "full"]},
    ),
    "layers by number": (
        {"num_hidden_layers": 32, "attn_layer_indices": [9, 18]},
        {"num_hidden_layers": 2, "attn_layer_indices": [1]},
    ),
    "one layer": ({"num_hidden_layers": 1}, {"num_hidden_layers": 1}),
    "a pattern": (
        {"sliding_window_pattern": 6, "sliding_window": 4096},
        {"sliding_window_pattern": 2, "sliding_window": 8},
    ),
    "no window": ({"sliding_window": None}, {"sliding_window": None}),
    "latent attention": (
        {"qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "hidden_size": 2048, "head_dim": 64, "q_lora_rank": None},
        {"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "head_dim": 8, "q_lora_rank": None},
    ),
    "sections of mrope": (
        {"hidden_size": 1536, "num_attention_heads": 12, "rope_scaling": {"mrope_section": [16, 24, 24]}},
        {"rope_scaling": {"mrope_section": [2, 3, 3]}},
    ),
    "a factor each": (
        {"hidden_size": 3072, "num_attention_heads": 32, "rope_scaling": {"long_factor": [1.5] * 48}},
        {"rope_scaling": {"long_factor": [1.5] * 8}},
    ),
    "nested": (
        {"text_config": {"hidden_size": 4096, "vocab_size": 32000}},
        {"text_config": {"hidden_size": 64, "vocab_size": 256}},
    ),
    "tokens": (
        {"vocab_size": 32000, "pad_token_id": 31999, "bos_token_id": 1, "image_token_id": 31998},
        {"pad_token_id": 0, "bos_token_id": 1, "image_token_id": 255},
    ),
    "dropout": (
        {"attention_dropout": 0.1, "tie_word_embeddings": True},
        {"attention_dropout": 0.1, "tie_word_embeddings": True},
    ),
}


@pytest.mark.parametrize(("given", "wanted"), KINDS.values(), ids=KINDS)
def test_what_makes_a_model_what_it_is_is_kept(given, wanted):
    made = small_config.small(given, Notes())
    assert {name: made[name] for name in wanted} == wanted


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gemma3_text": {**GEMMA, "vocab_size": 262144, "sliding_window": 512, "sliding_window_pattern": 6},
    "mixtral": {"hidden_size": 4096, "num_hidden_layers": 32, "num_local_experts": 8, "num_experts_per_tok": 2},
    "gpt_neox": {"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 50304},
    "gpt2": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_transformers_makes_the_small_model(tmp_path, kind):
    fields = {name: value for name, value in ARCHITECTURES[kind].items() if name != "architectures"}
    found = read(tmp_path, {**fields, "model_type": kind}, {"target_modules": "all-linear"})
    made = skeleton(found.spec.model, kind)
    assert made.layers == 2 and made.numbers < 400_000 and made.vocabulary == 256


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "no_such_kind"}, "has no class for model_type 'no_such_kind'"),
        (
            {"model_type": "no_such_kind", "auto_map": {"AutoConfig": "x.Y"}},
            "code of its own (auto_map), which is not run",
        ),
        ({"model_type": 5}, "model_type is 5; expected the name of an architecture"),
        ({"peft_type": "LORA"}, "this is an adapter's config, so name it with --adapter"),
        ({"model_type": "llama", "hidden_size": -64}, "hidden_size is -64; expected a size"),
        ({"model_type": "llama", "hidden_size": "64"}, "hidden_size is '64'; expected a number"),
        ({"model_type": "llama", "num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000; expected a size"),
        ({"model_type": "llama", "rope_scaling": 3}, "transformers refuses it as a config of llama"),
        ({"model_type": "llama", "quantization_config": "nf4"}, "quantization_config is 'nf4'; expected an object"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "has no AutoModelForCausalLM for 't5'"),
    ],
)
def test_a_config_that_makes_no_model_is_one_sentence(tmp_path, config, words):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, config)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("model.gguf", "a GGUF file, whose quantized weights are not trained"),
        ("pytorch_model.bin", "weights in a pickle, which are never loaded"),
        ("model.safetensors", "weights alone"),
        ("only/model.Q4.gguf", "has no config.json, and 'model.Q4.gguf' is a GGUF file"),
        ("org/name", "names on the hub are not looked up"),
        ("mine:model", "names code"),
        ("adapter/adapter_config.json", "holds an adapter; name it with --adapter"),
    ],
)
def test_what_is_no_model_is_one_sentence(tmp_path, file, words):
    path = tmp_path / file
    if "org" not in file and ":" not in file:
        written(tmp_path, file, b"GGUF")
    given = path.parent if file.startswith(("only", "adapter")) else file if ":" in file else path
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        read(tmp_path, given)


def test_code_beside_a_known_class_is_not_looked_at(tmp_path):
    found = read(tmp_path, {**LLAMA, "auto_map": {"AutoModel": "x.Y"}})
    assert "auto_map" in found.not_looked_at


# ---- the model that nobody named ----


@pytest.mark.parametrize(
    ("fields", "family"),
    [
        ({}, "llama"),
        ({"target_modules": ["c_attn"]}, "gpt2"),
        ({"target_modules": ["fc1", "q_proj"]}, "opt"),
        ({"target_modules": ["query"], "task_type": "SEQ_CLS"}, "bert-classifier"),
        ({"target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"}, "t5"),
        ({"target_modules": r".*\.self_attn\.[qv]_proj"}, "llama"),
    ],
)
def test_without_a_model_the_family_with_such_modules_is_taken(tmp_path, fields, family):
    found = read(tmp_path, fields=fields)
    assert found.spec.model.family == family
    assert any(f"the base is the harness's tiny {family}" in sentence for sentence in found.sentences)


def test_a_task_without_a_family_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"no family .* task 'token-classification'; name your model with --model"):
        read(tmp_path, fields={"task_type": "TOKEN_CLS"})


# ---- adapters ----


def test_an_adapter_as_peft_saves_it_is_judged_as_if_it_were_trained(tmp_path):
    newer = {"a_config_of_tomorrow": None, "rank_of_tomorrow": 3, "peft_version": "9.9", "auto_mapping": {"base": "X"}}
    found = read(tmp_path, fields=newer)
    assert found.spec.adapter.config == {
        **{"lora_alpha": 16, "lora_dropout": 0.05, "r": 8, "target_modules": ["q_proj", "v_proj"]},
        "task_type": "CAUSAL_LM",
    }
    assert sum("judged as if it were trained" in sentence for sentence in found.sentences) == 1
    assert set(found.not_looked_at) == {"a_config_of_tomorrow", "rank_of_tomorrow", "auto_mapping"}
    assert "default-like" in found.not_looked_at["a_config_of_tomorrow"]
    assert "its value 3 is not judged" in found.not_looked_at["rank_of_tomorrow"]


#: Fields of an adapter -> what becomes of them on a llama of 2 layers and a width of 64.
FITS = {
    "a layer's number": (
        {"target_modules": ["layers.31.self_attn.q_proj"]},
        {"target_modules": ["layers.1.self_attn.q_proj"]},
    ),
    "a missing name": ({"target_modules": ["q_proj", "Wqkv"]}, {"target_modules": ["q_proj"]}),
    "only missing names": ({"target_modules": ["Wqkv"]}, {"target_modules": "all-linear"}),
    "a pattern": ({"target_modules": r".*layers\.(2[0-9])\.self_attn\.q_proj"}, {"target_modules": "all-linear"}),
    "a pattern that fits": ({"target_modules": r".*[qv]_proj"}, {"target_modules": r".*[qv]_proj"}),
    "a rank": ({"r": 256, "lora_alpha": 512}, {"r": 64, "lora_alpha": 128}),
    "layers": ({"layers_to_transform": [30, 31, 0]}, {"layers_to_transform": [0, 1]}),
    "a layer": ({"layers_to_transform": 31}, {"layers_to_transform": 1}),
    "a pattern of ranks": (
        {"rank_pattern": {"layers.30.self_attn.q_proj": 128, "^nothing$": 2, "v_proj": 4}},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 64, "v_proj": 4}},
    ),
    "modules to save": ({"modules_to_save": ["lm_head", "score"]}, {"modules_to_save": ["lm_head"]}),
    "no modules to save": ({"modules_to_save": ["score"]}, {"modules_to_save": None}),
    "replication": ({"layer_replication": [[0, 16], [8, 24]]}, {"layer_replication": [[0, 2], [1, 2]]}),
    "tokens": ({"trainable_token_indices": [300, 44, 5]}, {"trainable_token_indices": [44, 5]}),
}


@pytest.mark.parametrize(("given", "wanted"), FITS.values(), ids=FITS)
def test_an_adapter_is_made_to_fit_with_a_sentence(given, wanted):
    base = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    notes = Notes()
    made = fit.fit(AdapterSpec(config={**base, **given}), of_family("llama"), 8, notes)
    assert {name: made.config.get(name) for name in wanted} == wanted
    assert bool(notes.sentences) == (given != wanted)


@pytest.mark.parametrize(
    ("peft_type", "given", "wanted"),
    [
        (
            "ADALORA",
            {"total_step": 1000, "tinit": 200, "tfinal": 500, "deltaT": 10},
            {"total_step": 8, "tinit": 2, "tfinal": 2},
        ),
        ("PROMPT_TUNING", {"num_virtual_tokens": 50}, {"num_virtual_tokens": 8}),
        ("P_TUNING", {"encoder_hidden_size": 4096}, {"encoder_hidden_size": 64}),
        ("OFT", {"oft_block_size": 48}, {"oft_block_size": 8}),
        ("OFT", {"oft_block_size": 32}, {"oft_block_size": 32}),
        ("FOURIERFT", {"n_frequency": 100_000}, {"n_frequency": 32 * 32}),
    ],
)
def test_other_methods_are_made_to_fit(peft_type, given, wanted):
    notes = Notes()
    made = fit.fit(AdapterSpec(peft_type=peft_type, config=given), of_family("llama"), 8, notes)
    assert {name: made.config[name] for name in wanted} == wanted
    assert bool(notes.sentences) == (given != wanted)


def test_a_pattern_that_never_ends_is_one_sentence():
    base = dataclasses.replace(of_family("llama"), modules=("a" * 40 + "!",))
    with pytest.raises(UsageError, match="takes too long to match"):
        fit.fit(AdapterSpec(config={"target_modules": "(a+)+"}), base, 8, Notes())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "NO_SUCH"}, "no release of peft has the adapter type 'NO_SUCH'"),
        ({"peft_type": ["LORA"]}, "peft_type is ['LORA']; expected a text"),
        ({"r": 0}, "r: expected an int, 1 to"),
        ({"r": "8"}, "r: expected an int, 1 to"),
        ({"lora_dropout": 2}, "lora_dropout: expected a number, 0 to 1"),
        ({"target_modules": "*"}, "'*' is no regular expression"),
        ({"megatron_config": {"x": 1}}, "peft imports megatron_core"),
    ],
)
def test_a_wrong_adapter_is_one_sentence(tmp_path, fields, words):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, fields=fields)
    assert words in str(caught.value) and "\n" not in str(caught.value)


# ---- quantization ----


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (
            {
                **{
                    "load_in_4bit": True,
                    "_load_in_4bit": True,
                    "bnb_4bit_quant_type": "nf4",
                    "quant_method": "bitsandbytes",
                },
                **{"bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16", "llm_int8_threshold": 6.0},
            },
            "nf4",
        ),
        ({"load_in_8bit": True, "load_in_4bit": False, "bnb_4bit_quant_type": "fp4"}, "int8"),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "_load_in_4bit": True},
            {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        ),
        ({"load_in_8bit": True, "llm_int8_threshold": 3.0}, {"load_in_8bit": True, "llm_int8_threshold": 3.0}),
        ({"quant_method": "gptq", "bits": 4}, {"quant_method": "gptq", "bits": 4}),
    ],
)
def test_a_quantization_config_is_kept(given, wanted):
    assert quantized(given, "bfloat16") == wanted


def test_a_skeleton_of_a_factory_is_not_made():
    assert skeleton(ModelSpec(family="somebody:model"), "here") is None
    assert isinstance(of_family("gpt2"), Skeleton) and of_family("gpt2").linears["transformer.h.0.attn.c_attn"] == (
        192,
        64,
    )
