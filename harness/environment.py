"""What a result depends on: versions, Python, platform, device."""

from __future__ import annotations

import datetime
import functools
import importlib
import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

from harness.errors import UsageError

#: The packages whose releases are judged, in the order of the tables.
STACK = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")

PACKAGES = (*STACK, "safetensors", "numpy")


#: The variable that names optional packages which this process treats as not installed: a gate sets it on both sides, if
#: only one of them has the package. Names are of modules, and of distributions, separated by commas.
WITHOUT = "PEFT_HARNESS_WITHOUT"


def left_out() -> list[str]:
    """Return the modules and distributions that are treated as not installed."""
    return [name for name in os.environ.get(WITHOUT, "").split(",") if name]


def hide_left_out() -> None:
    """Have upstream not find the packages that are left out. It must not have imported them yet."""
    for name in left_out():
        # importlib.util.find_spec then finds nothing, and an import ends in ModuleNotFoundError.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


@functools.cache
def version(package: str) -> str | None:
    """Return the installed version of a distribution; None if it is not installed, or left out (`left_out`)."""
    if package in left_out():
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


#: Optional packages that upstream imports in the judged process itself. Ranks import deepspeed, and report its errors.
_IMPORTED = ("bitsandbytes", "optuna", "tensorboard")


def unimportable(package: str) -> str | None:
    """Say why an installed optional package cannot be imported, such as for lack of another one; None if it can."""
    if package not in _IMPORTED or version(package) is None:
        return None
    error = import_error(package)
    return f"{package} cannot be imported ({error})" if error else None


@functools.cache
def import_error(module: str) -> str:
    """Import a module. Return the first line of the error that this raises; "" if it raises none."""
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever its own code raises
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ""


def describe(device: str = "cpu") -> dict[str, Any]:
    """Return the stack's versions, Python, the platform and the device's name, in the form of the JSON report."""
    name = "cpu"
    if device == "cuda":
        import torch

        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cuda (none found)"
    return {
        "versions": {package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": name,
    }


def now() -> str:
    """Return the time in UTC, as reports have it: "2026-11-29T03:17:00Z"."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of this processor, by their names in Linux. Without /proc/cpuinfo there are none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith(("flags", "Features"))), "").split()[2:])


#: Why a case is skipped that is about repacked weights, or about weights that are not repacked.
REPACKS = "bitsandbytes repacks 4-bit weights for evaluation on a CPU with AVX512-BF16 only"


def repacks(device: str) -> bool:
    """Return whether bitsandbytes repacks 4-bit weights for evaluation on this device."""
    return device == "cpu" and "avx512_bf16" in cpu_flags()


#: The variable that names all usable GPUs. Set when this process, and those it starts, are limited to one of them.
GPUS = "PEFT_HARNESS_GPUS"


def peak_bytes(device: str = "cpu") -> int:
    """Return the peak memory of this process in bytes: resident, or allocated on the GPU since the last reset."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_bytes(device: str = "cpu") -> int:
    """Return the total memory of a device, in bytes."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gpus() -> list[str]:
    """Return the GPUs that ranks may use, by their names in CUDA_VISIBLE_DEVICES."""
    named = os.environ.get(GPUS, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    # torch counts through NVML. So CUDA has not yet read the variable when it is set.
    return [str(number) for number in range(torch.cuda.device_count())]


def see_one_gpu(turn: int = 0) -> None:
    """Limit this process, and those it starts, to one of several GPUs.

    - turn: counts through the GPUs, so that workers use different ones.

    The Trainer spreads a run over all GPUs that its process sees (nn.DataParallel), which multiplies the batch size.
    Ranks still see all GPUs (`gpus`). UsageError if CUDA was started before: it would stay on the first GPU.
    """
    found = gpus()
    if len(found) > 1:
        import torch

        if torch.cuda.is_initialized():
            raise UsageError(
                f"--device cuda: something started CUDA before one of {len(found)} GPUs was chosen, and it would stay on "
                "the first; name one in CUDA_VISIBLE_DEVICES"
            )
        os.environ[GPUS] = ",".join(found)
        os.environ["CUDA_VISIBLE_DEVICES"] = found[turn % len(found)]


def check_device(device: str, turn: int = 0) -> None:
    """Check that torch finds the device that --device names, otherwise raise UsageError. turn: see `see_one_gpu`."""
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device!r} is neither cpu nor cuda")
    if device == "cuda":
        import torch

        see_one_gpu(turn)
        if not torch.cuda.is_available():
            raise UsageError("--device cuda: torch finds no CUDA device here; run with --device cpu")


def satisfies(requirement: str) -> bool:
    """Return whether the installed stack meets a requirement such as "peft>=0.21,<0.22". A missing package does not."""
    from packaging.requirements import Requirement

    parsed = Requirement(requirement)
    installed = version(parsed.name)
    return installed is not None and parsed.specifier.contains(installed, prereleases=True)


def unmet(requirement: str) -> str | None:
    """Say why a case that needs this cannot be judged here: it is not installed, or cannot be imported. None if it can."""
    from packaging.requirements import Requirement

    return unimportable(Requirement(requirement).name) if satisfies(requirement) else f"needs {requirement}"
