"""A slowdown put in on purpose, to see whether it is found: `--preload harness.throughput.slowed`.

Each step of transformers.Trainer takes two percent longer, or as much as `harness.throughput.rates` says: the host waits
busily for that share of the step that ends, and on CUDA the device sleeps as long, so that it is that much slower whichever
of the two the other waits for.
"""

import time

import torch
from transformers.trainer_callback import DefaultFlowCallback

# Where other work shares the core, a share of the wall time would be more than that of the step's own.
_clock = time.perf_counter if torch.cuda.is_available() else time.thread_time

SHARE = 0.02

_original = DefaultFlowCallback.on_step_end
_ended = 0.0
_sleeper: "_Sleeper | None" = None


def _on_step_end(self, args, state, control, **kwargs):
    global _ended, _sleeper
    result = _original(self, args, state, control, **kwargs)
    now = _clock()
    if _ended:
        seconds = min(now - _ended, 10.0) * SHARE
        if torch.cuda.is_available():
            _sleeper = _sleeper or _Sleeper()
            _sleeper.sleep(seconds)
        while _clock() - now < seconds:
            pass
    _ended = _clock()
    return result


class _Sleeper:
    """Has the device sleep, so many of its cycles, whose length changes as it works: each sleep tells it for the next."""

    def __init__(self) -> None:
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._rate, self._slept = 1.5e9, 0

    def sleep(self, seconds: float) -> None:
        # A step lies between, and that sleep is over. A very short one tells of its launch.
        if self._slept > 30_000 and self._end.query():
            self._rate = self._slept / (self._start.elapsed_time(self._end) / 1e3)
        self._slept = int(seconds * self._rate)
        self._start.record()
        torch.cuda._sleep(self._slept)
        self._end.record()


DefaultFlowCallback.on_step_end = _on_step_end  # type: ignore[method-assign]
