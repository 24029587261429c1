"""Process-wide settings: whether a call leaves environment variables and torch's settings as they were."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from harness.verdict import Verdict, verdict

#: Environment variables that choose the compiler of extensions.
COMPILERS = ("CC", "CXX")


def settings() -> dict[str, Any]:
    """Return the environment variables and torch's settings of this process, by name."""
    import torch

    return {
        **{f"environment variable {name}": value for name, value in os.environ.items()},
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients enabled": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "precision of float32 products": torch.get_float32_matmul_precision(),
        "cuDNN benchmarks": torch.backends.cudnn.benchmark,
    }


@contextmanager
def without_compilers() -> Iterator[None]:
    """Remove the compilers from the environment, and restore the environment at the end.

    An earlier call may have set them. Then the call that is judged would change nothing.
    """
    with patch.dict(os.environ):
        for name in COMPILERS:
            os.environ.pop(name, None)
        yield


def left_alone(before: dict[str, Any], after: dict[str, Any]) -> Verdict:
    """Check that each setting is what it was.

    - before, after: what `settings` returned before the call and after it.
    """
    absent = "not set"
    findings = [
        f"{name}: {after.get(name, absent)}, was {before.get(name, absent)}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name, absent) != after.get(name, absent)
    ]
    return verdict("the process is as it was", findings)
