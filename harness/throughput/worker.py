"""The process that trains one side of a comparison, some steps at a time, and says how long each took.

    python -m harness.throughput.worker SUBJECT [PRELOAD]...

It reads a line of JSON, {"spec": ..., "cost": bool}; answers when the run has got over its first steps, or says why it
cannot; and then answers each line {"steps": N} with {"wall": [N seconds], "cpu": [N seconds]}. Between two lines it
waits, costs nothing, and holds no device memory that it can do without. On CUDA "wall" is read off events on the
stream, and "cpu" is what the host spent. {"steps": N, "slower": share} also sets by how much `harness.throughput.slowed`,
which must be a preload, slows them down.

The first answer has "loss", the mean over the first twelve steps, "huge_pages", whether memory lies in such, and "host", the
share of a step for which the host works rather than waits for the device; with cost, "flops" of a step and "saved_bytes",
what it keeps for the backward pass.
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
from harness.throughput.step_times import Marks

#: Set in the environment of a process that has begun anew (`fix_layout`).
LAID_OUT = "PEFT_HARNESS_LAID_OUT"

#: Steps before the first that is timed: allocators, Adam's states, and the kernels that are chosen at first use.
FIRST = 12
#: The one of them whose cost is counted, and those over which the host's share is taken: a graph is captured by then.
COUNTED = 4
SHARED = range(7, 10)
#: Where the peak of memory begins to count: before the one in which a graph is captured, which holds what a step takes.
SETTLED = 3


class Clock:
    """Times steps in blocks, and between blocks waits for the next line.

    On CUDA each block begins and ends with the device idle, and its first step, which fills it again, is not counted. On
    a CPU each is, though it finds the caches as the other side left them: in A B B A that befalls both sides alike, and a
    step that is not counted is time lost.
    """

    def __init__(self, device: str, answers: TextIO, cost: bool):
        self._cuda = device == "cuda"
        self._answers = answers
        self._skipped = 1 if self._cuda else 0
        self._marks = Marks(device)
        self._wanted = 0
        self._cost = Cost() if cost else None
        self._costs: dict[str, int] = {}
        self._work = HostWork()
        self._host = 1.0

    def step(self, number: int, log: list[dict[str, Any]]) -> bool:
        """A step begins. True ends the run: there are no more lines."""
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

            # The peak is that of steps: counting one keeps what is computed anew otherwise, and building a model takes more.
            torch.cuda.reset_peak_memory_stats()
        if number <= FIRST:
            return False
        if self._wanted:
            self._marks.add()
            if len(self._marks) < self._wanted + self._skipped + 1:
                return False
            answer = self._marks.seconds(self._skipped)
        else:
            loss = next((entry["loss"] for entry in log if "loss" in entry), None)
            answer = {"loss": loss, "huge_pages": in_huge_pages(), "host": self._host, **self._costs}
        if self._cuda:
            import torch

            # What this side's allocator has kept is room that the other side may need.
            torch.cuda.empty_cache()
        self._tell(answer)
        line = sys.stdin.readline()
        if not line:
            return True
        asked = json.loads(line)
        self._wanted = int(asked["steps"])
        if "slower" in asked:
            from harness.throughput import slowed

            slowed.SHARE = asked["slower"]
        self._marks.clear()
        self._marks.add()
        return False

    def _tell(self, body: dict[str, Any]) -> None:
        self._answers.write(json.dumps(body) + "\n")
        self._answers.flush()


class HostWork:
    """The share of a time on CUDA for which the host works: it is made to sleep, for once, while it waits for the device."""

    def begin(self) -> None:
        self._sleeping(True)
        self._began = time.perf_counter(), time.process_time()

    def end(self) -> float:
        wall, work = self._sleeping(False) - self._began[0], time.process_time() - self._began[1]
        return min(1.0, work / wall)

    def _sleeping(self, wanted: bool) -> float:
        """Whether threads sleep while they wait (CU_CTX_SCHED_BLOCKING_SYNC of cuda.h), or do so busily, as they always do.

        Returns the time, with the device idle. A driver before CUDA 12.1 has no such call, and its waits count as work.
        """
        import torch

        torch.cuda.synchronize()
        getattr(ctypes.CDLL("libcuda.so.1"), "cuCtxSetFlags", lambda flags: None)(4 if wanted else 0)
        return time.perf_counter()


class Cost:
    """Floating-point operations of a step, and the bytes that its forward passes keep for the backward pass."""

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
        # A weight is there anyway.
        self._saved += tensor.nbytes * (tensor.grad_fn is not None or not tensor.is_leaf)
        return tensor


def main(subject: str, preloads: list[str]) -> None:
    """Serve one spec until there are no more lines."""
    # What upstream prints must not get between the answers.
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
        # What CUDA says has advice in further lines.
        said = next(iter(str(error).splitlines()), "without a word")
        answers.write(json.dumps({"refused": f"{type(error).__name__}: {said}"}) + "\n")
        raise


def fix_layout() -> None:
    """Begin this process anew with memory that is laid out alike each time, as far as Linux lets it.

    Where memory comes to lie makes one process faster than its twin for as long as it lives (`judgement.SPREAD`). So
    addresses and hashes are fixed; and all is allocated by malloc in huge pages, each of which lies in the caches in one way.
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
    """Whether most of this process's own memory is."""
    try:
        lines = rollup.read_text().splitlines()[1:]
    except OSError:
        return False
    sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return 2 * sizes.get("AnonHugePages", 0) > sizes["Anonymous"]


if __name__ == "__main__":
    fix_layout()
    main(sys.argv[1], sys.argv[2:])
