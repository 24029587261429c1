"""WatchLoop: the same checks for a loop without transformers.Trainer, as a context manager."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from harness.errors import UsageError
from harness.laws.checkpoint import ADAPTER_FILE, load_adapter_file
from harness.laws.equal import differences
from harness.tensors import names
from harness.user_code import quoted
from harness.watch import certificate
from harness.watch.acting import Safe, act, check_options
from harness.watch.all_checks import ALL
from harness.watch.book import Book, Finding
from harness.watch.run import Run
from harness.watch.seen import Seen, plain_optimizer


class WatchLoop(Safe):
    """Judges a training loop of your own while it runs.

        with harness.WatchLoop(model, optimizer, max_grad_norm=1.0) as watch:
            for batch in loader:
                ...

    A step begins with the first forward pass in training mode and ends with optimizer.step(). Make both objects before,
    as they are used: the model that computes, with its adapter, and the optimizer that steps.

    - model, optimizer: also accelerate's or DDP's wrappers of them.
    - accumulation: micro-batches of each step, to have their number judged.
    - max_grad_norm: to have clipping judged; 0 for none.
    - on_violation, every, json, quiet: as in `harness.Watch`. "stop" sets `stopped`, which the loop must look at.

    Raises UsageError for other values.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        *,
        accumulation: int | None = None,
        max_grad_norm: float | None = None,
        on_violation: str = "warn",
        every: int | None = None,
        json: str | Path | None = None,
        quiet: bool = False,
    ):
        self.json = check_options(on_violation, every, json)
        if not isinstance(model, torch.nn.Module):
            raise UsageError(f"WatchLoop: {quoted(model)} is no model; give it the torch.nn.Module that is trained")
        if not hasattr(plain_optimizer(optimizer), "param_groups"):
            raise UsageError(f"WatchLoop: {quoted(optimizer)} is no optimizer")
        if accumulation is not None and (isinstance(accumulation, bool) or not isinstance(accumulation, int)):
            raise UsageError(f"WatchLoop: accumulation={quoted(accumulation)}; expected a whole number, or None")
        self.on_violation, self.quiet = on_violation, quiet
        #: Whether a violation was found and on_violation is "stop".
        self.stopped = False
        self._fresh: list[Finding] = []
        self._handles: list[Any] = []
        self._in_step = False
        inner = getattr(model, "module", None) if type(model).__name__ == "DistributedDataParallel" else model
        seen = Seen(model=inner, optimizer=plain_optimizer(optimizer))
        seen.accumulation, seen.max_grad_norm = accumulation, max_grad_norm
        self.run = Run(seen, Book(self._fresh.append), ALL, every)

    @property
    def findings(self) -> list[Finding]:
        """What was found until now."""
        return self.run.book.findings

    def certificate(self) -> dict[str, Any]:
        """Return the certificate, as far as the loop was judged."""
        return certificate.of(self.run, self._failure)

    def saved(self, directory: str | Path) -> None:
        """Say that the adapter was saved, to have its file compared with the adapter in memory.

        - directory: holds adapter_model.safetensors.
        """
        self._tell(lambda: self._compare(Path(directory) / ADAPTER_FILE))
        self._act()

    def _compare(self, file: Path) -> None:
        seen, book = self.run.seen, self.run.book
        if not file.is_file():
            book.judge("checkpoint-adapter", seen.number, [f"{file.name} was not written"])
            return
        name = seen.adapters[0] if seen.adapters else "default"
        saved = {names.canonical(key, name): tensor for key, tensor in load_adapter_file(file).items()}
        live = {key: p.detach().cpu() for key, p in seen.trained.items()}
        found = [f"{key} is trained, and not in {file.name}" for key in live if key not in saved]
        found += differences(
            {k: v for k, v in saved.items() if k in live},
            {k: v for k, v in live.items() if k in saved},
            0.0,
            f"{file.name}:",
        )
        book.judge("checkpoint-adapter", seen.number, found)

    # ---- the loop ----

    def __enter__(self) -> WatchLoop:
        self._safely(self._begin)
        self._act()
        return self

    def _begin(self) -> None:
        seen = self.run.seen
        seen.look_at_model()
        # Before the hooks of the run, which must know that a step has begun.
        self._handles.append(seen.model.register_forward_pre_hook(self._before_forward))
        self.run.begin()
        if hasattr(seen.optimizer, "register_step_pre_hook"):
            self._handles.append(seen.optimizer.register_step_pre_hook(self._before_update))
            self._handles.append(seen.optimizer.register_step_post_hook(self._after_update))
        else:
            self._failure = f"{type(seen.optimizer).__name__} is no optimizer of torch's"

    def _before_forward(self, module: Any, inputs: Any) -> None:
        if module.training and torch.is_grad_enabled() and not self._in_step:
            self._in_step = True
            self._tell(lambda: self.run.step_begin(self.run.seen.number + 1))

    def _before_update(self, optimizer: Any, args: Any, options: Any) -> None:
        if self._in_step:
            self._tell(lambda: self.run.tell("before_update"))

    def _after_update(self, optimizer: Any, args: Any, options: Any) -> None:
        if self._in_step:
            self._in_step = False
            self._tell(lambda: self.run.tell("after_update"))
            self._tell(lambda: self.run.tell("step_end"))
            self._act()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release()
        if error is None:
            self._tell(self.run.end)
        self._safely(self._finish)
        if error is None:
            self._act()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.run.release()

    def _finish(self) -> None:
        made = self.certificate()
        if not self.quiet:
            print(certificate.text(made), flush=True)
        if self.json is not None:
            certificate.write(made, self.json)
        self.run.let_go()

    def _tell(self, event: Callable[[], Any]) -> None:
        if not self._failure:
            self._safely(event)

    def _act(self) -> None:
        def stop() -> None:
            self.stopped = True

        act(self._fresh, self.on_violation, stop, self._release)
