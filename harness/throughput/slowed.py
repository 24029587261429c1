"""A slowdown put in on purpose, to see whether it is found: `--preload harness.throughput.slowed`.

Each step of transformers.Trainer takes two percent longer, or as much as `harness.throughput.rates` says: the host waits
busily for that share of the step that ends. On CUDA it does for that share of the device's step, and the device sleeps as
long, so that it is that much slower whichever of the two the other waits for.
"""

import time
from collections import deque
from typing import Any

import torch
from transformers.trainer_callback import DefaultFlowCallback

SHARE = 0.02

_original = DefaultFlowCallback.on_step_end
_ended = 0.0
_device: "_Device | None" = None


def _on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
    global _ended, _device
    result = _original(self, args, state, control, **kwargs)
    # Where other work shares the core, a share of the wall time would be more than that of the step's own.
    now = time.thread_time()
    if torch.cuda.is_available():
        _device = _device or _Device()
        seconds = _device.step_ends(SHARE)
    else:
        seconds = (now - _ended) * SHARE if _ended else 0.0
    while time.thread_time() - now < seconds:
        pass
    _ended = time.thread_time()
    return result


class _Device:
    """Has the device sleep, so many of its cycles, whose length changes as it works: each sleep tells it for the next."""

    def __init__(self) -> None:
        self._rate = 1.5e9
        self._slept: deque[tuple[int, torch.cuda.Event, torch.cuda.Event]] = deque()
        self._steps: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._seconds: deque[float] = deque(maxlen=15)
        self._woke: torch.cuda.Event | None = None

    def step_ends(self, share: float) -> float:
        """Sleep for a share of the shortest step of late: in the others the process may have waited for its turn.

        Returns the seconds of the sleep, which begins when the step has ended.
        """
        ends = self._mark()
        if self._woke is not None:
            self._steps.append((self._woke, ends))
        # The host may be ahead: what the device has not done yet tells later.
        while self._steps and self._steps[0][1].query():
            begun, ended = self._steps.popleft()
            self._seconds.append(begun.elapsed_time(ended) / 1e3)
        while self._slept and self._slept[0][2].query():
            cycles, begun, ended = self._slept.popleft()
            # A very short one tells of its launch.
            if cycles > 30_000:
                self._rate = cycles / (begun.elapsed_time(ended) / 1e3)
        self._woke = ends
        seconds = share * min(self._seconds, default=0.0)
        if seconds:
            cycles = int(seconds * self._rate)
            torch.cuda._sleep(cycles)
            self._woke = self._mark()
            self._slept.append((cycles, ends, self._woke))
        return seconds

    def _mark(self) -> torch.cuda.Event:
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark


DefaultFlowCallback.on_step_end = _on_step_end  # type: ignore[method-assign]
