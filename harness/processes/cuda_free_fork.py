"""Import upstream without starting CUDA. A process that has started CUDA cannot be forked into ranks that use a GPU.

Upstream asks about GPUs while it is imported. `cuda_untouched` has NVML answer, as torch does if its own variable says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

#: torch's own variable. If it is "1", torch counts GPUs through NVML.
_BY_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"

#: The driver's answer before its first cuInit (cuda.h: CUDA_ERROR_NOT_INITIALIZED).
_NOT_INITIALIZED = 3


def cuda_started() -> bool:
    """Return whether this process, or one that it was forked from, has started CUDA."""
    import torch

    # After a fork the driver says that CUDA is not started, although it was in the parent. torch remembers that.
    if torch.cuda._is_in_bad_fork():
        return True
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # there is no driver
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != _NOT_INITIALIZED)


@contextlib.contextmanager
def cuda_untouched() -> Iterator[None]:
    """Have NVML answer whether there are GPUs, and of which kind, within the block. CUDA would be started to answer."""
    import torch

    variable, by_cuda = os.environ.get(_BY_NVML), torch.cuda.get_device_capability
    os.environ[_BY_NVML] = "1"
    torch.cuda.get_device_capability = _capability_by_nvml
    try:
        yield
    finally:
        torch.cuda.get_device_capability = by_cuda
        if variable is None:
            del os.environ[_BY_NVML]
        else:
            os.environ[_BY_NVML] = variable


def _capability_by_nvml(device: Any = 0) -> tuple[int, int]:
    """Answer torch.cuda.get_device_capability(), by which bitsandbytes chooses its library. RuntimeError if NVML fails."""
    import torch

    index = torch.cuda._get_nvml_device_index(getattr(device, "idx", device))
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    handle, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    errors = (
        nvml.nvmlInit_v2(),
        nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)),
        nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)),
    )
    if any(errors):
        raise RuntimeError(f"NVML does not tell the compute capability of GPU {index}: errors {errors}")
    return major.value, minor.value
