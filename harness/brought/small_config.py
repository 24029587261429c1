"""Make the config of a model small by rule, without changing what kind of model it is.

What is kept: ratios of heads (grouped and multi-query attention), tied embeddings, each kind of layer, how many experts a
token gets compared with how many there are, rotary embeddings with their scaling, biases, dropout, and activations.

What is cut: layers, widths, heads, experts, vocabulary, positions and windows. A nested config, such as text_config, is cut
by the same rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from harness.brought.notes import Notes
from harness.errors import UsageError
from harness.reading import shown

#: At most so many layers, unless there are more kinds of layers.
LAYERS = 2
#: Kinds of layers that are kept.
_KINDS = 6
HEADS = 4
HEAD = 16
WIDTH = HEADS * HEAD
VOCABULARY = 256
POSITIONS = 128
#: Rows have 16 tokens: a window of 8 has an effect on them.
WINDOW = 8

#: The part of a head that rotary embeddings turn, in latent attention.
_ROPE_HEAD = HEAD // 2

_LAYERS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"),
    *("num_decoder_layers", "num_encoder_layers"),
)
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim", "n_embed")
_HEADS = (
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"),
)
_KV_HEADS = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num")
_POSITIONS = (
    *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length"),
    *("max_target_positions", "max_source_positions"),
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = (
    *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts"),
    *("num_selected_experts", "num_activated_experts"),
)

#: Field -> the most that it may be. Null and smaller values stay.
_AT_MOST: dict[str, int] = {
    # Feed-forward layers. Those of experts are narrower than those that every token passes.
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim"), 2 * WIDTH
    ),
    **dict.fromkeys(("ffn_hidden_size", "block_ffn_dim", "intermediate_size_mlp"), 2 * WIDTH),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "hidden_size_per_layer_input"), 32),
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_ffn_hidden_size", "expert_hidden_size"), 32),
    **dict.fromkeys(
        ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_nextn_predict_layers"), 1
    ),
    # Latent attention.
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim"), HEAD),
    "qk_rope_head_dim": _ROPE_HEAD,
    "index_n_heads": 2,
    "index_head_dim": HEAD,
    "index_topk": WINDOW,
    # Windows of attention.
    **dict.fromkeys(
        ("sliding_window", "attention_chunk_size", "attention_window", "window_size", "local_attention"), WINDOW
    ),
    # Which layers are of another kind: each second one, so that two layers have both kinds.
    **dict.fromkeys(
        ("sliding_window_pattern", "full_attention_interval", "attn_layer_period", "expert_layer_period"), 2
    ),
    **dict.fromkeys(("attn_layer_offset", "expert_layer_offset", "first_k_dense_replace", "max_window_layers"), 1),
    **dict.fromkeys(
        ("decoder_sparse_step", "moe_layer_freq", "interleave_moe_layer_step", "global_attn_every_n_layers"), 2
    ),
    **dict.fromkeys(("moe_layer_start_index", "moe_layer_end_index", "num_kv_shared_layers"), 1),
    # State spaces and linear attention.
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), HEAD),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), WINDOW),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), HEADS),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads",), HEADS),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), HEAD),
    "type_vocab_size": 2,
    "relative_attention_num_buckets": 32,
    "vocab_size_per_layer_input": VOCABULARY,
    **dict.fromkeys(("embedding_size", "lru_width", "pooler_hidden_size"), WIDTH),
    **dict.fromkeys(("hidden_dim", "mlp_dim"), 2 * WIDTH),
    "decoder_vocab_size": VOCABULARY,
    "word_embed_proj_dim": WIDTH,
    # Images and sound: the parts are made, and rows of text do not use them.
    "image_size": 32,
    "patch_size": 8,
    "num_mel_bins": 8,
}

#: Lists that name layers by their numbers.
_NUMBERS_OF_LAYERS = ("mlp_only_layers", "attn_layer_indices", "hybrid_layer_ids", "full_attn_idxs", "moe_layers")


_SIZES = frozenset(
    (*_LAYERS, *_WIDTHS, *_HEADS, *_KV_HEADS, *_POSITIONS, *_EXPERTS, *_PER_TOKEN, *_NUMBERS_OF_LAYERS, *_AT_MOST)
) | {"vocab_size", "head_dim", "d_kv", "n_group", "topk_group", "layer_types", "per_layer_config"}


def small(config: Mapping[str, Any], notes: Notes, where: str = "config.json") -> dict[str, Any]:
    """Return a small config of the same architecture, and say in one sentence what was cut. UsageError as `check`."""
    check(config, where)
    made = _shrunk(dict(config))
    if cut := list(_cuts(config, made)):
        notes.say(f"the model is made small by rule: {', '.join(cut)}")
    return made


def _cuts(config: Mapping[str, Any], made: Mapping[str, Any], inside: str = "") -> Iterator[str]:
    """Yield what was cut, one "hidden_size 4096 -> 64" for each number."""
    for name, was in config.items():
        if _is_config(name, was):
            yield from _cuts(was, made[name], f"{inside}{name}.")
        elif _is_number(was) and made.get(name) != was and not name.endswith(("_token_id", "_token_index")):
            yield f"{inside}{name} {was} -> {made[name]}"


def filled(config: Mapping[str, Any], full: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """Return a config with the sizes that it leaves to the defaults of its class, so that they are cut, too.

    - full: the config as its class has it, with all fields.
    - aliases: other name -> name, as the class knows them (attribute_map).
    """
    made = dict(config)
    there = {*config, *(name for other, name in aliases.items() if other in config)}
    for name, value in full.items():
        if _is_config(name, value):
            inner = config.get(name)
            made[name] = filled(inner if isinstance(inner, Mapping) else {}, value, {})
        elif name in _SIZES and name not in there and value is not None:
            made[name] = value
    return made


def check(config: Mapping[str, Any], where: str) -> None:
    """Raise UsageError for a size that is no positive number."""
    for name in (*_LAYERS, *_WIDTHS, *_HEADS, *_KV_HEADS, *_EXPERTS, "vocab_size", *_AT_MOST):
        value = config.get(name)
        if isinstance(value, bool) or (isinstance(value, (int, float)) and not 0 <= value < 2**31):
            raise UsageError(f"{where}: {name} is {shown(value)}; expected a size")
        if isinstance(value, (int, float)) and value == 0 and name in (*_WIDTHS, *_HEADS, "vocab_size"):
            raise UsageError(f"{where}: {name} is 0; expected a size")
        if isinstance(value, (str, dict)):
            raise UsageError(f"{where}: {name} is {shown(value)}; expected a number")


def _shrunk(config: dict[str, Any]) -> dict[str, Any]:
    config = {name: _shrunk(value) if _is_config(name, value) else value for name, value in config.items()}
    _cut_layers(config)
    _cut_widths(config)
    _cut_experts(config)
    _cut_positions(config)
    for name, most in _AT_MOST.items():
        if _is_number(config.get(name)):
            config[name] = min(config[name], most)
    _cut_stages(config)
    if _is_number(config.get("vocab_size")):
        config["vocab_size"] = min(config["vocab_size"], VOCABULARY)
        _cut_tokens(config, config["vocab_size"])
    return config


def _cut_stages(config: dict[str, Any]) -> None:
    """Vision models in stages: each has a width and a depth, and the image of the first is some windows wide."""
    for name, most in (("hidden_sizes", WIDTH), ("depths", LAYERS)):
        if isinstance(config.get(name), list):
            config[name] = [min(size, most) if _is_number(size) else size for size in config[name]]
    if "depths" in config and _is_number(config.get("window_size")):
        config["window_size"] = min(config["window_size"], HEADS)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_config(name: str, value: Any) -> bool:
    return isinstance(value, dict) and (name.endswith("_config") and name != "quantization_config")


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if _is_number(config.get(name))), None)


# ---- layers ----


def _cut_layers(config: dict[str, Any]) -> None:
    """Cut layers, and lists with an entry for each, to the first layer of each kind."""
    for name in _LAYERS:
        if not _is_number(config.get(name)):
            continue
        count = config[name]
        picked = _picked(config, count)
        config[name] = len(picked)
        for other, value in config.items():
            if isinstance(value, list) and len(value) == count and count > len(picked):
                config[other] = [value[layer] for layer in picked]
        for other in _NUMBERS_OF_LAYERS:
            if isinstance(config.get(other), list):
                config[other] = [new for new, old in enumerate(picked) if old in config[other]]
        if isinstance(config.get("per_layer_config"), dict):
            each = {str(key): value for key, value in config["per_layer_config"].items()}
            numbers = {
                int(key): _shrunk(value) for key, value in each.items() if key.isdigit() and isinstance(value, dict)
            }
            config["per_layer_config"] = {str(new): numbers[old] for new, old in enumerate(picked) if old in numbers}


def _picked(config: Mapping[str, Any], count: int) -> list[int]:
    """Return which layers are kept."""
    lists = [value for value in config.values() if isinstance(value, list) and len(value) == count > LAYERS]
    named = [set(map(str, config[name])) for name in _NUMBERS_OF_LAYERS if isinstance(config.get(name), list)]
    if isinstance(config.get("per_layer_config"), dict):
        named.append({str(key).lstrip("0") or "0" for key in config["per_layer_config"]})
    kinds: dict[str, int] = {}
    for layer in range(min(count, 10_000)):
        kind = repr(([value[layer] for value in lists], [str(layer) in names for names in named]))
        kinds.setdefault(kind, layer)
    picked = list(kinds.values())[:_KINDS]
    picked += [layer for layer in range(count) if layer not in picked][: max(0, LAYERS - len(picked))]
    return sorted(picked)


# ---- widths and heads ----


def _cut_widths(config: dict[str, Any]) -> None:
    width, heads = _first(config, _WIDTHS), _first(config, _HEADS)
    head = next((name for name in ("head_dim", "d_kv", "attention_head_dim") if _is_number(config.get(name))), None)
    was = (config[width] if width else 0, config[heads] if heads else 0)
    new_heads = _cut_heads(config)
    if width is None:
        return
    size = min(HEAD, was[0] // was[1]) if was[1] and was[0] >= was[1] else HEAD
    size = max(2, size - size % 2)  # rotary embeddings turn pairs
    for name in _WIDTHS:
        if _is_number(config.get(name)):
            config[name] = min(config[name], max(new_heads, 1) * size if heads else WIDTH)
    if head is not None:
        # Models whose heads are together wider or narrower than the model stay so.
        product, whole = config[head] * was[1], was[0]
        config[head] = (
            size if product == whole or not was[1] else min(config[head], 2 * size if product > whole else size // 2)
        )
    if _is_number(config.get("rotary_dim")):
        config["rotary_dim"] = min(config["rotary_dim"], size // 2)
    if _is_number(config.get("query_pre_attn_scalar")):
        config["query_pre_attn_scalar"] = config.get("head_dim", size)
    if _is_number(config.get("qk_rope_head_dim")):
        _cut_latent_heads(config)
    _cut_state_space(config, config[width])
    _cut_sections(config, config.get("head_dim") or size)


def _cut_sections(config: dict[str, Any], head: int) -> None:
    """Rotary embeddings of images and text: the sections of a head, each of which turns by another position."""
    for name in ("rope_scaling", "rope_parameters"):
        given = config.get(name)
        if not isinstance(given, dict):
            continue
        sections = given.get("mrope_section")
        if isinstance(sections, list) and len(sections) > 1 and all(_is_number(part) for part in sections):
            config[name] = {**given, "mrope_section": _shares(sections, head // 2)}


def _cut_latent_heads(config: dict[str, Any]) -> None:
    """Latent attention: a head is a part that rotary embeddings turn, and a part that they do not."""
    turned = min(config["qk_rope_head_dim"], _ROPE_HEAD)
    if _is_number(config.get("head_dim")):
        config["head_dim"] = turned
    if _is_number(config.get("qk_head_dim")):
        config["qk_head_dim"] = turned + min(config.get("qk_nope_head_dim") or 0, HEAD)


def _cut_state_space(config: dict[str, Any], width: int) -> None:
    """A state space's heads share its inner width."""
    expand = config.get("mamba_expand") or config.get("expand") or 2
    inner = int(width * expand) if isinstance(expand, (int, float)) else 2 * width
    for count, each in (("mamba_n_heads", "mamba_d_head"), ("mamba_num_heads", "mamba_head_dim")):
        if _is_number(config.get(count)) and inner % HEAD == 0:
            config[count] = inner // HEAD
            if _is_number(config.get(each)):
                config[each] = HEAD
    if _is_number(config.get("mamba_d_ssm")):
        config["mamba_d_ssm"] = inner


def _cut_heads(config: dict[str, Any]) -> int:
    """Cut heads. Multi-query attention keeps one head for keys, grouped attention two, plain attention all."""
    new = 0
    for name in _HEADS:
        if not _is_number(config.get(name)):
            continue
        was = config[name]
        config[name] = new = min(was, HEADS)
        if name not in ("num_attention_heads", "n_head", "n_heads", "num_heads"):
            continue
        for other in _KV_HEADS:
            if _is_number(config.get(other)):
                of_keys = config[other]
                config[other] = new if of_keys >= was else 1 if of_keys == 1 or new < 4 else 2
    return new


def _cut_experts(config: dict[str, Any]) -> None:
    name = _first(config, _EXPERTS)
    if name is None or config[name] < 1:
        return
    was = config[name]
    for other in _EXPERTS:
        if _is_number(config.get(other)):
            config[other] = min(config[other], 4)
    for other in _PER_TOKEN:
        if _is_number(config.get(other)):
            # Less than all experts, if it was less.
            config[other] = min(config[other], 2 if config[other] < was else 4)
    if _is_number(config.get("n_group")) and _is_number(config.get("topk_group")):
        groups = min(config["n_group"], 2)
        config["n_group"], config["topk_group"] = groups, max(1, min(config["topk_group"], groups - 1))


# ---- positions and tokens ----


def _cut_positions(config: dict[str, Any]) -> None:
    name = _first(config, _POSITIONS)
    was = config[name] if name else POSITIONS
    for other in _POSITIONS:
        if _is_number(config.get(other)):
            config[other] = min(config[other], POSITIONS)
    share = max(1.0, was / POSITIONS)
    if _is_number(config.get("original_max_position_embeddings")):
        config["original_max_position_embeddings"] = _original(config["original_max_position_embeddings"], share)
    for rope in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(rope), dict):
            config[rope] = _cut_rope(config[rope], config, share)


def _original(was: int, share: float) -> int:
    return max(2, min(POSITIONS, math.floor(was / share)))


def _cut_rope(rope: Mapping[str, Any], config: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Return the scaling of rotary embeddings for shorter sequences and smaller heads."""
    width, heads = _first(config, _WIDTHS), _first(config, _HEADS)
    size = (
        config.get("qk_rope_head_dim")
        or config.get("head_dim")
        or (config[width] // config[heads] if width and heads else HEAD)
    )
    if "qk_rope_head_dim" in config and _is_number(config["qk_rope_head_dim"]):
        size = min(config["qk_rope_head_dim"], _ROPE_HEAD)
    part = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1
    turned = max(1, int(size * part) // 2) if isinstance(part, (int, float)) else size // 2
    made: dict[str, Any] = {}
    for name, value in rope.items():
        if isinstance(value, dict):  # one for each kind of layer
            value = _cut_rope(value, config, share)
        elif name == "original_max_position_embeddings" and _is_number(value):
            value = _original(value, share)
        elif name in ("short_factor", "long_factor") and isinstance(value, list):
            value = value[:turned]
        elif name == "mrope_section" and isinstance(value, list) and value and all(_is_number(part) for part in value):
            value = _shares(value, turned)
        made[name] = value
    return made


def _shares(parts: list[int], total: int) -> list[int]:
    """Return numbers with the given sum, in about the same proportion."""
    whole = sum(parts) or 1
    made = [part * total // whole for part in parts]
    made[-1] += total - sum(made)
    return made


def _cut_tokens(config: dict[str, Any], size: int) -> None:
    """Give special tokens that the vocabulary no longer has the last numbers that it has."""
    free = size - 1
    fixed = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    for name, value in config.items():
        if not name.endswith(("_token_id", "_token_index", "_token_ids")):
            continue
        first = value[0] if isinstance(value, list) and value else value
        if not _is_number(first) or first < size:
            continue
        if name in fixed:
            config[name] = min(fixed[name], size - 1)
        else:
            config[name] = [free] if isinstance(value, list) else free
            free = max(3, free - 1)
