"""The adapter files of a checkpoint: which tensors they hold, with which values, and how large they are."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Container
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.fixtures.methods import rows_of
from harness.laws import base_weights
from harness.laws.completion import incomplete
from harness.laws.equal import differences, is_finite
from harness.spec import GET, AdapterSpec
from harness.subjects.observer import digest
from harness.tensors import names
from harness.trace import Checkpoint, Tensors, Trace
from harness.verdict import Unjudged, Verdict, verdict

ADAPTER_FILE = "adapter_model.safetensors"

#: Files that would hold the base model's weights.
_BASE_FILES = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def adapter_only(trace: Trace) -> Verdict:
    """Check that each checkpoint holds all of the adapter's tensors, none empty, and no tensor or file of the base.

    Accepted beside them are:

    - frozen tensors of the method, such as VeRA's random matrices, that its row of METHODS names (`saves`);
    - weights of the base that peft saves as well (`base_weights.saved_beside`, `base_weights.resized`);
    - a tensor that several layers share, under any of its names.

    A method without a row of METHODS may save what it likes of its own tensors: that is not judged, and said.
    """
    findings = incomplete(trace)
    adapter = trace.spec.adapter
    beside = _beside(adapter)
    allowed = base_weights.saved_beside(trace) | set(trace.trainable) | set(trace.shared)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    for checkpoint in trace.checkpoints:
        where = f"checkpoint-{checkpoint.step}"
        findings += [f"{where}: {name} is there" for name in checkpoint.files if Path(name).name in _BASE_FILES]
        saved = under_trained_names(trace, checkpoint.adapter)
        missing = [name for name in trace.trainable if name not in saved]
        extra = [n for n in checkpoint.adapter if n not in allowed and not _is_beside(n, beside)]
        if not base_weights.is_known(adapter) and (missing or any(map(names.is_adapter, extra))):
            why = f"adapter.peft_type = {adapter.peft_type!r} is not in the table of methods"
            findings.append(Unjudged(f"{where}: which tensors it saves of its own was not judged: {why}"))
            missing, extra = [], [name for name in extra if not names.is_adapter(name)]
        if extra and set(extra) <= base_weights.resized(trace.spec):
            extra = []
        findings += [f"{where}: no tensor for {name}" for name in missing]
        findings += [f"{where}: {name} is saved, but was not trained" for name in extra]
        # A parameter may have no elements in memory, either: PSOFT's rotation of rank 1.
        findings += [
            f"{where}: {name} is empty"
            for name, tensor in checkpoint.adapter.items()
            if not tensor.numel() and (name not in trace.adapter or trace.adapter[name].numel())
        ]
    return verdict("each checkpoint holds exactly the trained tensors", findings, checkpoints=len(trace.checkpoints))


def _beside(adapter: AdapterSpec) -> set[str]:
    """Return the ends of names of tensors that a method saves besides those that it trains."""
    return {end for row in rows_of(adapter.peft_type) for end in row.saves} | base_weights.own_tensors(adapter)


def _is_beside(name: str, beside: set[str]) -> bool:
    """Return whether a tensor is one of those that a method saves beside the trained ones, by its end or a part."""
    return name.endswith((*beside, "\0")) or any(part in beside for part in name.split("."))


def under_trained_names(trace: Trace, tensors: Tensors) -> Tensors:
    """Return the tensors of a file under the names that they have in `trace.trainable`.

    A tensor that several layers share has a name in each of them. The file has one of these, which may be another. Names of
    one tensor end alike: "vblora_vector_bank".
    """
    absent = {names.own_part(name): name for name in trace.trainable if name not in tensors}
    return {
        absent.get(names.own_part(name), name) if name in trace.shared else name: tensor
        for name, tensor in tensors.items()
    }


def nothing_twice(trace: Trace) -> Verdict:
    """Check that no adapter file holds the same tensor under two names.

    Only floating-point tensors with at least two different values count: two layers may have equal indices by chance
    (SHiRA), and equal tensors of zeros. Two trained parameters may be equal, too, if they get equal gradients (PSOFT).
    """
    findings = incomplete(trace)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    for checkpoint in trace.checkpoints:
        first: dict[str, str] = {}
        for name, tensor in sorted(checkpoint.adapter.items()):
            if tensor.is_floating_point() and bool((tensor != tensor.flatten()[:1]).any()):
                earlier = first.setdefault(digest(tensor), name)
                if earlier != name and not {earlier, name} <= set(trace.trainable):
                    findings.append(f"checkpoint-{checkpoint.step}: {name} is {earlier} once more")
    return verdict("each tensor is saved once", findings, checkpoints=len(trace.checkpoints))


def trained_values_saved(trace: Trace) -> Verdict:
    """Check that a lora_B which was trained before a save is not saved as zeros.

    If any lora_B had a gradient at a step with a learning rate above zero, some lora_B in the file must not be zero.
    """
    findings = incomplete(trace)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    for checkpoint in trace.checkpoints:
        moved = any(
            max(step.learning_rates, default=0.0) > 0 and _is_lora_b(name) and bool(gradient.any())
            for step in trace.steps
            if step.number <= checkpoint.step
            for name, gradient in step.clipped.items()
            if is_finite(gradient)
        )
        saved = [tensor for name, tensor in checkpoint.adapter.items() if _is_lora_b(name)]
        if moved and not any(bool(tensor.any()) for tensor in saved):
            findings.append(f"checkpoint-{checkpoint.step}: all {len(saved)} lora_B tensors are zero, as if untrained")
        elif saved and not any(map(is_finite, saved)):
            findings.append(Unjudged(f"checkpoint-{checkpoint.step}: each lora_B is NaN or infinite"))
    return verdict("a lora_B that was trained is saved trained", findings, checkpoints=len(trace.checkpoints))


def clean_keys(trace: Trace) -> Verdict:
    """Check that no key of an adapter file names a wrapper (torch.compile, checkpoint_wrapper, FSDP) or an adapter."""
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
    """Check that each saved tensor has the dtype and shape that its parameter had when training started."""
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
    """Check that each adapter of the spec is saved in a file of its own, bit for bit, with no tensor of another adapter.

    Weights of the base may be in it as well (`base_weights.saved_beside`).

    - Values: the other adapters are frozen, so their values are checked in every checkpoint. The active adapter's are
      checked in the last step's checkpoint alone, since only its values at the end are in the trace. They are not if the
      best checkpoint was loaded at the end.
    - Files: with get_peft_model "default" is at the top of the checkpoint and "foo" is in foo/. With add_adapter it is
      not documented where a second adapter goes, so it may be in any adapter file.
    """
    findings = incomplete(trace)
    adapter = trace.spec.adapter
    beside = base_weights.saved_beside(trace) | set(trace.shared)
    loads_best = bool(trace.spec.arguments.get("load_best_model_at_end"))
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    if trace.adapter and not any(map(is_finite, trace.adapter.values())):
        findings.append(Unjudged("each tensor of the trained adapter is NaN or infinite, so no values were compared"))
    for checkpoint in trace.checkpoints:
        last = checkpoint.step == trace.output.get("global_step") and not loads_best
        files = {file: load_adapter_file(Path(checkpoint.path) / file) for file in adapter_files(checkpoint)}
        for name in (adapter.name, *adapter.others):
            digests = _digests(trace, name)
            if name == adapter.name and not last:
                digests = dict.fromkeys(digests, "")
            expected = adapter_path(adapter, name)
            candidates = files if expected is None else {expected: files[expected]} if expected in files else {}
            found = [_misfits(trace, tensors, digests, beside) for tensors in candidates.values()]
            where = f"checkpoint-{checkpoint.step}: adapter {name!r}"
            if not found:
                findings.append(f"{where} has no file {expected or ADAPTER_FILE}")
            elif expected is None and all(found):
                findings.append(f"{where} is in no adapter file: {min(found, key=len)[0]}")
            elif all(found):
                findings += [f"{where}: {misfit}" for misfit in min(found, key=len)]
    return verdict("each adapter is saved whole, and alone in its file", findings, adapters=1 + len(adapter.others))


def adapter_path(adapter: AdapterSpec, name: str) -> str | None:
    """Return the path of an adapter's file in a checkpoint; None if upstream promises none (add_adapter with several)."""
    if adapter.route != GET:
        return ADAPTER_FILE if name == adapter.name and not adapter.others else None
    return ADAPTER_FILE if name == "default" else f"{name}/{ADAPTER_FILE}"


def load_adapter_file(path: Path) -> Tensors:
    """Return the tensors of an adapter file, under the file's own keys."""
    from safetensors.torch import load_file

    return load_file(path)


def _digests(trace: Trace, adapter: str) -> dict[str, str]:
    """Return canonical name -> digest of an adapter's tensors at the end of the run, whether it was trained or not."""
    if adapter == trace.spec.adapter.name:
        return {name: digest(tensor) for name, tensor in trace.adapter.items()}
    # In the trace, names of a second adapter's tensors still contain the adapter's name. canonical() removes it.
    without = {name: names.canonical(name, adapter) for name in trace.base}
    # A tensor that several layers share has several names in memory, and one in the file.
    return {plain: trace.base[name] for name, plain in without.items() if plain != name and plain not in trace.shared}


def _misfits(trace: Trace, tensors: Tensors, expected: dict[str, str], beside: Container[str]) -> list[str]:
    """Return how a file differs from the tensors expected in it.

    - expected: name -> digest, "" if the value is not compared.
    - beside: names that may be in the file as well.
    """
    saved = under_trained_names(trace, {names.canonical(key): tensor for key, tensor in tensors.items()})
    findings = [f"{name} is not in its file" for name in expected if name not in saved]
    findings += [
        f"its file holds {name}, which is not its own" for name in saved if name not in expected and name not in beside
    ]
    return findings + [
        f"{name} is not saved as it is in memory"
        for name, value in expected.items()
        if value and name in saved and digest(saved[name]) != value
    ]


def pushed(trace: Trace, pushes: list[dict[str, bytes]]) -> Verdict:
    """Check that each push holds its checkpoint's adapter files and configs, byte for byte, and no file of the base.

    - pushes: one for each checkpoint, as relative path -> content. A named adapter may be at the top or in a folder.
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
    """Check that the last checkpoint holds the adapter as trained, bit for bit. `adapter_only` judges what it has besides."""
    findings, beside = incomplete(trace), _beside(trace.spec.adapter)
    last = [c for c in trace.checkpoints if c.step == trace.output.get("global_step")]
    if not last:
        findings.append("no checkpoint was written at the last step")
    for checkpoint in last:
        found = under_trained_names(trace, checkpoint.adapter)
        saved = {name: one for name, one in found.items() if name in trace.adapter or not _is_beside(name, beside)}
        findings += differences(saved, trace.adapter, 0.0, f"checkpoint-{checkpoint.step}:")
    return verdict("the last checkpoint holds the adapter as it was trained", findings)


def size_law(trace: Trace) -> Verdict:
    """Check that each adapter file has 8 + header + tensor bytes, so that nothing else is in it.

    A safetensors file begins with eight bytes that give the header's length (little endian). The header has the names,
    dtypes and offsets of the tensors.
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


def there(trace: Trace) -> Trace:
    """Return a trace with the checkpoints that are still on the disk, without those that save_total_limit deleted.

    If none is there, as in a trace that was loaded on another machine, all are returned.
    """
    left = [checkpoint for checkpoint in trace.checkpoints if Path(checkpoint.path).is_dir()]
    return dataclasses.replace(trace, checkpoints=left or trace.checkpoints)


def adapter_files(checkpoint: Checkpoint) -> dict[str, dict[str, list[Any]]]:
    """Return the adapter files of a checkpoint and its folders: relative path -> key -> [dtype, shape]."""
    return {name: tensors for name, tensors in checkpoint.tensors.items() if Path(name).name == ADAPTER_FILE}


def header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return the length of a safetensors file's header in bytes, and the header as JSON.

    The header is {key: {"dtype", "shape", "data_offsets"}}, and perhaps "__metadata__".
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return length, json.loads(file.read(length))


#: Parts of a key that name a wrapper module and not a module of the base.
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
