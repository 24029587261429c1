"""An adapter's tensors: are they finite and not zero, and are they those that its config and the base demand?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.checkpoints import demands, stored_numbers
from harness.checkpoints.adapter_directory import TENSORS, WHOLE, Adapter, quoted


def check(adapter: Adapter, model: Path | None, progress: Any = None) -> None:
    """Note what is wrong with an adapter that was read.

    - model: the base's directory, if there is one.
    - progress: `harness.progress.Task`, which is advanced for each tensor.
    """
    if adapter.verdict != WHOLE:
        return
    if adapter.tensors_file == TENSORS:
        _check_numbers(adapter, progress)
    if model is not None:
        demands.check_with_base(adapter, model)
    else:
        demands.check(adapter)


def _check_numbers(adapter: Adapter, progress: Any) -> None:
    scan = stored_numbers.scan(adapter.path / TENSORS, adapter.tensors)
    if progress is not None:
        progress.advance(len(adapter.tensors))
    if scan.infinite:
        adapter.torn(TENSORS, f"has numbers that are NaN or infinite in {quoted(sorted(scan.infinite))}")
    empty = [name for name, entry in adapter.tensors.items() if 0 in entry.shape]
    if empty and adapter.peft_type == "LORA":
        adapter.torn(TENSORS, f"has tensors without numbers: {quoted(empty)}")
    first = sorted(
        name for name in adapter.tensors if ".lora_A." in name and name not in scan.moved and name not in empty
    )
    second = {name for name in adapter.tensors if ".lora_B." in name or ".lora_embedding_B" in name}
    if scan.cut:
        adapter.torn(TENSORS, scan.cut)
    elif first and scan.moved:
        adapter.torn(TENSORS, f"has only zeros in {quoted(first)}: lora_A starts at random numbers")
    if second and not scan.moved & second:
        adapter.notes.append(
            "every lora_B is zero: the adapter changes nothing. It was saved before its first step, or never trained"
        )
