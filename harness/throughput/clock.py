"""Watch whether a GPU's clock stays the same while steps are timed.

A GPU that draws all the power that it may lowers its clock, and not evenly.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: How far below its highest a steady clock may be, a share. One sample of twenty may be lower.
TOLERANCE = 0.01
#: Samples a second.
SAMPLES_PER_SECOND = 4
#: With fewer samples than this, a clock does not count as steady.
FEWEST_SAMPLES = 8


def steady(clocks: list[float]) -> bool:
    """Return whether a clock was steady, by samples in MHz."""
    if len(clocks) < FEWEST_SAMPLES:
        return False
    low = sorted(clocks)[len(clocks) // 20]
    return low >= (1 - TOLERANCE) * max(clocks)


@contextmanager
def watched(device: str) -> Iterator[Callable[[], bool]]:
    """Sample the GPU's clock, through nvidia-smi, until the block ends. The value says whether it has been steady so far.

    It says False on a CPU, if there is no nvidia-smi, and as long as there are too few samples.
    """
    if device != "cuda":
        yield lambda: False
        return
    import torch

    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "clocks"
        card = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        words = ["nvidia-smi", "-i", card, "--query-gpu=clocks.sm", "--format=csv,noheader,nounits"]
        try:
            with file.open("w") as output:
                sampler = subprocess.Popen(
                    [*words, f"--loop-ms={1000 // SAMPLES_PER_SECOND}"], stdout=output, stderr=subprocess.DEVNULL
                )
        except OSError:
            yield lambda: False
            return

        def samples() -> list[float]:
            # The last line may not be complete yet. A sample that failed is words, not a number.
            return [float(line) for line in file.read_text().split("\n")[:-1] if line.strip().isdigit()]

        try:
            yield lambda: steady(samples())
        finally:
            sampler.kill()
            sampler.wait()
