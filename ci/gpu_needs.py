"""Say what `ci/gpu-suites` needs of this machine, and whether it is there: a line for each. Exit code 2 if a need is not met.

Only the standard library and torch are used: nothing is installed yet.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

#: GiB. The suites write checkpoints of tiny models, and the 7B examples none. Packages that are installed take 2 GiB.
DISK = 4.0
#: GiB of a GPU. The 7B examples take 14; without as much they are skipped.
LARGE = 16.0
#: Packages that are judged or needed. What is missing is installed.
PACKAGES = (
    *("transformers", "peft", "accelerate", "bitsandbytes"),
    *("peft-harness", "pytest", "optuna", "tensorboard", "scipy"),
)

Found = tuple[bool, str]


def python() -> Found:
    here = ".".join(map(str, sys.version_info[:2]))
    return (3, 10) <= sys.version_info[:2] <= (3, 13), f"Python 3.10 to 3.13; this is {here}"


def compiler() -> Found:
    """torch.compile builds a launcher for its kernels with the C compiler."""
    found = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "cc", "clang")))), None)
    return found is not None, f"a C compiler, for torch.compile; {found or 'none is on PATH: install gcc, or set CC'}"


def disk() -> Found:
    places = dict.fromkeys((os.getcwd(), tempfile.gettempdir()))
    free = {place: shutil.disk_usage(place).free / 2**30 for place in places}
    words = ", ".join(f"{place} has {room:.0f}" for place, room in free.items())
    return min(free.values()) >= DISK, f"{DISK:.0f} GiB free; {words}"


def bfloat16() -> Found:
    import torch

    able = torch.cuda.get_device_capability() >= (8, 0)
    words = "{} has capability {}.{}".format(torch.cuda.get_device_name(), *torch.cuda.get_device_capability())
    return able, f"a GPU that computes in bfloat16 (compute capability 8.0); {words}"


def large() -> Found:
    import torch

    free = torch.cuda.mem_get_info()[0] / 2**30
    return free >= LARGE, f"{LARGE:.0f} GiB of GPU memory, for the 7B examples; {free:.0f} are free"


def second() -> Found:
    import torch

    count = torch.cuda.device_count()
    return count > 1, f"two GPUs, for runs in several ranks; there {'is' if count == 1 else 'are'} {count}"


def packages() -> Found:
    missing = []
    for name in PACKAGES:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return not missing, f"packages; missing, so pip must reach an index: {', '.join(missing) or 'none'}"


#: What must be there, and what is wanted.
NEEDS: tuple[Callable[[], Found], ...] = (python, compiler, disk)
WANTED: tuple[Callable[[], Found], ...] = (bfloat16, large, second, packages)


def main() -> int:
    lacking = False
    for check in (*NEEDS, *WANTED):
        there, words = check()
        lacking |= not there and check in NEEDS
        state = "there" if there else "MISSING" if check in NEEDS else "not there"
        print(f"ci/gpu-suites: {state:9} {words}", file=sys.stderr)
    return 2 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
