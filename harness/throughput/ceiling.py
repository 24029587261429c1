"""Measure what the device can do at most: operations a second and bytes a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ceiling:
    """The measured limits of a device.

    - dtype: of the matrix product.
    - flops: floating-point operations a second of a large matrix product.
    - bandwidth: bytes a second that a large copy reads and writes.
    """

    dtype: str
    flops: float
    bandwidth: float

    def seconds(self, flops: float, traffic: float) -> float:
        """Return the shortest possible time of a program, by the roofline model.

        - flops: floating-point operations of the program.
        - traffic: bytes that it reads and writes.
        """
        return max(flops / self.flops, traffic / self.bandwidth)


def measure(device: str, dtype: str, threads: int) -> Ceiling:
    """Measure the limits of a device: the best of several tries.

    The data are random, because zeros are faster than real data.

    - dtype: a torch dtype by name, for the matrix product.
    - threads: torch's intra-op threads; 0 leaves them as they are.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    ceiling = Ceiling(dtype, _flops(device, getattr(torch, dtype)), _bandwidth(device))
    if device == "cuda":
        # Processes that are timed next need the memory that the allocator holds.
        torch.cuda.empty_cache()
    return ceiling


def _flops(device: str, dtype: Any) -> float:
    import torch

    size = 8192 if device == "cuda" else 1536
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _best(lambda: torch.mm(left, right, out=out), device)


def _bandwidth(device: str) -> float:
    import torch

    source = torch.randn(1 << 29 if device == "cuda" else 1 << 26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def _best(call: Callable[[], Any], device: str, repeats: int = 8) -> float:
    import torch

    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    call()
    best = float("inf")
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        call()
        wait()
        best = min(best, time.perf_counter() - began)
    return best
