"""Which files a run in several processes writes, and what is restored from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from harness.laws.equal import differences, has_moved, is_finite
from harness.laws.several import incomplete_ranks
from harness.subjects.observer import inspect_checkpoint
from harness.tensors import names
from harness.trace import Trace
from harness.verdict import Unjudged, Verdict, verdict


def exactly(trace: Trace, expected: Sequence[str]) -> Verdict:
    """Check that each checkpoint has exactly these entries at its top.

    - expected: names of files, and names of directories that end in "/".
    """
    findings = incomplete_ranks(trace)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    for checkpoint in trace.checkpoints:
        seen = {name.partition("/")[0] + "/" * ("/" in name) for name in checkpoint.files}
        where = f"checkpoint-{checkpoint.step}"
        findings += [f"{where} has {name}, unexpected" for name in sorted(seen - set(expected))]
        findings += [f"{where} has no {name}" for name in sorted(set(expected) - seen)]
    return verdict(f"a checkpoint has the files {', '.join(sorted(expected))}", findings)


def fsdp_model(trace: Trace) -> Verdict:
    """Check that pytorch_model_fsdp.bin of each checkpoint holds every trained tensor whole, and no other tensor.

    In the last step's checkpoint the values must be the trained adapter's, too.
    """
    findings = incomplete_ranks(trace)
    checkpoints = [saved for saved in trace.checkpoints if "pytorch_model_fsdp.bin" in saved.files]
    if not checkpoints:
        findings.append("no checkpoint has a pytorch_model_fsdp.bin")
    for saved in checkpoints:
        file = torch.load(Path(saved.path) / "pytorch_model_fsdp.bin", map_location="cpu", weights_only=True)
        tensors = {names.canonical(key, trace.spec.adapter.name): value for key, value in file.items()}
        where = f"checkpoint-{saved.step}/pytorch_model_fsdp.bin:"
        parts = [name for name, value in tensors.items() if hasattr(value, "to_local")]
        if parts:
            findings.append(f"{where} {len(parts)} tensors are DTensors of the rank that saved, {parts[0]} for one")
            continue
        if saved.step == trace.output.get("global_step"):
            findings += differences(tensors, trace.adapter, 0.0, where)[:2]
        else:
            findings += [f"{where} no {name}" for name in trace.trainable if name not in tensors][:1]
            findings += [f"{where} {name}, which is not trained" for name in tensors if name not in trace.trainable][:1]
    return verdict("the model's file holds the adapter alone", findings)


def deepspeed_model(trace: Trace) -> Verdict:
    """Check that DeepSpeed's model files hold no frozen parameter: each is smaller than the frozen parameters together."""
    findings = incomplete_ranks(trace)
    frozen = sum(4 * math.prod(shape) for name, (_, shape) in trace.parameters.items() if name not in trace.trainable)
    sizes = {
        f"checkpoint-{saved.step}/{name}": size
        for saved in trace.checkpoints
        for name, size in saved.files.items()
        if name.endswith("model_states.pt")
    }
    if not sizes:
        findings.append("no checkpoint has a file of the engine's model")
    findings += [
        f"{name} has {size} bytes, the frozen parameters {frozen}; expected fewer"
        for name, size in sizes.items()
        if size >= frozen
    ]
    return verdict("the engine saves no frozen parameter", findings, bytes=max(sizes.values(), default=0))


def deepspeed_optimizer(trace: Trace) -> Verdict:
    """Check that each checkpoint has one DeepSpeed optimizer file for each rank, scheduler.pt, and no optimizer.pt."""
    findings = incomplete_ranks(trace)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    for saved in trace.checkpoints:
        where = f"checkpoint-{saved.step}"
        states = [name for name in saved.files if name.endswith("_optim_states.pt")]
        if len(states) != trace.spec.launch.ranks:
            findings.append(f"{where} has {len(states)} files of optimizer state for {trace.spec.launch.ranks} ranks")
        findings += [f"{where} has optimizer.pt"] if "optimizer.pt" in saved.files else []
        findings += [] if "scheduler.pt" in saved.files else [f"{where} has no scheduler.pt"]
    return verdict("the engine saves the optimizer's state, the Trainer the schedule", findings)


def saved_at_the_end(trace: Trace, directory: Path) -> Verdict:
    """Check that save_model() wrote the trained adapter, bit for bit, and no tensor of the base.

    - directory: where save_model() wrote.
    """
    findings = incomplete_ranks(trace)
    if not any(directory.glob("*.safetensors")):
        there = sorted(file.name for file in directory.glob("*"))
        findings.append(f"save_model() wrote no adapter: {', '.join(there) or 'nothing'} in {directory.name}/")
    else:
        saved = inspect_checkpoint(directory, trace.spec.adapter.name)
        findings += differences(saved.adapter, trace.adapter, 0.0, "save_model():")[:2]
        others = [name for name in saved.files if name.startswith(("model", "pytorch_model"))]
        findings += [f"save_model() wrote {name} besides" for name in others]
    return verdict("save_model() leaves the trained adapter", findings)


def adapter_restored(resumed: Trace, whole: Trace) -> Verdict:
    """Check that a resumed run restores every adapter tensor before its first step.

    A tensor counts as restored if it differs from its initial value. The values in a checkpoint of shards cannot be read
    here; whether they are right shows in the steps that follow.

    - resumed: the resumed run.
    - whole: the run that saved.
    """
    findings = incomplete_ranks(resumed) + [f"(the run that saved) {reason}" for reason in incomplete_ranks(whole)]
    fresh = [
        name
        for name in resumed.trainable
        if name not in resumed.adapter_resumed
        or not has_moved(whole.adapter_before[name], resumed.adapter_resumed[name])
    ]
    if broken := [name for name, tensor in resumed.adapter_resumed.items() if not is_finite(tensor)]:
        findings.append(Unjudged(f"{broken[0]} is NaN or infinite, as are {len(broken)} tensors of the adapter"))
        fresh = [name for name in fresh if name not in broken]
    total = len(resumed.trainable)
    if fresh or not total:
        findings.append(f"{total - len(fresh)} of {total} adapter tensors are restored; {fresh[:1]} is as at the start")
    return verdict("every adapter tensor is restored before the first step", findings, restored=total - len(fresh))
