"""Make an adapter's config fit a small model by rule: names of modules, numbers of layers, ranks. Each with a sentence."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from harness import compat
from harness.alarm import TimeIsUp, limited
from harness.brought.notes import Notes, listed
from harness.brought.skeleton import Skeleton
from harness.errors import UsageError
from harness.fixtures.models import FAMILIES
from harness.reading import shown
from harness.spec import AdapterSpec

#: A layer's number in the name of a module, such as the 30 of "layers.30.self_attn".
_NUMBER = re.compile(r"(?<![\w])(\d{1,9})(?=\.|$)")

#: Seconds for matching a pattern with all names of a small model. Usual ones take some microseconds.
_MATCHING = 0.5

#: Fields whose value is a rank, by which of the field an alpha is kept in proportion.
_RANKS = {"r": "lora_alpha", "init_r": "lora_alpha", "target_r": ""}

#: Sizes of blocks. They divide the width of a layer, so a power of two is kept and anything else becomes one.
_BLOCKS = ("oft_block_size", "boft_block_size", "block_size", "group_size", "vector_length", "block_size_pattern")
_BLOCK = 8


def fit(adapter: AdapterSpec, base: Skeleton, steps: int, notes: Notes) -> AdapterSpec:
    """Return the adapter as it fits a base model.

    - steps: optimizer steps of the run, which some methods plan with.

    Raises UsageError for a pattern that is none, or that takes too long.
    """
    config = dict(adapter.config)
    for field in ("target_modules", "exclude_modules", "modules_to_save", "feedforward_modules"):
        if isinstance(config.get(field), (list, str)):
            _fit_names(config, field, base.modules, base, notes)
    if isinstance(config.get("target_parameters"), list):
        _fit_names(config, "target_parameters", base.parameters, base, notes)
    for field in ("rank_pattern", "alpha_pattern"):
        if isinstance(config.get(field), Mapping):
            _fit_pattern(config, field, base, notes)
    _fit_layers(config, base, notes)
    _fit_ranks(config, base, notes)
    _fit_rest(adapter.peft_type, config, base, steps, notes)
    return dataclasses.replace(adapter, config=config)


def closest_family(adapter: AdapterSpec, task: str, skeletons: Callable[[str], Skeleton]) -> str:
    """Return the first family for a task whose modules have the most of the names that an adapter names."""
    names = adapter.config.get("target_modules")
    listed_names = names if isinstance(names, list) else []
    wanted = [names] if isinstance(names, str) else [str(name) for name in listed_names]
    fitting = [name for name, row in FAMILIES.items() if row.task == task and ":" not in name]
    if not fitting:
        raise UsageError(f"no family of the suites has a head for task {task!r}; name your model with --model")
    if not wanted or wanted == ["all-linear"]:
        return fitting[0]

    def found(family: str) -> int:
        names = skeletons(family).modules
        if len(wanted) == 1 and isinstance(adapter.config["target_modules"], str):
            return len(_matching(wanted[0], names))
        return sum(_is_named(entry, names) for entry in wanted)

    return max(fitting, key=found)  # the first of equals


# ---- names ----


def _is_named(entry: str, names: Iterable[str]) -> bool:
    """Return whether peft would find a module by an entry of a list: its whole name, or the end of it."""
    return any(name == entry or name.endswith(f".{entry}") for name in names)


def _matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a regular expression matches. UsageError if it is none, or takes too long for all of them."""
    try:
        with limited(_MATCHING):
            compiled = re.compile(pattern)
            return [name for name in names if compiled.fullmatch(name)]
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"adapter: {shown(pattern)} is no regular expression ({error}); correct it") from None
    except TimeIsUp:
        raise UsageError(
            f"adapter: {shown(pattern)} takes too long to match the names of modules; repeat no group that repeats a part "
            "of itself"
        ) from None


def _fit_names(config: dict[str, Any], field: str, names: tuple[str, ...], base: Skeleton, notes: Notes) -> None:
    given = config[field]
    if isinstance(given, str):
        if given == "all-linear" or _matching(given, names):
            return
        if field == "target_modules":
            config[field] = "all-linear"
            notes.changed(field, given, "all-linear", "it matches no module of the model")
        else:
            del config[field]
            notes.say(f"{field}: {shown(given)} is left out, because it matches nothing in the model")
        return
    kept: list[str] = []
    gone = []
    for entry in given:
        moved = _in_depth(str(entry), base.layers)
        if not _is_named(moved, names):
            gone.append(entry)
            continue
        if moved != entry:
            notes.say(f"{field}: {shown(entry)} became {shown(moved)}, because the model has {base.layers} layers")
        if moved not in kept:
            kept.append(moved)
    if gone:
        notes.say(f"{field}: the model has nothing that is called {listed(gone)}")
    if kept:
        config[field] = kept
    elif field == "target_modules" and given:
        config[field] = "all-linear"
        notes.say("target_modules: nothing is left, so all linear layers are adapted")
    elif given:
        del config[field]


def _in_depth(name: str, layers: int) -> str:
    """Return a name whose layer exists: the number of the layer, modulo how many there are."""
    if layers < 1:
        return name
    return _NUMBER.sub(
        lambda match: str(int(match[1]) % layers) if int(match[1]) >= layers else match[1], name, count=1
    )


def _fit_pattern(config: dict[str, Any], field: str, base: Skeleton, notes: Notes) -> None:
    """Keys of rank_pattern and alpha_pattern are ends of names, or regular expressions for them (peft's get_pattern_key)."""
    kept = {}
    for key, value in config[field].items():
        moved = _in_depth(str(key), base.layers)
        if _matching(rf"(.*\.)?({moved})", base.modules):
            kept[moved] = value
            if moved != key:
                notes.say(f"{field}: {shown(key)} became {shown(moved)}, because the model has {base.layers} layers")
        else:
            notes.say(f"{field}: {shown(key)} is left out, because it matches no module of the model")
    config[field] = kept
    if not kept:
        del config[field]


# ---- numbers ----


def _fit_layers(config: dict[str, Any], base: Skeleton, notes: Notes) -> None:
    given = config.get("layers_to_transform")
    numbers = [given] if isinstance(given, int) else given
    if isinstance(numbers, list) and base.layers and all(type(number) is int for number in numbers):
        moved: Any = list(dict.fromkeys(number % base.layers for number in numbers))
        moved = moved[0] if isinstance(given, int) else moved
        notes.changed("layers_to_transform", given, moved, f"the model has {base.layers} layers")
        config["layers_to_transform"] = moved
    pairs = config.get("layer_replication")
    if isinstance(pairs, list) and base.layers:
        made = [[0, base.layers], [max(0, base.layers - 1), base.layers]]
        if any(not isinstance(pair, list) or max(pair, default=0) > base.layers for pair in pairs):
            config["layer_replication"] = made
            notes.changed("layer_replication", pairs, made, f"the model has {base.layers} layers")


def _fit_ranks(config: dict[str, Any], base: Skeleton, notes: Notes) -> None:
    """Cut ranks to the width of the model. The alpha is cut in proportion, so that the scale stays."""
    if not base.width:
        return
    for field, alpha in _RANKS.items():
        rank = config.get(field)
        if type(rank) is int and rank > base.width:
            config[field] = base.width
            notes.changed(field, rank, base.width, f"the model is {base.width} wide")
            if alpha and isinstance(config.get(alpha), (int, float)):
                scaled = config[alpha] * base.width / rank
                scaled = int(scaled) if scaled == int(scaled) else scaled
                notes.changed(alpha, config[alpha], scaled, "in proportion to the rank")
                config[alpha] = scaled
    pattern = config.get("rank_pattern")
    if isinstance(pattern, Mapping):
        cut = {key: min(rank, base.width) if type(rank) is int else rank for key, rank in pattern.items()}
        notes.changed("rank_pattern", pattern, cut, f"the model is {base.width} wide")
        config["rank_pattern"] = cut


def _fit_rest(peft_type: str, config: dict[str, Any], base: Skeleton, steps: int, notes: Notes) -> None:
    # A size that the file leaves at its default is fitted as well.
    sizes = {**compat.adapter_defaults(peft_type), **config}
    sides = {side for shape in base.linears.values() for side in shape if side > 1}
    for field in _BLOCKS:
        size = sizes.get(field)
        if type(size) is int and size > 0 and any(side % size for side in sides):
            config[field] = _BLOCK
            notes.changed(field, size, _BLOCK, "it divides the sides of the model's layers")
    least = min((min(shape) for name, shape in base.linears.items() if min(shape) > 1), default=0)
    if type(sizes.get("n_frequency")) is int and least and sizes["n_frequency"] > least * least:
        notes.changed("n_frequency", sizes["n_frequency"], least * least, "the smallest layer has no more numbers")
        config["n_frequency"] = least * least
    # SHiRA's rank is as many numbers as a LoRA of that rank has, and a layer has no more than its weight.
    if peft_type == "SHIRA" and type(sizes.get("r")) is int and least and sizes["r"] > least // 4:
        notes.changed("r", sizes["r"], least // 4, "the smallest layer has no more numbers")
        config["r"] = least // 4
    for field in ("num_virtual_tokens", "encoder_hidden_size"):
        most = 8 if field == "num_virtual_tokens" else base.width
        if type(config.get(field)) is int and most and config[field] > most:
            notes.changed(field, config[field], most, "the rows and the model are small")
            config[field] = most
    if peft_type == "ADALORA":
        _fit_plan(config, steps, notes)
    if str(config.get("prompt_tuning_init", "")).upper().endswith("TEXT"):
        for field in ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path"):
            if field in config:
                notes.leave_out(field, "its text needs the model's tokenizer; the prompt is drawn at random")
                del config[field]
    _fit_tokens(config, base, notes)


def _fit_plan(config: dict[str, Any], steps: int, notes: Notes) -> None:
    """AdaLoRA plans with the number of steps: a warm-up, a part in which ranks are cut, and an end (tfinal)."""
    planned = config.get("total_step")
    for field in ("tinit", "tfinal", "deltaT"):
        value = config.get(field)
        if type(value) is int:
            share = value / planned if type(planned) is int and planned > 0 else 0.0
            made = max(int(field == "deltaT"), min(round(share * steps), max(1, steps // 4))) if value else 0
            notes.changed(field, value, made, f"the run has {steps} steps")
            config[field] = made
    if type(planned) is int:
        notes.changed("total_step", planned, steps, "so many steps has the run")
        config["total_step"] = steps


def _fit_tokens(config: dict[str, Any], base: Skeleton, notes: Notes) -> None:
    """Token ids above the vocabulary are taken modulo its size."""
    if not base.vocabulary:
        return

    def inside(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): inside(item) for key, item in value.items()}
        if isinstance(value, list) and all(type(item) is int for item in value):
            return list(dict.fromkeys(item % base.vocabulary for item in value))
        return value

    for field in ("trainable_token_indices", "alora_invocation_tokens", "token_indices", "cpt_token_ids"):
        if field in config:
            made = inside(config[field])
            if field == "cpt_token_ids" and isinstance(config[field], list):
                # A token of the prompt may come twice, and each has its place in cpt_mask.
                made = [item % base.vocabulary if type(item) is int else item for item in config[field]]
            notes.changed(field, config[field], made, f"the model has {base.vocabulary} tokens")
            config[field] = made
