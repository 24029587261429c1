"""An adapter's directory as it lies there: its config and the header of its tensors' file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.brought.adapter import FILE as CONFIG
from harness.brought.adapter import newest_below
from harness.brought.settings_files import read_object
from harness.checkpoints import header
from harness.checkpoints.header import Entry, Torn
from harness.checkpoints.links import readable
from harness.errors import UsageError
from harness.reading import shown, shown_path

TENSORS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"

WHOLE, TORN, FOREIGN = "whole", "torn", "foreign"


@dataclass
class File:
    """One file of a directory. state: WHOLE, TORN, "missing", or "not read". why: one sentence, "" for a whole one."""

    file: str
    state: str
    why: str = ""


@dataclass
class Adapter:
    """An adapter's directory.

    - path: the directory.
    - config: the content of adapter_config.json; empty if it cannot be read.
    - tensors: name -> dtype and shape, in the tensors' file; empty if it cannot be read.
    - files: the two files, and what is wrong with them.
    - notes: what else is to be known, one sentence each.
    - foreign: whether no adapter lies there.
    - tensors_file: the file that holds the tensors.
    """

    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Entry] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    foreign: bool = False
    tensors_file: str = TENSORS

    @property
    def verdict(self) -> str:
        if self.foreign:
            return FOREIGN
        return WHOLE if all(one.state == WHOLE for one in self.files) else TORN

    @property
    def peft_type(self) -> str:
        return str(self.config.get("peft_type", "")).removeprefix("PeftType.")

    def torn(self, file: str, why: str) -> None:
        """Note that a file is torn. The first reason of a file stays, further ones are added to it."""
        for one in self.files:
            if one.file == file:
                one.state, one.why = TORN, f"{one.why}; {why}" if one.why else why
                return
        self.files.append(File(file, TORN, why))


def read(path: str | Path) -> Adapter:
    """Return what lies in a directory, or in its newest checkpoint that has an adapter.

    Raises UsageError if it is no directory, cannot be read, or holds a link that leads out of it.
    """
    directory = Path(path)
    if not directory.is_dir():
        kind = "no directory" if directory.exists() else "no such directory"
        raise UsageError(f"{shown_path(directory)}: {kind}; name the one that save_pretrained or the Trainer wrote")
    try:
        names = {entry.name for entry in directory.iterdir()}
    except OSError as error:
        raise UsageError(f"{shown_path(directory)}: cannot be read ({error.strerror})") from None
    if not names & {CONFIG, TENSORS, PICKLE} and (below := newest_below(directory, CONFIG)) is not None:
        found = read(below)
        found.notes.insert(0, f"the adapter is that of {shown_path(below.name)}, the newest checkpoint that has one")
        return found
    adapter = Adapter(directory)
    if not names & {CONFIG, TENSORS, PICKLE}:
        adapter.foreign = True
        adapter.notes.append(_foreign(names))
        return adapter
    for name in (CONFIG, TENSORS):
        if name in names:
            readable(directory, name, shown_path(directory))
    _read_config(adapter, names)
    _read_tensors(adapter, names)
    return adapter


def _foreign(names: set[str]) -> str:
    if {"config.json", "model.safetensors"} & names:
        return "it holds a model; name it with --model, and the adapter's directory first"
    return f"it has neither {CONFIG} nor {TENSORS}"


def _read_config(adapter: Adapter, names: set[str]) -> None:
    if CONFIG not in names:
        adapter.files.append(File(CONFIG, "missing", "without it nobody can load the tensors; look for it beside them"))
        return
    try:
        adapter.config = read_object(adapter.path / CONFIG, "an adapter's config")
    except UsageError as error:
        adapter.files.append(File(CONFIG, TORN, str(error).partition(": ")[2]))
        return
    if not isinstance(adapter.config.get("peft_type"), str):
        adapter.foreign = True
        adapter.notes.append(f"{CONFIG} has no peft_type, so it is no adapter's")
    adapter.files.append(File(CONFIG, WHOLE))


def _read_tensors(adapter: Adapter, names: set[str]) -> None:
    if TENSORS not in names:
        if PICKLE in names:
            adapter.foreign = True
            why = "a pickle, which can run code and is not loaded; save the adapter again (safe_serialization=True)"
            adapter.files.append(File(PICKLE, "not read", why))
        else:
            adapter.files.append(File(TENSORS, "missing", "the directory has a config and no tensors"))
        return
    try:
        adapter.tensors = header.read(adapter.path / TENSORS)
    except Torn as error:
        adapter.files.append(File(TENSORS, TORN, str(error)))
        return
    if not adapter.tensors:
        adapter.files.append(File(TENSORS, TORN, "holds no tensor: the adapter was not in the model that was saved"))
        return
    adapter.files.append(File(TENSORS, WHOLE))


def module_of(name: str) -> str:
    """Return the module that a tensor of a LoRA file belongs to, without peft's prefix; "" for other tensors."""
    for end in (".lora_A.weight", ".lora_B.weight", ".lora_A.bias", ".lora_B.bias", ".lora_embedding_A"):
        if name.endswith(end):
            return _bare(name.removesuffix(end))
    for end in (".lora_embedding_B", ".lora_magnitude_vector", ".lora_magnitude_vector.weight"):
        if name.endswith(end):
            return _bare(name.removesuffix(end))
    return ""


def _bare(path: str) -> str:
    return path.removeprefix("base_model.model.")


def quoted(names: list[str]) -> str:
    """Return the first of some names, and how many there are."""
    return shown(names[0]) + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")
