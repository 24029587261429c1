"""Counting the tokens that a run has read: include_num_input_tokens_seen. trainer.py:_track_num_input_tokens, log."""

from typing import Any

import torch


def seen(batch: dict[str, torch.Tensor], counted: str | bool) -> int:
    """Return how many tokens of a batch count. counted: "no", "all" or True, "non_padding"."""
    if counted in (False, "no"):
        return 0
    return int(batch["attention_mask"].sum()) if counted == "non_padding" else batch["input_ids"].numel()


def entry(state: Any, counted: str | bool) -> dict[str, int]:
    """Return what a log entry says about them."""
    return {} if counted in (False, "no") else {"num_input_tokens_seen": state.num_input_tokens_seen}
