"""Slow transformers.Trainer down on purpose, to see whether the clock finds it: `--preload harness.throughput.slowed`.

Each step takes SHARE longer: 2 %, or what `harness.throughput.rates` sets. On a CPU the process waits busily for that share
of the step before. On CUDA the host waits for that share of the device's step, and the device sleeps as long. So the step is
slower whichever of the two waits for the other.
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


def _on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
    global _ended, _device
    result = _original(self, args, state, control, **kwargs)
    # Wall time would count other work on the same core, too, and the slowdown would be too large.
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
    """Has the device sleep for a number of its cycles.

    The length of a cycle changes with the clock, so each sleep is timed, and the next one uses what was measured.
    """

    def __init__(self) -> None:
        self._rate = 1.5e9
        self._slept: deque[tuple[int, torch.cuda.Event, torch.cuda.Event]] = deque()
        self._steps: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._seconds: deque[float] = deque(maxlen=15)
        self._woke: torch.cuda.Event | None = None

    def step_ends(self, share: float) -> float:
        """Have the device sleep after the step that ends now, and return the seconds of the sleep.

        They are a share of the shortest of the last 15 steps. In a longer one, the process may have waited for its turn.
        """
        ends = self._mark()
        if self._woke is not None:
            self._steps.append((self._woke, ends))
        # The host may be ahead of the device. Events that the device has not reached are read at a later step.
        while self._steps and self._steps[0][1].query():
            begun, ended = self._steps.popleft()
            self._seconds.append(begun.elapsed_time(ended) / 1e3)
        while self._slept and self._slept[0][2].query():
            cycles, begun, ended = self._slept.popleft()
            # The time of a very short sleep is mostly that of its launch.
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
