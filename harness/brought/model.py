"""The base model that somebody names: a directory with a config.json, that file itself, or a family of ours."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.brought import small_config
from harness.brought.notes import Notes
from harness.brought.settings_files import read_object
from harness.errors import UsageError
from harness.fixtures.models import FAMILIES
from harness.fixtures.pretrained import first_line
from harness.reading import shown, shown_path
from harness.spec import ModelSpec

FILE = "config.json"

#: Prefix of ModelSpec.family for a model that its config alone describes; the model_type follows.
CONFIG = "config:"

#: Fields of config.json that say what wrote it, or that concern generation and loading. They do not shape the model.
_ABOUT_THE_FILE = (
    *("architectures", "model_type", "transformers_version", "_name_or_path", "torch_dtype", "dtype"),
    *("quantization_config", "auto_map", "_attn_implementation_autoset", "_attn_implementation_internal"),
    *("_commit_hash", "use_cache", "_diffusers_version", "return_dict", "output_attentions", "output_hidden_states"),
)

_DTYPES = ("float32", "float16", "bfloat16", "float64")

_WEIGHTS_ALONE = {
    ".gguf": "a GGUF file, whose quantized weights are not trained; name a directory with the model's config.json",
    ".bin": "weights in a pickle, which are never loaded; name the config.json beside it",
    ".pt": "weights in a pickle, which are never loaded; name the config.json beside it",
    ".pth": "weights in a pickle, which are never loaded; name the config.json beside it",
    ".safetensors": "weights alone, which do not say what model they are of; name the config.json beside it",
}


@dataclass(frozen=True)
class Base:
    """A base model, and what its config.json says beside the architecture.

    - spec: the model.
    - quantization: its quantization_config; None if it has none.
    - architecture: the class that its file names, such as "LlamaForCausalLM"; "" if it names none.
    """

    spec: ModelSpec
    quantization: Mapping[str, Any] | None = None
    architecture: str = ""


def read_model(name: str | Path, notes: Notes, as_is: bool = False, trust_code: bool = False) -> Base:
    """Return the base model that --model names.

    - name: a family of `FAMILIES`, a directory with a config.json, or such a file.
    - as_is: whether the config is taken as it is. Otherwise it is made small by rule.
    - trust_code: whether "module:factory" is taken.

    Raises UsageError for what is no model, and for a class that transformers does not know.
    """
    text = str(name)
    if text in FAMILIES:
        return Base(ModelSpec(family=text))
    path = Path(text)
    if ":" in text and not path.exists():
        if not trust_code:
            raise UsageError(f"{shown(text)} names code; if you trust it, repeat the command with --trust-code")
        return Base(ModelSpec(family=text))
    for ending, what in _WEIGHTS_ALONE.items():
        if text.lower().endswith(ending) and not path.is_dir():
            raise UsageError(f"{shown_path(path)}: {what}")
    return _from_config(read_object(_file(path), "a model's config"), shown_path(_file(path)), notes, as_is)


def _file(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise UsageError(
                f"{shown_path(path)}: neither a directory with a {FILE} nor a family, which are "
                f"{', '.join(name for name in FAMILIES if ':' not in name)}; names on the hub are not looked up, so name "
                "a directory"
            )
        return path
    if (path / FILE).exists():
        return path / FILE
    if (path / "adapter_config.json").exists():
        raise UsageError(f"{shown_path(path)}: holds an adapter; name it with --adapter, and a base model with --model")
    gguf = next((file.name for file in sorted(path.glob("*.gguf"))), None)
    if gguf is not None:
        raise UsageError(f"{shown_path(path)}: has no {FILE}, and {shown(gguf)} is {_WEIGHTS_ALONE['.gguf']}")
    raise UsageError(f"{shown_path(path)}: has no {FILE}; name a directory that save_pretrained wrote")


def _from_config(config: dict[str, Any], where: str, notes: Notes, as_is: bool) -> Base:
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        hint = "; this is an adapter's config, so name it with --adapter" if "peft_type" in config else ""
        raise UsageError(
            f"{where}: model_type is {shown(kind)}; expected the name of an architecture, such as llama{hint}"
        )
    _check_class(kind, config, where, notes)
    kept = {name: value for name, value in config.items() if name not in _ABOUT_THE_FILE}
    given = config.get("quantization_config")
    if given is not None and not isinstance(given, dict):
        raise UsageError(f"{where}: quantization_config is {shown(given)}; expected an object")
    endless = [name for name, value in kept.items() if _has_infinity(value)]
    if endless:
        notes.say(f"{where}: {', '.join(endless)}: an infinite number is left to the default of the class")
        kept = {name: value for name, value in kept.items() if name not in endless}
    if as_is:
        notes.say(f"{where}: the model is taken whole, with weights drawn from a seed")
    else:
        small_config.check(kept, where)
        made = _made(kind, kept, where)
        kept = small_config.small(small_config.filled(kept, made.to_dict(), made.attribute_map or {}), notes, where)
        kept.update(_special_tokens(_made(kind, kept, where)))
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else ""
    spec = ModelSpec(family=f"{CONFIG}{kind}", config=kept, dtype=_dtype(config, notes))
    return Base(spec, given, named if isinstance(named, str) else "")


def _has_infinity(value: Any) -> bool:
    """Return whether a value of a config.json is infinite, or holds such a number, as transformers writes it."""
    if isinstance(value, dict):
        return "__float__" in value or any(_has_infinity(item) for item in value.values() if isinstance(item, float))
    if isinstance(value, list):
        return any(_has_infinity(item) for item in value)
    return isinstance(value, float) and math.isinf(value)


def _made(kind: str, config: Mapping[str, Any], where: str) -> Any:
    """Return transformers' config of this kind. UsageError if it refuses the fields."""
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(kind, **copy.deepcopy(dict(config)))
    except Exception as error:
        raise UsageError(f"{where}: transformers refuses it as a config of {kind}: {first_line(error)}") from None


def _special_tokens(config: Any) -> dict[str, int]:
    """Return numbers for special tokens that a small vocabulary does not have.

    They may come from the defaults of the class, and so stand in no config.json.
    """
    try:
        size = config.get_text_config().vocab_size
    except (AttributeError, ValueError):
        return {}
    found = {}
    for number, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id")):
        value = getattr(config, name, None)
        if isinstance(value, int) and value >= size:
            found[name] = number
    return found


def _check_class(kind: str, config: Mapping[str, Any], where: str, notes: Notes) -> None:
    import transformers

    if kind in transformers.CONFIG_MAPPING:
        if config.get("auto_map"):
            notes.leave_out("auto_map", f"it names code, and transformers has a class of its own for {kind}")
        return
    if config.get("auto_map"):
        raise UsageError(
            f"{where}: {shown(kind)} is made by code of its own (auto_map), which is not run; name an architecture that "
            "transformers has, or give a factory with --model module:factory --trust-code"
        )
    from harness.environment import version

    raise UsageError(
        f"{where}: transformers {version('transformers')} has no class for model_type {shown(kind)}; upgrade "
        "transformers, or name another model"
    )


def _dtype(config: Mapping[str, Any], notes: Notes) -> str:
    """Return the dtype of the weights that config.json names, float32 if it names none that is trained in."""
    given = config.get("dtype", config.get("torch_dtype"))
    if given is None and isinstance(config.get("text_config"), Mapping):
        given = config["text_config"].get("dtype", config["text_config"].get("torch_dtype"))
    name = str(given).removeprefix("torch.") if given is not None else "float32"
    if name == "auto":
        name = "float32"
    if not re.fullmatch(r"\w{1,20}", name) or name not in _DTYPES:
        notes.leave_out("dtype", f"weights are not drawn in {shown(name)}; they are float32")
        return "float32"
    if name != "float32":
        notes.say(f"weights are {name}, as config.json says")
    return name
