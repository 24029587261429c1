"""Is a checkpoint whole? Every file that a save leaves is looked at: the Trainer's, accelerate's, FSDP's and DeepSpeed's.

A checkpoint is whole if each file that resuming or loading reads is there, and no file that is there is damaged. What a
file must be is read in the file itself and in those beside it, or in the manifest of `SafeCheckpoints`.
"""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.brought.adapter import FILE as CONFIG
from harness.checkpoints import manifest, outlook, sharded, states, weights
from harness.checkpoints.adapter_directory import WHOLE, Adapter
from harness.checkpoints.found import NOT_READ, STATE, Checkpoint
from harness.checkpoints.links import is_followed
from harness.errors import UsageError
from harness.reading import opened, shown_path

NAME = re.compile(r"checkpoint-(\d{1,15})")

#: Entries of a directory that are listed. A checkpoint of 1,000 ranks has 3,000.
_ENTRIES = 20_000

_RANK_STATE = re.compile(r"rng_state_(\d{1,6})\.pth")
_RANDOM_STATE = re.compile(r"random_states_(\d{1,6})\.pkl")

#: What accelerate's save_state writes besides the models and the generators.
_ACCELERATE = re.compile(
    r"(optimizer|scheduler|sampler|dl_state_dict)(_\d+)?\.bin|custom_checkpoint_\d+\.pkl|scaler\.pt"
)

#: The files of an adapter's checkpoint, in the order in which the Trainer of one process writes them.
_ORDER = (
    *("README.md", "adapter_model.safetensors", "adapter_config.json", "training_args.bin", "optimizer.pt"),
    *("scheduler.pt", "rng_state.pth", STATE),
)


def judge(directory: str | Path, model: Path | None = None) -> Checkpoint:
    """Judge one checkpoint's directory.

    - model: the base's directory, for the shapes of an adapter's tensors.

    Raises UsageError if it is no directory or cannot be listed, and for a base that cannot be used.
    """
    path = Path(directory)
    found = Checkpoint(path)
    names, below = _listed(found)
    if found.foreign:
        return found
    manifest.check(found, names)
    if sharded.is_deepspeed(names, below):
        found.kind = "the Trainer's, with DeepSpeed"
        _trainer(found, names, below, model)
    elif _is_accelerate(names):
        found.kind = "of accelerate's save_state"
        _accelerate(found, names, below)
    elif NAME.fullmatch(path.resolve().name) or _has_states(names, below):
        found.kind = "the Trainer's"
        _trainer(found, names, below, model)
    else:
        _alone(found, names, below, model)
    for file in ("README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if file in names:
            _check_text(found, file)
    outlook.note_releases(found, names)
    found.files.sort(key=lambda one: (one.state == WHOLE, one.file))
    return found


def _listed(found: Checkpoint) -> tuple[set[str], dict[str, set[str]]]:
    """Return the files of a directory, and those of each directory in it. Links that lead out are noted and left out."""
    names: set[str] = set()
    below: dict[str, set[str]] = {}
    try:
        entries = sorted(os.scandir(found.path), key=lambda entry: entry.name)
        if len(entries) > _ENTRIES:
            raise UsageError(f"{shown_path(found.path)}: has more than {_ENTRIES:,} entries; name a checkpoint in it")
        for entry in entries:
            if not is_followed(Path(entry.path)):
                if _matters(entry.name):
                    found.say(entry.name, NOT_READ, "is a link, which is not followed; copy the file in its place")
                continue
            if entry.is_dir():
                # The checkpoints of an output_dir are judged one by one.
                if not entry.name.startswith((".", "torn-")) and not NAME.fullmatch(entry.name):
                    below[entry.name] = {each.name for each in os.scandir(entry.path) if is_followed(Path(each.path))}
            else:
                names.add(entry.name)
    except OSError as error:
        kind = "no such directory" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UsageError(f"{shown_path(found.path)}: {kind}; name a checkpoint, or a run's output_dir") from None
    return names, below


def _matters(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".pt", ".pth", ".pkl", ".json", ".distcp", ".metadata"))


def _is_accelerate(names: set[str]) -> bool:
    if any(_RANDOM_STATE.fullmatch(name) for name in names):
        return True
    trainer = names & {STATE, "scheduler.pt", states.ARGUMENTS} or any(_RANK_STATE.fullmatch(name) for name in names)
    return not trainer and any(_ACCELERATE.fullmatch(name) and name != "scaler.pt" for name in names)


def _has_states(names: set[str], below: dict[str, set[str]]) -> bool:
    """Return whether a run could go on from here. save_model() and save_state() write trainer_state.json, too."""
    files = {"optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth"}
    ranks = any(_RANK_STATE.fullmatch(name) for name in names)
    return bool(names & files) or ranks or any(re.fullmatch(r"optimizer_\d+", name) for name in below)


def _weights(found: Checkpoint, names: set[str], below: dict[str, set[str]], model: Path | None) -> list[Adapter]:
    """Judge all adapters and models, and return the adapters. Notes if there is neither."""
    adapters = []
    if weights.has_adapter(names):
        adapters.append(weights.read_adapter(found, "", names, model))
    for name, held in sorted(below.items()):
        if weights.has_adapter(held):
            adapters.append(weights.read_adapter(found, name, held, model))
    whole_model = weights.has_model(names)
    if whole_model:
        weights.read_model(found, names)
    shards = [name for name, held in below.items() if sharded.is_dcp(held) or name.startswith("pytorch_model_fsdp")]
    for name in sorted(shards):
        sharded.read_dcp(found, name, below[name])
    if adapters:
        found.about.add("several adapters" if len(adapters) > 1 else "adapter")
        outlook.note_adapters(found, adapters)
    if (
        not adapters
        and not whole_model
        and not any(name.startswith("pytorch_model_fsdp") for name in (*names, *shards))
    ):
        found.missing("adapter_model.safetensors", "nor are there weights of another kind")
    return adapters


def _trainer(found: Checkpoint, names: set[str], below: dict[str, set[str]], model: Path | None) -> None:
    if STATE in names:
        states.read_state(found)
    else:
        found.missing(STATE, "the Trainer writes it last, so the save did not end, or the deletion had begun")
    arguments = states.read_arguments(found) if states.ARGUMENTS in names else {}
    adapters = _weights(found, names, below, model)
    _lost_adapters(found, below)
    _written_over(found, names)
    deepspeed = sharded.is_deepspeed(names, below)
    optimizers = [name for name in ("optimizer.pt", "optimizer.bin") if name in names]
    optimizer_shards = [name for name in below if re.fullmatch(r"optimizer_\d+", name)]
    ranks = {int(match[1]) for name in names if (match := _RANK_STATE.fullmatch(name))}
    states_there = bool(optimizers or optimizer_shards or ranks or deepspeed) or names & {
        "scheduler.pt",
        "rng_state.pth",
    }
    if not states_there and arguments.get("save_only_model") is True:
        found.about.add("save_only_model")
        found.notes.append(
            "save_only_model: no optimizer, no schedule, no generators. A run cannot go on from it as it was"
        )
        return
    if deepspeed:
        sharded.read_deepspeed(found, below)
    optimizer = states.Optimizer()
    for file in optimizers:
        optimizer = states.check_optimizer(found, file, adapters)
    if not (optimizers or optimizer_shards or deepspeed):
        found.missing("optimizer.pt", "resuming would start the optimizer anew, without a word")
    if "optimizer.bin" in optimizers and "pytorch_model_fsdp.bin" not in names:
        found.missing("pytorch_model_fsdp.bin", "FSDP resumes from it")
    if "pytorch_model_fsdp.bin" in names:
        held = weights.tensors_of(found, "pytorch_model_fsdp.bin")
        if not held and not any(one.file == "pytorch_model_fsdp.bin" for one in found.files if one.state != WHOLE):
            found.torn("pytorch_model_fsdp.bin", "holds no tensor")
        if not adapters and not weights.has_model(names):
            found.missing("adapter_model.safetensors", "it is loaded without FSDP, and there is no model in its place")
    if "scheduler.pt" in names:
        states.check_scheduler(found, "scheduler.pt", optimizer)
    elif "DeepSpeed's schedule" not in found.about:
        found.missing("scheduler.pt", "resuming would start the schedule and the optimizer anew, without a word")
    if "scaler.pt" in names:
        states.check_plain(found, "scaler.pt")
    _generators(found, names, ranks)


def _lost_adapters(found: Checkpoint, below: dict[str, set[str]]) -> None:
    """Note a directory of an adapter that every other checkpoint of the run has, and this one has not."""
    others = [
        each for each in _directories_beside(found.path) if NAME.fullmatch(each.name) and (each / STATE).is_file()
    ]
    held = [{each.parent.name for each in other.glob(f"*/{CONFIG}")} for other in others[:64]]
    for name in sorted(set.intersection(*held) - set(below)) if held else ():
        found.missing(f"{name}/{CONFIG}", "every other checkpoint beside it has this adapter")


def _written_over(found: Checkpoint, names: set[str]) -> None:
    """Note a save over an older one that stopped half way: its files are whole, and of two saves.

    The times of the files tell: the first ones of a save are newer than all later ones, and both parts are in the order
    of a save. Copies have other orders. One file alone may have been changed by hand.
    """
    files = [name for name in _ORDER if name in names]
    times = [(found.path / name).stat().st_mtime_ns for name in files]
    turn = next((at for at in range(1, len(times)) if times[at] < times[at - 1]), 0)
    turned = times[turn:] + times[:turn]
    if turn >= 2 and len(files) >= 5 and all(a < b for a, b in pairwise(turned)):
        found.torn(
            files[turn], f"is older than {files[turn - 1]}, which a save writes before it: they are of two saves"
        )


def _generators(found: Checkpoint, names: set[str], ranks: set[int]) -> None:
    """Judge the file of each rank. One process writes rng_state.pth, several write one each."""
    if "rng_state.pth" in names:
        states.check_generators(found, "rng_state.pth")
    for rank in sorted(ranks):
        states.check_generators(found, f"rng_state_{rank}.pth")
    if "rng_state.pth" in names and found.ranks in (None, 1):
        found.ranks = 1
        return
    if not ranks and found.ranks in (None, 1):
        found.missing("rng_state.pth", "resuming would draw other random numbers, without a word")
        return
    several = found.ranks if found.ranks is not None and found.ranks > 1 else max(2, *(rank + 1 for rank in ranks))
    if found.ranks is None:
        found.not_judged.append(
            f"whether more than {several} processes saved it: {states.ARGUMENTS} would say so, and is not there"
        )
    found.ranks = several
    for rank in sorted(set(range(several)) - ranks):
        found.missing(f"rng_state_{rank}.pth", f"{several} ranks saved, and this one would draw other random numbers")


def _accelerate(found: Checkpoint, names: set[str], below: dict[str, set[str]]) -> None:
    ranks = {int(match[1]) for name in names if (match := _RANDOM_STATE.fullmatch(name))}
    if sharded.is_deepspeed(names, below) and "latest" in names:
        sharded.read_deepspeed(found, below)
    _weights(found, names, below, None)
    for file in sorted(name for name in names if _ACCELERATE.fullmatch(name)):
        if file.startswith("optimizer"):
            states.check_optimizer(found, file, [])
        elif file.startswith("scheduler"):
            states.check_scheduler(found, file, states.Optimizer())
        else:
            states.check_plain(found, file)
    for rank in sorted(ranks):
        states.check_generators(found, f"random_states_{rank}.pkl")
    beside = _beside(found.path)
    several = max(found.ranks or 1, 1, *(rank + 1 for rank in ranks))
    for rank in sorted(set(range(several)) - ranks):
        found.missing(f"random_states_{rank}.pkl", "accelerate writes it last, so the save did not end")
    for file in sorted(beside - names - {one.file for one in found.files}):
        found.missing(file, "every other checkpoint beside it has it")
    if not beside:
        found.not_judged.append(
            "whether a schedule, a sampler or further ranks belong to it: nothing else is beside it"
        )
    found.ranks = several


def _directories_beside(path: Path) -> list[Path]:
    own = path.resolve()
    try:
        return [
            each for each in own.parent.iterdir() if each.is_dir() and each.name != own.name and not each.is_symlink()
        ]
    except OSError:
        return []


def _beside(path: Path) -> set[str]:
    """Return the files of save_state that all other checkpoints beside this one have."""
    try:
        listed = [{each.name for each in other.iterdir()} for other in _directories_beside(path)[:64]]
    except OSError:
        return set()
    listed = [names for names in listed if any(_RANDOM_STATE.fullmatch(name) for name in names)]
    common = set.intersection(*listed) if listed else set()
    return {name for name in common if _ACCELERATE.fullmatch(name) or _RANDOM_STATE.fullmatch(name)}


def _alone(found: Checkpoint, names: set[str], below: dict[str, set[str]], model: Path | None) -> None:
    """Judge a directory without a Trainer's state: an adapter, a model, or shards of torch.distributed.checkpoint."""
    if sharded.is_dcp(names):
        found.kind = "of torch.distributed.checkpoint"
        sharded.read_dcp(found, "", names)
        return
    adapters = weights.has_adapter(names) or any(weights.has_adapter(held) for held in below.values())
    whole_model = weights.has_model(names)
    shards = any(sharded.is_dcp(held) for held in below.values())
    if not adapters and not whole_model and not shards:
        if not found.files:
            found.foreign = "it holds no checkpoint, no adapter and no model"
        return
    found.kind = "an adapter" if adapters else "a model"
    found.notes.append("no optimizer, no schedule, no generators: it can be loaded, and no run can be resumed from it")
    if states.ARGUMENTS in names:
        states.read_arguments(found)
    if STATE in names:
        states.read_state(found)
    _weights(found, names, below, model)


def _check_text(found: Checkpoint, file: str) -> None:
    """Note a text that is empty or has zeros, as a system that crashed leaves it. What is cut elsewhere does not show."""
    try:
        with opened(found.path / file, 2**30) as stream:
            begin: Any = stream.read(4096)
            stream.seek(max(0, stream.seek(0, 2) - 4096))
            end = stream.read(4096)
    except UsageError as error:
        found.say(file, NOT_READ, weights.torn_in(str(error)))
        return
    if not begin or b"\0" in begin or b"\0" in end:
        found.torn(file, "is empty" if not begin else "has zero bytes")
    elif file.endswith(".json") and not end.rstrip().endswith((b"}", b"]")):
        found.torn(file, "is JSON without an end")
    else:
        found.say(file, WHOLE)
