"""Made-up traces: small and consistent. A test changes one thing, and shows that a law fails, without training anything."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from harness.runs.scenarios import spread
from harness.spec import RunSpec
from harness.subjects.observer import inspect_checkpoint
from harness.trace import Group, MicroBatch, Step, Trace

A = "model.layers.0.self_attn.q_proj.lora_A.weight"
B = "model.layers.0.self_attn.q_proj.lora_B.weight"
BASE = "model.layers.0.self_attn.q_proj.weight"


def made_up(spec: RunSpec | None = None, steps: int = 4, **changes: Any) -> Trace:
    """Return a trace of a run without a fault: one pair of lora_A and lora_B of rank 2, `steps` steps of two rows.

    - spec: the run's spec; None for the default run with `steps` steps.
    - changes: attributes of the trace to set afterwards.
    """
    spec = spec or RunSpec().but(max_steps=steps, per_device_train_batch_size=2)
    draw = torch.Generator().manual_seed(0)
    before = {A: torch.randn(2, 4, generator=draw), B: torch.zeros(4, 2)}
    after = {name: tensor + 0.01 * (1 + torch.rand(tensor.shape, generator=draw)) for name, tensor in before.items()}
    trace = Trace(spec, "made-up", {"versions": {}, "python": "", "platform": "", "device": "cpu"})
    trace.adapter_before, trace.adapter = before, after
    trace.trainable = [A, B]
    trace.parameters = {BASE: ["float32", [4, 4]], A: ["float32", [2, 4]], B: ["float32", [4, 2]]}
    trace.base_before = {BASE: "0123"}
    trace.base = {BASE: "0123"}
    trace.groups = [
        Group([A, B], {"lr": 0.0, "weight_decay": 0.0, "initial_lr": 0.01}),
        Group([], {"lr": 0.0, "weight_decay": 0.0, "initial_lr": 0.01}),
    ]
    trace.optimizer_state = {name: {"exp_avg": 0.1 * tensor} for name, tensor in after.items()}
    for number in range(1, steps + 1):
        gradients = {name: torch.full_like(tensor, 0.01 * number) for name, tensor in before.items()}
        rate = 0.01 * (steps - number + 1) / steps
        batch = MicroBatch([2 * number - 2, 2 * number - 1], tokens=30, num_items=30.0, loss=5.5 - 0.1 * number)
        trace.steps.append(Step(number, [batch], [rate, rate], gradients, copy.deepcopy(gradients)))
        trace.log_history.append(
            {
                "step": number,
                "epoch": number / 20,
                "loss": batch.loss,
                "grad_norm": math.sqrt(sum(float((g**2).sum()) for g in gradients.values())),
                "learning_rate": rate,
            }
        )
    trace.output = {"global_step": steps, "training_loss": 5.5 - 0.05 * (steps + 1), "metrics": {"train_loss": 5.25}}
    for name, value in changes.items():
        setattr(trace, name, value)
    return trace


def with_checkpoint(trace: Trace, directory: Path, step: int, adapter: dict[str, torch.Tensor] | None = None) -> Trace:
    """Write a checkpoint directory for the trace, inspect it as a run's would be, and add it to the trace.

    - directory: where checkpoint-<step> is written.
    - adapter: the tensors to write; None for the trace's adapter.

    Returns the trace.
    """
    path = directory / f"checkpoint-{step}"
    path.mkdir(parents=True)
    tensors = trace.adapter if adapter is None else adapter
    save_file(
        {f"base_model.model.{name}": value for name, value in tensors.items()}, path / "adapter_model.safetensors"
    )
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    trace.checkpoints.append(inspect_checkpoint(path, trace.spec.adapter.name))
    return trace


#: A run over eight rows in their order, on two ranks: two steps, in each of which a rank trains two rows.
TWO_RANKS = spread(
    RunSpec().but(data={"rows": 8}, max_steps=2, per_device_train_batch_size=4, train_sampling_strategy="sequential"),
    "ddp",
)


def two_ranks(spec: RunSpec = TWO_RANKS, **changes: Any) -> Trace:
    """Return the trace of a run on two ranks. Of each step's four rows rank r trains rows 2r and 2r + 1.

    - spec: the run's spec.
    - changes: attributes of both ranks' traces to set.
    """
    ranks = []
    for rank in range(2):
        trace = made_up(spec, steps=2, **copy.deepcopy(changes))
        for step in trace.steps:
            first = 4 * (step.number - 1) + 2 * rank
            step.batches[0].rows = [first, first + 1]
            step.batches[0].loss = 2.5 + 0.1 * rank
            step.batches[0].num_items = 60.0
        for entry in trace.log_history:
            entry["loss"] = 5.1
        trace.distributed = {
            "wrapper": "FSDPModel",
            "units": {"": "FSDPModule", "model.layers.0": "FSDPModule"},
            "kinds": dict.fromkeys(trace.parameters, "DTensor"),
            "local": {name: shape[0] * shape[1] // 2 for name, (_, shape) in trace.parameters.items()},
            "dtypes": {name: dtype for name, (dtype, _) in trace.parameters.items()},
            "flat": 0,
            "find_unused_parameters": None,
        }
        ranks.append(trace)
    ranks[0].ranks = ranks[1:]
    return ranks[0]
