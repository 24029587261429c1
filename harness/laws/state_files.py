"""trainer_state.json, rng_state.pth and training_args.bin of a checkpoint. No code in their pickles is run."""

from __future__ import annotations

import math
import pickletools
import random
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import compat
from harness.laws.completion import incomplete
from harness.trace import Checkpoint, Trace
from harness.verdict import Verdict, verdict

#: Fields of trainer_state.json in every release of transformers from 4.45 on.
STATE_FIELDS = (
    "best_metric",
    "best_model_checkpoint",
    "epoch",
    "eval_steps",
    "global_step",
    "is_hyper_param_search",
    "is_local_process_zero",
    "is_world_process_zero",
    "log_history",
    "logging_steps",
    "max_steps",
    "num_input_tokens_seen",
    "num_train_epochs",
    "save_steps",
    "stateful_callbacks",
    "total_flos",
    "train_batch_size",
    "trial_name",
    "trial_params",
)


def state_is_current(trace: Trace) -> Verdict:
    """Check that trainer_state.json has the step, epoch, length and log of the run as they were at the save."""
    findings = incomplete(trace)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    arguments, data = trace.spec.arguments, trace.spec.data
    batches = math.ceil(data.rows / arguments["per_device_train_batch_size"])
    for checkpoint in trace.checkpoints:
        step, state = checkpoint.step, checkpoint.state
        where = f"checkpoint-{step}/trainer_state.json:"
        findings += [f"{where} no field {name}" for name in STATE_FIELDS if name not in state]
        # Epochs are counted in micro-batches, since the last optimizer step of an epoch may have fewer of them.
        trained = sum(len(one.batches) for one in trace.steps if one.number <= step)
        expected = {
            "global_step": step,
            "max_steps": trace.output.get("global_step"),
            "train_batch_size": arguments["per_device_train_batch_size"],
            "epoch": trained // batches + (trained % batches) / batches,
            "log_history": [entry for entry in trace.log_history if _logged_by(entry, step)],
        }
        findings += [
            f"{where} {name} is {_short(state.get(name))}, expected {_short(value)}"
            for name, value in expected.items()
            if state.get(name) != value
        ]
    return verdict("trainer_state.json is the state at the save", findings, checkpoints=len(trace.checkpoints))


def generators() -> dict[str, Any]:
    """Return the current state of every random generator that a checkpoint must restore."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def load_generators(checkpoint: Checkpoint, file: str = "rng_state.pth") -> dict[str, Any]:
    """Return the generators' states in a checkpoint's file, read with weights_only=True.

    numpy's state contains an array, so the functions that rebuild arrays are allowed.
    """
    allowed = [compat.numpy_core().multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
    with torch.serialization.safe_globals(allowed):
        states: dict[str, Any] = torch.load(Path(checkpoint.path) / file, map_location="cpu", weights_only=True)
    return states


def generators_alike(trace: Trace) -> Verdict:
    """Check that each rank saves its generators' states, and that torch's CPU generator has the same state on all ranks."""
    findings = incomplete(trace)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    names = [f"rng_state_{rank}.pth" for rank in range(trace.spec.launch.ranks)]
    for checkpoint in trace.checkpoints:
        where = f"checkpoint-{checkpoint.step}"
        present = [name for name in names if name in checkpoint.files]
        findings += [f"{where} has no {name}" for name in names if name not in present]
        states = [load_generators(checkpoint, name)["cpu"] for name in present]
        findings += [
            f"{where}: the CPU generator's state in {name} differs from that in {present[0]}"
            for name, state in zip(present, states, strict=True)
            if not _equal(state, states[0])
        ]
    return verdict("all ranks draw the same numbers", findings, ranks=len(names))


def generators_are_current(trace: Trace, seen: dict[int, dict[str, Any]]) -> Verdict:
    """Check that rng_state.pth holds the global generators' states at the save, and no other state.

    - seen: step -> what `generators()` returned when the save of that step had ended.
    """
    findings = incomplete(trace)
    if not trace.checkpoints:
        findings.append("no checkpoint was written")
    for checkpoint in trace.checkpoints:
        where, expected = f"checkpoint-{checkpoint.step}/rng_state.pth", seen.get(checkpoint.step, {})
        if "rng_state.pth" not in checkpoint.files:
            findings.append(f"{where} is missing")
            continue
        saved = load_generators(checkpoint)
        if set(saved) != set(expected):
            findings.append(f"{where} holds {sorted(saved)}, expected {sorted(expected)}")
        findings += [
            f"{where}: the state of {name!r} is not that of the generator at the save"
            for name in expected
            if name in saved and not _equal(saved[name], expected[name])
        ]
    return verdict("rng_state.pth is the state of the global generators at the save", findings)


def pickled(path: Path) -> tuple[set[str], dict[str, Any]]:
    """Return what loading a torch.save file would build: names of classes and functions, and numbers by name.

    The pickle's instructions are read, not run. A number counts if it follows a string, as in an object's fields.
    """
    with zipfile.ZipFile(path) as archive:
        inner = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        operations = [(op.name, arg) for op, arg, _ in pickletools.genops(archive.read(inner))]
    bookkeeping = ("BINPUT", "LONG_BINPUT", "MEMOIZE", "PROTO", "FRAME")
    operations = [(name, arg) for name, arg in operations if name not in bookkeeping]
    built = {str(arg) for name, arg in operations if name in ("GLOBAL", "INST")}
    scalars: dict[str, Any] = {}
    for (name, key), (kind, value) in pairwise(operations):
        if "UNICODE" in name and kind in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"):
            scalars[str(key)] = value
    return built, scalars


def _logged_by(entry: dict[str, Any], step: int) -> bool:
    # The entry that ends train() has the last step's number, but is logged after that step's save.
    return entry["step"] <= step and "train_runtime" not in entry


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a.cpu(), b.cpu())
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
