"""Kinds of method, model and task that are judged by one run each (`suites/test_kinds.py`).

The tables `METHODS` and `FAMILIES` have what most people train: every verb, drawn run and pair is about them. What is here is
rarer, or differs from a row of theirs in one respect. Each run is two steps on a tiny model, with a checkpoint after each.

- `METHODS`: types of peft's without a row of `harness.fixtures.methods.METHODS`.
- `OPTIONS`: fields of a LoraConfig that change which layers are adapted, or how.
- `INITS`: each value of LoraConfig.init_lora_weights.
- `BASES`: architectures. A covering set: each has something that no other row has.
- `TASKS`: each task whose rows can be made, by a model with that head.

`tests/test_kinds.py` compares these tables with what the installed peft has, and fails if something has neither a row nor a
reason (`harness.fixtures.methods.NO_ROW`, and NO_OPTION, NO_INIT and NO_TASK here).
"""

from __future__ import annotations

from typing import Any

from harness.fixtures import models
from harness.fixtures.methods import FURTHER, Method
from harness.runs.scenarios import PLAIN, two_steps
from harness.spec import RunSpec

#: A tiny Llama's config. Others of its shape share these fields.
_TEXT: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_SMALL = {name: _TEXT[name] for name in ("hidden_size", "intermediate_size")}
_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}

_RUN = two_steps(
    PLAIN.but(model={"config": _SMALL}, data={"rows": 16, "length": 8, "min_length": 4}, lora={"lora_dropout": 0.0})
)


#: Rows of few different tokens, so that each of them occurs. The methods that are about single tokens need that.
_FEW_TOKENS = {"vocab_size": 12}


def _method(row: Method) -> RunSpec:
    data = _FEW_TOKENS if "token_indices" in row.config else None
    return _RUN.but(adapter={"peft_type": row.peft_type, "config": row.fields(models.FAMILIES["llama"])}, data=data)


def _lora(**fields: Any) -> RunSpec:
    return _RUN.but(lora=fields)


#: Types of peft's that have a row of `FURTHER`.
METHODS: dict[str, RunSpec] = {name: _method(row) for name, row in FURTHER.items()} | {
    # OPT's projections have biases, so this one can be merged.
    "beft-with-biases": _method(FURTHER["beft"]).but(
        model={"family": "opt", "config": {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32}}
    ),
    # VeRA's random matrices are as wide as the widest layer, and each layer takes its part.
    "vera-mixed-shapes": _RUN.but(
        adapter={
            "peft_type": "VERA",
            "config": {"r": 8, "target_modules": ["q_proj", "k_proj", "down_proj"], "task_type": "CAUSAL_LM"},
        }
    ),
}

#: Name -> a LoRA with a field of its config that most people leave at its default.
OPTIONS: dict[str, RunSpec] = {
    "rank-pattern": _lora(rank_pattern={"v_proj": 2}, alpha_pattern={"layers.1.self_attn.q_proj": 3}),
    "exclude-modules": _lora(target_modules="all-linear", exclude_modules=["down_proj", "o_proj"]),
    "layers-to-transform": _lora(layers_to_transform=[1]),
    "layer-replication": _lora(layer_replication=[[0, 2], [0, 2]]),
    "alora": _lora(alora_invocation_tokens=[5]).but(data=_FEW_TOKENS),
    "token-indices": _lora(trainable_token_indices=[3, 5]).but(data=_FEW_TOKENS),
    "lora-bias": _lora(lora_bias=True),
    "kasa": _lora(kasa_config={}),
    "velora": _lora(velora_config={"num_groups": 8}),
    "monteclora": _lora(monteclora_config={"buffer_size": 4, "num_samples": 2}),
    "bd-lora": _lora(use_bdlora={"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": ["v_proj"], "nblocks": 2}),
}

#: Field of a LoraConfig -> why no run of the suites sets it.
NO_OPTION: dict[str, str] = {
    "qalora_group_size": "it belongs to use_qalora",
    "arrow_config": "its router computes with the adapters that it mixes and uses no tensor of its own, so there is nothing "
    "to train: backward ends with torch's error that no element requires grad",
    "use_qalora": "peft has it for GPTQ layers only, which need a GPU",
    "megatron_config": "Megatron's parallel layers need GPUs and Megatron",
    "megatron_core": "it belongs to megatron_config",
    "loftq_config": "LoftQ quantizes the weights on a GPU only",
    "runtime_config": "it says where to hold weights for a moment, and is not saved",
}

#: Value of LoraConfig.init_lora_weights -> the run.
INITS: dict[str, RunSpec] = {
    "random": _lora(init_lora_weights=False),
    "gaussian": _lora(init_lora_weights="gaussian"),
    "olora": _lora(init_lora_weights="olora"),
    "pissa": _lora(init_lora_weights="pissa"),
    "pissa_niter_2": _lora(init_lora_weights="pissa_niter_2"),
    "orthogonal": _lora(init_lora_weights="orthogonal"),
    "mica": _lora(init_lora_weights="mica"),
    # Its vectors come from initialize_lora_eva_weights, after the injection, which no spec calls. Until then it is a LoRA.
    # suites/test_kinds_composed.py calls it.
    "eva": _lora(init_lora_weights="eva", eva_config={"rho": 1.0}),
    "corda": _lora(init_lora_weights="corda", corda_config={}).but(model={"family": "harness.fixtures.prepared:corda"}),
    "lora_ga": _lora(init_lora_weights="lora_ga", lora_ga_config={}).but(
        model={"family": "harness.fixtures.prepared:lora_ga"}
    ),
}


#: Value of LoraConfig.init_lora_weights -> why it has no row.
NO_INIT: dict[str, str] = {
    "loftq": "LoftQ quantizes the weights on a GPU only (peft/utils/loftq_utils.py names cuda or xpu)"
}

#: peft's TaskType -> why no rows are made for it.
NO_TASK: dict[str, str] = {"FEATURE_EXTRACTION": "its models return no loss, so the Trainer cannot train them"}


def _base(
    model_type: str, config: dict[str, Any], task: str = models.CAUSAL, lora: dict[str, Any] | None = None
) -> RunSpec:
    """Return a LoRA on a tiny model of an architecture. If its loss is a mean of its batch, nothing is accumulated."""
    family = f"config:{model_type}"
    spec = _RUN.but(model={"family": family, "config": config}, data={"task": task}, lora=lora)
    if task not in models.NEXT_TOKEN:
        spec = spec.but(gradient_accumulation_steps=None, per_device_train_batch_size=4)
    adapter = {**spec.adapter.config, "task_type": models.TASK_TYPES[task]}
    return spec.but(adapter={"config": adapter})


_FUSED = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
_WHISPER: dict[str, Any] = {
    **{"vocab_size": 256, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4},
    **{"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 16},
    **{"max_target_positions": 32, "num_mel_bins": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "decoder_start_token_id": 3,
}
_T5: dict[str, Any] = {
    **{"vocab_size": 256, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0},
    **{"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
}
_MAMBA: dict[str, Any] = {"vocab_size": 256, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}
_IMAGE = {"image_size": 16, "patch_size": 8}
#: Four patches of an image, in the places of token 255.
_PATCHES: dict[str, Any] = {"prefix": (255,) * 4, "vocab_size": 255}
_BERT: dict[str, Any] = {
    **{"vocab_size": 256, **_VISION, "max_position_embeddings": 64},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
_QUERY = {"target_modules": ["query", "value"]}

BASES: dict[str, RunSpec] = {
    "mixtral-experts": _base("mixtral", {**_TEXT, **_EXPERTS}, lora=_FUSED),
    "gpt-oss-experts": _base("gpt_oss", {**_TEXT, **_EXPERTS, "head_dim": 8, "sliding_window": 4}, lora=_FUSED),
    # Attention's layers and the experts of one model.
    "qwen3-moe-both": _base(
        "qwen3_moe",
        {**_TEXT, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
        lora={**_FUSED, "target_modules": ["q_proj"]},
    ),
    "gemma3-hybrid": _base(
        "gemma3_text",
        {**_TEXT, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "qwen3-next-hybrid": _base(
        "qwen3_next",
        {
            **{**_TEXT, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
            **{"shared_expert_intermediate_size": 24, "linear_num_value_heads": 4, "linear_num_key_heads": 2},
            **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "mamba": _base("mamba", _MAMBA, lora={"target_modules": ["in_proj", "x_proj"]}),
    "mamba-dt": _base("mamba", _MAMBA, lora={"target_modules": ["in_proj", "dt_proj"]}),
    "deepseek-latent": _base(
        "deepseek_v3",
        {
            **{**_TEXT, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2},
            **{"moe_intermediate_size": 24, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
            **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
        },
        lora={"target_modules": ["q_b_proj", "kv_b_proj"]},
    ),
    "t5-shared": _base("t5", _T5, models.SEQ2SEQ, lora={"target_modules": ["q", "shared"]}),
    # Its forward names its inputs otherwise than transformers' models do.
    "other-names": _RUN.but(
        model={"family": "harness.fixtures.other_names:llama"},
        trainer={"data_collator": "harness.fixtures.other_names:collate"},
        # Without labels by that name, the Trainer does not count them (ACC-08).
        gradient_accumulation_steps=None,
        per_device_train_batch_size=4,
    ),
}

TASKS: dict[str, RunSpec] = {
    models.TOKENS: _base("bert", _BERT, models.TOKENS, lora={**_QUERY, "modules_to_save": ["classifier"]}),
    models.ANSWERS: _base("bert", _BERT, models.ANSWERS, lora={**_QUERY, "modules_to_save": ["qa_outputs"]}),
    models.MASKED: _base("bert", _BERT, models.MASKED, lora=_QUERY),
    models.CLASSIFICATION: _base(
        "roberta",
        {**_BERT, "pad_token_id": 0},
        models.CLASSIFICATION,
        lora={**_QUERY, "modules_to_save": ["classifier"]},
    ),
    models.IMAGES: _base(
        "vit",
        {**_VISION, **_IMAGE},
        models.IMAGES,
        lora={"target_modules": ["projection", "q_proj", "v_proj"], "modules_to_save": ["classifier"]},
    ),
    models.SEQ2SEQ: _base("t5", _T5, models.SEQ2SEQ, lora={"target_modules": ["q", "v"]}),
    models.SPEECH: _base("whisper", _WHISPER, models.SPEECH),
    models.IMAGE_TEXT: _base(
        "llava",
        {
            "text_config": {"model_type": "llama", **_TEXT},
            "vision_config": {"model_type": "clip_vision_model", **_VISION, **_IMAGE, "projection_dim": 32},
            "image_token_index": 255,
        },
        models.IMAGE_TEXT,
        # Of the vision tower's last layer LLaVA makes no use.
        lora={"target_modules": r".*(language_model|vision_tower.*layers\.0)\..*\.[qv]_proj"},
    ).but(data=_PATCHES),
}

#: All of them, by the name of the case: "option/kasa".
KINDS: dict[str, RunSpec] = {
    f"{table}/{name}": spec
    for table, specs in (
        ("method", METHODS),
        ("option", OPTIONS),
        ("init", INITS),
        ("base", BASES),
        ("task", TASKS),
    )
    for name, spec in specs.items()
}

#: Those that are about an adapter, and not about a base model.
ADAPTERS = {name: spec for name, spec in KINDS.items() if not name.startswith(("base/", "task/"))}
