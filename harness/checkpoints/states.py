"""What resuming needs besides the weights: optimizer, schedule, random generators, and the Trainer's state.

Each is read without running what it names, and compared with the others: they must be of one step and of one run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.checkpoints import pickles, torch_files
from harness.checkpoints.adapter_directory import TORN, WHOLE, Adapter
from harness.checkpoints.found import NOT_READ, STATE, STATE_LIMIT, Checkpoint
from harness.checkpoints.pickles import Stub, Tensor
from harness.checkpoints.weights import torch_file, torn_in
from harness.errors import UsageError
from harness.reading import read_json, shown

ARGUMENTS = "training_args.bin"

#: Keys of an optimizer's state that have the shape of the parameter (torch, bitsandbytes).
_MOMENTS = ("exp_avg", "momentum_buffer", "state1", "square_avg")

#: What training_args.bin names besides numbers: classes of these packages. Nothing of it is run.
_ARGUMENTS = ("transformers.", "accelerate.", "torch.", "trl.", "builtins.getattr", "__builtin__.getattr")

#: Modules that no training arguments need, and through which a pickle runs what it likes.
_DANGEROUS = re.compile(
    r"(os|posix|nt|sys|subprocess|shutil|socket|pty|runpy|importlib|ctypes|code|webbrowser|marshal|types|operator)\."
    r".*|(builtins|__builtin__)\.(eval|exec|compile|__import__|open|input|breakpoint)"
)


def read_state(found: Checkpoint) -> dict[str, Any]:
    """Judge trainer_state.json and return its fields; {} if it is torn."""
    try:
        state = read_json(found.path / STATE, STATE_LIMIT, nan=True)
    except UsageError as error:
        words = torn_in(str(error))
        found.say(STATE, NOT_READ if words.startswith(("cannot be read", "too large")) else TORN, f"is {words}")
        return {}
    step = state.get("global_step") if isinstance(state, dict) else None
    if type(step) is not int or step < 0:
        found.torn(STATE, "has no global_step")
        return {}
    found.say(STATE, WHOLE)
    named = re.fullmatch(r"checkpoint-(\d{1,15})", found.path.resolve().name)
    if named and int(named[1]) != step:
        found.torn(STATE, f"has global_step {step}, in a directory of step {named[1]}")
    found.step, found.state = step, dict(state)
    return found.state


def read_arguments(found: Checkpoint) -> dict[str, Any]:
    """Judge training_args.bin, and return the numbers and flags in it that others are compared with. It is not loaded."""
    read = torch_file(found, ARGUMENTS, code=True)
    if read is None:
        return {}
    dangerous = sorted(name for name in read.described.code if _DANGEROUS.fullmatch(name))
    if dangerous:
        found.say(
            ARGUMENTS, NOT_READ, f"names code ({shown(dangerous[0])}), which was not run; loading the file runs it"
        )
        return {}
    strange = sorted(name for name in read.described.code if not name.startswith(_ARGUMENTS))
    if strange:
        found.notes.append(f"{ARGUMENTS} names {shown(strange[0])}: loading that file imports it. It was not loaded")
    fields = read.value.state if isinstance(read.value, Stub) and isinstance(read.value.state, dict) else {}
    state = fields.get("distributed_state")
    processes = state.get("num_processes") if isinstance(state, Stub) else None
    if type(processes) is int and 0 < processes < 2**20:
        found.ranks = processes
    return {name: value for name, value in fields.items() if isinstance(value, (bool, int, float, str))}


@dataclass(frozen=True)
class Optimizer:
    """What a schedule is compared with. steps: how many it made, if it counts them. rates: of its groups."""

    steps: int | None = None
    rates: list[Any] = field(default_factory=list)


def check_optimizer(found: Checkpoint, file: str, adapters: list[Adapter]) -> Optimizer:
    """Judge the optimizer's state, and compare it with the adapters' tensors and the step."""
    read = torch_file(found, file)
    if read is None:
        return Optimizer()
    state = read.value.get("state") if isinstance(read.value, dict) else None
    groups = read.value.get("param_groups") if isinstance(read.value, dict) else None
    if not isinstance(state, dict) or not isinstance(groups, (list, dict)):
        if isinstance(read.value, dict) and "optimizer_states" not in read.value:
            found.not_judged.append(f"{file}: what it holds, because it is no state of an optimizer of torch")
        return Optimizer()
    params = [name for group in groups if isinstance(group, dict) for name in group.get("params", ())]
    lost = [key for key in state if isinstance(groups, list) and key not in set(params)]
    if lost:
        found.torn(file, f"has the state of tensor {shown(lost[0])}, which is in none of its groups")
    if params and not state and found.step and any("betas" in group for group in groups if isinstance(group, dict)):
        found.torn(file, f"has no state of any of {len(params)} tensors after {found.step} steps")
    steps = [read.number(one.get("step")) for one in state.values() if isinstance(one, dict)]
    counted = [int(one) for one in steps if one is not None]
    if counted and found.step is not None and max(counted) > found.step:
        found.torn(file, f"counts {max(counted)} steps, and {STATE} {found.step}: they are of two saves")
    _check_shapes(found, file, state, adapters)
    rates = [group.get("lr") for group in groups if isinstance(group, dict)]
    return Optimizer(max(counted, default=None), rates if all(type(one) is float for one in rates) else [])


def _check_shapes(found: Checkpoint, file: str, state: Mapping[Any, Any], adapters: list[Adapter]) -> None:
    """Note which tensors are trained and not saved, or that the optimizer's state is that of other tensors."""
    trained: Counter[tuple[int, ...]] = Counter()
    for one in state.values():
        moments = [one[key] for key in _MOMENTS if isinstance(one, dict) and isinstance(one.get(key), Tensor)]
        if moments:
            trained[moments[0].shape] += 1
    saved = Counter(entry.shape for adapter in adapters for entry in adapter.tensors.values())
    if not trained or not saved:
        return
    common, besides = trained & saved, trained - saved
    lora = all(adapter.peft_type == "LORA" for adapter in adapters)
    if lora and besides and saved - trained and 2 * common.total() < min(trained.total(), saved.total()):
        shape = list(next(iter(besides)))
        found.torn(file, f"is the state of other tensors than the adapter's: {besides.total()} such as {shape}")
    elif besides and lora:
        shape = list(next(iter(besides)))
        found.notes.append(
            f"{file} trains {besides.total()} tensors, such as one of {shape}, that no file of the adapter holds: what "
            "they have learnt is not in this checkpoint"
        )


def check_scheduler(found: Checkpoint, file: str, optimizer: Optimizer) -> None:
    """Judge the schedule's state, and compare its steps and rates with the optimizer's and with trainer_state.json."""
    read = torch_file(found, file)
    if read is None:
        return
    value = read.value if isinstance(read.value, dict) else {}
    if "last_epoch" not in value and "_last_lr" not in value:
        found.not_judged.append(f"{file}: what it holds, because it is no state of a schedule of torch")
        return
    done, rates = value.get("last_epoch"), value.get("_last_lr")
    if type(done) is not int or found.step is None or "_step_count" not in value:
        return
    if done > found.step:
        found.torn(file, f"counts {done} steps, and {STATE} {found.step}: they are of two saves")
    elif optimizer.steps is not None and done != optimizer.steps:
        found.torn(file, f"counts {done} steps, and the optimizer {optimizer.steps}: they are of two saves")
    elif isinstance(rates, list) and len(rates) == len(optimizer.rates) and rates != optimizer.rates:
        found.torn(file, f"has the learning rates {shown(rates)}, and the optimizer {shown(optimizer.rates)}")
    elif done < found.step:
        found.notes.append(
            f"{file} counts {done} steps, and {STATE} {found.step}: the run skipped steps (fp16), or it once went on "
            "without its schedule"
        )


def check_generators(found: Checkpoint, file: str) -> None:
    """Judge a file of random generators' states: all of them must be there."""
    read = torch_file(found, file)
    if read is None:
        return
    wanted = ("python", "numpy", "cpu") if file.startswith("rng_state") else ("random_state", "torch_manual_seed")
    lacks = [name for name in wanted if not isinstance(read.value, dict) or name not in read.value]
    if lacks:
        found.torn(file, f"has no state of the generator {shown(lacks[0])}")


def check_plain(found: Checkpoint, file: str) -> None:
    """Judge a file of torch.save of which only the form is known: scaler.pt, what accelerate's user registered."""
    try:
        torch_files.read(found.path / file)
    except torch_files.Torn as error:
        found.torn(file, str(error))
    except (UsageError, OSError, pickles.Broken) as error:
        found.say(file, NOT_READ, torn_in(str(error)))
    else:
        found.say(file, WHOLE)
