"""Hypothesis strategies: training runs that nobody has listed. Shrinks to fewer steps, layers, rank and rows.

The simplest value of every choice stands first, since that is where hypothesis shrinks to.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from harness.spec import ADD, GET, LORA, RunSpec

#: Of a Llama layer, in the order in which a failing example sheds them.
_TARGETS = ("q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a ModelSpec: a Llama with 1 to 3 layers, tied or not, with or without attention dropout."""
    config: dict[str, Any] = {"num_hidden_layers": draw(st.integers(1, 3))}
    if draw(st.booleans()):
        config["attention_dropout"] = 0.1
    return {"family": draw(st.sampled_from(("llama", "llama-tied"))), "config": config, "seed": draw(st.integers(0, 3))}


@st.composite
def lora(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a LoraConfig that the reference implements as well."""
    chosen = draw(st.lists(st.sampled_from(_TARGETS), min_size=1, max_size=4, unique=True))
    return {
        **LORA,
        "r": draw(st.sampled_from((1, 2, 4, 8, 3))),
        "lora_alpha": draw(st.sampled_from((16, 1, 8, 32))),
        "lora_dropout": draw(st.sampled_from((0.0, 0.1, 0.5))),
        "use_rslora": draw(st.booleans()),
        "target_modules": sorted(chosen, key=_TARGETS.index),
    }


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a DataSpec: 3 to 40 rows of 4 to 16 tokens, even or ragged, with labels ignored or not."""
    length = draw(st.sampled_from((8, 4, 16)))
    ragged = draw(st.booleans())
    return {
        "rows": draw(st.integers(3, 40)),
        "length": length,
        "min_length": draw(st.integers(2, length)) if ragged else None,
        "ignored": draw(st.sampled_from((0.0, 0.3))),
        "seed": draw(st.integers(0, 3)),
    }


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """TrainingArguments that a one-process run on a CPU can have and the reference implements."""
    chosen: dict[str, Any] = {
        "max_steps": draw(st.integers(1, 8)),
        "per_device_train_batch_size": draw(st.integers(1, 5)),
        "gradient_accumulation_steps": draw(st.integers(1, 4)),
        "learning_rate": draw(st.sampled_from((1e-2, 1e-3))),
        "lr_scheduler_type": draw(st.sampled_from(("linear", "constant", "cosine", "constant_with_warmup"))),
        "warmup_steps": draw(st.integers(0, 3)),
        "weight_decay": draw(st.sampled_from((0.0, 0.1))),
        "max_grad_norm": draw(st.sampled_from((1.0, 0.0, 0.1))),
        "optim": draw(st.sampled_from(("adamw_torch_fused", "adamw_torch", "sgd"))),
        "label_smoothing_factor": draw(st.sampled_from((0.0, 0.1))),
        "logging_steps": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 99)),
        "bf16": draw(st.booleans()),
        "activation_checkpointing": draw(st.booleans()),
        "dataloader_drop_last": draw(st.booleans()),
    }
    if draw(st.booleans()):
        chosen["data_seed"] = draw(st.integers(0, 99))
    if draw(st.booleans()):  # epochs rather than steps; at most about twenty steps
        chosen |= {"max_steps": None, "num_train_epochs": draw(st.sampled_from((1, 1.5, 2)))}
    return chosen


@st.composite
def saving(draw: st.DrawFn) -> dict[str, Any]:
    """When to save: every 1 to 4 steps or at the end of each epoch."""
    if draw(st.booleans()):
        return {"save_strategy": "epoch"}
    return {"save_strategy": "steps", "save_steps": draw(st.integers(1, 4))}


@st.composite
def run_specs(draw: st.DrawFn, route: str | None = None) -> RunSpec:
    """Training runs through `route`, or either route. Each saves checkpoints, so that all can be resumed from."""
    data = draw(rows())
    chosen = {**draw(arguments()), **draw(saving())}
    if chosen["dataloader_drop_last"] and data["rows"] < chosen["per_device_train_batch_size"]:
        chosen["dataloader_drop_last"] = False  # not one batch would be left
    if chosen["max_steps"] is None:
        # As many rows as make at most ten steps an epoch.
        window = chosen["per_device_train_batch_size"] * chosen["gradient_accumulation_steps"]
        data["rows"] = min(data["rows"], 10 * window)
    return RunSpec().but(
        model=draw(models()),
        adapter={
            "route": route or draw(st.sampled_from((GET, ADD))),
            "config": draw(lora()),
            "seed": draw(st.integers(0, 3)),
        },
        data=data,
        **chosen,
    )
