"""What a checkpoint holds, and how large it is."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from harness.laws.equal import differences
from harness.laws.runs import incomplete
from harness.trace import Checkpoint, Trace
from harness.verdict import Verdict, verdict

ADAPTER_FILE = "adapter_model.safetensors"

#: Files that would hold the base model's weights.
_BASE_FILES = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def adapter_only(trace: Trace) -> Verdict:
    """Each checkpoint holds the adapter's tensors, all of them, none empty, and no tensor or file of the base."""
    findings = incomplete(trace)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    for checkpoint in trace.checkpoints:
        where = f"checkpoint-{checkpoint.step}"
        findings += [f"{where}: {name} is there" for name in checkpoint.files if Path(name).name in _BASE_FILES]
        findings += [f"{where}: no tensor for {name}" for name in trace.trainable if name not in checkpoint.adapter]
        for name, tensor in checkpoint.adapter.items():
            if name not in trace.trainable:
                findings.append(f"{where}: {name} is saved, but was not trained")
            if tensor.numel() == 0:
                findings.append(f"{where}: {name} is empty")
    return verdict("each checkpoint holds exactly the trained tensors", findings, checkpoints=len(trace.checkpoints))


def last_is_current(trace: Trace) -> Verdict:
    """The adapter of a checkpoint written at the last step is the trained adapter, bit for bit."""
    findings = incomplete(trace)
    last = [c for c in trace.checkpoints if c.step == trace.output.get("global_step")]
    if not last:
        findings.append("no checkpoint was written at the last step")
    for checkpoint in last:
        findings += differences(checkpoint.adapter, trace.adapter, 0.0, f"checkpoint-{checkpoint.step}:")
    return verdict("the last checkpoint holds the adapter as it was trained", findings)


def size_law(trace: Trace) -> Verdict:
    """Bytes of each adapter file = 8 + header + sum of tensor bytes: nothing else is in it.

    The header's length stands in the file's first eight bytes (little endian); it grows with names, not with values.
    """
    findings = incomplete(trace)
    measured = {}
    for checkpoint in trace.checkpoints:
        for name, tensors in adapter_files(checkpoint).items():
            expected = 8 + _header_bytes(Path(checkpoint.path) / name) + sum(_bytes(*kind) for kind in tensors.values())
            if checkpoint.files[name] != expected:
                findings.append(
                    f"checkpoint-{checkpoint.step}/{name}: {checkpoint.files[name]} bytes, expected {expected}"
                )
            measured[f"{name}_bytes"] = checkpoint.files[name]
    if not measured:
        findings.append("no adapter file was written")
    return verdict("an adapter file is its tensors and a header, not a byte more", findings, **measured)


def adapter_files(checkpoint: Checkpoint) -> dict[str, dict[str, list]]:
    """The adapter files of a checkpoint, in its directory or below: relative path -> key -> [dtype, shape]."""
    return {name: tensors for name, tensors in checkpoint.tensors.items() if Path(name).name == ADAPTER_FILE}


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        json.loads(file.read(length))
    return length


_WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def _bytes(dtype: str, shape: list[int]) -> int:
    total = _WIDTH[dtype]
    for size in shape:
        total *= size
    return total
