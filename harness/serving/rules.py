"""What each server takes of an adapter, by its own source. A rule that was not read there is not in this table.

A rule looks at the adapter's config and at the names and shapes of its tensors, and returns a sentence if it applies. `kind`
says what follows:

- NO: the server refuses the adapter, with an error.
- WRONG: the server loads it without an error, and computes something else than peft.
- NEEDS: it takes it if it is started with this option.
- ASK: it depends on the server's release or on the base; what it depends on is in the sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.checkpoints.adapter_directory import Adapter, module_of, quoted

NO, WRONG, NEEDS, ASK = "no", "wrongly", "needs", "ask"

VLLM, SGLANG, LLAMA_CPP = "vLLM", "SGLang", "llama.cpp"
SERVERS = (VLLM, SGLANG, LLAMA_CPP)

#: The day on which the sources were read.
READ = "2026-11-29"


@dataclass(frozen=True)
class Source:
    """A file of a server's source. commit: of the version that was read; "" if the stored copy has none."""

    file: str
    commit: str

    def __str__(self) -> str:
        return f"{self.file} ({f'commit {self.commit}' if self.commit else 'a later version'}, read {READ})"


_PEFT_HELPER = Source("vllm-project/vllm: vllm/lora/peft_helper.py", "e745bafffc44")
_NEW_PEFT_HELPER = Source("vllm-project/vllm: vllm/lora/peft_helper.py", "")
_LORA_CONFIG = Source("vllm-project/vllm: vllm/config/lora.py", "01230b40128e")
_LORA_MODEL = Source("vllm-project/vllm: vllm/lora/lora_model.py", "0306474e9d1f")
_VLLM_NAMES = Source("vllm-project/vllm: vllm/lora/utils.py, parse_fine_tuned_lora_name", "001e63a89b47")
_SGLANG_LORA = Source("sgl-project/sglang: python/sglang/srt/lora/lora.py", "db2a4cc1f9e2")
_NEW_SGLANG_LORA = Source("sgl-project/sglang: python/sglang/srt/lora/lora.py", "")
_SGLANG_CONFIG = Source("sgl-project/sglang: python/sglang/srt/lora/lora_config.py", "0ceb81fe4868")
_SGLANG_POOL = Source("sgl-project/sglang: python/sglang/srt/lora/mem_pool.py, can_support", "00639c4d198e")
_SGLANG_MANAGER = Source("sgl-project/sglang: python/sglang/srt/lora/lora_manager.py, validate_new_adapter", "")
_CONVERTER = Source("ggml-org/llama.cpp: convert_lora_to_gguf.py", "0b03adaa632b")
_ADAPTER_H = Source("ggml-org/llama.cpp: src/llama-adapter.h, get_scale", "215841fc0178")


@dataclass(frozen=True)
class Rule:
    """A rule of a server. applies: returns a sentence about the adapter if the rule applies, else None."""

    server: str
    kind: str
    source: Source
    applies: Callable[[Adapter], str | None]


#: vLLM's values of --max-lora-rank (MaxLoRARanks), and its default.
RANKS, RANK = (1, 8, 16, 32, 64, 128, 256, 320, 512), 16

#: Values of init_lora_weights that change the base's weights when peft loads the adapter, by the rule of vLLM.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")


def ranks(adapter: Adapter) -> list[int]:
    """Return the ranks that the config names: r, and those of rank_pattern."""
    pattern = adapter.config.get("rank_pattern") or {}
    return [
        n for n in (adapter.config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())) if _is_int(n)
    ]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _set(name: str, words: str) -> Callable[[Adapter], str | None]:
    """Return a rule that applies if the config sets a field. words: the sentence."""
    return lambda adapter: words.format(adapter.config[name]) if adapter.config.get(name) else None


def _other_method(adapter: Adapter) -> str | None:
    return f"it is a {adapter.peft_type} adapter, and only LoRA is taken" if adapter.peft_type != "LORA" else None


def _lacks_fields(adapter: Adapter) -> str | None:
    missing = [name for name in ("r", "lora_alpha", "target_modules") if name not in adapter.config]
    return f"adapter_config.json has no {', no '.join(missing)}" if missing else None


def _rank_too_large(adapter: Adapter) -> str | None:
    largest = max(ranks(adapter), default=0)
    return f"its rank is {largest}, and {RANKS[-1]} is the most" if largest > RANKS[-1] else None


def _rank_option(adapter: Adapter) -> str | None:
    largest = max(ranks(adapter), default=0)
    if not RANK < largest <= RANKS[-1]:
        return None
    return f"--max-lora-rank {next(rank for rank in RANKS if rank >= largest)}"


def _bias(adapter: Adapter) -> str | None:
    bias = adapter.config.get("bias", "none")
    return f"bias is {bias!r}" if bias != "none" else None


def _head(adapter: Adapter) -> str | None:
    kept = adapter.config.get("modules_to_save") or []
    return f"modules_to_save has {quoted(list(map(str, kept)))}" if kept else None


def _changing_start(adapter: Adapter) -> str | None:
    """Return init_lora_weights if it names a start that takes a part out of the base's weights."""
    start = adapter.config.get("init_lora_weights")
    return start if isinstance(start, str) and start.lower() not in _PLAIN_STARTS else None


def _init(adapter: Adapter) -> str | None:
    start = _changing_start(adapter)
    if start is None:
        return None
    return (
        f"init_lora_weights is {start!r}: peft takes a part out of the base's weights when it loads such an adapter. Later "
        "releases refuse it, earlier ones serve it on the whole base, which is wrong. Save it with "
        "path_initial_model_for_weight_conversion"
    )


def _by_module(adapter: Adapter) -> str | None:
    patterns = [name for name in ("rank_pattern", "alpha_pattern") if adapter.config.get(name)]
    if not patterns:
        return None
    return (
        f"{' and '.join(patterns)} set ranks or scales by module: later releases follow them, earlier ones take r and "
        "lora_alpha for all modules"
    )


def _names(adapter: Adapter) -> str | None:
    """vLLM reads lora_A, lora_B and LoRA of embeddings. `_whole_embeddings` is about whole embeddings."""
    ends = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
    strange = sorted(name for name in adapter.tensors if not name.endswith(ends) and not _is_whole_embedding(name))
    return f"the file has {quoted(strange)}, which is no matrix of LoRA" if strange else None


def _is_whole_embedding(name: str) -> bool:
    return bool(re.search(r"\.(embed_tokens|lm_head)\.(base_layer\.)?weight$", name))


def _whole_embeddings(adapter: Adapter) -> str | None:
    whole = sorted(name for name in adapter.tensors if _is_whole_embedding(name))
    if not whole or adapter.config.get("modules_to_save"):
        return None
    return (
        f"the file has {quoted(whole)} whole: tensors that vLLM takes for the base's embeddings are passed over, which is "
        "wrong if the vocabulary was resized"
    )


def _sglang_scale(adapter: Adapter) -> str | None:
    if not adapter.config.get("use_rslora"):
        return None
    return "use_rslora is set, and the scale is lora_alpha / r for every adapter, which is smaller by the root of r"


def _sglang_patterns(adapter: Adapter) -> str | None:
    if not adapter.config.get("alpha_pattern") and not adapter.config.get("rank_pattern"):
        return None
    return "rank_pattern or alpha_pattern is set, and the scale is lora_alpha / r for every module"


def _whole_passed_over(adapter: Adapter) -> str | None:
    head = _head(adapter)
    return f"{head}, whose tensors are passed over" if head else None


def _init_not_read(adapter: Adapter) -> str | None:
    start = _changing_start(adapter)
    if start is None:
        return None
    return (
        f"init_lora_weights is {start!r}, which is not looked at: peft takes a part out of the base's weights when it loads "
        "such an adapter. Save it with path_initial_model_for_weight_conversion"
    )


def _sglang_projections(adapter: Adapter) -> str | None:
    modules = {module_of(name) for name in adapter.tensors}
    alone = sorted(m for m in modules if m.endswith("q_proj") and f"{m.removesuffix('q_proj')}v_proj" not in modules)
    if not alone:
        return None
    return f"{quoted(alone)} is adapted and the v_proj beside it is not: q, k and v are put together as it is loaded"


def _strange_for_gguf(adapter: Adapter) -> str | None:
    strange = sorted(
        name
        for name in adapter.tensors
        if ".lora_A.weight" not in name
        and ".lora_B.weight" not in name
        and ".lora_embedding_" not in name
        and ".base_layer.weight" not in name
        and "_layernorm" not in name
        and ".norm" not in name
    )
    return f"the file has {quoted(strange)}, at which the converter ends with an error" if strange else None


def _gguf_no_alpha(adapter: Adapter) -> str | None:
    if "lora_alpha" in adapter.config:
        return None
    return "adapter_config.json has no lora_alpha"


def _gguf_head(adapter: Adapter) -> str | None:
    if not any(module_of(name) == "lm_head" for name in adapter.tensors):
        return None
    return "lm_head is adapted: if the base ties it to the embedding, the converter refuses the adapter"


def _gguf_patterns(adapter: Adapter) -> str | None:
    return (
        "alpha_pattern is set, and one alpha is written for all modules"
        if adapter.config.get("alpha_pattern")
        else None
    )


def _gguf_rslora(adapter: Adapter) -> str | None:
    if not adapter.config.get("use_rslora"):
        return None
    return "use_rslora is set, and the scale is alpha / rank, which is smaller by the root of the rank"


RULES: tuple[Rule, ...] = (
    Rule(VLLM, NO, _VLLM_NAMES, _other_method),
    Rule(VLLM, NO, _PEFT_HELPER, _lacks_fields),
    Rule(VLLM, NO, _LORA_CONFIG, _rank_too_large),
    Rule(VLLM, NEEDS, _LORA_CONFIG, _rank_option),
    Rule(VLLM, NO, _PEFT_HELPER, _bias),
    Rule(VLLM, NO, _PEFT_HELPER, _set("use_dora", "it is a DoRA adapter")),
    Rule(VLLM, NO, _PEFT_HELPER, _head),
    Rule(VLLM, NO, _VLLM_NAMES, _names),
    Rule(VLLM, ASK, _LORA_MODEL, _whole_embeddings),
    Rule(VLLM, NO, _NEW_PEFT_HELPER, _set("lora_bias", "lora_bias is set")),
    Rule(VLLM, ASK, _NEW_PEFT_HELPER, _init),
    Rule(VLLM, NO, _NEW_PEFT_HELPER, _set("alora_invocation_tokens", "it is an aLoRA adapter")),
    Rule(VLLM, NO, _NEW_PEFT_HELPER, _set("layer_replication", "layer_replication is set")),
    Rule(VLLM, NO, _NEW_PEFT_HELPER, _set("use_bdlora", "it is block-diagonal (use_bdlora)")),
    Rule(VLLM, NO, _NEW_PEFT_HELPER, _set("use_qalora", "it is a QALoRA adapter")),
    Rule(VLLM, ASK, _NEW_PEFT_HELPER, _by_module),
    Rule(SGLANG, NO, _SGLANG_LORA, _other_method),
    Rule(SGLANG, NO, _SGLANG_CONFIG, _lacks_fields),
    Rule(SGLANG, NO, _SGLANG_MANAGER, _set("use_dora", "it is a DoRA adapter")),
    Rule(SGLANG, WRONG, _NEW_SGLANG_LORA, _sglang_scale),
    Rule(SGLANG, WRONG, _NEW_SGLANG_LORA, _sglang_patterns),
    Rule(SGLANG, WRONG, _NEW_SGLANG_LORA, _whole_passed_over),
    Rule(SGLANG, WRONG, _SGLANG_CONFIG, _init_not_read),
    Rule(SGLANG, NO, _NEW_SGLANG_LORA, _sglang_projections),
    Rule(LLAMA_CPP, NO, _CONVERTER, _gguf_no_alpha),
    Rule(LLAMA_CPP, NO, _CONVERTER, _strange_for_gguf),
    Rule(LLAMA_CPP, ASK, _CONVERTER, _gguf_head),
    Rule(LLAMA_CPP, WRONG, _CONVERTER, _init_not_read),
    Rule(LLAMA_CPP, WRONG, _ADAPTER_H, _gguf_rslora),
    Rule(LLAMA_CPP, WRONG, _CONVERTER, _gguf_patterns),
)

#: What no rule looks at, because it depends on the base or on how the server is started.
NOT_JUDGED: dict[str, str] = {
    VLLM: "whether the server's class for this base adapts these modules: "
    f"{_LORA_MODEL} refuses names that the class does not list",
    SGLANG: "whether --max-lora-rank and --lora-target-modules of the server include this adapter's: "
    f"{_SGLANG_POOL}. Adapters that are named at the start set both",
    LLAMA_CPP: f"whether the converter knows the base's architecture, and how it maps these modules: {_CONVERTER}",
}
