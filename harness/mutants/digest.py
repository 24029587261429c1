"""Digests of traces. Two runs have the same digest if everything observed of them is equal, bit for bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.trace import Trace

#: Files whose size depends on the path of the run.
_SIZE_VARIES = ("training_args.bin", "trainer_state.json")


def digest(trace: Trace) -> str:
    """Return a digest of a trace without its times, memory and paths."""
    hasher = hashlib.sha256()
    for part in (
        (trace.error or "").replace(trace.directory, ""),
        trace.events,
        [[step.number, step.learning_rates, [vars(batch) for batch in step.batches]] for step in trace.steps],
        [[done.step, done.rows, _untimed(done.metrics)] for done in trace.evaluations],
        [_untimed(entry) for entry in trace.log_history],
        [trace.base_before, trace.base, trace.base_gradients, trace.trainable, trace.parameters],
        [vars(group) for group in trace.groups],
        [[saved.step, saved.tensors, saved.siblings, _files(saved.files)] for saved in trace.checkpoints],
        [trace.output.get("global_step"), trace.output.get("training_loss")],
        [warning.replace(trace.directory, "") for warning in trace.warnings],
        [trace.best.get("metric"), trace.best.get("step"), Path(trace.best.get("checkpoint") or "").name],
    ):
        hasher.update(json.dumps(part, sort_keys=True, default=str).encode())
    for step in trace.steps:
        _add(hasher, {"gradients": step.gradients, "clipped": step.clipped})
    _add(hasher, {"before": trace.adapter_before, "after": trace.adapter, "resumed": trace.adapter_resumed})
    _add(hasher, trace.optimizer_state)
    _add(hasher, {str(saved.step): saved.adapter for saved in trace.checkpoints})
    for rank in trace.ranks:
        hasher.update(digest(rank).encode())
    return hasher.hexdigest()


def _untimed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if "runtime" not in name and "per_second" not in name}


def _files(files: Mapping[str, int]) -> list[Any]:
    return sorted((name, 0 if name.endswith(_SIZE_VARIES) else size) for name, size in files.items())


def _add(hasher: Any, groups: Mapping[str, Mapping[str, Any]]) -> None:
    import torch

    for group, tensors in sorted(groups.items()):
        for name, tensor in sorted(tensors.items()):
            hasher.update(f"{group} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            hasher.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
