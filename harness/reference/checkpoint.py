"""Checkpoints in the file formats of peft and Trainer, so that either goes on from the other's.

checkpoint-<step>/  adapter_model.safetensors, adapter_config.json   peft/peft_model.py:save_pretrained
                    optimizer.pt, scheduler.pt, rng_state.pth,       transformers/trainer.py:_save_checkpoint, without
                    trainer_state.json                               training_args.bin, which nothing reads
"""

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from harness.reference.lora import AdapterModel

ADAPTER, RANDOM, STATE = "adapter_model.safetensors", "rng_state.pth", "trainer_state.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed from: what is missing or wrong, and in which directory."""


def find(directory: Path) -> list[Path]:
    """The checkpoint-<step> directories in a directory, by step."""
    found = [path for path in directory.glob("checkpoint-*") if path.name[11:].isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[11:]))


def save_adapter(directory: Path, model: AdapterModel) -> None:
    """Write adapter_model.safetensors and adapter_config.json, as peft reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.adapter().items()}
    save_file(tensors, directory / ADAPTER, metadata={"format": "pt"})
    config = {"peft_type": "LORA", "bias": "none", "inference_mode": True, **dataclasses.asdict(model.config)}
    config["base_model_name_or_path"] = model.base.name_or_path or None
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def save(directory: Path, model: AdapterModel, parts: dict[str, Any], state: dict[str, Any], keep: int | None) -> None:
    """Write a checkpoint, and delete all but the newest `keep` beside it (None: keep all).

    parts: what has a state_dict(), by the name of its file. state: goes into trainer_state.json.
    """
    save_adapter(directory, model)
    for name, part in parts.items():
        torch.save(part.state_dict(), directory / f"{name}.pt")
    generators = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
    torch.save(generators, directory / RANDOM)
    (directory / STATE).write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in find(directory.parent)[: -keep if keep else 0]:
        shutil.rmtree(path)


def load(directory: Path, model: AdapterModel, parts: dict[str, Any]) -> dict[str, Any]:
    """Bring back what `save` or Trainer wrote, but for the random state; returns trainer_state.json.

    CheckpointError where a file is missing or torn (to go on without it would be another run), and where names or
    shapes of the adapter's tensors are not the model's.
    """
    for name in (ADAPTER, RANDOM, STATE, *(f"{name}.pt" for name in parts)):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory} is no complete checkpoint: it has no {name}")
    try:
        found = load_file(directory / (name := ADAPTER))
        state = json.loads((directory / (name := STATE)).read_text(encoding="utf-8"))
        states = {n: torch.load(directory / (name := f"{n}.pt"), map_location="cpu", weights_only=True) for n in parts}
    except Exception as error:  # each format has errors of its own
        raise CheckpointError(f"{directory / name} cannot be read: {str(error).partition('. ')[0]}") from error
    for name in sorted(found.keys() | (wanted := model.adapter()).keys()):
        there, here = (tuple(tensors[name].shape) if name in tensors else None for tensors in (found, wanted))
        if there != here:
            raise CheckpointError(f"{directory}: adapter tensor {name} has shape {there}, and {here} in the model")
        wanted[name].copy_(found[name])
    for name, part in parts.items():
        part.load_state_dict(states[name])
    return state


def load_random(directory: Path) -> None:
    """Set python's, numpy's and torch's global generators to a checkpoint's."""
    # Numpy keeps its state in an array, which weights_only=True refuses unless told (trainer_pt_utils.py:safe_globals).
    numpy_core = np._core if hasattr(np, "_core") else np.core
    allowed = [numpy_core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
    with torch.serialization.safe_globals(allowed):
        states = torch.load(directory / RANDOM, weights_only=True)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
