"""The process that trains one side of a comparison, some steps at a time, and says how long each took.

    python -m harness.throughput.worker SUBJECT [PRELOAD]...

It reads requests from stdin and writes answers to stdout, each a line of JSON:

1. The first request is {"spec": ..., "cost": bool}. It is answered when the run has finished its first steps, or with
   {"refused": why} if the run cannot be timed. The answer has

   - "loss": the mean loss of the first twelve steps.
   - "huge_pages": whether the process's memory lies in huge pages.
   - "host": the share of a step for which the host works and does not wait for the device.
   - "flops" and "saved_bytes", if "cost" is true: floating-point operations of a step, and bytes kept for its backward pass.

2. Each further request is {"steps": N}, and is answered with {"wall": [N seconds], "cpu": [N seconds], "peak_bytes": N}; see
   `harness.throughput.step_times`. {"steps": N, "slower": share} also sets by how much `harness.throughput.slowed`, which
   must be a preload, slows the steps down. {"steps": N, "kernels": true} is answered with {"kernels": [[name, seconds of a
   step, calls of a step], ...]} instead; see `harness.throughput.kernels`.

Between two requests the process waits, uses no processor time, and frees what device memory it can. It trains without the
harness's patches for speed (`harness.patches`): accelerate looks for a package twice in each step, which one of them caches.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from harness import subjects
from harness.errors import UsageError
from harness.paths import SAFE_PATH
from harness.processes.imports import import_upstream
from harness.spec import RunSpec
from harness.throughput.kernels import Recorder
from harness.throughput.step_times import StepTimes

#: Set in the environment of a process that `fix_layout` has started again.
LAID_OUT = "PEFT_HARNESS_LAID_OUT"

#: Steps before the first timed one. In these, allocators grow, Adam makes its states, and kernels are chosen.
FIRST = 12
#: The step whose cost is counted.
COUNTED = 4
#: The steps over which the host's share is measured. A compiled step has been captured as a graph by then.
SHARED = range(7, 10)
#: The step from which on the peak of memory counts. It precedes the capture of a graph, which allocates a step's memory.
SETTLED = 3


class Clock:
    """Times steps in blocks, and waits for the next request between blocks.

    On CUDA each block begins and ends with the device idle. Its first step fills the device's queue again and is not counted.
    On a CPU every step is counted, although the first finds the caches as the other side left them. In the order A B B A that
    happens to both sides equally, and a step that is not counted would be lost time.
    """

    def __init__(self, device: str, answers: TextIO, cost: bool):
        self._cuda = device == "cuda"
        self._answers = answers
        self._skipped = 1 if self._cuda else 0
        self._times = StepTimes(device)
        self._steps = 0
        self._cost = Cost() if cost else None
        self._costs: dict[str, int] = {}
        self._work = HostWork()
        self._host = 1.0
        self._kernels: Recorder | None = None

    def step(self, number: int, log: list[dict[str, Any]]) -> bool:
        """Take note that a step begins. Returns True, which ends the run, if there are no more requests."""
        if self._cost is not None and number == COUNTED:
            self._cost.begin()
        elif self._cost is not None and number == COUNTED + 1:
            self._costs = self._cost.end()
        if self._cuda and number == SHARED.start:
            self._work.begin()
        elif self._cuda and number == SHARED.stop:
            self._host = self._work.end()
        if self._cuda and number == (FIRST if self._cost is not None else SETTLED):
            import torch

            # The peak must be that of steps. Building the model takes more, and so does the step whose cost is counted.
            torch.cuda.reset_peak_memory_stats()
        if number <= FIRST:
            return False
        if self._steps:
            self._times.step_begins()
            if len(self._times) < self._steps + self._skipped + 1:
                return False
            answer = self._times.seconds(self._skipped)
            if self._kernels is not None:
                answer, self._kernels = {"kernels": self._kernels.end(self._steps + self._skipped)}, None
        else:
            loss = next((entry["loss"] for entry in log if "loss" in entry), None)
            answer = {"loss": loss, "huge_pages": in_huge_pages(), "host": self._host, **self._costs}
        if self._cuda:
            import torch

            # The other side may need the memory that this side's allocator holds.
            torch.cuda.empty_cache()
        self._answer(answer)
        line = sys.stdin.readline()
        if not line:
            return True
        request = json.loads(line)
        self._steps = int(request["steps"])
        if "slower" in request:
            from harness.throughput import slowed

            slowed.SHARE = request["slower"]
        if request.get("kernels"):
            self._kernels = Recorder("cuda" if self._cuda else "cpu")
        self._times.clear()
        self._times.step_begins()
        return False

    def _answer(self, body: dict[str, Any]) -> None:
        self._answers.write(json.dumps(body) + "\n")
        self._answers.flush()


class HostWork:
    """Measures, on CUDA, for which share of a time the host works. It normally waits for the device in a busy loop, which
    cannot be told from work, so here it sleeps while it waits."""

    def begin(self) -> None:
        self._sleep_while_waiting(True)
        self._began = time.perf_counter(), time.process_time()

    def end(self) -> float:
        """Return the share since `begin`."""
        wall, work = self._sleep_while_waiting(False) - self._began[0], time.process_time() - self._began[1]
        return min(1.0, work / wall)

    def _sleep_while_waiting(self, sleep: bool) -> float:
        """Set whether threads sleep while they wait (cuda.h: CU_CTX_SCHED_BLOCKING_SYNC). Return the time, the device idle.

        A driver before CUDA 12.1 does not have the call, and then waiting counts as work.
        """
        import torch

        torch.cuda.synchronize()
        getattr(ctypes.CDLL("libcuda.so.1"), "cuCtxSetFlags", lambda flags: None)(4 if sleep else 0)
        return time.perf_counter()


class Cost:
    """Counts the floating-point operations of a step, and the bytes that its forward passes keep for the backward pass."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._flops: Any = None
        self._saved = 0

    def begin(self) -> None:
        import torch

        from harness.throughput.counters import flop_counter

        self._flops = self._stack.enter_context(flop_counter())
        self._stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor))

    def end(self) -> dict[str, int]:
        self._stack.close()
        return {"flops": self._flops.get_total_flops(), "saved_bytes": self._saved}

    def _pack(self, tensor: Any) -> Any:
        # Weights are not counted: they are in memory anyway.
        self._saved += tensor.nbytes * (tensor.grad_fn is not None or not tensor.is_leaf)
        return tensor


def main(subject: str, preloads: list[str]) -> None:
    """Serve one spec until there are no more requests."""
    # What upstream prints must not mix with the answers, so it goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    line = sys.stdin.readline()
    if not line:
        return
    task = json.loads(line)
    spec = RunSpec.from_json(task["spec"])
    clock = Clock(spec.launch.device, answers, task["cost"])
    try:
        import_upstream(preloads, threads=spec.launch.threads, patched=False)
        from harness.throughput.stepping import train

        with tempfile.TemporaryDirectory() as directory:
            train(subjects.load(subject), spec, Path(directory), clock.step)
    except UsageError as error:
        answers.write(json.dumps({"refused": str(error)}) + "\n")
    except Exception as error:
        # CUDA's errors have advice in further lines.
        first_line = next(iter(str(error).splitlines()), "no message")
        answers.write(json.dumps({"refused": f"{type(error).__name__}: {first_line}"}) + "\n")
        raise


def fix_layout() -> None:
    """Start this process again with the same memory layout each time, as far as Linux allows.

    The place of its memory makes one process faster than an equal one for as long as it runs (`judgement.SPREAD`). So
    addresses and hashes are fixed, and malloc allocates everything in huge pages, which lie in the caches in one way only.
    """
    if LAID_OUT in os.environ or not sys.platform.startswith("linux"):
        return
    tunables = [*filter(None, [os.environ.get("GLIBC_TUNABLES")]), "glibc.malloc.hugetlb=1"]
    os.environ |= {LAID_OUT: "1", "PYTHONHASHSEED": "0", "PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": ":".join(tunables)}
    personality = getattr(ctypes.CDLL(None), "personality", lambda persona: -1)
    now = personality(0xFFFFFFFF)
    if now >= 0:
        personality(now | 0x0040000)  # ADDR_NO_RANDOMIZE, sys/personality.h
    os.execv(sys.executable, [sys.executable, *SAFE_PATH, "-m", "harness.throughput.worker", *sys.argv[1:]])


def in_huge_pages(rollup: Path = Path("/proc/self/smaps_rollup")) -> bool:
    """Return whether most of this process's own memory lies in huge pages."""
    try:
        lines = rollup.read_text().splitlines()[1:]
    except OSError:
        return False
    sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return 2 * sizes.get("AnonHugePages", 0) > sizes["Anonymous"]


if __name__ == "__main__":
    fix_layout()
    main(sys.argv[1], sys.argv[2:])
