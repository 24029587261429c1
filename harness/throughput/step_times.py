"""The beginnings of steps, and the seconds between them: by events on the stream on CUDA, by the host's clock elsewhere."""

from __future__ import annotations

import itertools
import time
from typing import Any

from harness.environment import peak_bytes


class Marks:
    """Beginnings of steps. device: "cpu" or "cuda"."""

    def __init__(self, device: str):
        self._cuda = device == "cuda"
        self._made: list[tuple[Any, float]] = []

    def __len__(self) -> int:
        return len(self._made)

    def add(self) -> None:
        """A step begins."""
        if self._cuda:
            import torch

            event: Any = torch.cuda.Event(enable_timing=True)
            event.record()
        else:
            event = time.perf_counter()
        self._made.append((event, time.thread_time()))

    def clear(self) -> None:
        """Forget them all."""
        self._made = []

    def seconds(self, skipped: int = 0) -> dict[str, Any]:
        """Seconds of each step but the first `skipped`, {"wall": [...], "cpu": [...]}, and "peak_bytes" so far.

        On CUDA "wall" is the stream's time and "cpu" what the host spent, after a wait for the device.
        """
        pairs = list(itertools.pairwise(self._made[skipped:]))
        if self._cuda:
            import torch

            torch.cuda.synchronize()
            wall = [before[0].elapsed_time(after[0]) / 1e3 for before, after in pairs]
        else:
            wall = [after[0] - before[0] for before, after in pairs]
        cpu = [after[1] - before[1] for before, after in pairs]
        return {"wall": wall, "cpu": cpu, "peak_bytes": peak_bytes("cuda" if self._cuda else "cpu")}
