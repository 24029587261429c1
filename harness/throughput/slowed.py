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
_cycles = 0.0


def _on_step_end(self, args, state, control, **kwargs):
    global _ended
    result = _original(self, args, state, control, **kwargs)
    now = _clock()
    if _ended:
        seconds = min(now - _ended, 10.0) * SHARE
        if torch.cuda.is_available():
            torch.cuda._sleep(int(seconds * _cycles_a_second()))
        while _clock() - now < seconds:
            pass
    _ended = _clock()
    return result


def _cycles_a_second() -> float:
    global _cycles
    if not _cycles:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        torch.cuda._sleep(10_000_000)
        end.record()
        torch.cuda.synchronize()
        _cycles = 10_000_000 / (start.elapsed_time(end) / 1e3)
    return _cycles


DefaultFlowCallback.on_step_end = _on_step_end  # type: ignore[method-assign]
