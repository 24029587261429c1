"""Checkpoints that several processes write together: torch.distributed.checkpoint's (FSDP), and DeepSpeed's (ZeRO)."""

from __future__ import annotations

import re
from typing import Any

from harness.checkpoints import pickles, torch_files
from harness.checkpoints.adapter_directory import WHOLE
from harness.checkpoints.found import NOT_READ, Checkpoint
from harness.checkpoints.header import FILE_LIMIT
from harness.checkpoints.links import readable
from harness.checkpoints.pickles import Stub
from harness.checkpoints.weights import torch_file, torn_in
from harness.errors import UsageError
from harness.files import leads_out
from harness.reading import opened, read_bytes, read_text, shown

METADATA = ".metadata"

#: Bytes of .metadata. That of 10,000 tensors on 64 ranks has some 100 MB in torch; of an adapter, 1 MB.
_METADATA_LIMIT = 64 * 2**20

_RANK = re.compile(r"__(\d+)_\d+\.distcp")
_ZERO = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_(optim|model)_states\.pt")


def is_dcp(names: set[str]) -> bool:
    """Return whether a directory holds a checkpoint of torch.distributed.checkpoint."""
    return METADATA in names or any(_RANK.fullmatch(name) for name in names)


def read_dcp(found: Checkpoint, below: str, names: set[str]) -> None:
    """Judge such a directory: each piece that .metadata names must lie in its file, and be an archive of torch.

    - below: the directory in the checkpoint, "" for its own. names: what it holds.
    """
    prefix = f"{below}/" if below else ""
    ranks = [int(match[1]) for name in names if (match := _RANK.fullmatch(name))]
    if ranks:
        found.ranks = max(found.ranks or 0, max(ranks) + 1)
    if METADATA not in names:
        found.missing(prefix + METADATA, "it is written last, so the save did not end")
        return
    stored = _stored(found, prefix + METADATA)
    if stored is None:
        return
    if not stored:
        found.torn(prefix + METADATA, "names no tensor: there was none in the model that was saved")
    for name in sorted({name for name, _, _ in stored} | {name for name in names if _RANK.fullmatch(name)}):
        if name not in names:
            found.missing(prefix + name, f"{METADATA} names pieces of it")
            continue
        _read_pieces(found, prefix + name, sorted((begin, size) for file, begin, size in stored if file == name))


def _stored(found: Checkpoint, file: str) -> list[tuple[str, int, int]] | None:
    """Return (file, first byte, bytes) of each piece that a .metadata names. None if it is torn."""
    try:
        content = read_bytes(found.path / file, _METADATA_LIMIT)
        described = pickles.describe(content)
    except UsageError as error:
        found.say(file, NOT_READ, torn_in(str(error)))
        return None
    except pickles.Broken as error:
        found.torn(file, "is empty" if not content else str(error))
        return None
    if described.code:
        found.say(file, NOT_READ, f"names code ({shown(sorted(described.code)[0])}), which was not run")
        return None
    entries = described.value.get("storage_data") if isinstance(described.value, Stub) else None
    pieces = []
    for entry in entries.values() if isinstance(entries, dict) else ():
        piece = tuple(entry.get(name) for name in ("relative_path", "offset", "length")) if _is_stub(entry) else ()
        if len(piece) != 3 or not isinstance(piece[0], str) or leads_out(piece[0]) or not _counts(piece[1:]):
            found.torn(file, "names a piece without a file, a place and a length")
            return None
        pieces.append(piece)
    if not isinstance(entries, dict):
        found.torn(file, "has no storage_data, so torch.distributed.checkpoint did not write it")
        return None
    found.say(file, WHOLE)
    return pieces


def _is_stub(value: Any) -> bool:
    return isinstance(value, Stub)


def _counts(values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _read_pieces(found: Checkpoint, file: str, pieces: list[tuple[int, int]]) -> None:
    try:
        readable(found.path, file, found.path.name)
        with opened(found.path / file, FILE_LIMIT) as stream:
            size = stream.seek(0, 2)
            for begin, length in pieces:
                if begin + length > size:
                    found.torn(file, f"has {size:,} bytes, and {METADATA} names {begin + length:,}")
                    return
            for begin, length in pieces:
                part = torch_files.read_part(stream, begin, length)
                if part.described.code:
                    code = shown(sorted(part.described.code)[0])
                    found.say(file, NOT_READ, f"names code ({code}), which was not run")
                    return
                if part.broken:
                    found.torn(file, "has numbers that are NaN or infinite")
    except torch_files.Torn as error:
        found.torn(file, f"has a piece that {error}")
        return
    except (UsageError, OSError) as error:
        found.say(file, NOT_READ, torn_in(str(error)))
        return
    found.say(file, WHOLE)


# ---- DeepSpeed ----


def is_deepspeed(names: set[str], directories: dict[str, set[str]]) -> bool:
    """Return whether DeepSpeed wrote here. directories: those in the checkpoint, and what they hold."""
    tagged = any(name.startswith("global_step") for name in directories)
    return "zero_to_fp32.py" in names or tagged or any(_states(held) for held in directories.values())


def _states(names: set[str]) -> list[str]:
    return [name for name in names if _ZERO.fullmatch(name) or re.fullmatch(r"mp_rank_\d+_model_states\.pt", name)]


def read_deepspeed(found: Checkpoint, directories: dict[str, set[str]]) -> None:
    """Judge what DeepSpeed wrote: `latest` names the directory, which holds the states of each rank."""
    tag = _latest(found)
    held = directories.get(tag, set()) if tag else set()
    if tag and not held:
        found.missing(tag, "latest names this directory")
        return
    for name in sorted(held):
        if name.endswith(".pt"):
            _read_states(found, f"{tag}/{name}")
    optimizers = {int(m[1]) for name in held if (m := _ZERO.fullmatch(name)) and m[3] == "optim"}
    models = {int(m[1]) for name in held if (m := _ZERO.fullmatch(name)) and m[3] == "model"}
    whole_model = any(re.fullmatch(r"mp_rank_\d+_model_states\.pt", name) for name in held)
    ranks = max([found.ranks or 1, *(rank + 1 for rank in optimizers | models)])
    found.ranks = ranks
    if tag and not models and not whole_model:
        found.missing(f"{tag}/mp_rank_00_model_states.pt", "the states of the model")
    for kind, present in (("optim", optimizers), ("model", models)):
        if present or (kind == "optim" and tag):
            for rank in sorted(set(range(ranks)) - present):
                found.missing(f"{tag}/zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt", f"{ranks} ranks saved")


def _latest(found: Checkpoint) -> str:
    try:
        tag = read_text(found.path / "latest", 4096).strip()
    except UsageError as error:
        if not (found.path / "latest").exists():
            found.missing("latest", "it names the directory of DeepSpeed's states, and is written last")
        else:
            found.torn("latest", f"is {torn_in(str(error))}")
        return ""
    if not tag or "\0" in tag or "/" in tag or leads_out(tag):
        found.torn("latest", "names no directory" if tag.strip("\0") else "is empty")
        return ""
    found.say("latest", WHOLE)
    return tag


def _read_states(found: Checkpoint, file: str) -> None:
    """Judge a file of states. DeepSpeed pickles its own objects in it, so it may name code of deepspeed's."""
    read = torch_file(found, file, code=True)
    if read is None:
        return
    strange = sorted(name for name in read.described.code if not name.startswith(_DEEPSPEED))
    if strange:
        found.say(file, NOT_READ, f"names code ({shown(strange[0])}), which was not run; resuming would run it")
        return
    value = read.value if isinstance(read.value, dict) else {}
    world, config = value.get("dp_world_size"), value.get("ds_config")
    if type(world) is int and 0 < world < 2**20:
        found.ranks = max(found.ranks or 0, world)
    if isinstance(config, dict) and config.get("scheduler"):
        found.about.add("DeepSpeed's schedule")


#: What DeepSpeed's own files name besides numbers.
_DEEPSPEED = (
    *("deepspeed.runtime.", "deepspeed.utils.", "torch.Tensor", "torch.nn.parameter.Parameter"),
    "torch._tensor._rebuild_from_type_v2",
)
