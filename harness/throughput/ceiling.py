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
    size, elements = (8192, 1 << 29) if device == "cuda" else (1536, 1 << 26)
    kind = getattr(torch, dtype)
    left, right = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=kind)
    seconds = _best(lambda: torch.mm(left, right, out=out), device)
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    moved = _best(lambda: target.copy_(source), device)
    return Ceiling(dtype, 2 * size**3 / seconds, 2 * source.nbytes / moved)


def _best(call: Callable[[], Any], device: str, repeats: int = 8) -> float:
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    call()
    best = float("inf")
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        call()
        wait()
        best = min(best, time.perf_counter() - began)
    return best
