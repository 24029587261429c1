"""optimizer.pt and scheduler.pt of a checkpoint. Both are read with weights_only=True, so no code in them is run."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from harness.laws.completion import incomplete
from harness.laws.equal import differences
from harness.trace import Checkpoint, Trace
from harness.verdict import Verdict, verdict

#: Bytes of AdamW's step counter: one float32 for each tensor.
STEP_BYTES = 4

#: AdamW's state of each tensor besides the step counter, in the tensor's own dtype and shape.
MOMENTS = ("exp_avg", "exp_avg_sq")

#: The largest size allowed for a file without tensors, in bytes. Measured with torch 2.13: 1593 (SGD without momentum).
EMPTY_FILE = 2048

#: The bytes allowed for each stored tensor besides its own: zip headers, alignment to 64 bytes, an entry in the pickle.
#: Measured with torch 2.13: 247 to 262, with 15 to 84 tensors.
BESIDES_A_TENSOR = 320


def load_state(checkpoint: Checkpoint, file: str) -> dict[str, Any]:
    """Return the state dict in a checkpoint's file, read with weights_only=True."""
    state: dict[str, Any] = torch.load(Path(checkpoint.path) / file, map_location="cpu", weights_only=True)
    return state


def holds_the_trained_tensors(trace: Trace) -> Verdict:
    """Check that optimizer.pt holds AdamW's state of each trained tensor and of no other: two moments, a step counter.

    Its tensors have 2 * (the trained tensors' bytes) + 4 bytes for each tensor: 8P + 4n for n float32 tensors of P numbers.
    A tensor counts with the dtype that it was trained in. That may be gone at the end, if the best checkpoint was loaded. A
    tensor that no step gave a gradient has no state, and the verdict says which: the base makes no use of its layer, or reads
    the layer's weight past the adapter.
    """
    findings = _written(trace, "optimizer.pt")
    reached = {name for step in trace.steps for name in step.clipped}
    idle = [name for name in trace.trainable if name not in reached] if reached else []
    trained = trace.adapter_before if trace.spec.arguments.get("load_best_model_at_end") else trace.adapter
    sizes = [len(group.names) for group in trace.groups]
    grouped = [name for group in trace.groups for name in group.names]
    findings += [f"{name} is trained, but in no group" for name in trace.trainable if name not in grouped]
    having = [name for name in trace.trainable if name not in idle]
    expected = 2 * sum(_bytes(trained[name]) for name in having) + STEP_BYTES * len(having)
    stated = [index for index, name in enumerate(grouped) if name not in idle]
    for checkpoint in _having(trace, "optimizer.pt"):
        where, saved = f"checkpoint-{checkpoint.step}/optimizer.pt:", load_state(checkpoint, "optimizer.pt")
        seen = [len(group["params"]) for group in saved["param_groups"]]
        if seen != sizes:
            findings.append(f"{where} groups of {seen} tensors, expected {sizes}")
        if sorted(saved["state"]) != stated:
            every = f"0 to {len(grouped) - 1}" if not idle else f"{stated}"
            findings.append(f"{where} state of tensors {sorted(saved['state'])}, expected {every}")
        for index, state in saved["state"].items():
            name = grouped[index] if index < len(grouped) else str(index)
            findings += _state_findings(f"{where} {name}", state, checkpoint.step)
            if index < len(grouped):
                tensor = trained[name]
                findings += [
                    f"{where} {key} of {name} is {_kind(state[key])}, expected {_kind(tensor)}"
                    for key in MOMENTS
                    if key in state and _kind(state[key]) != _kind(tensor)
                ]
        total = tensor_bytes(saved)
        if total != expected:
            findings.append(f"{where} {total} bytes of tensors, expected {expected}")
    what = "optimizer.pt is AdamW's state of the trained tensors"
    if idle:
        what += f", but for {len(idle)} of {len(trace.trainable)} that no step gave a gradient ({idle[0]}, ...)"
    return verdict(what, findings, tensor_bytes=expected)


def size_law(trace: Trace) -> Verdict:
    """Check that optimizer.pt holds the bytes of its tensors, each stored once, and little else.

    A tensor that is a view of a larger storage would be saved with all of that storage. EMPTY_FILE and BESIDES_A_TENSOR
    allow for zip headers, alignment and the pickled names.
    """
    findings, measured = _written(trace, "optimizer.pt"), {}
    for checkpoint in _having(trace, "optimizer.pt"):
        where, saved = f"checkpoint-{checkpoint.step}/optimizer.pt:", load_state(checkpoint, "optimizer.pt")
        with zipfile.ZipFile(Path(checkpoint.path) / "optimizer.pt") as archive:
            stored = [entry.file_size for entry in archive.infolist() if "/data/" in entry.filename]
        distinct = {tensor.untyped_storage().data_ptr(): _bytes(tensor) for tensor in _tensors(saved)}
        expected = sum(distinct.values())
        if sum(stored) != expected:
            findings.append(f"{where} {sum(stored)} bytes stored, expected {expected}, those of its tensors")
        besides, most = checkpoint.files["optimizer.pt"] - sum(stored), EMPTY_FILE + BESIDES_A_TENSOR * len(stored)
        if besides > most:
            findings.append(f"{where} {besides} bytes besides the tensors, expected {most} at most")
        measured = {"bytes": checkpoint.files["optimizer.pt"], "tensor_bytes": expected}
    return verdict("optimizer.pt is its tensors and their names", findings, **measured)


def optimizer_is_current(trace: Trace) -> Verdict:
    """Check that optimizer.pt of the last step holds the optimizer's state at the end of the run, bit for bit."""
    findings = _written(trace, "optimizer.pt")
    grouped = [name for group in trace.groups for name in group.names]
    last = [c for c in _having(trace, "optimizer.pt") if c.step == trace.output.get("global_step")]
    if not last:
        findings.append("no optimizer.pt was written at the last step")
    for checkpoint in last:
        saved = load_state(checkpoint, "optimizer.pt")["state"]
        for index, name in enumerate(grouped):
            findings += differences(
                {key: value for key, value in saved.get(index, {}).items() if isinstance(value, torch.Tensor)},
                trace.optimizer_state.get(name, {}),
                0.0,
                f"checkpoint-{checkpoint.step}/optimizer.pt: {name}:",
            )
    return verdict("the last optimizer.pt is the optimizer's state at the end", findings, tensors=len(grouped))


def scheduler_is_current(trace: Trace) -> Verdict:
    """Check that scheduler.pt of step N counts N steps, and has the learning rates that step N + 1 uses."""
    findings = _written(trace, "scheduler.pt")
    rates = {step.number: step.learning_rates for step in trace.steps}
    for checkpoint in _having(trace, "scheduler.pt"):
        saved, step = load_state(checkpoint, "scheduler.pt"), checkpoint.step
        expected = {
            "base_lrs": [trace.spec.arguments["learning_rate"]] * len(trace.groups),
            "last_epoch": step,
            "_step_count": step + 1,  # LambdaLR's constructor steps once
            "_last_lr": rates.get(step + 1, saved.get("_last_lr")),
        }
        findings += [
            f"checkpoint-{step}/scheduler.pt: {key} is {saved.get(key)}, expected {value}"
            for key, value in expected.items()
            if saved.get(key) != value
        ]
        lambdas = len(saved.get("lr_lambdas", []))
        if lambdas != len(trace.groups):
            findings.append(f"checkpoint-{step}/scheduler.pt: lr_lambdas: {lambdas}, expected {len(trace.groups)}")
    return verdict("scheduler.pt stands where the schedule stood", findings)


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors in a state dict."""
    return sum(_bytes(tensor) for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _state_findings(where: str, state: dict[str, Any], step: int) -> list[str]:
    findings = []
    if set(state) != {"step", *MOMENTS}:
        findings.append(f"{where} has {sorted(state)}, expected {sorted({'step', *MOMENTS})}")
    if "step" in state and float(state["step"]) != step:
        findings.append(f"{where} counts {float(state['step']):g} steps, expected {step}")
    return findings


def _having(trace: Trace, file: str) -> list[Checkpoint]:
    return [checkpoint for checkpoint in trace.checkpoints if file in checkpoint.files]


def _written(trace: Trace, file: str) -> list[str]:
    findings = incomplete(trace)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    return findings + [f"checkpoint-{c.step} has no {file}" for c in trace.checkpoints if file not in c.files]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
