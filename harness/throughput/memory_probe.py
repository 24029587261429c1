"""Measure the tensors that a run holds, in bytes of torch's allocator. Unlike resident memory, these repeat exactly."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.spec import RunSpec
from harness.subjects.hf_trainer import HFTrainer, recorded_warnings

BEGIN = "peft-harness: train begins"
STEP = "peft-harness: step ends"


@dataclass
class Memory:
    """Bytes that were allocated since train() was called and are not freed.

    - held: after each optimizer step.
    - peaks: the most at any moment of each step.
    """

    held: list[int]
    peaks: list[int]


def measure(subject: HFTrainer, spec: RunSpec, directory: Path) -> Memory:
    """Train a spec, and measure its memory.

    On a CPU torch's profiler reports every allocation. On CUDA the allocator counts.
    """
    if (subject.device or spec.launch.device) == "cuda":
        return _measure_on_cuda(subject, spec, directory)
    from torch.profiler import ProfilerActivity, profile, record_function
    from transformers import TrainerCallback

    def mark(name: str) -> None:
        # Tensors in reference cycles are freed by the garbage collector, whenever it runs. So it runs before memory is read.
        gc.collect()
        with record_function(name):
            pass

    class MarkSteps(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            mark(BEGIN)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            mark(STEP)

    with recorded_warnings([]):
        trainer = subject.build(spec, directory)
        trainer.add_callback(MarkSteps())
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            trainer.train()
    file = directory / "profile.json"
    profiled.export_chrome_trace(str(file))
    return Memory(*read(json.loads(file.read_text(encoding="utf-8"))["traceEvents"]))


def _measure_on_cuda(subject: HFTrainer, spec: RunSpec, directory: Path) -> Memory:
    import torch
    from transformers import TrainerCallback

    class Counts(TrainerCallback):
        def __init__(self) -> None:
            self.before, self.seen = 0, Memory([], [])

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            gc.collect()
            self.before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            gc.collect()
            self.seen.held.append(torch.cuda.memory_allocated() - self.before)
            self.seen.peaks.append(torch.cuda.max_memory_allocated() - self.before)
            torch.cuda.reset_peak_memory_stats()

    with recorded_warnings([]):
        # cuBLAS keeps the workspace that its first products allocate. It is no part of a step, so a first run allocates it.
        subject.build(spec, directory / "first").train()
        trainer = subject.build(spec, directory / "measured")
        trainer.add_callback(counts := Counts())
        trainer.train()
    return counts.seen


def read(events: Iterable[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """Return the bytes held after each step, and the peak of each, from a profile's events in the Chrome trace format.

    Memory that was allocated before the profile began is not counted when it is freed.
    """
    relevant = [event for event in events if event.get("name") in ("[memory]", BEGIN, STEP) and "ts" in event]
    allocated: dict[int, int] = {}
    held, peaks = [], []
    live = peak = 0
    for event in sorted(relevant, key=lambda event: event["ts"]):
        if event["name"] == "[memory]":
            size, address = event["args"]["Bytes"], event["args"]["Addr"]
            if event["args"].get("Device Type") != 0:
                continue
            if size > 0:
                allocated[address] = size
                live += size
            else:
                live -= allocated.pop(address, 0)
            peak = max(peak, live)
        elif event.get("cat") == "user_annotation":
            if event["name"] == STEP:
                held.append(live)
                peaks.append(peak)
            peak = live
    return held, peaks
