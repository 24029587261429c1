"""Whether the reference can go on from a checkpoint that somebody else wrote. Everything in it is data: no pickle is run.

`harness.reference.checkpoint` reads the files. It says which one is missing or torn. Here is what it would only find in the
middle of the run, or never: contents of another shape, of another step, or that are no numbers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.reading import shown

if TYPE_CHECKING:
    from harness.reference.trainer import ReferenceTrainer


def check(directory: Path, trainer: ReferenceTrainer) -> None:
    """Load a checkpoint into a trainer that has not begun, and look at what it holds. CheckpointError names the file.

    The global random generators are what they were before.
    """
    from harness.reference import checkpoint

    def refuse(file: str, why: str) -> None:
        raise checkpoint.CheckpointError(f"{directory / file}: {why}")

    def attempt(file: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except checkpoint.CheckpointError:
            raise
        except Exception as error:  # what torch raises for a state of another form is of many types
            words = next(iter(str(error).strip().splitlines()), "")
            refuse(file, f"does not fit the run ({type(error).__name__}: {words[:200]})")

    state = attempt("", lambda: checkpoint.load(directory, trainer.model, trainer.parts))
    if problem := _problem_of_state(state, directory):
        refuse(checkpoint.STATE, problem)
    if broken := _not_finite(trainer.model.adapter()):
        refuse(checkpoint.ADAPTER, f"{broken} holds numbers that are NaN or infinite")
    if problem := _problem_of_optimizer(trainer, state["global_step"]):
        refuse("optimizer.pt", problem)
    done = attempt("scheduler.pt", lambda: trainer.schedule.last_epoch)
    if not trainer.follows_metric and done != state["global_step"]:
        refuse("scheduler.pt", f"is of step {shown(done)}, and {checkpoint.STATE} of step {state['global_step']}")
    with _same_generators():
        attempt(checkpoint.RANDOM, lambda: checkpoint.restore_random_state(directory))


def _problem_of_state(state: Any, directory: Path) -> str | None:
    """Return what is wrong with the content of trainer_state.json, None if nothing is."""
    if not isinstance(state, dict):
        return f"expected a JSON object, found {shown(state)}"
    step, epoch, log = state.get("global_step"), state.get("epoch", 0.0), state.get("log_history", [])
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        return f"global_step is {shown(step)}, expected a number of steps"
    if not isinstance(epoch, (int, float)) or isinstance(epoch, bool) or not math.isfinite(epoch):
        return f"epoch is {shown(epoch)}, expected a finite number"
    if not (isinstance(log, list) and all(isinstance(entry, dict) for entry in log)):
        return "log_history must be a list of objects"
    for name in ("total_flos", "num_input_tokens_seen"):
        count = state.get(name, 0)
        if not isinstance(count, (int, float)) or isinstance(count, bool) or not math.isfinite(count):
            return f"{name} is {shown(count)}, expected a finite number"
    named = directory.name.removeprefix("checkpoint-")
    if directory.name != named and named.isdecimal() and int(named) != step:
        return f"global_step is {step}, and the directory is {directory.name}"
    return None


def _problem_of_optimizer(trainer: ReferenceTrainer, step: int) -> str | None:
    """Return what is wrong with the state that the optimizer has now, None if nothing is."""
    import torch

    for group in trainer.optimizer.param_groups:
        for name in ("lr", "weight_decay"):
            value = group.get(name)
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                return f"{name} is {shown(value)}, expected a finite number"
        for parameter in group["params"]:
            for name, value in trainer.optimizer.state.get(parameter, {}).items():
                if name == "step" and float(value) != step:
                    return f"is of step {float(value):g}, and trainer_state.json of step {step}"
                if not isinstance(value, torch.Tensor):
                    continue
                if value.numel() > 1 and tuple(value.shape) not in _shapes(name, tuple(parameter.shape)):
                    return f"{name} has the shape {tuple(value.shape)}, and its parameter {tuple(parameter.shape)}"
                if _not_finite({name: value}):
                    return f"{name} holds numbers that are NaN or infinite"
    return None


#: How many numbers bitsandbytes scales together, and how many an 8-bit state can have.
_BLOCK, _CODES = 256, 256


def _shapes(name: str, parameter: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the shapes that a tensor of an optimizer's state can have.

    - name: the tensor's name in the state.
    - parameter: the shape of the tensor that is trained.
    """
    if name == "exp_avg_sq_row":
        return (parameter[:-1],)
    if name == "exp_avg_sq_col":
        return (parameter[:-2] + parameter[-1:],)
    if name.startswith("qmap"):
        return ((_CODES,),)
    # AdEMAMix has a fast and a slow mean in one tensor.
    own = (math.ceil(math.prod(parameter) / _BLOCK),) if name.startswith("absmax") else parameter
    return own, (2, *own)


def _not_finite(tensors: dict[str, Any]) -> str | None:
    import torch

    return next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), None)


@contextmanager
def _same_generators() -> Iterator[None]:
    """Give the global random generators their states back at the end."""
    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        for number, state in enumerate(devices):
            torch.cuda.set_rng_state(state, number)
