"""Count what each optimizer step costs. The numbers are the same in every run, also on a noisy machine.

`count` trains a spec several times, for a few steps each, and counts one kind of thing each time: what reaches torch's
dispatcher, calls of Python functions, and memory.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import sys
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import patches
from harness.spec import RunSpec
from harness.subjects import Subject
from harness.throughput import memory_probe
from harness.throughput.stepping import train

#: What is counted, in the order of reports, with its unit.
UNITS = {
    "operations": "aten operations dispatched",
    "reads": "values read from the device to the host (item); each waits for the device",
    "copies": "tensors copied or converted",
    "flops": "floating-point operations of products and convolutions",
    "saved_bytes": "bytes kept for the backward pass",
    "peak_bytes": "bytes allocated at the peak of the step",
    "held_bytes": "bytes held after the step",
    "python_calls": "calls of Python functions",
    "kernels": "CUDA kernels launched",
    "transfers": "copies between host and device",
    "synchronizations": "times the host waited for the device",
    "collectives": "collective operations",
    "collective_bytes": "bytes handed to collective operations",
}

#: Counter -> words in the names of the calls of the CUDA runtime and driver that it counts.
RUNTIME = {
    "kernels": ("LaunchKernel", "GraphLaunch"),
    "transfers": ("Memcpy",),
    "synchronizations": ("Synchronize",),
}

#: The number of counted steps. One more step follows them, because the last step of a run costs more.
STEPS = 3
#: The number of steps before the counted ones. The first differs from all others: Adam makes its states.
FIRST = 2


@dataclass(frozen=True)
class Counters:
    """What the counted steps of a run cost.

    - values: counter -> its value in each counted step.
    - by_operation: aten operation -> how often it was called in the last counted step.
    """

    values: dict[str, list[int]]
    by_operation: dict[str, int] = field(default_factory=dict)

    @property
    def step(self) -> dict[str, int]:
        """The counters of the last counted step."""
        return {name: values[-1] for name, values in self.values.items() if values}

    def to_json(self) -> dict[str, Any]:
        return {"values": self.values, "by_operation": self.by_operation}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Counters:
        return cls(body["values"], body["by_operation"])


def count(subject: Subject, spec: RunSpec, directory: Path, brief: bool = False) -> Counters:
    """Train a spec several times for a few steps, and count one kind of thing each time.

    The counted steps call upstream's own functions, not those that `harness.patches` has replaced for speed.

    - brief: train once, and count only what reaches the dispatcher.
    """
    # A garbage collection within a step would call finalizers, in Python, at a time that nobody can foresee.
    with _no_collection(), patches.off(frozen=True):
        return _count(subject, spec, directory, brief)


def _count(subject: Subject, spec: RunSpec, directory: Path, brief: bool) -> Counters:
    spec = spec.but(max_steps=FIRST + STEPS + 1, num_train_epochs=None)
    values: dict[str, list[int]] = {}
    made: list[dict[str, int]] = []
    for number, counting in enumerate([_dispatched] if brief else [_dispatched, _calls]):
        run_directory = directory / str(number)
        run_directory.mkdir(parents=True)
        with _Readings(counting(made)) as readings:
            train(subject, spec, run_directory, readings)
        values |= readings.differences()
    if not brief:
        values |= _memory(subject, spec, directory / "memory")
    return Counters({name: values[name] for name in UNITS if name in values}, dict(sorted(made[-1].items())))


class _Readings:
    """Called when a step begins: reads the running totals from the first counted step to the end of the last.

    Counting makes each operation several times slower, so it is on in the counted steps only.

    - counting: a context manager that counts; its value is a function that returns the totals so far.
    """

    def __init__(self, counting: AbstractContextManager[Callable[[], dict[str, int]]]):
        self._counting, self._stack = counting, ExitStack()
        self._totals: list[dict[str, int]] = []
        self._read: Callable[[], dict[str, int]] | None = None

    def __enter__(self) -> _Readings:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, number: int, log: Any) -> None:
        if number == FIRST + 1:
            self._read = self._stack.enter_context(self._counting)
        if self._read is not None:
            self._totals.append(self._read())
        if number == FIRST + STEPS + 1:
            self._stack.close()
            self._read = None

    def differences(self) -> dict[str, list[int]]:
        """Return counter -> its value in each counted step."""
        pairs = list(itertools.pairwise(self._totals))
        return (
            {name: [after[name] - before[name] for before, after in pairs] for name in self._totals[0]} if pairs else {}
        )


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# ---- what is counted in each run ----


@contextmanager
def _dispatched(made: list[dict[str, int]]) -> Iterator[Callable[[], dict[str, int]]]:
    """Count the operations that reach the dispatcher, in the backward pass too, and what autograd keeps.

    - made: at each reading, a dict with the operations since the one before, by name, is appended.
    """
    import torch

    totals, operations = Counter[str](), Counter[str]()

    def pack(tensor: Any) -> Any:
        totals["saved_bytes"] += tensor.nbytes
        return tensor

    names = ("operations", "reads", "copies", "saved_bytes", "collectives", "collective_bytes")
    with ExitStack() as stack:
        flops = stack.enter_context(flop_counter())
        stack.enter_context(dispatched(totals, operations))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))

        def read() -> dict[str, int]:
            made.append(dict(operations))
            operations.clear()
            return {name: totals[name] for name in names} | {"flops": flops.get_total_flops()}

        yield read


def dispatched(totals: Counter[str], operations: Counter[str] | None = None) -> Any:
    """Return a context manager that counts the operations which reach the dispatcher.

    - totals: counts by the names of UNITS.
    - operations: counts by the operations' own names, if it is given.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = str(function._overloadpacket)
            totals["operations"] += 1
            if operations is not None:
                operations[name] += 1
            if name == "aten._local_scalar_dense":
                totals["reads"] += 1
            elif name in ("aten._to_copy", "aten.copy_", "aten.clone"):
                totals["copies"] += 1
            elif name.startswith("c10d."):
                totals["collectives"] += 1
                totals["collective_bytes"] += _bytes(args)
            return function(*args, **(kwargs or {}))

    mode: Any = Count
    return mode()


def flop_counter() -> Any:
    """Return torch's FlopCounterMode, completed in two points.

    - Attention in which several query heads share keys and values. On CUDA torch 2.11 refuses it ("query/key/value shapes are
      incompatible").
    - Products of bitsandbytes with packed weights, which torch does not count.
    """
    import torch
    from torch.utils import flop_counter as counter

    def shared(key: Any, query: Any) -> Any:
        return (key[0], query[1], *key[2:])

    def forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        return counter.sdpa_flop_count(query, shared(key, query), shared(value, query))

    def backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        return counter.sdpa_backward_flop_count(gradient, query, shared(key, query), shared(value, query))

    kinds = ("flash_attention", "efficient_attention", "cudnn_attention")
    ways = {"": forward, "_backward": backward}
    attention = {
        getattr(torch.ops.aten, f"_scaled_dot_product_{kind}{way}"): count
        for kind in kinds
        for way, count in ways.items()
        if hasattr(torch.ops.aten, f"_scaled_dot_product_{kind}{way}")
    }
    return counter.FlopCounterMode(display=False, custom_mapping=attention | _packed_products())


#: Product of bitsandbytes, of rows (..., in) with weights (out, in) -> position of the argument with the weights' shape.
_PACKED = {"gemm_4bit": 2, "gemv_4bit": 2, "int8_linear_matmul": 1, "int8_scaled_mm": 1, "int8_mixed_scaled_mm": 2}


def _packed_products() -> dict[Any, Callable[..., int]]:
    """Return operator of bitsandbytes -> function from the shapes of its arguments to floating-point operations."""
    import torch

    def operations(position: int) -> Callable[..., int]:
        return lambda *args, out_shape=None, **kwargs: 2 * math.prod(args[0]) * args[position][0]

    library = torch.ops.bitsandbytes  # has no operators if bitsandbytes is not imported
    return {
        getattr(library, name): operations(position) for name, position in _PACKED.items() if hasattr(library, name)
    }


def _bytes(value: Any) -> int:
    """Return the bytes of the tensors in nested lists."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


@contextmanager
def _calls(made: list[dict[str, int]]) -> Iterator[Callable[[], dict[str, int]]]:
    """Count calls of Python functions in the thread that trains."""
    calls = 0

    def called(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        yield lambda: {"python_calls": calls}
    finally:
        sys.setprofile(before)


def _memory(subject: Subject, spec: RunSpec, directory: Path) -> dict[str, list[int]]:
    """Return the bytes held after each counted step and at its peak; on CUDA also launches, transfers and waits."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    cuda = spec.launch.device == "cuda"
    peaks, held = [], []
    # The process already holds tensors of other runs, and workspaces of the runs before this one. They are not counted.
    gc.collect()
    before = torch.cuda.memory_allocated() if cuda else 0

    def mark(number: int, log: Any) -> None:
        # Tensors in reference cycles are freed by the garbage collector, whenever it runs. So it runs before memory is read.
        gc.collect()
        with record_function(memory_probe.BEGIN if number == 1 else memory_probe.STEP):
            if cuda:
                torch.cuda.synchronize()
                held.append(torch.cuda.memory_allocated() - before)
                peaks.append(torch.cuda.max_memory_allocated() - before)
                torch.cuda.reset_peak_memory_stats()

    directory.mkdir(parents=True)
    with profile(
        activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda], profile_memory=not cuda
    ) as profiled:
        train(subject, spec, directory, mark)
    file = directory / "profile.json"
    profiled.export_chrome_trace(str(file))
    events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    file.unlink()
    counted = slice(FIRST, FIRST + STEPS)
    if cuda:
        values = {"held_bytes": held[1:], "peak_bytes": peaks[1:], **launched(events)}
    else:
        values = dict(zip(("held_bytes", "peak_bytes"), memory_probe.read(events), strict=True))
    return {name: each[counted] for name, each in values.items()}


def launched(events: Iterable[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return counter -> calls of the host to the device in each step, from a profile's events in the Chrome trace format.

    Only calls between two marks count. A mark itself waits for the device.
    """
    marks = sorted(
        (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("name") in (memory_probe.BEGIN, memory_probe.STEP) and event.get("cat") == "user_annotation"
    )
    counts: dict[str, list[int]] = {name: [0] * (len(marks) - 1) for name in RUNTIME}
    for event in events:
        if event.get("cat") not in ("cuda_runtime", "cuda_driver"):
            continue
        step = bisect([start for start, _ in marks], event["ts"]) - 1
        if 0 <= step < len(marks) - 1 and event["ts"] >= marks[step][1]:
            for name, words in RUNTIME.items():
                counts[name][step] += any(word in event["name"] for word in words)
    return counts
