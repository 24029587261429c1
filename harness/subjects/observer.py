"""Observer: watches a training run through public hooks, callbacks and files, and writes the Trace.

It is handed the model before training starts, the optimizer when it exists, the name of each callback event and the
path of each checkpoint. It never changes a tensor, and draws no random number.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.environment import describe, peak_bytes
from harness.spec import RunSpec
from harness.tensors import names, shards
from harness.tensors.checksum import checksum
from harness.trace import Checkpoint, Evaluation, Group, MicroBatch, Step, Tensors, Trace

if TYPE_CHECKING:
    import torch

#: Called with the trace so far and the event's name at each event of every run in this process, to show progress.
listeners: list[Callable[[Trace, str], None]] = []


class Observer:
    """Watches one run.

    spec: what is trained. subject: who trains it. rows: training and evaluation rows (see `harness.fixtures.data`), to name
    the rows of each batch by index; evaluation rows count on from the training rows. Where the run is one of several
    ranks, each has an Observer, and all see the same events in the same order: tensors are put together from shards.
    """

    def __init__(self, spec: RunSpec, subject: str, rows: Iterable[dict[str, Any]], directory: str | Path):
        self.trace = Trace(spec, subject, describe(spec.launch.device), directory=str(directory))
        # An augmented row differs in its last token at every access, so it is known by the others.
        self._known = slice(None, -1) if spec.data.augment else slice(None)
        self._rows = {self._key(row["input_ids"]): index for index, row in enumerate(rows)}
        self._batches: list[MicroBatch] = []
        self._evaluated: list[list[int]] = []
        self._unclipped: Tensors = {}
        #: Groups of parameters that the optimizer has stepped in the step under way, by id.
        self._groups: set[int] = set()
        self._handles: list[Any] = []
        self._gradient_handles: list[Any] = []
        self._names: dict[int, str] = {}
        self._model: torch.nn.Module | None = None
        self._wrapped: torch.nn.Module | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._forward_kwargs: dict[str, Any] = {}
        self._started = self._stepped = time.perf_counter()
        self._step = 0

    # ---- what the subject hands over ----

    def watch_model(self, model: torch.nn.Module) -> None:
        """Record the base and the adapter as they are now, and watch each forward pass and each gradient.

        model: the object given to the trainer, adapters injected.
        """
        self._model = model
        self._watch_gradients(model)
        self.trace.trainable = [self._names[id(p)] for p in model.parameters() if p.requires_grad]
        self.trace.shared = [
            name
            for raw, p in model.named_parameters(remove_duplicate=False)
            if p.requires_grad and names.is_adapter(raw) and (name := self._canonical(raw)) != self._names[id(p)]
        ]
        self.trace.parameters = {
            self._names[id(p)]: [str(p.dtype).removeprefix("torch."), list(p.shape)] for p in model.parameters()
        }
        self.trace.adapter_before, self.trace.base_before = self._tensors()
        self._handles.append(model.register_forward_pre_hook(self._before_forward, with_kwargs=True))
        self._handles.append(model.register_forward_hook(self._after_forward))

    def watch_wrapped(self, wrapped: torch.nn.Module) -> None:
        """Record how the model is spread over ranks. wrapped: what the trainer calls in place of the model."""
        self._wrapped = wrapped
        self.trace.distributed |= shards.evidence(wrapped, self.trace.spec.adapter.name)

    def before_clipping(self) -> None:
        """The gradients of all ranks have been put together, and are about to be clipped."""
        if self._wrapped is not None:
            self._unclipped = self._gradients()

    def watch_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Record the parameter groups, and look at gradients and learning rates before each step."""
        # accelerate wraps the optimizer; hooks belong on the one that steps.
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        if optimizer is self._optimizer:
            return
        self._optimizer = optimizer
        if self._model is not None:
            # Resuming may have replaced Parameter objects: peft casts an adapter that it loads by putting new ones in.
            self._watch_gradients(self._model)
        self.trace.groups = [
            Group(
                [self._names.get(id(p), "?") for p in group["params"]],
                {k: v for k, v in group.items() if isinstance(v, (int, float, bool, str)) or v is None},
            )
            for group in optimizer.param_groups
        ]
        self._handles.append(optimizer.register_step_pre_hook(self._before_step))

    def event(self, name: str, step: int) -> None:
        """A callback event (without "on_"), at a global step."""
        self._step = step
        self.trace.events.append(name)
        if name == "train_begin":
            if self.trace.spec.launch.device == "cuda":
                import torch

                # The peak of this run, not of those before it or of building its model.
                torch.cuda.reset_peak_memory_stats()
            if self.trace.spec.resume is not None and self._model is not None:
                self.trace.adapter_resumed = self._tensors(digests=False)[0]
            self._started = self._stepped = time.perf_counter()
        if name == "train_end":
            self.trace.seconds = time.perf_counter() - self._started
        for listener in listeners:
            listener(self.trace, name)

    def evaluated(self, metrics: dict[str, Any]) -> None:
        """An evaluation has ended."""
        self.trace.evaluations.append(Evaluation(self._step, self._evaluated, dict(metrics)))
        self._evaluated = []

    def meet(self) -> None:
        """Wait for the other ranks, where there are any: what a rank has written another may look for too early."""
        if self._wrapped is not None:
            import torch

            torch.distributed.barrier()

    def checkpoint(self, path: str | Path) -> None:
        """A checkpoint directory ("checkpoint-<step>") has been written, by all ranks."""
        self.trace.checkpoints.append(inspect_checkpoint(Path(path), self.trace.spec.adapter.name))

    def finish(self, error: BaseException | None = None) -> Trace:
        """Record the end of the run, take all hooks off, and return the trace."""
        for handle in [*self._handles, *self._gradient_handles]:
            handle.remove()
        self._handles, self._gradient_handles = [], []
        if error is not None:
            message = str(error).strip()
            self.trace.error = f"{type(error).__name__}: {message}" if message else type(error).__name__
        # Before the tensors are looked at, which takes memory too.
        self.trace.memory_bytes = peak_bytes(self.trace.spec.launch.device)
        # Other ranks than the one that failed may be anywhere, so that nothing can be put together.
        together = error is None or self._wrapped is None
        if self._model is not None and together:
            self.trace.adapter, self.trace.base = self._tensors()
        # FSDP1 keeps the state of flat parts, which are no tensors of the model.
        if self._optimizer is not None and together and not shards.is_fsdp1(self._wrapped):
            self.trace.optimizer_state = {
                self._names[id(parameter)]: {k: _copy(v) for k, v in state.items() if hasattr(v, "dtype")}
                for parameter, state in self._optimizer.state.items()
                if id(parameter) in self._names
            }
        # Nothing of the run outlives it here: a trace is kept, a model is not.
        self._model = self._wrapped = self._optimizer = None
        return self.trace

    # ---- hooks ----

    def _watch_gradients(self, model: torch.nn.Module) -> None:
        adapter = self.trace.spec.adapter.name
        self._names = {id(p): names.canonical(n, adapter) for n, p in model.named_parameters()}
        for handle in self._gradient_handles:
            handle.remove()
        self._gradient_handles = [
            p.register_post_accumulate_grad_hook(self._accumulated) for p in model.parameters() if p.requires_grad
        ]

    def _key(self, tokens: list[int]) -> tuple[int, ...]:
        return tuple(tokens[self._known])

    def _before_forward(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        rows = [] if tokens is None else [self._rows.get(self._key(row), -1) for row in tokens.tolist()]
        if not module.training:
            self._evaluated.append(rows)
            return
        labels = kwargs.get("labels")
        items = kwargs.get("num_items_in_batch")
        self._batches.append(
            MicroBatch(
                rows,
                tokens=0 if labels is None else int((self._predicted(labels) != -100).sum()),
                num_items=None if items is None else float(items),
            )
        )

    def _predicted(self, labels: torch.Tensor) -> torch.Tensor:
        # A causal model predicts each label from the tokens before it, and nothing stands before the first.
        return labels[..., 1:] if self.trace.spec.data.task == "causal" else labels

    def _after_forward(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        loss = output.get("loss") if hasattr(output, "get") else None
        if module.training and loss is not None:
            self._batches[-1].loss = float(loss.detach())

    def _accumulated(self, parameter: torch.nn.Parameter) -> None:
        # Fires after every backward pass; the last one before the step leaves the whole window's gradient.
        # It fires too where the pass reached a parameter without a gradient for it, which then is missing in the step.
        # Of several ranks, each has only its own part until all have ended: see `before_clipping`.
        if parameter.grad is not None and self._wrapped is None:
            self._unclipped[self._names[id(parameter)]] = _copy(parameter.grad)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._model is not None
        # DeepSpeed steps one group of parameters after the other: those are one step, and the same group again is another.
        stepped = {id(group) for group in optimizer.param_groups if group["params"]}
        begun = bool(self.trace.steps) and self.trace.steps[-1].number == self._step + 1 and not self._batches
        if begun and shards.hides_gradients(self._wrapped) and not stepped & self._groups:
            self._groups |= stepped
            return
        self._groups = stepped
        now = time.perf_counter()
        clipped = self._gradients()
        self.trace.steps.append(
            Step(
                number=self._step + 1,
                batches=self._batches,
                learning_rates=[float(group["lr"]) for group in optimizer.param_groups],
                gradients=self._unclipped,
                clipped=clipped,
                seconds=now - self._stepped,
            )
        )
        self._batches, self._unclipped, self._stepped = [], {}, now

    def _gradients(self) -> Tensors:
        """The gradients of the trainable parameters as they are, whole; a frozen one that has some is noted."""
        assert self._model is not None
        if self._wrapped is None:
            found = {self._names[id(p)]: p for p in self._model.parameters() if p.grad is not None}
            return {name: _copy(gradient) for name, gradient in self._sorted_out(found).items()}
        if shards.hides_gradients(self._wrapped):
            return {}
        with shards.gathered(self._model, self._wrapped, with_grads=True):
            # Under FSDP1 these are other Parameter objects for the length of the block.
            found = {self._canonical(raw): p for raw, p in self._model.named_parameters() if p.grad is not None}
            return {name: _copy(gradient) for name, gradient in shards.whole_all(self._sorted_out(found)).items()}

    def _sorted_out(self, found: dict[str, torch.nn.Parameter]) -> Tensors:
        """The gradients of those parameters that are trained; the others, which should have none, are noted."""
        for name, parameter in found.items():
            if not parameter.requires_grad and name not in self.trace.base_gradients:
                self.trace.base_gradients.append(name)
        return {n: p.grad.detach() for n, p in found.items() if p.requires_grad and p.grad is not None}

    def _canonical(self, raw: str) -> str:
        return names.canonical(raw, self.trace.spec.adapter.name)

    def _tensors(self, digests: bool = True) -> tuple[Tensors, dict[str, str]]:
        """Adapter and other trainable tensors by value, all others by digest (unless `digests` is False)."""
        assert self._model is not None
        trainable = set(self.trace.trainable)
        values: Tensors = {}
        others: dict[str, str] = {}
        for raw, tensor in shards.state(self._model, self._wrapped):
            name = self._canonical(raw)
            if name in trainable:
                values[name] = _copy(tensor)
            elif digests:
                others[name] = digest(tensor)
        return values, others


#: Bytes from which a tensor on a GPU is digested there: a 7B base is 13 GB, which take seconds to copy and more to hash.
LARGE = 1 << 20


def stays_on_device(tensor: torch.Tensor) -> bool:
    """Whether `digest` works on a tensor where it is."""
    return tensor.is_cuda and tensor.numel() * tensor.element_size() > LARGE


def digest(tensor: torch.Tensor) -> str:
    """A digest of a tensor's dtype, shape and bytes: equal if and only if it is the same tensor bit for bit.

    That of a large tensor on a GPU is another than that of its copy on the CPU: compare it with its like.
    """
    import torch

    if stays_on_device(tensor):
        return f"{checksum(tensor)} of {tensor.dtype} {tuple(tensor.shape)}"
    plain = tensor.detach().cpu().contiguous()
    seal = hashlib.blake2b(f"{plain.dtype}{tuple(plain.shape)}".encode(), digest_size=16)
    if plain.numel():
        seal.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return seal.hexdigest()


def inspect_checkpoint(path: Path, adapter_name: str) -> Checkpoint:
    """What a checkpoint directory holds: files, tensor inventories, the adapter's tensors, trainer_state.json.

    Reads safetensors headers and JSON only; no pickle is opened.
    """
    from safetensors import safe_open

    files = {str(f.relative_to(path)): f.stat().st_size for f in sorted(path.rglob("*")) if f.is_file()}
    tensors: dict[str, dict[str, list[Any]]] = {}
    adapter: Tensors = {}
    wanted = [f"{adapter_name}/adapter_model.safetensors", "adapter_model.safetensors"]
    chosen = next((name for name in wanted if name in files), None)
    for name in files:
        if not name.endswith(".safetensors"):
            continue
        with safe_open(path / name, framework="pt") as opened:
            tensors[name] = {}
            for key in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                part = opened.get_slice(key)
                tensors[name][key] = [part.get_dtype(), list(part.get_shape())]
                if name == chosen:
                    adapter[names.canonical(key, adapter_name)] = opened.get_tensor(key)
    state = json.loads((path / "trainer_state.json").read_text()) if "trainer_state.json" in files else {}
    siblings = sorted(checkpoint_step(p) for p in path.parent.glob("checkpoint-*") if p.is_dir())
    return Checkpoint(checkpoint_step(path), str(path), files, tensors, adapter, state, siblings)


def checkpoint_step(path: Path) -> int:
    """The global step in a checkpoint directory's name, -1 where it holds none."""
    tail = path.name.rpartition("-")[2]
    return int(tail) if tail.isdigit() else -1


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return shards.whole(tensor.detach()).cpu().clone()
