"""Two plain training loops that are right, as subjects: one of torch alone, one of accelerate. They are examples, too.

What is easy to get wrong in a loop of one's own is marked below: the weight of each micro-batch in a window, the short window
at the end of an epoch, the rows after a resume, the random states, the end of a run that is resumed at its end, and what a
checkpoint holds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch

    from harness.subjects.loop_subject import Recorder


def torch_loop(
    model: Any,
    rows: Sequence[dict[str, Any]],
    batch_size: int,
    learning_rate: float,
    steps: int,
    recorder: Recorder,
    accumulation: int = 1,
    seed: int = 42,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    max_grad_norm: float = 1.0,
    output: str | None = None,
    save_every: int = 0,
    resume_from: str | None = None,
    device: str = "cpu",
) -> None:
    """Train with torch alone: AdamW, a linear schedule, clipping. The keywords are those of LoopSubject."""
    import torch

    _seed(seed)
    model.to(device).train()
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: linear(done, warmup_steps, steps))
    recorder.optimizer(optimizer)
    done = 0
    if resume_from is not None:
        state = torch.load(Path(resume_from, "state.pt"), weights_only=True)
        with torch.no_grad():
            for name, tensor in trained.items():
                tensor.copy_(state["trained"][name])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        done = state["step"]
        # Last, since anything above might have drawn random numbers.
        _set_random_states(state["random"])
    # A run that is resumed at its end makes no step.
    for window in windows(rows, batch_size, accumulation, seed, done, steps):
        batches = [to_batch([rows[row] for row in batch], device) for batch in window]
        predicted = [count(model, batch["labels"]) for batch in batches]
        loss = 0.0
        for batch, tokens in zip(batches, predicted, strict=True):
            # The model's loss is the mean over its own micro-batch. Its share of the window is its share of the labels.
            part = model(**batch).loss * (tokens / sum(predicted))
            part.backward()
            loss += float(part.detach())
        most = max_grad_norm if max_grad_norm > 0 else math.inf
        norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), most)
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        done += 1
        recorder.step(done, loss=loss, grad_norm=norm, learning_rate=rate)
        if save_every and (done % save_every == 0 or done == steps):
            target = Path(output or ".", f"checkpoint-{done}")
            # The adapter for those who load it, and what only this loop reads.
            model.save_pretrained(target)
            state = {
                "step": done,
                "trained": {name: tensor.detach() for name, tensor in trained.items()},
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "random": _random_states(),
            }
            torch.save(state, target / "state.pt")
            recorder.saved(target)


def accelerate_loop(
    model: Any,
    rows: Sequence[dict[str, Any]],
    batch_size: int,
    learning_rate: float,
    steps: int,
    recorder: Recorder,
    accumulation: int = 1,
    seed: int = 42,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    max_grad_norm: float = 1.0,
    output: str | None = None,
    save_every: int = 0,
    resume_from: str | None = None,
    device: str = "cpu",
) -> None:
    """Train with accelerate: it prepares model and optimizer, and saves and loads the state. Keywords as of LoopSubject."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from safetensors.torch import load_file, save_file

    set_seed(seed)
    accelerator = Accelerator(cpu=device == "cpu")
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: linear(done, warmup_steps, steps))
    prepared, optimizer = accelerator.prepare(model, optimizer)
    prepared.train()
    recorder.optimizer(optimizer)

    # By itself save_state writes the whole model, the frozen base included.
    def save(models: list[Any], weights: list[Any], directory: str) -> None:
        accelerator.unwrap_model(models[0]).save_pretrained(directory)
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in trained.items()}
        save_file(tensors, Path(directory, "trained.safetensors"))
        weights.clear()

    def load(models: list[Any], directory: str) -> None:
        tensors = load_file(Path(directory, "trained.safetensors"))
        with torch.no_grad():
            for name, tensor in trained.items():
                tensor.copy_(tensors[name])
        models.clear()

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
    # The schedule is not prepared: accelerate would make a step of it for each process.
    accelerator.register_for_checkpointing(schedule)
    done = 0
    if resume_from is not None:
        accelerator.load_state(resume_from)
        done = schedule.last_epoch
    for window in windows(rows, batch_size, accumulation, seed, done, steps):
        batches = [to_batch([rows[row] for row in batch], accelerator.device) for batch in window]
        predicted = [count(model, batch["labels"]) for batch in batches]
        loss = 0.0
        for batch, tokens in zip(batches, predicted, strict=True):
            part = prepared(**batch).loss * (tokens / sum(predicted))
            accelerator.backward(part)
            loss += float(part.detach())
        most = max_grad_norm if max_grad_norm > 0 else math.inf
        norm = accelerator.clip_grad_norm_(list(trained.values()), most)
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        done += 1
        recorder.step(done, loss=loss, grad_norm=norm, learning_rate=rate)
        if save_every and (done % save_every == 0 or done == steps):
            target = Path(output or ".", f"checkpoint-{done}")
            accelerator.save_state(str(target), safe_serialization=True)
            recorder.saved(target)


# ---- what both need ----


def windows(
    rows: Sequence[Any], batch_size: int, accumulation: int, seed: int, done: int, steps: int
) -> Iterator[list[list[int]]]:
    """Return the micro-batches of each optimizer step that is left, as indices of rows.

    Each epoch has an order of its own, which follows from the seed alone. So a run that resumes inside an epoch goes on with
    the rows that are left of it. The last window of an epoch has what is left, and never rows of the next one.
    """
    import torch

    batches = math.ceil(len(rows) / batch_size)
    per_epoch = math.ceil(batches / accumulation)
    for step in range(done, steps):
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        all_of_it = [order[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        yield all_of_it[place * accumulation : (place + 1) * accumulation]


def to_batch(rows: Sequence[dict[str, Any]], device: Any) -> dict[str, torch.Tensor]:
    """Return rows of one length as tensors."""
    import torch

    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]).to(device) for name in rows[0]}


def count(model: Any, labels: torch.Tensor) -> int:
    """Return how many labels a model predicts. A causal one predicts each from the tokens before it."""
    if labels.dim() == 1:
        return len(labels)
    shifted = labels if getattr(model.config, "is_encoder_decoder", False) else labels[:, 1:]
    return int((shifted != -100).sum())


def linear(done: int, warmup: int, steps: int) -> float:
    """Return the factor of the learning rate after some steps."""
    if done < warmup:
        return done / max(1, warmup)
    return max(0.0, (steps - done) / max(1, steps - warmup))


def _seed(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _random_states() -> dict[str, Any]:
    import numpy as np
    import torch

    kind, words, *rest = cast("tuple[str, np.ndarray[Any, Any], int, int, float]", np.random.get_state(legacy=True))
    return {
        "python": random.getstate(),
        "numpy": [kind, words.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def _set_random_states(states: dict[str, Any]) -> None:
    import numpy as np
    import torch

    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state_all(states["cuda"])
