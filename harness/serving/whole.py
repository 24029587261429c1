"""The section `file`: are the config and the tensors there, whole, finite, and as the config and the base demand?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.serving import demands
from harness.serving.directory import TENSORS, WHOLE, Adapter, quoted


def check(adapter: Adapter, model: Path | None, progress: Any) -> None:
    """Note what is wrong with an adapter that was read.

    - model: the base's directory, if there is one.
    - progress: `harness.progress.Task`, which is advanced for each tensor.
    """
    if adapter.verdict != WHOLE:
        return
    _check_numbers(adapter, progress)
    if model is not None:
        demands.check_with_base(adapter, model)
    else:
        demands.check(adapter)


def _check_numbers(adapter: Adapter, progress: Any) -> None:
    import torch
    from safetensors import safe_open

    broken, empty, last, moved = [], [], [], False
    with safe_open(adapter.path / TENSORS, framework="pt", device="cpu") as file:
        for name in adapter.tensors:
            tensor = file.get_tensor(name)
            progress.advance(1)
            wide = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
            if tensor.is_floating_point() and not bool(torch.isfinite(wide).all()):
                broken.append(name)
            if not tensor.numel():
                empty.append(name)
            if ".lora_B." in name or ".lora_embedding_B" in name:
                last.append(name)
                moved = moved or bool(wide.any())
    if broken:
        adapter.torn(TENSORS, f"has numbers that are NaN or infinite in {quoted(broken)}")
    if empty and adapter.peft_type == "LORA":
        adapter.torn(TENSORS, f"has tensors without numbers: {quoted(empty)}")
    if last and not moved:
        adapter.notes.append(
            "every lora_B is zero: the adapter changes nothing. It was saved before its first step, or never trained"
        )
