"""What the device can do at most, measured: operations a second and bytes a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ceiling:
    """flops: of a large matrix product, a second, in `dtype`. bandwidth: bytes read and written a second by a large copy."""

    dtype: str
    flops: float
    bandwidth: float

    def seconds(self, flops: float, traffic: float) -> float:
        """The time under which no program does so many operations, or moves so many bytes (roofline)."""
        return max(flops / self.flops, traffic / self.bandwidth)


def measure(device: str, dtype: str, threads: int) -> Ceiling:
    """Best of several, on random data: zeros are faster than any real work."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    ceiling = Ceiling(dtype, _flops(device, getattr(torch, dtype)), _bandwidth(device))
    if device == "cuda":
        # Others are about to need what the allocator has kept.
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
