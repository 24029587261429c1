"""The one place that knows how releases differ. Everything else is written for the newest names."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from harness.environment import satisfies

#: TrainingArguments fields whose name changed: newest name -> the name that older releases know.
_OLDER_NAMES = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}


@functools.cache
def _training_argument_names() -> frozenset[str]:
    from transformers import TrainingArguments

    return frozenset(field.name for field in dataclasses.fields(TrainingArguments))


def training_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """TrainingArguments keywords for this release, from newest names.

    Raises LookupError naming a field that this release does not have.
    """
    known = _training_argument_names()
    translated = {}
    for name, value in values.items():
        here = name if name in known else _OLDER_NAMES.get(name, name)
        if here == "warmup_steps" and 0 < value < 1 and "warmup_ratio" in known and satisfies("transformers<5"):
            here = "warmup_ratio"  # before 5.0 a share of the steps had a field of its own
        if here not in known:
            raise LookupError(f"this transformers has no TrainingArguments.{name}")
        translated[here] = value
    return translated


def dtype_argument(dtype: Any) -> dict[str, Any]:
    """The keyword of from_pretrained that sets the dtype: `dtype`, or `torch_dtype` before transformers 4.56."""
    return {"dtype" if satisfies("transformers>=4.56") else "torch_dtype": dtype}
