"""Seen: what Watch knows of a run: the Trainer's objects, what was asked for, and the window that is being trained."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.spec import RunSpec
from harness.tensors import names

if TYPE_CHECKING:
    import torch


@dataclass
class MicroPass:
    """One forward pass that trains, with its backward pass.

    - rows: sequences in the batch.
    - tokens: labels that are predicted, on the device; None if they are not counted.
    - items: the num_items_in_batch that the model was given.
    - loss: the loss that the model returned.
    - recomputed: the sum of the losses of all labels, recomputed from the logits.
    - loss_gradient: the gradient that arrived at the loss.
    - norms: the norm of each trained tensor's gradient after the backward pass.
    """

    rows: int
    tokens: Any = None
    items: Any = None
    loss: Any = None
    recomputed: Any = None
    loss_gradient: Any = None
    norms: Any = None


@dataclass
class Seen:
    """What is known. Fields that a loop without a Trainer does not have are None.

    - spec: the arguments, adapter and data as a RunSpec, for the laws; `unknown` says why there is none.
    - optimizer: torch's own, without accelerate's wrapper.
    - own_optimizer: whether the Trainer made the optimizer, so that it must be what the arguments say; None: not known.
    - foreign: the names of callbacks that are neither transformers' nor the harness's.
    - sharded: why parameters and gradients are not whole in this process; None if they are.
    - resumed: the directory that the run was resumed from.
    - accumulation, max_grad_norm: what a loop says of itself; None if it does not.
    - number: the step that is being made, counted from 1; after it has ended, that step.
    - sampled: whether this step is looked at closely.
    """

    model: Any = None
    optimizer: Any = None
    scheduler: Any = None
    args: Any = None
    state: Any = None
    control: Any = None
    trainer: Any = None
    loader: Any = None
    spec: RunSpec | None = None
    unknown: str = "it is a loop without TrainingArguments"
    own_optimizer: bool | None = None
    foreign: tuple[str, ...] = ()
    sharded: str | None = None
    resumed: str | None = None
    resumed_step: int = 0
    rank: int = 0
    world: int = 1
    number: int = 0
    sampled: bool = False
    every: int = 1
    begun: int = 0
    window: list[MicroPass] = field(default_factory=list)
    skipped: int = 0
    accumulation: int | None = None
    max_grad_norm: float | None = None
    adapters: tuple[str, ...] = ()
    trained: dict[str, torch.nn.Parameter] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    @property
    def peft(self) -> dict[str, Any]:
        """The configs of the model's adapters by name; empty if it has none."""
        found = getattr(self.model, "peft_config", None)
        return dict(found) if isinstance(found, dict) else {}

    @property
    def config(self) -> Any:
        """The config of the first active adapter; None if there is no adapter."""
        return self.peft.get(self.adapters[0]) if self.adapters else None

    @property
    def peft_type(self) -> str:
        """The type of the active adapter, such as "LORA"; "" if there is none."""
        kind = getattr(self.config, "peft_type", "")
        return str(getattr(kind, "value", kind) or "")

    @property
    def base(self) -> Any:
        """The model without PeftModel's wrappers."""
        get = getattr(self.model, "get_base_model", None)
        return get() if callable(get) and self.peft else self.model

    def argument(self, name: str, default: Any = None) -> Any:
        """Return a TrainingArguments value; a default if there is none."""
        return getattr(self.args, name, default)

    def look_at_model(self) -> None:
        """Note the active adapters, the names of all parameters, and which of them are trained."""
        active = getattr(self.model, "active_adapters", None)
        try:
            active = active() if callable(active) else active
        except Exception:  # transformers raises ValueError if there is no adapter
            active = None
        self.adapters = tuple(name for name in active or () if name in self.peft)
        adapter = self.adapters[0] if self.adapters else "default"
        self.names = {id(p): names.canonical(raw, adapter) for raw, p in self.model.named_parameters()}
        self.trained = {self.names[id(p)]: p for p in self.model.parameters() if p.requires_grad}

    def overridden(self, *methods: str) -> str | None:
        """Return the first of these methods that the Trainer's class does not take from transformers; None if none."""
        for method in methods:
            for kind in type(self.trainer).__mro__:
                if method in vars(kind):
                    if not kind.__module__.startswith("transformers."):
                        return f"{kind.__name__}.{method}"
                    break
        return None


def stack() -> Iterator[Any]:
    """Yield the frames of the calls that led here, the innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]


def trainer_of_stack() -> Any:
    """Return the Trainer that is calling: callbacks are not given it. None if there is none."""
    from transformers import Trainer

    for frame in stack():
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, Trainer):
            return candidate
    return None


def local_of(function: str, name: str) -> Any:
    """Return a local variable of the innermost call of a function that led here; None if there is none."""
    for frame in stack():
        if frame.f_code.co_name == function and name in frame.f_locals:
            return frame.f_locals[name]
    return None


def plain_optimizer(optimizer: Any) -> Any:
    """Return the optimizer inside accelerate's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
