"""Record what each module of a run gives and gets, and, if asked, change what it gives in the last bit.

Hooks on modules see the tensors that go in and come out. Hooks on these tensors see the gradients that come back. None of
them changes a number, unless `Recorder.seed` asks for it: then each innermost module's outputs, and the gradients that come
back to them, are moved to a neighbouring number, up or down at random. This is what rounding does, so how far such a run gets
from the plain one is what rounding explains (Monte Carlo arithmetic: Parker, 1997).

Modules that torch.compile has compiled run no hooks. Of them only the parameters' gradients are recorded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.errors import UsageError
from harness.files import write_whole
from harness.reading import read_json, shown_path
from harness.spec import RunSpec
from harness.subjects import Subject, observer, trained
from harness.subjects.observer import Observer
from harness.tensors import shards
from harness.tensors.names import canonical
from harness.trace import Trace

#: Elements that are kept of a tensor. Of a larger one every n-th is kept, and the norm of all.
MOST = 1 << 16

#: Bytes of recording.json. Ten steps of a tiny run have half a megabyte.
_LIMIT = 512 * 2**20

#: The dtypes of tensors that modules pass on, by name.
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}

#: What an entry is about.
INPUT, OUTPUT, VALUE = "input", "output", "value"
GRADIENT, PASSED, PARAMETER = "gradient of its output", "gradient of its input", "gradient"

DATA, FORWARD, BACKWARD, OPTIMIZER = "data", "forward", "backward", "optimizer"
#: Between two steps, and between two micro-batches of a window, trained parameters and their gradients must stay.
BETWEEN, ACCUMULATION = "between steps", "accumulation"


@dataclass
class Entry:
    """One tensor that was seen.

    - step, micro_batch: when, from 1.
    - stage: DATA, FORWARD, BACKWARD, OPTIMIZER, BETWEEN or ACCUMULATION.
    - name: the module's or the parameter's canonical name; of data, the name of the argument.
    - what: INPUT or OUTPUT of a module, GRADIENT of its output, the gradient of its input that it PASSED on, the gradient of
      a PARAMETER, or VALUE.
    - call: how many calls of the module, or gradients of the parameter, this micro-batch had before.
    - shape: the tensor's. norm: of the whole tensor. kept: its elements, or every `stride`-th.
    """

    step: int
    micro_batch: int
    stage: str
    name: str
    what: str
    call: int
    shape: list[int]
    stride: int
    norm: Any
    kept: torch.Tensor

    @property
    def key(self) -> tuple[Any, ...]:
        """What is the same for the entries of two runs that are compared."""
        return (self.step, self.micro_batch, self.stage, self.name, self.what, self.call)


@dataclass
class Recording:
    """What was recorded of one rank. kinds: module -> class, for each module that was hooked."""

    entries: list[Entry] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        """Write recording.json, and the kept elements one after the other into recording.safetensors."""
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        parts = [entry.kept.cpu().contiguous() for entry in self.entries]
        flat = torch.cat([part.reshape(-1).view(torch.uint8) for part in parts]) if parts else torch.empty(0)
        save_file({"kept": flat}, directory / "recording.safetensors")
        rows = [
            {**vars(entry), "norm": float(entry.norm), "kept": [str(part.dtype)[len("torch.") :], list(part.shape)]}
            for entry, part in zip(self.entries, parts, strict=True)
        ]
        write_whole(directory / "recording.json", json.dumps({"entries": rows, "kinds": self.kinds}))

    @classmethod
    def load(cls, directory: Path) -> Recording:
        """Read what `save` wrote. Nothing was recorded of a subject that shows no Observer its model.

        Raises UsageError for what `save` does not write: another stack may have written it.
        """
        from safetensors.torch import load_file

        if not (directory / "recording.json").is_file():
            return cls()
        body = read_json(directory / "recording.json", _LIMIT, nan=True)
        try:
            flat, start, entries = load_file(directory / "recording.safetensors")["kept"], 0, []
            for row in body["entries"]:
                dtype, shape = _DTYPES[row["kept"][0]], row["kept"][1]
                end = start + math.prod(shape) * dtype.itemsize
                # Each view begins at a multiple of its own size only in a copy.
                entries.append(Entry(**{**row, "kept": flat[start:end].clone().view(dtype).reshape(shape)}))
                start = end
            return cls(entries, dict(body["kinds"]))
        except Exception as error:  # whatever damaged JSON and tensors raise
            raise UsageError(f"{shown_path(directory)}: no recording ({type(error).__name__}: {error})") from None


class Recorded:
    """A subject that records what it trains. It can be pickled, so ranks record themselves.

    - subject: who trains.
    - into: a directory. Each rank writes its recording into a directory of its own there, named by its number.
    - seed: of the changes in the last bit; None changes nothing.
    - steps: how many optimizer steps are recorded; 0: all.
    """

    def __init__(self, subject: Subject, into: Path, seed: int | None = None, steps: int = 0):
        self.subject, self.into, self.seed, self.steps = subject, into, seed, steps
        self.name = subject.name

    def unsupported(self, spec: RunSpec) -> str | None:
        return self.subject.unsupported(spec)

    def train(self, spec: RunSpec, directory: Path) -> Trace:
        import os

        recorder = Recorder(self.seed, self.steps)
        observer.watchers.append(recorder)
        try:
            trace = trained(self.subject, spec, directory)
        finally:
            observer.watchers.remove(recorder)
            recorder.remove()
        # Of a run that resumes, the first leg is overwritten by the second.
        recorder.recording.save(self.into / os.environ.get("RANK", "0"))
        return trace


class Recorder:
    """Hooks a model and its optimizer. It is one of `harness.subjects.observer.watchers`. Parameters as for `Recorded`."""

    def __init__(self, seed: int | None = None, steps: int = 0):
        self.recording = Recording()
        self.seed, self.steps = seed, steps
        self._handles: list[Any] = []
        self._calls: dict[tuple[Any, ...], int] = {}
        self._observer: Observer | None = None
        self._model: torch.nn.Module | None = None
        self._watched: set[int] = set()
        self._trained: list[tuple[str, torch.nn.Parameter]] = []
        self._draws: dict[str, torch.Generator] = {}

    def remove(self) -> None:
        """Remove all hooks, and let go of the model."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._model, self._observer, self._watched, self._trained = [], None, None, set(), []

    # ---- harness.subjects.observer.Watcher ----

    def model(self, observer: Observer, model: torch.nn.Module) -> None:
        """Hook each module. A model that is made again takes the place of the one before."""
        self.remove()
        self._observer, self._model = observer, model
        self.recording.kinds = {}
        adapter = observer.trace.spec.adapter.name
        self._handles.append(model.register_forward_pre_hook(self._begin, with_kwargs=True))
        for raw, module in model.named_modules():
            name = module_name(raw, adapter)
            # A PeftModel, its tuner and the base itself give the same; the outermost stands for them. Containers of modules
            # are not called.
            if name in self.recording.kinds or isinstance(module, (torch.nn.ModuleDict, torch.nn.ModuleList)):
                continue
            self.recording.kinds[name] = type(module).__name__
            self._handles.append(module.register_forward_pre_hook(self._taking(name), with_kwargs=True))
            if self.seed is not None and not any(True for _ in module.children()):
                self._handles.append(module.register_forward_hook(self._change))
            self._handles.append(module.register_forward_hook(self._giving(name)))

    def optimizer(self, observer: Observer, optimizer: torch.optim.Optimizer) -> None:
        """Record the values of trained parameters after each step."""
        self._handles.append(optimizer.register_step_post_hook(self._stepped))

    # ---- hooks ----

    def _begin(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or not self._at_work():
            return
        assert self._observer is not None and self._model is not None
        self._calls = {}
        for name, value in kwargs.items():
            if isinstance(value, torch.Tensor) and not value.is_floating_point():
                self._keep(DATA, name, VALUE, value)
        if self._observer.place[1] > 1:
            for name, parameter in self._trained:
                if parameter.grad is not None and not hasattr(parameter.grad, "to_local"):
                    self._keep(ACCUMULATION, name, PARAMETER, parameter.grad)
            return
        # peft makes new Parameter objects when it loads an adapter.
        adapter = self._observer.trace.spec.adapter.name
        named = self._model.named_parameters()
        self._trained = [(canonical(raw, adapter), p) for raw, p in named if p.requires_grad]
        for name, parameter in self._trained:
            if id(parameter) not in self._watched:
                self._watched.add(id(parameter))
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._accumulated(name)))
        self._keep_values(BETWEEN)

    def _at_work(self) -> bool:
        if self._model is None or self._observer is None or not self._model.training:
            return False
        return not self.steps or self._observer.place[0] <= self.steps

    def _taking(self, name: str) -> Any:
        def before(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            if torch.compiler.is_compiling() or not self._at_work():
                return None
            for index, value in enumerate(_floats([*args, *kwargs.values()])):
                self._keep(FORWARD, _numbered(name, index), INPUT, value)
            if not name or not args or not isinstance(args[0], torch.Tensor) or not args[0].requires_grad:
                return None
            # Other modules may read the same tensor. A view of it gets the gradient of this module alone.
            own = args[0].view_as(args[0])
            own.register_hook(lambda gradient: self._came_back(name, PASSED, gradient))
            return (own, *args[1:]), kwargs

        return before

    def _giving(self, name: str) -> Any:
        def after(module: torch.nn.Module, args: Any, output: Any) -> None:
            if torch.compiler.is_compiling() or not self._at_work():
                return
            for index, value in enumerate(_floats([output])):
                which = _numbered(name, index)
                self._keep(FORWARD, which, OUTPUT, value)
                if value.requires_grad:
                    value.register_hook(lambda gradient, which=which: self._came_back(which, GRADIENT, gradient))

        return after

    def _came_back(self, name: str, what: str, gradient: torch.Tensor) -> None:
        if self._at_work():
            self._keep(BACKWARD, name, what, gradient)

    def _accumulated(self, name: str) -> Any:
        def hook(parameter: torch.nn.Parameter) -> None:
            # The gradients of a sharded parameter are put together later, and are in the trace.
            if parameter.grad is not None and self._at_work() and not hasattr(parameter.grad, "to_local"):
                self._keep(BACKWARD, name, PARAMETER, parameter.grad)

        return hook

    def _stepped(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._at_work():
            self._calls = {}
            self._keep_values(OPTIMIZER)

    def _keep_values(self, stage: str) -> None:
        if self._observer is None or shards.is_fsdp1(self._observer.wrapped):
            return
        for name, parameter in self._trained:
            if not hasattr(parameter, "to_local") and not hasattr(parameter, "ds_tensor"):
                self._keep(stage, name, VALUE, parameter)

    def _change(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        if torch.compiler.is_compiling() or not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return output
        kind = str(output.device)
        if kind not in self._draws:
            self._draws[kind] = torch.Generator(output.device).manual_seed(self.seed or 0)
        apply: Any = _Changed.apply
        return apply(output, self._draws[kind])

    def _keep(self, stage: str, name: str, what: str, tensor: torch.Tensor) -> None:
        assert self._observer is not None
        step, micro_batch = self._observer.place
        # The observer counts a step when it begins, and the optimizer's hook comes after that.
        place = (step, 0 if stage in (OPTIMIZER, BETWEEN) else micro_batch)
        key = (*place, stage, name, what)
        call = self._calls.get(key, 0)
        self._calls[key] = call + 1
        plain = tensor.detach()
        stride = max(1, -(-plain.numel() // MOST))
        kept = plain.reshape(-1)[::stride] if stride > 1 else plain
        norm = torch.linalg.vector_norm(plain.double() if plain.numel() <= MOST else plain.float())
        self.recording.entries.append(
            Entry(*place, stage, name, what, call, list(plain.shape), stride, norm, kept.clone())
        )


class _Changed(torch.autograd.Function):
    """Moves a tensor, and the gradient that comes back to it, to neighbouring numbers."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        ctx.draw = draw
        return neighbours(tensor, draw)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return neighbours(gradients[0], ctx.draw), None


def neighbours(tensor: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Return a tensor with each element moved to the next number of its dtype, up or down. Zeros, NaN and inf stay."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    plain = tensor.detach().contiguous()
    up = torch.randint(0, 2, plain.shape, generator=draw, device=plain.device, dtype=whole) * 2 - 1
    moved = (plain.view(whole) + up).view(plain.dtype)
    return torch.where(torch.isfinite(plain) & (plain != 0), moved, plain)


def module_name(raw: str, adapter: str) -> str:
    """Return the canonical name of a module: as `harness.tensors.names` has it, but a base layer stays apart."""
    name = canonical(f"{raw}.weight" if raw else "weight", adapter).removesuffix("weight").removesuffix(".")
    name = "" if name == "base_model" else name
    return f"{name}.base_layer" if raw.endswith(".base_layer") and not name.endswith(".base_layer") else name


def _numbered(name: str, index: int) -> str:
    return name if index == 0 else f"{name} [{index}]"


def _floats(values: Any) -> Iterator[torch.Tensor]:
    """Yield the floating-point tensors in what a module takes or gives: in a list, a tuple, or an output's "logits"."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.is_floating_point() and value.dim():  # a number of labels is in the trace
                yield value
        elif hasattr(value, "get"):
            inner = next(
                (value.get(name) for name in ("logits", "last_hidden_state") if value.get(name) is not None), None
            )
            if isinstance(inner, torch.Tensor):
                yield inner
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, torch.Tensor) and item.is_floating_point())
