"""The times of steps, from one beginning to the next: by CUDA events on the stream, or by the host's clock on a CPU."""

from __future__ import annotations

import itertools
import time
from typing import Any

from harness.environment import peak_bytes


class StepTimes:
    """Notes when steps begin, and gives the seconds between.

    - device: "cpu" or "cuda".
    """

    def __init__(self, device: str):
        self._cuda = device == "cuda"
        self._beginnings: list[tuple[Any, float]] = []

    def __len__(self) -> int:
        """The number of beginnings noted, one more than there are steps."""
        return len(self._beginnings)

    def step_begins(self) -> None:
        """Note that a step begins now, and so that the one before it ends."""
        if self._cuda:
            import torch

            now: Any = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self._beginnings.append((now, time.thread_time()))

    def clear(self) -> None:
        """Forget all beginnings."""
        self._beginnings = []

    def seconds(self, skipped: int = 0) -> dict[str, Any]:
        """Return the seconds of each step, and the peak of memory so far.

        - skipped: how many of the first steps to leave out.

        The keys of the result:

        - "wall": seconds of each step. On CUDA this is the stream's time, after waiting for the device.
        - "cpu": seconds of the processor that this thread used in each step.
        - "peak_bytes": see `harness.environment.peak_bytes`.
        """
        steps = list(itertools.pairwise(self._beginnings[skipped:]))
        if self._cuda:
            import torch

            torch.cuda.synchronize()
            wall = [begin[0].elapsed_time(end[0]) / 1e3 for begin, end in steps]
        else:
            wall = [end[0] - begin[0] for begin, end in steps]
        cpu = [end[1] - begin[1] for begin, end in steps]
        return {"wall": wall, "cpu": cpu, "peak_bytes": peak_bytes("cuda" if self._cuda else "cpu")}
