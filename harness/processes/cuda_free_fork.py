"""Import upstream where there is a GPU, and leave CUDA alone: a process that has started it cannot be forked.

What is asked of the GPUs meanwhile is answered by NVML, as torch does itself where it is told to.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

#: torch's own variable: count GPUs through NVML.
_BY_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"

#: What the driver answers before its first cuInit (cuda.h: CUDA_ERROR_NOT_INITIALIZED).
_NOT_INITIALIZED = 3


def started() -> bool:
    """Whether this process, or one that it was forked from, has started CUDA: none forked from it can use a GPU then."""
    import torch

    # In a fork of a process that has started it the driver says that it is not.
    if torch.cuda._is_in_bad_fork():
        return True
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # no driver
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != _NOT_INITIALIZED)


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Within it, what upstream asks of GPUs at its import does not start CUDA: whether there are any, and of what kind."""
    import torch

    variable, ask = os.environ.get(_BY_NVML), torch.cuda.get_device_capability
    os.environ[_BY_NVML] = "1"
    torch.cuda.get_device_capability = _capability
    try:
        yield
    finally:
        torch.cuda.get_device_capability = ask
        if variable is None:
            del os.environ[_BY_NVML]
        else:
            os.environ[_BY_NVML] = variable


def _capability(device: Any = 0) -> tuple[int, int]:
    """torch.cuda.get_device_capability() by NVML: bitsandbytes chooses the library that it loads by it."""
    import torch

    index = torch.cuda._get_nvml_device_index(getattr(device, "idx", device))
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    handle, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    failures = (
        nvml.nvmlInit_v2(),
        nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)),
        nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)),
    )
    if any(failures):
        raise RuntimeError(f"NVML does not tell the compute capability of GPU {index}: errors {failures}")
    return major.value, minor.value
