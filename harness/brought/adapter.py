"""An adapter_config.json, as any release of peft saves it, as an AdapterSpec."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import compat
from harness.brought.argument_names import unused
from harness.brought.notes import Notes
from harness.brought.settings_files import read_object
from harness.errors import UsageError
from harness.reading import shown, shown_path
from harness.spec import AdapterSpec

FILE = "adapter_config.json"

#: Fields that peft writes about the run that saved the file. They do not shape the adapter.
_ABOUT_THE_FILE = ("peft_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping")

#: Fields that are written down even at their defaults: a spec is read by people.
_ALWAYS = ("task_type", "r", "lora_alpha", "lora_dropout")

#: Fields that peft fills in from the base model when it makes the adapter. Those of the small model are others.
_FROM_THE_BASE = ("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers")


def adapter_file(path: str | Path) -> Path:
    """Return the file that --adapter names: itself, or adapter_config.json in the directory or in its newest checkpoint.

    Raises UsageError if there is none.
    """
    given = Path(path)
    if not given.is_dir():
        return given
    if (given / FILE).exists():
        return given / FILE
    below = newest_below(given, FILE)
    if below is None:
        raise UsageError(f"{shown_path(given)}: has no {FILE}; name the directory that save_pretrained wrote")
    return below / FILE


def newest_below(directory: Path, name: str) -> Path | None:
    """Return the checkpoint directory with the highest number that holds a file of this name; None if there is none."""
    found = {}
    try:
        for entry in directory.iterdir():
            if (match := re.fullmatch(r"checkpoint-([0-9]{1,9})", entry.name)) and (entry / name).is_file():
                found[int(match[1])] = entry
    except OSError:
        return None
    return found[max(found)] if found else None


def read_adapter(path: str | Path, notes: Notes) -> AdapterSpec:
    """Return the adapter of a file or a directory. Raises UsageError for what is no adapter's config."""
    file = adapter_file(path)
    if file.parent not in (Path(path), Path(path).parent):
        notes.say(f"the adapter is that of {shown_path(file.parent.name)}")
    return from_fields(read_object(file, "an adapter's config"), shown_path(file), notes)


def from_fields(given: Mapping[str, Any], where: str, notes: Notes) -> AdapterSpec:
    """Return the adapter that an adapter_config.json describes.

    Fields at the default of the installed peft are left out: they say nothing. peft is imported for it.

    - where: what messages call the file.
    """
    if "peft_type" not in given:
        hint = "; this is a model's config.json, so name it with --model" if "model_type" in given else ""
        raise UsageError(f"{where}: no adapter's config, because it has no peft_type{hint or '; add it, such as LORA'}")
    peft_type = given["peft_type"]
    if not isinstance(peft_type, str):
        raise UsageError(f"{where}: peft_type is {shown(peft_type)}; expected a text, such as LORA")
    peft_type = peft_type.removeprefix("PeftType.")
    if (reason := compat.missing_adapter_field(peft_type, ())) is not None:
        raise UsageError(f"{where}: {reason}")
    _say_what_peft_wrote(given, notes)
    return AdapterSpec(peft_type=peft_type, config=_fields(peft_type, given, notes))


def _say_what_peft_wrote(given: Mapping[str, Any], notes: Notes) -> None:
    if given.get("inference_mode"):
        notes.say("inference_mode is true, as in every adapter that peft saves; it is judged as if it were trained")
    if given.get("auto_mapping"):
        notes.leave_out("auto_mapping", "peft writes it for an adapter without task_type; it names classes to import")
    base = given.get("base_model_name_or_path")
    if base:
        notes.say(f"the base model {shown(base)} is not looked up")


def _fields(peft_type: str, given: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    defaults = compat.adapter_defaults(peft_type)
    kept = {}
    for name, value in given.items():
        if name in _ABOUT_THE_FILE:
            continue
        if name in _FROM_THE_BASE:
            if value is not None:
                notes.say(f"{name}: {shown(value)} is left to peft, which takes it from the base model")
            continue
        if name not in defaults:
            _leave_out(peft_type, name, value, defaults, notes)
            continue
        if name not in _ALWAYS and (value == defaults.get(name) or (unused(value) and unused(defaults.get(name)))):
            continue
        if value is not None:
            kept[name] = value
    return kept


def _leave_out(peft_type: str, name: str, value: Any, known: Mapping[str, Any], notes: Notes) -> None:
    try:
        why = str(compat.missing_adapter_field(peft_type, [name]))
    except UsageError:
        near = difflib.get_close_matches(name[:100], sorted(known), n=1)
        why = "no release that this peft-harness knows has it" + (f"; did you mean {near[0]!r}?" if near else "")
    if unused(value):
        notes.leave_out(name, f"{why}; it is at a default-like value")
    else:
        notes.leave_out(name, f"{why}; its value {shown(value)} is not judged")
