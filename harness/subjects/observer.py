"""Observer: watches a training run through public hooks, callbacks and files, and writes the Trace.

A subject hands over the model before training starts, the optimizer once it exists, the name of each callback event and
the path of each checkpoint. The observer never changes a tensor and draws no random number.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.environment import describe, peak_bytes
from harness.files import require_space
from harness.fixtures import data, models
from harness.raised import where_raised
from harness.spec import RunSpec
from harness.subjects.rows import Rows
from harness.tensors import names, shards
from harness.tensors.checksum import checksum
from harness.trace import Checkpoint, Evaluation, Group, MicroBatch, Step, Tensors, Trace

if TYPE_CHECKING:
    import torch

#: Called at each event of every run in this process with the trace so far and the event's name, to show progress.
listeners: list[Callable[[Trace, str], None]] = []


class Watcher(Protocol):
    """Is shown what each Observer of this process watches, once its own hooks are in place (`harness.where.marks`)."""

    def model(self, observer: Observer, model: torch.nn.Module) -> None:
        """Is shown the model that is trained."""
        ...

    def optimizer(self, observer: Observer, optimizer: torch.optim.Optimizer) -> None:
        """Is shown the optimizer that steps."""
        ...


#: Who is shown the model and the optimizer of every run in this process.
watchers: list[Watcher] = []


class Observer:
    """Watches one run.

    - spec: what is trained
    - subject: the name of who trains it
    - rows: the training rows, then the evaluation rows (see `harness.fixtures.data`); the rows of a batch are recorded as
      indices into them
    - directory: where the run writes
    - sequences: how many sequences a batch has for each row. The first of them, in the order of the rows, are the rows
      themselves

    In a run of several ranks each rank has an Observer. All must see the same events in the same order, since they put
    tensors together from their shards.
    """

    def __init__(
        self, spec: RunSpec, subject: str, rows: Iterable[dict[str, Any]], directory: str | Path, sequences: int = 1
    ):
        self.trace = Trace(spec, subject, describe(spec.launch.device), directory=str(directory))
        made = list(rows)
        self._rows = Rows(made, spec.data.augment)
        self._length = max((len(row["input_ids"]) for row in made), default=0)
        self._sequences = sequences
        self._batches: list[MicroBatch] = []
        self._evaluated: list[list[int]] = []
        self._unclipped: Tensors = {}
        #: Whether a run of several ranks has clipped the gradients of the current step.
        self._clips = False
        #: Ids of the parameter groups that the optimizer has stepped already in the current step.
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
        """Record the base and the adapter as they are now. From here on, watch each forward pass and each gradient.

        - model: the object that the trainer gets, adapters injected
        """
        # With model_init the Trainer makes a model at first, and the one that it trains later.
        for handle in self._handles:
            handle.remove()
        self._handles = []
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
        for watcher in watchers:
            watcher.model(self, model)

    @property
    def place(self) -> tuple[int, int]:
        """The optimizer step that is at work, from 1, and its micro-batch, from 1; 0 before the first."""
        return self._step + 1, len(self._batches)

    @property
    def wrapped(self) -> torch.nn.Module | None:
        """What the trainer calls instead of the model, in a run of several ranks."""
        return self._wrapped

    def watch_wrapped(self, wrapped: torch.nn.Module) -> None:
        """Record how the model is spread over the ranks. wrapped: what the trainer calls instead of the model."""
        self._wrapped = wrapped
        self.trace.distributed |= shards.evidence(wrapped, self.trace.spec.adapter.name)

    def before_clipping(self) -> None:
        """Record the gradients of a run of several ranks: they have been put together and are about to be clipped."""
        if self._wrapped is not None:
            self._unclipped, self._clips = self._gradients(), True

    def watch_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Record the parameter groups. From here on, record gradients and learning rates before each step."""
        # accelerate wraps the optimizer. The hook must be on the one inside, which steps.
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        if optimizer is self._optimizer:
            return
        self._optimizer = optimizer
        if self._model is not None:
            # Resuming may have replaced Parameter objects: if peft casts an adapter that it loads, it makes new ones.
            self._watch_gradients(self._model)
        self.trace.groups = [
            Group(
                [self._names.get(id(p), "?") for p in group["params"]],
                {k: v for k, v in group.items() if isinstance(v, (int, float, bool, str)) or v is None},
            )
            for group in optimizer.param_groups
        ]
        self._handles.append(optimizer.register_step_pre_hook(self._before_step))
        for watcher in watchers:
            watcher.optimizer(self, optimizer)

    def event(self, name: str, step: int) -> None:
        """Record a callback event, named without its "on_". step: the global step."""
        self._step = step
        self.trace.events.append(name)
        if name == "train_begin":
            if self.trace.spec.launch.device == "cuda":
                import torch

                # The peak shall be this run's, not that of earlier runs or of building the model.
                torch.cuda.reset_peak_memory_stats()
            if self.trace.spec.resume is not None and self._model is not None:
                state = {} if self._optimizer is None else self._optimizer.state
                if self._wrapped is None and self._optimizer is not None:
                    self.trace.optimizer_resumed = sum(id(parameter) in self._names for parameter in state)
                self.trace.adapter_resumed = self._tensors(digests=False)[0]
            self._started = self._stepped = time.perf_counter()
        if name == "train_end":
            self.trace.seconds = time.perf_counter() - self._started
        for listener in listeners:
            listener(self.trace, name)

    def evaluated(self, metrics: dict[str, Any]) -> None:
        """Record an evaluation that has ended. metrics: what the trainer reported."""
        self.trace.evaluations.append(Evaluation(self._step, self._evaluated, dict(metrics)))
        self._evaluated = []

    def meet(self) -> None:
        """Wait for the other ranks, if there are any. Otherwise one might look for a file that another still writes."""
        if self._wrapped is not None:
            import torch

            torch.distributed.barrier()

    def checkpoint(self, path: str | Path) -> None:
        """Record a checkpoint directory ("checkpoint-<step>") that all ranks have finished writing."""
        self.trace.checkpoints.append(inspect_checkpoint(Path(path), self.trace.spec.adapter.name))

    def finish(self, error: BaseException | None = None) -> Trace:
        """Remove all hooks, record the end of the run and return the trace. error: what ended it, None if it completed."""
        for handle in [*self._handles, *self._gradient_handles]:
            handle.remove()
        self._handles, self._gradient_handles = [], []
        if error is not None:
            require_space(error)
            message = str(error).strip()
            self.trace.raised = where_raised(error)
            self.trace.error = f"{type(error).__name__}: {message}" if message else type(error).__name__
        # Read before the tensors are copied, which takes memory too.
        self.trace.memory_bytes = peak_bytes(self.trace.spec.launch.device)
        # If this rank failed, the others may be anywhere, so shards cannot be put together.
        together = error is None or self._wrapped is None
        if self._model is not None and together:
            self.trace.adapter, self.trace.base = self._tensors()
        # FSDP1's optimizer state belongs to flat parameters, which are no tensors of the model.
        if self._optimizer is not None and together and not shards.is_fsdp1(self._wrapped):
            self.trace.optimizer_state = {
                self._names[id(parameter)]: {k: _copy(v) for k, v in state.items() if hasattr(v, "dtype")}
                for parameter, state in self._optimizer.state.items()
                if id(parameter) in self._names
            }
        # Traces are cached. Let go of the model and the optimizer, so that their memory is freed.
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

    def _before_forward(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = data.tokens_of({"input_ids": args[0] if args else None, **kwargs}, self._length)
        rows = [] if tokens is None else self._rows.of(tokens, kwargs.get("attention_mask"), kwargs.get("position_ids"))
        rows = rows[: len(rows) // self._sequences] if self._sequences > 1 else rows
        if not module.training:
            self._evaluated.append(rows)
            return
        if not _keeps_gradients():
            return
        labels = kwargs.get("labels")
        items = kwargs.get("num_items_in_batch")
        self._batches.append(
            MicroBatch(
                rows,
                tokens=0 if labels is None else int((self._predicted(labels) != -100).sum()),
                num_items=None if items is None else float(items),
                labels=[] if labels is None or self._sequences > 1 else self._rows.labelled(labels, rows),
            )
        )

    def _predicted(self, labels: torch.Tensor) -> torch.Tensor:
        # A causal model predicts each label from the tokens before it. Nothing stands before the first one.
        return labels[..., 1:] if self.trace.spec.data.task in models.NEXT_TOKEN else labels

    def _after_forward(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        loss = output.get("loss") if hasattr(output, "get") else None
        if module.training and loss is not None and _keeps_gradients():
            self._batches[-1].loss = float(loss.detach())

    def _accumulated(self, parameter: torch.nn.Parameter) -> None:
        # This hook fires after every backward pass. After the last one of a step, .grad is the whole window's gradient.
        # It also fires if the pass reached the parameter and left no gradient; the parameter is then missing in the step.
        # In a run of several ranks .grad is only this rank's part: see `before_clipping`.
        if parameter.grad is not None and self._wrapped is None:
            self._unclipped[self._names[id(parameter)]] = _copy(parameter.grad)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._model is not None
        # DeepSpeed calls step() once for each group of parameters: together they are one step. A group that is stepped a
        # second time starts the next one.
        stepped = {id(group) for group in optimizer.param_groups if group["params"]}
        recorded = bool(self.trace.steps) and self.trace.steps[-1].number == self._step + 1 and not self._batches
        if recorded and shards.hides_gradients(self._wrapped) and not stepped & self._groups:
            self._groups |= stepped
            return
        self._groups = stepped
        now = time.perf_counter()
        clipped = self._gradients()
        if self._wrapped is not None and not self._clips:
            # Nothing was clipped. Releases before 5.3 compute no norm then, either.
            self._unclipped = clipped
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
        self._batches, self._unclipped, self._clips, self._stepped = [], {}, False, now

    def _gradients(self) -> Tensors:
        """Return the current gradients of the trainable parameters, whole. Record frozen parameters that have one."""
        assert self._model is not None
        if self._wrapped is None:
            found = {self._names[id(p)]: p for p in self._model.parameters() if p.grad is not None}
            self._record_frozen([name for name, p in found.items() if not p.requires_grad])
            return {name: _copy(gradient) for name, gradient in _gradients_of_trainable(found).items()}
        if shards.hides_gradients(self._wrapped):
            return {}
        # Before FSDP1 gathers. Then each parameter of a unit has a .grad, because it is a view into the unit's gradient.
        frozen = [name for name, p in self._with_gradient().items() if not p.requires_grad]
        self._record_frozen(shards.on_any_rank(frozen, self._wrapped))
        with shards.gathered(self._model, self._wrapped, with_grads=True):
            # Under FSDP1 the model has other Parameter objects inside this block.
            gradients = shards.whole_all(_gradients_of_trainable(self._with_gradient()))
            return {name: _copy(gradient) for name, gradient in gradients.items()}

    def _with_gradient(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that have a .grad, by canonical name."""
        assert self._model is not None
        return {self._canonical(raw): p for raw, p in self._model.named_parameters() if p.grad is not None}

    def _record_frozen(self, found: list[str]) -> None:
        """Record frozen parameters that have a gradient, which they should not. found: their canonical names."""
        known = self.trace.base_gradients
        known += [name for name in found if name not in known]

    def _canonical(self, raw: str) -> str:
        return names.canonical(raw, self.trace.spec.adapter.name)

    def _tensors(self, digests: bool = True) -> tuple[Tensors, dict[str, str]]:
        """Return trainable tensors by value and all others by digest, both by canonical name.

        - digests: False leaves the second dict empty, which saves reading the base
        """
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


def _gradients_of_trainable(found: dict[str, torch.nn.Parameter]) -> Tensors:
    """Return the gradients of those parameters that are trained. found: parameters that have a gradient, by name."""
    return {name: p.grad.detach() for name, p in found.items() if p.requires_grad and p.grad is not None}


def _keeps_gradients() -> bool:
    import torch

    return torch.is_grad_enabled()


#: A tensor on a GPU with more bytes than this is digested there. A 7B base has 13 GB: copying and hashing takes seconds.
LARGE = 1 << 20


def stays_on_device(tensor: torch.Tensor) -> bool:
    """Return whether `digest` computes on the tensor's own device."""
    return tensor.is_cuda and tensor.numel() * tensor.element_size() > LARGE


def digest(tensor: torch.Tensor) -> str:
    """Return a digest of a tensor's dtype, shape and bytes. Two digests are equal if the tensors are bit-equal.

    For a tensor that `stays_on_device` another function is used, so compare its digest with such digests only.
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
    """Return what a checkpoint directory holds: files, tensor inventories, the adapter's tensors, trainer_state.json.

    Only safetensors and JSON files are read. No pickle is opened.
    """
    from safetensors import safe_open

    files = {str(f.relative_to(path)): f.stat().st_size for f in sorted(path.rglob("*")) if f.is_file()}
    tensors: dict[str, dict[str, list[Any]]] = {}
    adapter: Tensors = {}
    candidates = [f"{adapter_name}/adapter_model.safetensors", "adapter_model.safetensors"]
    chosen = next((name for name in candidates if name in files), None)
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
    """Return the global step in a checkpoint directory's name, -1 if there is none."""
    tail = path.name.rpartition("-")[2]
    return int(tail) if tail.isdigit() else -1


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return shards.whole(tensor.detach()).cpu().clone()
