"""Which tensors adapter_config.json asks for, and whether the file has them: alone for LoRA, with the base for any method."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import trust
from harness.brought.adapter import FILE as CONFIG
from harness.brought.adapter import from_fields
from harness.brought.notes import Notes
from harness.checkpoints.adapter_directory import Adapter, module_of, quoted
from harness.errors import UsageError
from harness.reading import shown_path
from harness.spec import RunSpec


def rank_of(adapter: Adapter, module: str) -> int | None:
    """Return the rank that the config gives a module: r, or the value of the first key of rank_pattern that fits.

    As peft/utils/other.py:get_pattern_key: a key is a regular expression for the end of the module's name. None if the
    config has no such number.
    """
    found: int | None = _by_pattern(adapter.config.get("rank_pattern"), module, adapter.config.get("r"))
    return found


def _by_pattern(pattern: Any, module: str, default: Any) -> Any:
    for key, value in pattern.items() if isinstance(pattern, dict) else ():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error:
            continue
    return default


def check(adapter: Adapter) -> None:
    """Note what the tensors' file lacks, or has besides, by its own config. Other methods than LoRA need the base."""
    if adapter.peft_type != "LORA":
        adapter.notes.append(f"without --model it was not judged which tensors {adapter.peft_type} must have")
        return
    for why in _wrong(adapter):
        adapter.torn(adapter.tensors_file, why)


def _wrong(adapter: Adapter) -> Iterator[str]:
    parts: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    others = []
    for name, entry in adapter.tensors.items():
        module = module_of(name)
        if module:
            parts[module][name[name.rindex("lora_") :].partition(".")[0]] = entry.shape
        else:
            others.append(name)
    if not parts:
        yield "has no lora_A and no lora_B"
        return
    embeddings = {module for module in parts if "lora_embedding_A" in parts[module]}
    halves = [m for m, of in parts.items() if not {"lora_A", "lora_B"} <= of.keys() and m not in embeddings]
    halves += [m for m in embeddings if "lora_embedding_B" not in parts[m]]
    if halves:
        yield f"has one of two matrices for {quoted(sorted(halves))}"
    ranks = []
    for module in sorted(set(parts) - set(halves)):
        of, rank = parts[module], rank_of(adapter, module)
        a, b = (of[f"lora_embedding_{x}" if module in embeddings else f"lora_{x}"] for x in "AB")
        fits = len(a) == len(b) and len(a) >= 2 and rank in (a[0], None) and a[0] == b[1]
        # Of the weights of experts, each matrix has the ranks of all experts; of a layer in groups, a share.
        if not fits and not (adapter.config.get("target_parameters") or len(a) > 2):
            ranks.append(f"{module} ({list(a)} and {list(b)}, rank {rank})")
    if ranks:
        yield f"has matrices of another rank than {_CONFIG_SAYS}: {quoted(ranks)}"
    if adapter.config.get("use_dora"):
        bare = [module for module in sorted(parts) if "lora_magnitude_vector" not in parts[module]]
        if bare:
            yield f"has no magnitude of DoRA for {quoted(bare)}"
    yield from _targets(adapter, sorted(parts))
    kept = adapter.config.get("modules_to_save") or []
    paths = {f"{name.rpartition('.')[0]}." for name in others}
    absent = [name for name in kept if isinstance(name, str) and not any(f".{name}." in path for path in paths)]
    # peft looks for both names of a classifier's head, and a model has one of them.
    if absent and not (set(absent) <= {"classifier", "score"} and len(absent) < len(kept)):
        yield f"has no tensor of {quoted(absent)}, which {_CONFIG_SAYS} was trained whole (modules_to_save)"


_CONFIG_SAYS = "adapter_config.json says"


def _targets(adapter: Adapter, modules: list[str]) -> Iterator[str]:
    targets = adapter.config.get("target_modules")
    if isinstance(targets, list) and not adapter.config.get("target_parameters"):
        names = [name for name in targets if isinstance(name, str)]
        strange = [m for m in modules if not any(m == name or m.endswith(f".{name}") for name in names)]
        if strange and names:
            yield f"has matrices for {quoted(strange)}, which is none of target_modules"
        unused = [name for name in names if not any(m == name or m.endswith(f".{name}") for m in modules)]
        if unused:
            adapter.notes.append(
                f"no tensor belongs to target_modules {quoted(unused)}: either the base has no such module, or it is lost"
            )


def require_data(adapter: Adapter) -> None:
    """Raise UsageError for a config that has peft import or read something, before peft sees it (`harness.trust`)."""
    where = shown_path(adapter.path / CONFIG)
    trust.check(RunSpec(adapter=from_fields(adapter.config, where, Notes())), where)


def check_with_base(adapter: Adapter, model: Path) -> None:
    """Note how the file differs from an adapter that peft makes of its config for this base. No weight is read.

    - model: the base's directory.

    Raises UsageError for a base that cannot be made, and for a config that peft refuses.
    """
    from peft import PeftConfig, get_peft_model
    from peft.utils.save_and_load import get_peft_model_state_dict

    from harness.fixtures.pretrained import first_line, skeleton
    from harness.subjects.hf_trainer import recorded_warnings

    require_data(adapter)
    base = skeleton(model)
    try:
        with recorded_warnings([]):
            made = get_peft_model(base, PeftConfig.from_pretrained(str(adapter.path)), low_cpu_mem_usage=True)
            wanted = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(made).items()}
    except Exception as error:  # of many types
        raise UsageError(
            f"{shown_path(adapter.path)}: peft refuses the config for this base ({first_line(error)})"
        ) from None
    held = {name: entry.shape for name, entry in adapter.tensors.items()}
    missing = sorted(set(wanted) - set(held))
    besides = sorted(name for name in set(held) - set(wanted) if not name.endswith(".base_layer.weight"))
    other = sorted(name for name in set(held) & set(wanted) if held[name] != wanted[name])
    if missing:
        adapter.torn(adapter.tensors_file, f"lacks {quoted(missing)}, which this base needs")
    if besides:
        adapter.torn(adapter.tensors_file, f"has {quoted(besides)}, which this base does not have")
    if other:
        name = other[0]
        adapter.torn(
            adapter.tensors_file, f"has {quoted(other)} as {list(held[name])}, and this base needs {list(wanted[name])}"
        )
