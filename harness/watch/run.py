"""Run: one run that is watched. It keeps `Seen` up to date, hooks into forward and backward passes, and calls the checks.

Whoever tells it the events (`callback.Watch`, `own_loop.WatchLoop`) may do so at any time: what a check raises is noted as
"not judged", and the check is not called again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from harness.watch.book import Book, log
from harness.watch.check import Check
from harness.watch.seen import MicroPass, Seen

#: The steps at the start that are sampled in any case: the first, the first with a state of Adam's, the first after it.
FIRST_STEPS = 3

#: The share of the run's time that sampled steps after the first may take, if no `every` was asked for. If they took more
#: until now, one that is due waits. With what each step pays, it stays below 1 %: 0.8 % at 135M on an H200 (2026-11-29).
SHARE = 0.002


class Run:
    """One run.

    - seen: what is known of it.
    - book: where verdicts go.
    - kinds: the classes of the checks.
    - every: each how many steps one is sampled; None for every 100th within `SHARE`.
    """

    def __init__(self, seen: Seen, book: Book, kinds: tuple[type[Check], ...], every: int | None):
        self.seen, self.book = seen, book
        seen.every = every or 100
        #: What the user asked for, None for the default.
        self.asked = every
        self._strict = every is not None
        self._handles: list[Any] = []
        self._listeners: dict[str, list[tuple[Check, Callable[..., Any]]]] = {}
        self._dead: set[int] = set()
        self._began = time.perf_counter()
        self.own_seconds = 0.0
        #: Of those, what sampled steps took, but for the first three, which are sampled in any case.
        self._sampled_seconds = 0.0
        self.sampled_steps: list[int] = []
        self._waits = False
        #: Seconds that the run took, once it has ended.
        self._seconds = 0.0
        for kind in kinds:
            check = kind(seen, book)
            for name in dir(kind):
                if not name.startswith("_") and name not in vars(Check) and callable(getattr(check, name)):
                    self._listeners.setdefault(name, []).append((check, getattr(check, name)))
            self._listeners.setdefault("why_not", []).append((check, check.why_not))

    # ---- the run's events ----

    def begin(self) -> None:
        """Training begins: the model, the optimizer and the arguments are in `seen`."""
        started = time.perf_counter()
        for check, why_not in self._listeners["why_not"]:
            reason = self._guarded(check, why_not)
            if isinstance(reason, str):
                self.book.skips(check.id, reason)
                self._dead.add(id(check))
        self._watch_forward()
        self._tell("begin")
        self._began = started

    def step_begin(self, number: int) -> None:
        """A step begins, counted from 1."""
        seen, started = self.seen, time.perf_counter()
        seen.number, seen.window = number, []
        seen.begun += 1
        seen.sampled = self._is_sampled()
        if seen.sampled:
            self.sampled_steps.append(number)
        self._tell("step_begin", started=started)

    def _is_sampled(self) -> bool:
        seen = self.seen
        if seen.begun <= FIRST_STEPS:
            return True
        self._waits = self._waits or seen.begun % seen.every == 0
        if not self._waits:
            return False
        # Ranks must sample the same steps, so there the time does not count.
        spent = self._sampled_seconds / max(1e-9, time.perf_counter() - self._began)
        if not self._strict and seen.world == 1 and spent > SHARE:
            return False
        self._waits = False
        return True

    def tell(self, event: str, *details: Any) -> None:
        """Pass on an event of the Trainer's, or one of `Check`'s."""
        self._tell(event, *details)

    @property
    def seconds(self) -> float:
        """Seconds since training began, or that it took."""
        return self._seconds or time.perf_counter() - self._began

    def end(self) -> None:
        """Training has ended."""
        self._tell("end")
        self.release()
        self._seconds = time.perf_counter() - self._began

    def let_go(self) -> None:
        """Keep what a certificate needs, and let go of the model and the Trainer, so that their memory is freed."""
        seen = self.seen
        kept = ("spec", "unknown", "rank", "world", "number", "every", "begun", "adapters")
        self.seen = Seen(**{name: getattr(seen, name) for name in kept})
        self._listeners = {}

    def release(self) -> None:
        """Take all hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # ---- forward and backward passes ----

    def _watch_forward(self) -> None:
        model = self.seen.model
        if self.seen.argument("torch_compile"):
            # Hooks would break the graph, and change what is compiled.
            for check, _ in self._listeners.get("forward", []):
                self.book.skips(check.id, "torch_compile: a hook would change what is compiled")
                self._dead.add(id(check))
            return
        self._handles.append(model.register_forward_pre_hook(self._before_forward, with_kwargs=True))
        self._handles.append(model.register_forward_hook(self._after_forward, with_kwargs=True))

    def _before_forward(self, module: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        self._tell("before_forward", args, inputs)

    def _after_forward(self, module: Any, args: tuple[Any, ...], inputs: dict[str, Any], output: Any) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        started = time.perf_counter()
        try:
            batch = self._batch(args, inputs, output)
        except Exception as error:
            self._failed("the forward pass", error, ("windows", "loss"))
            return
        self._tell("forward", batch, inputs, output, started=started)

    def _batch(self, args: tuple[Any, ...], inputs: dict[str, Any], output: Any) -> MicroPass:
        first = next((v for v in (*inputs.values(), *args) if isinstance(v, torch.Tensor) and v.dim()), None)
        tokens = inputs.get("input_ids", first)
        loss = output.get("loss") if isinstance(output, Mapping) else None
        batch = MicroPass(0 if tokens is None else int(tokens.shape[0]), items=inputs.get("num_items_in_batch"))
        self.seen.window.append(batch)
        if isinstance(loss, torch.Tensor):
            batch.loss = loss.detach()
            if self.seen.sampled and loss.requires_grad:
                loss.register_hook(lambda gradient: self._backward(batch, gradient))
        elif self.seen.sampled and isinstance(output, Mapping):
            # The loss is computed outside of the model, as with label smoothing.
            logits = output.get("logits")
            if isinstance(logits, torch.Tensor) and logits.requires_grad:
                logits.register_hook(lambda gradient: self.when_backward_ends(batch))
        return batch

    def _backward(self, batch: MicroPass, gradient: Any) -> None:
        """The first gradient of a backward pass has arrived, at the loss."""
        batch.loss_gradient = gradient.detach()
        self.when_backward_ends(batch)

    def when_backward_ends(self, batch: MicroPass) -> None:
        """Tell the checks when the present backward pass has ended. Only to be called within one."""
        try:
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(lambda: self._tell("backward", batch))
        except Exception as error:
            self._failed("the backward pass", error, ("clipping",))

    # ---- errors of its own ----

    def _tell(self, event: str, *details: Any, started: float | None = None) -> None:
        listeners = self._listeners.get(event)
        if not listeners and started is None:
            return
        started = time.perf_counter() if started is None else started
        for check, method in listeners or ():
            if id(check) not in self._dead:
                self._guarded(check, method, *details)
        spent = time.perf_counter() - started
        self.own_seconds += spent
        if self.seen.sampled and self.seen.begun > FIRST_STEPS:
            self._sampled_seconds += spent

    def _guarded(self, check: Check, method: Callable[..., Any], *details: Any) -> Any:
        try:
            with torch.no_grad():
                return method(*details)
        except Exception as error:
            self._dead.add(id(check))
            self._failed(check.id, error, (check.id,))

    def _failed(self, what: str, error: Exception, checks: tuple[str, ...]) -> None:
        where = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
        log.debug("Watch failed in %s", what, exc_info=error)
        for check in checks:
            self.book.skips(check, f"Watch failed with {where}")
