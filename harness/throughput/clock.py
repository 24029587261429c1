"""Whether a GPU's clock stays while something is timed: one that draws all the power it may slows down, and not evenly."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: How far the clock may be from its highest, a share, in all but one of twenty looks.
STAYS = 0.01
#: Looks a second, and fewest that tell.
LOOKS, FEWEST = 4, 8


def steady(clocks: list[float]) -> bool:
    """Whether a clock stayed, by looks at it (MHz)."""
    if len(clocks) < FEWEST:
        return False
    low = sorted(clocks)[len(clocks) // 20]
    return low >= (1 - STAYS) * max(clocks)


@contextmanager
def watched(device: str) -> Iterator[Callable[[], bool]]:
    """Look at the clock of the GPU until the block ends. The call that is given tells whether it has stayed so far.

    False on a CPU, where there is no nvidia-smi, and as long as it has not looked often enough.
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
                looking = subprocess.Popen(
                    [*words, f"--loop-ms={1000 // LOOKS}"], stdout=output, stderr=subprocess.DEVNULL
                )
        except OSError:
            yield lambda: False
            return

        def seen() -> list[float]:
            # The last look may not be written out yet, and one that failed says so in words.
            return [float(line) for line in file.read_text().split("\n")[:-1] if line.strip().isdigit()]

        try:
            yield lambda: steady(seen())
        finally:
            looking.kill()
            looking.wait()
