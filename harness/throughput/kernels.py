"""Where a step's time goes: the kernels of a device, or the operators of a CPU, by their share of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

#: The kind of what is none of the others: adding, multiplying, norms, activations, rotations.
OTHER = "element by element, and norms"

#: Kinds of kernels, and patterns of their names. The first that matches counts.
_KINDS: tuple[tuple[str, str], ...] = (
    # A fused kernel has the names of all its operations in its own.
    ("loss", r"^triton_.*softmax"),
    (OTHER, r"^triton_"),
    ("attention", r"flash|sdpa|attention|fmha"),
    ("unpacking 4 or 8 bits", r"dequant|quantize|kgetColRowStats|int8_vectorwise"),
    ("matrix products", r"gemm|nvjet|cutlass|cublas|splitK|::mm$|::addmm|::bmm|::matmul|::linear"),
    ("communication", r"nccl|all_reduce|all_gather|reduce_scatter"),
    ("copies", r"memcpy|memset|copy_|::_to_copy|::clone|::contiguous|direct_copy"),
    ("loss", r"softmax|nll_loss|cross_entropy"),
    ("optimizer", r"adam|multi_tensor|foreach|lpnorm"),
)

#: How many kernels a report has by name. The others are one line.
SHOWN = 20


@dataclass(frozen=True)
class Kernel:
    """A kernel, or an operator of a CPU.

    - seconds: of a step, in this kernel alone.
    - calls: of a step, on average.
    """

    name: str
    seconds: float
    calls: float

    @property
    def kind(self) -> str:
        return next((kind for kind, pattern in _KINDS if re.search(pattern, self.name, re.IGNORECASE)), OTHER)


def by_kind(kernels: Iterable[Kernel]) -> dict[str, float]:
    """Return kind -> seconds of a step, the largest first."""
    found: dict[str, float] = {}
    for kernel in kernels:
        found[kernel.kind] = found.get(kernel.kind, 0.0) + kernel.seconds
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def to_json(kernels: list[Kernel]) -> dict[str, Any]:
    """Return the seconds by kind, and those of the longest kernels by name."""
    return {
        "seconds_by_kind": by_kind(kernels),
        "kernels": [
            {"name": one.name, "kind": one.kind, "seconds": one.seconds, "calls": one.calls} for one in kernels[:SHOWN]
        ],
        "seconds_of_others": sum(one.seconds for one in kernels[SHOWN:]),
    }


class Recorder:
    """Records the kernels of the steps between its creation and `end`. device: "cpu" or "cuda"."""

    def __init__(self, device: str):
        from torch.profiler import ProfilerActivity, profile

        self._cuda = device == "cuda"
        self._stack = ExitStack()
        activity = ProfilerActivity.CUDA if self._cuda else ProfilerActivity.CPU
        self._profile = self._stack.enter_context(profile(activities=[activity]))

    def end(self, steps: int) -> list[tuple[str, float, float]]:
        """Return (name, seconds of a step, calls of a step) of each kernel, the longest first. steps: how many ran."""
        import torch

        if self._cuda:
            torch.cuda.synchronize()
        self._stack.close()
        found = []
        for event in self._profile.key_averages():
            spent = event.self_device_time_total if self._cuda else event.self_cpu_time_total
            if spent > 0:
                found.append((str(event.key)[:200], spent / 1e6 / steps, event.count / steps))
        return sorted(found, key=lambda one: -one[1])
