"""What a checkpoint holds, and how large it is."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.fixtures.methods import METHODS
from harness.laws.completion import incomplete
from harness.laws.equal import differences
from harness.spec import GET, AdapterSpec
from harness.subjects.observer import digest
from harness.tensors import names
from harness.trace import Checkpoint, Tensors, Trace
from harness.verdict import Verdict, verdict

ADAPTER_FILE = "adapter_model.safetensors"

#: Files that would hold the base model's weights.
_BASE_FILES = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def adapter_only(trace: Trace) -> Verdict:
    """Each checkpoint holds the adapter's tensors, all of them, none empty, and no tensor or file of the base.

    What a method keeps beside them is saved too, such as VeRA's random matrices, where its row of METHODS says so.
    """
    findings = incomplete(trace)
    beside = {end for m in METHODS.values() if m.peft_type == trace.spec.adapter.peft_type for end in m.saves}
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    for checkpoint in trace.checkpoints:
        where = f"checkpoint-{checkpoint.step}"
        findings += [f"{where}: {name} is there" for name in checkpoint.files if Path(name).name in _BASE_FILES]
        findings += [f"{where}: no tensor for {name}" for name in trace.trainable if name not in checkpoint.adapter]
        for name, tensor in checkpoint.adapter.items():
            if name not in trace.trainable and not name.endswith((*beside, "\0")):
                findings.append(f"{where}: {name} is saved, but was not trained")
            if tensor.numel() == 0:
                findings.append(f"{where}: {name} is empty")
    return verdict("each checkpoint holds exactly the trained tensors", findings, checkpoints=len(trace.checkpoints))


def nothing_twice(trace: Trace) -> Verdict:
    """No adapter file holds a tensor under two names.

    Of numbers, more than one value: places may be the same in each layer by chance of a seed (SHiRA), and so may zeros.
    """
    findings = incomplete(trace)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    for checkpoint in trace.checkpoints:
        first: dict[str, str] = {}
        for name, tensor in sorted(checkpoint.adapter.items()):
            if tensor.is_floating_point() and bool((tensor != tensor.flatten()[:1]).any()):
                held = first.setdefault(digest(tensor), name)
                if held != name:
                    findings.append(f"checkpoint-{checkpoint.step}: {name} is {held} once more")
    return verdict("each tensor is saved once", findings, checkpoints=len(trace.checkpoints))


def trained_values_saved(trace: Trace) -> Verdict:
    """Where a lora_B got a gradient and a learning rate before a save, some lora_B in that file is not zero."""
    findings = incomplete(trace)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    for checkpoint in trace.checkpoints:
        moved = any(
            max(step.learning_rates, default=0.0) > 0 and _is_lora_b(name) and bool(gradient.any())
            for step in trace.steps
            if step.number <= checkpoint.step
            for name, gradient in step.clipped.items()
        )
        saved = [tensor for name, tensor in checkpoint.adapter.items() if _is_lora_b(name)]
        if moved and not any(bool(tensor.any()) for tensor in saved):
            findings.append(f"checkpoint-{checkpoint.step}: all {len(saved)} lora_B tensors are zero, as if untrained")
    return verdict("a lora_B that was trained is saved trained", findings, checkpoints=len(trace.checkpoints))


def clean_keys(trace: Trace) -> Verdict:
    """No key of an adapter file names a wrapper (torch.compile, checkpoint_wrapper, FSDP) or an adapter."""
    findings = incomplete(trace)
    if not any(adapter_files(checkpoint) for checkpoint in trace.checkpoints):
        findings.append("no adapter file was written")
    for checkpoint in trace.checkpoints:
        for file, tensors in adapter_files(checkpoint).items():
            for key in tensors:
                parts = key.split(".")
                alien = [part for part in parts if part in _WRAPPERS]
                alien += [b for a, b in pairwise(parts) if a in _HELD_BY_NAME and b not in ("weight", "bias")]
                findings += [f"checkpoint-{checkpoint.step}/{file}: {key} has {part!r} in it" for part in alien[:1]]
    return verdict("keys of an adapter file are paths in the plain base model", findings)


def dtype_on_disk(trace: Trace) -> Verdict:
    """Each saved tensor has the dtype and shape of the parameter that it is, as it was when training started."""
    findings = incomplete(trace)
    if not any(checkpoint.adapter for checkpoint in trace.checkpoints):
        findings.append("no adapter tensor was saved")
    seen = set()
    for checkpoint in trace.checkpoints:
        for name, tensor in checkpoint.adapter.items():
            saved = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            seen.add(saved[0])
            if saved != trace.parameters.get(name):
                findings.append(
                    f"checkpoint-{checkpoint.step}: {name} is {saved}, the parameter {trace.parameters.get(name)}"
                )
    return verdict("an adapter is saved in its own dtype", findings, dtypes=sorted(seen))


def every_adapter_saved(trace: Trace) -> Verdict:
    """Each adapter of the spec lies in a file of its own, bit for bit and with no tensor of another one.

    The active adapter is judged at the last step, where its values are known; the others are frozen, so at each.
    get_peft_model puts "default" at the top and "foo" into foo/. Where add_adapter puts a second one, nobody says:
    any adapter file of the checkpoint will do.
    """
    findings = incomplete(trace)
    adapter = trace.spec.adapter
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    for checkpoint in trace.checkpoints:
        last = checkpoint.step == trace.output.get("global_step")
        files = {file: load_adapter_file(Path(checkpoint.path) / file) for file in adapter_files(checkpoint)}
        for name in (adapter.name, *adapter.others):
            wanted = _digests(trace, name) if last or name != adapter.name else dict.fromkeys(_digests(trace, name), "")
            expected = adapter_path(adapter, name)
            candidates = files if expected is None else {expected: files[expected]} if expected in files else {}
            found = [_misfits(tensors, wanted) for tensors in candidates.values()]
            where = f"checkpoint-{checkpoint.step}: adapter {name!r}"
            if not found:
                findings.append(f"{where} has no file {expected or ADAPTER_FILE}")
            elif expected is None and all(found):
                findings.append(f"{where} is in no adapter file: {min(found, key=len)[0]}")
            elif all(found):
                findings += [f"{where}: {one}" for one in min(found, key=len)]
    return verdict("each adapter is saved whole, and alone in its file", findings, adapters=1 + len(adapter.others))


def adapter_path(adapter: AdapterSpec, name: str) -> str | None:
    """The file of an adapter below a checkpoint; None where it is nobody's promise (a second one of add_adapter)."""
    if adapter.route != GET:
        return ADAPTER_FILE if name == adapter.name and not adapter.others else None
    return ADAPTER_FILE if name == "default" else f"{name}/{ADAPTER_FILE}"


def load_adapter_file(path: Path) -> Tensors:
    """The tensors of an adapter file, under the keys that they have in it."""
    from safetensors.torch import load_file

    return load_file(path)


def _digests(trace: Trace, adapter: str) -> dict[str, str]:
    """Canonical name -> digest of an adapter's tensors at the end of the run, whether it was trained or not."""
    if adapter == trace.spec.adapter.name:
        return {name: digest(tensor) for name, tensor in trace.adapter.items()}
    # The tensors of a second adapter have its name in theirs, which canonical(..., adapter) takes out.
    without = {name: names.canonical(name, adapter) for name in trace.base}
    return {plain: trace.base[name] for name, plain in without.items() if plain != name}


def _misfits(tensors: Tensors, wanted: dict[str, str]) -> list[str]:
    saved = {names.canonical(key): tensor for key, tensor in tensors.items()}
    findings = [f"{name} is not in its file" for name in wanted if name not in saved]
    findings += [f"its file holds {name}, which is not its own" for name in saved if name not in wanted]
    return findings + [
        f"{name} is not saved as it is in memory"
        for name, value in wanted.items()
        if value and name in saved and digest(saved[name]) != value
    ]


def pushed(trace: Trace, pushes: list[dict[str, bytes]]) -> Verdict:
    """Each push holds the adapter files and configs of its checkpoint, byte for byte, and no file of the base.

    pushes: one for each checkpoint, relative path -> content. A named adapter may lie at the top or below.
    """
    findings = incomplete(trace)
    if not trace.checkpoints or len(pushes) != len(trace.checkpoints):
        findings.append(f"{len(pushes)} pushes for {len(trace.checkpoints)} checkpoints")
    for checkpoint, files in zip(trace.checkpoints, pushes, strict=False):
        where = f"push of checkpoint-{checkpoint.step}"
        findings += [f"{where}: {name} is there" for name in files if Path(name).name in _BASE_FILES]
        for name in checkpoint.files:
            whole = (Path(checkpoint.path) / name).read_bytes()
            if Path(name).name in (ADAPTER_FILE, "adapter_config.json") and whole not in files.values():
                findings.append(f"{where}: no file is {name} of the checkpoint")
    return verdict("each push holds the adapter of its checkpoint", findings, pushes=len(pushes))


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
            expected = 8 + header(Path(checkpoint.path) / name)[0] + sum(_bytes(*kind) for kind in tensors.values())
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


def header(path: Path) -> tuple[int, dict[str, Any]]:
    """The bytes of a safetensors file's header and what it says: key -> dtype, shape, offsets; "__metadata__"."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return length, json.loads(file.read(length))


#: Parts of a key that name a wrapper module rather than a module of the base.
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "modules_to_save")

#: Modules that hold one tensor for each adapter name.
_HELD_BY_NAME = ("lora_A", "lora_B")


def _is_lora_b(name: str) -> bool:
    return name.endswith("lora_B.weight")


_WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def _bytes(dtype: str, shape: list[int]) -> int:
    total = _WIDTH[dtype]
    for size in shape:
        total *= size
    return total
