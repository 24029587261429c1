"""The one place that knows how releases differ. Everything else is written for the newest names."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import Iterable
from typing import Any

from harness.environment import satisfies, version

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
        if name == "train_sampling_strategy" and value == "group_by_length" and name not in known:
            here, value = "group_by_length", True  # a flag until the strategies had a field
        if here not in known:
            raise LookupError(f"this transformers has no TrainingArguments.{name}")
        if name == "data_seed" and satisfies("transformers>=4.46") and not satisfies("accelerate>=1.1"):
            raise LookupError("TrainingArguments.data_seed needs accelerate 1.1")
        if here == "include_num_input_tokens_seen" and isinstance(value, str) and satisfies("transformers<4.57"):
            raise LookupError(f"this transformers has no include_num_input_tokens_seen {value!r}")
        if here == "save_strategy" and value == "best" and satisfies("transformers<4.47"):
            raise LookupError("this transformers has no save_strategy 'best'")
        translated[here] = value
    return translated


def missing_adapter_field(peft_type: str, config: Iterable[str]) -> str | None:
    """Which field of an adapter config this peft has not, as "LoraConfig.use_dora"; None where it has them all."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = dict[Any, Any](PEFT_TYPE_TO_CONFIG_MAPPING).get(peft_type)
    if kind is None:
        return f"adapter type {peft_type!r}"
    known = {field.name for field in dataclasses.fields(kind)}
    return next((f"{kind.__name__}.{name}" for name in config if name not in known), None)


def missing_sharded_loading() -> str | None:
    """Why this Trainer takes no base that from_pretrained has sharded (DistributedConfig); None where it does."""
    from transformers import PreTrainedModel

    takes = hasattr(PreTrainedModel, "is_distributed_loading_by_transformers")
    return None if takes else "the Trainer takes no base that was sharded as it was loaded before transformers 5.19"


def missing_fsdp2() -> str | None:
    """Why this accelerate has no FSDP version 2 (torch's fully_shard); None where it has."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    known = {field.name for field in dataclasses.fields(FullyShardedDataParallelPlugin)}
    return None if "fsdp_version" in known else "accelerate has FSDP version 1 alone before 1.6"


def missing_quantization(storage: str | None = None) -> str | None:
    """Why no base model can be quantized by bitsandbytes here, and packed into that dtype; None where one can."""
    import torch

    if version("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    if torch.cuda.is_available():
        return None
    if not satisfies("transformers>=4.53"):
        return "transformers before 4.53 loads no bitsandbytes model without a GPU"
    packed_into_floats = storage not in (None, "uint8") and not satisfies("bitsandbytes>=0.47")
    return "bitsandbytes before 0.47 unpacks bytes alone without a GPU" if packed_into_floats else None


def adapts_in_compute_dtype() -> bool:
    """Whether adapters of a packed layer start in the dtype that it computes in: since peft 0.19; before, in float32."""
    return satisfies("peft>=0.19")


def dtype_argument(dtype: Any) -> dict[str, Any]:
    """The keyword of from_pretrained that sets the dtype: `dtype`, or `torch_dtype` before transformers 4.56."""
    return {"dtype" if satisfies("transformers>=4.56") else "torch_dtype": dtype}


def logged_digits() -> int | None:
    """How many digits the Trainer rounds a logged loss to: four before transformers 5.0, all of them (None) since."""
    return 4 if satisfies("transformers<5") else None


def logs_unclipped_norm() -> bool:
    """Whether the Trainer logs grad_norm with max_grad_norm=0 too: since transformers 5.3."""
    return satisfies("transformers>=5.3")


def forget_precision() -> None:
    """Let the next run decide on its precision, whatever an earlier one has left in this process.

    Before transformers 5.0 TrainingArguments write mixed precision into the environment, where the next ones find it
    again: a run in float32 after one in bfloat16 would compute in bfloat16. tf32=True, and accelerate where a model is
    compiled, have products of float32 computed in TF32 from then on.
    """
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    backends: Any = sys.modules["torch"].backends if "torch" in sys.modules else None
    if backends is None:
        return
    # In this order: torch refuses to read the old switch while the new ones say otherwise.
    backends.cuda.matmul.allow_tf32 = False
    if hasattr(backends, "fp32_precision"):
        backends.fp32_precision = backends.cuda.matmul.fp32_precision = "none"


def tokenizer_places() -> tuple[str, ...]:
    """Where save_model finds a tokenizer: an attribute of the Trainer, and since 4.50 one of its data collator."""
    if satisfies("transformers<4.46"):
        return ("tokenizer",)
    return ("processing_class",) if satisfies("transformers<4.50") else ("processing_class", "data_collator.tokenizer")


def token_rates() -> tuple[str, ...]:
    """What a log entry has besides a count of tokens: since transformers 4.52 the seconds and the tokens a second."""
    return ("train_runtime", "train_tokens_per_second") if satisfies("transformers>=4.52") else ()


def tensorboard_directory_from_environment() -> bool:
    """Whether TENSORBOARD_LOGGING_DIR is read: since transformers 5.0, before that it was the argument logging_dir."""
    return satisfies("transformers>=5")


def bf16_without_a_gpu() -> str | None:
    """Why bf16=True without a GPU and without use_cpu is no error in this release: before 4.52 the CPU was taken."""
    return "transformers before 4.52 takes the CPU for bf16 unasked" if satisfies("transformers<4.52") else None


def missing_load_option() -> str | None:
    """Why load_adapter of a transformers model takes no is_trainable in this release; None where it does."""
    from transformers import PreTrainedModel

    takes = inspect.signature(PreTrainedModel.load_adapter).parameters
    return None if "is_trainable" in takes else "load_adapter of this transformers takes no is_trainable"
