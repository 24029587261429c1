"""Made-up checkpoints of many kinds, with the files that the Trainer, accelerate and peft write. Nothing is trained."""

import json
import random

import numpy as np
import torch
from safetensors.torch import save_file

NAMES = [f"base_model.model.layers.{layer}.q_proj.lora_{half}.weight" for layer in (0, 1) for half in "AB"]


def tensors(seed=0):
    """Return the tensors of a LoRA of rank 4 on two layers."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"A": (4, 32), "B": (32, 4)}
    return {name: torch.randn(shapes[name[-8]], generator=draw) for name in NAMES}


def adapter(directory, peft_type="LORA", content=None, pickled=False, **config):
    directory.mkdir(parents=True, exist_ok=True)
    fields = {"peft_type": peft_type, "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "peft_version": "0.21.2"}
    (directory / "adapter_config.json").write_text(json.dumps({**fields, **config}))
    content = tensors() if content is None else content
    if pickled:
        torch.save(content, directory / "adapter_model.bin")
    else:
        save_file(content, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return directory


def model(directory, shards=0):
    directory.mkdir(parents=True, exist_ok=True)
    held = {f"model.layers.{layer}.weight": torch.randn(8, 8) for layer in range(4)}
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "transformers_version": "4.57.6"}))
    if not shards:
        save_file(held, directory / "model.safetensors")
        return directory
    weights = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: held[name] for index, name in enumerate(held) if index % shards == number}
        save_file(part, directory / file)
        weights |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    return directory


def generators():
    numpy = np.random.get_state()
    return {"python": random.getstate(), "numpy": numpy, "cpu": torch.get_rng_state()}


def states(directory, step=4, ranks=1, shapes=((4, 32), (32, 4)) * 2, scheduler=True, scaler=False, steps=None):
    """Write the Trainer's states beside the weights, as AdamW and LambdaLR have them."""
    steps = step if steps is None else steps
    state = {
        index: {"step": torch.tensor(float(steps)), "exp_avg": torch.ones(shape), "exp_avg_sq": torch.ones(shape)}
        for index, shape in enumerate(shapes)
    }
    group = {"lr": 0.005, "betas": (0.9, 0.999), "params": list(range(len(shapes)))}
    torch.save({"state": state, "param_groups": [group]}, directory / "optimizer.pt")
    if scheduler:
        schedule = {"base_lrs": [0.01], "last_epoch": steps, "_step_count": steps + 1, "_last_lr": [0.005]}
        torch.save({**schedule, "lr_lambdas": [{}]}, directory / "scheduler.pt")
    if scaler:
        torch.save({"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3}, directory / "scaler.pt")
    for rank in range(ranks):
        torch.save(generators(), directory / ("rng_state.pth" if ranks == 1 else f"rng_state_{rank}.pth"))
    return trainer_state(directory, step)


def trainer_state(directory, step=4):
    fields = {"global_step": step, "max_steps": 8, "epoch": 0.5, "log_history": [{"loss": float("nan"), "step": 1}]}
    (directory / "trainer_state.json").write_text(json.dumps({**fields, "best_global_step": None}, indent=2) + "\n")
    return directory


def arguments(directory, ranks=1, **fields):
    """Write training_args.bin as the Trainer of so many ranks does."""
    from accelerate import PartialState
    from transformers import TrainingArguments

    made = TrainingArguments(output_dir="out", report_to=[], use_cpu=True, **fields)
    state = object.__new__(PartialState)
    state.__dict__ = {"num_processes": ranks, "process_index": 0, "backend": None}
    made.__dict__["distributed_state"] = state
    torch.save(made, directory / "training_args.bin")
    return directory


def saved_by_accelerate(directory, ranks=1, scheduler=True, steps=4):
    """Write what accelerator.save_state writes."""
    model(directory)
    states(directory, steps, ranks=0, scheduler=scheduler)
    (directory / "trainer_state.json").unlink()
    for name in ("optimizer", "scheduler"):
        if (directory / f"{name}.pt").exists():
            (directory / f"{name}.pt").rename(directory / f"{name}.bin")
    for rank in range(ranks):
        made = generators()
        held = {
            "step": 0,
            "random_state": made["python"],
            "numpy_random_seed": made["numpy"],
            "torch_manual_seed": made["cpu"],
        }
        torch.save(held, directory / f"random_states_{rank}.pkl")
    return directory
