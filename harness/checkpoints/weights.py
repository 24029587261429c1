"""The weights of a checkpoint: adapters in the directory and below it, or a whole model in one file or in shards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from harness.brought.adapter import FILE as CONFIG
from harness.brought.settings_files import read_object
from harness.checkpoints import header, stored_numbers, torch_files, whole
from harness.checkpoints.adapter_directory import PICKLE, TENSORS, WHOLE, Adapter, quoted
from harness.checkpoints.found import NOT_READ, Checkpoint
from harness.checkpoints.header import Entry
from harness.checkpoints.links import readable
from harness.checkpoints.pickles import Tensor
from harness.errors import UsageError
from harness.reading import shown, shown_path

MODEL, MODEL_PICKLE = "model.safetensors", "pytorch_model.bin"
INDICES = (f"{MODEL}.index.json", f"{MODEL_PICKLE}.index.json")

#: Files of a model's weights: whole, the further models of accelerate's save_state, and shards.
_MODEL = re.compile(r"(model|pytorch_model)(_\d+)?(-\d{5}-of-\d{5})?\.(safetensors|bin)")


def torn_in(sentence: str) -> str:
    """Return what an error says after the path that it begins with."""
    said = sentence.partition(": ")[2] or sentence
    return said.removesuffix("; save it as UTF-8")


def has_adapter(names: set[str]) -> bool:
    return bool(names & {CONFIG, TENSORS, PICKLE})


def has_model(names: set[str]) -> bool:
    return bool(names & set(INDICES)) or any(_MODEL.fullmatch(name) for name in names)


def read_adapter(found: Checkpoint, below: str, names: set[str], model: Path | None) -> Adapter:
    """Judge an adapter's config and tensors, and return what was read.

    - below: the directory in the checkpoint, "" for its own.
    - names: what that directory holds. model: the base's directory, if there is one.
    """
    adapter = Adapter(found.path / below)
    prefix = f"{below}/" if below else ""
    if CONFIG not in names:
        found.missing(prefix + CONFIG, "without it nobody can load the tensors")
    else:
        try:
            adapter.config = read_object(adapter.path / CONFIG, "an adapter's config")
            if not isinstance(adapter.config.get("peft_type"), str):
                found.torn(prefix + CONFIG, "has no peft_type")
            found.say(prefix + CONFIG, WHOLE)
        except UsageError as error:
            found.torn(prefix + CONFIG, _is(torn_in(str(error))))
    adapter.tensors_file = TENSORS if TENSORS in names else PICKLE if PICKLE in names else TENSORS
    file = prefix + adapter.tensors_file
    if adapter.tensors_file not in names:
        found.missing(file, "the directory has a config and no tensors")
        return adapter
    adapter.tensors = tensors_of(found, file)
    if not adapter.tensors:
        if not any(one.file == file for one in found.files):
            found.torn(file, "holds no tensor: the adapter was not in the model that was saved")
        return adapter
    found.say(file, WHOLE)
    if adapter.config:
        whole.check(adapter, model)
        for one in adapter.files:
            found.say(prefix + one.file, one.state, one.why)
        found.notes += [note for note in adapter.notes if "--model" not in note]
        found.not_judged += [note for note in adapter.notes if "--model" in note]
    return adapter


def _is(words: str) -> str:
    return words if words.startswith(("has ", "holds ")) else f"is {words}" if words[:3] == "not" else words


def tensors_of(found: Checkpoint, file: str) -> dict[str, Entry]:
    """Return the tensors of a safetensors file or of a pickled state dict; {} if it is torn, which is noted."""
    try:
        if file.endswith(".safetensors"):
            return header.read(found.path / file)
        return _pickled(found, file)
    except header.Torn as error:
        found.torn(file, str(error))
    except UsageError as error:
        found.say(file, NOT_READ, torn_in(str(error)))
    return {}


def _pickled(found: Checkpoint, file: str) -> dict[str, Entry]:
    read = torch_file(found, file)
    if read is None:
        return {}
    value = read.value if isinstance(read.value, dict) else {}
    tensors = {name: tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}
    return {str(name): Entry(tensor.storage.dtype, tensor.shape) for name, tensor in tensors.items()}


def torch_file(found: Checkpoint, file: str, code: bool = False) -> torch_files.TorchFile | None:
    """Return what a file of torch.save holds, and note its state. None if it is torn.

    - code: whether the file's pickle may name code, as those of arguments and of DeepSpeed do.
    """
    try:
        read = torch_files.read(found.path / file)
    except torch_files.Torn as error:
        found.torn(file, str(error))
        return None
    except (UsageError, OSError) as error:
        found.say(file, NOT_READ, torn_in(str(error)))
        return None
    if read.described.code and not code:
        why = (
            f"names code ({shown(sorted(read.described.code)[0])}), which was not run; torch.load(weights_only=True) "
            "refuses it, and so does resuming"
        )
        found.say(file, NOT_READ, why)
        return None
    if read.broken:
        found.torn(file, f"has numbers that are NaN or infinite, in {len(read.broken)} of {_storages(read)} storages")
    if read.unsummed:
        found.not_judged.append(f"{file}: whether a number changed, because it was saved without checksums")
    found.say(file, WHOLE)
    return read


def _storages(read: torch_files.TorchFile) -> int:
    return len(read.described.storages)


def read_model(found: Checkpoint, names: set[str]) -> dict[str, Entry]:
    """Judge the files of a whole model, and return its tensors."""
    tensors: dict[str, Entry] = {}
    listed: dict[str, set[str]] = {}
    for index in INDICES:
        if index in names:
            listed |= _shards(found, index)
    for file in sorted({name for name in names if _MODEL.fullmatch(name)} | set(listed)):
        if file not in names:
            found.missing(file, "the index names it as a shard")
            continue
        held = tensors_of(found, file)
        tensors |= held
        if not held:
            if not any(one.file == file for one in found.files):
                found.torn(file, "holds no tensor")
            continue
        found.say(file, WHOLE)
        if file.endswith(".safetensors"):
            scan = stored_numbers.scan(found.path / file, held)
            if scan.nan:
                found.torn(file, f"has numbers that are NaN in {quoted(sorted(scan.nan))}")
            if scan.cut:
                found.torn(file, scan.cut)
        lost = sorted(listed.get(file, set()) - set(held))
        if lost:
            found.torn(file, f"lacks {quoted(lost)}, which the index names")
    shards = {name for name in names if _MODEL.fullmatch(name) and "-of-" in name}
    if shards and not names & set(INDICES):
        found.missing(INDICES[0] if MODEL[:5] == min(shards)[:5] else INDICES[1], "shards cannot be loaded without it")
    return tensors


def _shards(found: Checkpoint, index: str) -> dict[str, set[str]]:
    """Return the tensors of each shard that an index names."""
    try:
        weights: Any = read_object(found.path / index, "an index").get("weight_map")
        if not isinstance(weights, dict) or not all(isinstance(file, str) for file in weights.values()):
            found.torn(index, "has no weight_map of tensors to files")
            return {}
        for file in set(weights.values()):
            readable(found.path, file, shown_path(found.path / index))
    except UsageError as error:
        found.torn(index, _is(torn_in(str(error))))
        return {}
    found.say(index, WHOLE)
    return {file: {n for n, f in weights.items() if f == file} for file in set(weights.values())}
