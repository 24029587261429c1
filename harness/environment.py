"""What a result depends on: versions, Python, platform, device."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from typing import Any

from harness.errors import UsageError

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "numpy")


@functools.cache
def version(package: str) -> str | None:
    """The installed version of a distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe(device: str = "cpu") -> dict[str, Any]:
    """Versions of the stack, Python, platform and the device's name, as the JSON report holds them."""
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


def check_device(device: str) -> None:
    """UsageError where --device names no device, or one that torch does not find here."""
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device!r} is neither cpu nor cuda")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--device cuda: torch finds no CUDA device here; run with --device cpu")


def satisfies(requirement: str) -> bool:
    """Whether the installed stack meets a requirement such as "peft>=0.21,<0.22". Not installed: it does not."""
    from packaging.requirements import Requirement

    parsed = Requirement(requirement)
    installed = version(parsed.name)
    return installed is not None and parsed.specifier.contains(installed, prereleases=True)
