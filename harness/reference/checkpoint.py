"""Checkpoints in the file formats of peft and Trainer, so that either can resume from the other's.

checkpoint-<step>/  adapter_model.safetensors, adapter_config.json   peft/peft_model.py:save_pretrained
                    optimizer.pt, scheduler.pt, rng_state.pth,       trainer.py:_save_checkpoint, which also writes
                    trainer_state.json                               training_args.bin; nothing reads it on resuming
"""

import dataclasses
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from harness import compat
from harness.reference.lora import AdapterModel

ADAPTER, RANDOM, STATE = "adapter_model.safetensors", "rng_state.pth", "trainer_state.json"


class CheckpointError(ValueError):
    """A checkpoint cannot be resumed from. The message names the directory and what is missing or wrong."""


def find(directory: Path) -> list[Path]:
    """Return the checkpoint-<step> directories inside `directory`, lowest step first."""
    found = [path for path in directory.glob("checkpoint-*") if path.name[11:].isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[11:]))


def save_adapter(directory: Path, model: AdapterModel) -> None:
    """Write adapter_model.safetensors and adapter_config.json as peft reads them. The base's weights are not saved."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({n: t.cpu().contiguous() for n, t in model.adapter().items()}, directory / ADAPTER, {"format": "pt"})
    config = {"peft_type": "LORA", "inference_mode": True, **dataclasses.asdict(model.config)}
    config["base_model_name_or_path"] = model.base.name_or_path or None
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def save(directory: Path, model: AdapterModel, parts: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a checkpoint.

    - parts: file name -> object of which the state_dict() goes into that file; none: the random state is left out, too
    - state: the content of trainer_state.json
    """
    save_adapter(directory, model)
    for name, part in parts.items():
        torch.save(part.state_dict(), directory / name)
    if parts:
        generators = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
        on_gpu = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
        torch.save({**generators, **on_gpu}, directory / RANDOM)
    (directory / STATE).write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load(directory: Path, model: AdapterModel, parts: dict[str, Any]) -> dict[str, Any]:
    """Load what `save` or Trainer wrote, but not the random state. Return the content of trainer_state.json.

    Raises CheckpointError if a file is missing or torn (Trainer goes on without some, which would be another run), or if
    names or shapes of the adapter's tensors are not the model's.
    """
    for name in (ADAPTER, RANDOM, STATE, *parts):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory} is no complete checkpoint: it has no {name}")
    state: dict[str, Any] = read(directory / STATE, lambda path: json.loads(path.read_text(encoding="utf-8")))
    load_part = partial(torch.load, map_location="cpu", weights_only=True)
    states = {name: read(directory / name, load_part) for name in parts}
    load_adapter(directory, model)
    for name, part in parts.items():
        part.load_state_dict(states[name])
    return state


def load_adapter(directory: Path, model: AdapterModel) -> None:
    """Load the adapter of a checkpoint. Raises CheckpointError as `load` does."""
    saved, adapter = read(directory / ADAPTER, load_file), model.adapter()
    for name in sorted(saved.keys() | adapter.keys()):
        there, here = (tuple(tensors[name].shape) if name in tensors else None for tensors in (saved, adapter))
        if there != here:
            raise CheckpointError(f"{directory}: adapter tensor {name} has shape {there}, and {here} in the model")
    for name, tensor in adapter.items():
        tensor.copy_(saved[name])


def restore_random_state(directory: Path) -> None:
    """Set the global generators of python, numpy and torch to a checkpoint's. trainer.py:_load_rng_state."""
    # weights_only=True refuses the types of numpy's state unless they are listed (trainer_pt_utils.py:safe_globals).
    allowed = [compat.numpy_core().multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
    with torch.serialization.safe_globals(allowed):
        states = torch.load(directory / RANDOM, weights_only=True)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def read(path: Path, reader: Callable[[Path], Any]) -> Any:
    """Return what `reader` makes of a file. CheckpointError if it raises anything: each format has errors of its own."""
    try:
        return reader(path)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {str(error).partition('. ')[0]}") from error
