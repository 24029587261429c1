"""A digest of a trace: two runs have the same where all that was seen of them is the same, bit for bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.trace import Trace

#: Files whose size depends on where they are written.
_ELSEWHERE = ("training_args.bin", "trainer_state.json")


def digest(trace: Trace) -> str:
    """A digest of all that was seen of a run, but times, memory and paths."""
    found = hashlib.sha256()
    for part in (
        (trace.error or "").replace(trace.directory, ""),
        trace.events,
        [[step.number, step.learning_rates, [vars(batch) for batch in step.batches]] for step in trace.steps],
        [[one.step, one.rows, _untimed(one.metrics)] for one in trace.evaluations],
        [_untimed(entry) for entry in trace.log_history],
        [trace.base_before, trace.base, trace.base_gradients, trace.trainable, trace.parameters],
        [vars(group) for group in trace.groups],
        [[one.step, one.tensors, one.siblings, _files(one.files)] for one in trace.checkpoints],
        [trace.output.get("global_step"), trace.output.get("training_loss")],
        [one.replace(trace.directory, "") for one in trace.warnings],
        [trace.best.get("metric"), trace.best.get("step"), Path(trace.best.get("checkpoint") or "").name],
    ):
        found.update(json.dumps(part, sort_keys=True, default=str).encode())
    for step in trace.steps:
        _add(found, {"gradients": step.gradients, "clipped": step.clipped})
    _add(found, {"before": trace.adapter_before, "after": trace.adapter, "resumed": trace.adapter_resumed})
    _add(found, trace.optimizer_state)
    _add(found, {str(one.step): one.adapter for one in trace.checkpoints})
    for rank in trace.ranks:
        found.update(digest(rank).encode())
    return found.hexdigest()


def _untimed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if "runtime" not in name and "per_second" not in name}


def _files(files: Mapping[str, int]) -> list[Any]:
    return sorted((name, 0 if name.endswith(_ELSEWHERE) else size) for name, size in files.items())


def _add(found: Any, groups: Mapping[str, Mapping[str, Any]]) -> None:
    import torch

    for group, tensors in sorted(groups.items()):
        for name, tensor in sorted(tensors.items()):
            found.update(f"{group} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
