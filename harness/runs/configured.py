"""Named runs with the arguments that real runs use: schedules and optimizers with their options, sampling, NEFTune.

`MIXED` combines them, so that few runs have every one of them, each beside others.
"""

from __future__ import annotations

import itertools
from typing import Any

from harness.runs.scenarios import PLAIN
from harness.spec import RunSpec

#: A short run that evaluates after every second step.
_EVALUATED = PLAIN.but(data={"eval_rows": 4}, eval_strategy="steps", eval_steps=2, max_steps=8)


def _schedule(kind: str, warmup: int = 0, **options: Any) -> dict[str, Any]:
    return {"lr_scheduler_type": kind, "warmup_steps": warmup, "lr_scheduler_kwargs": options or None}


#: Name -> the TrainingArguments of a schedule. Each option that a schedule has is set at least once.
SCHEDULE_ARGUMENTS: dict[str, dict[str, Any]] = {
    "cosine-cycles": _schedule("cosine", 2, num_cycles=0.8),
    "restarts": _schedule("cosine_with_restarts", 2, num_cycles=3),
    "polynomial": _schedule("polynomial", 2, power=2.0, lr_end=1e-4),
    "inverse-sqrt": _schedule("inverse_sqrt", 2, timescale=5),
    "inverse-sqrt-plain": _schedule("inverse_sqrt"),
    "min-lr": _schedule("cosine_with_min_lr", 2, min_lr=1e-3, num_cycles=0.7),
    "warmup-min-lr": _schedule("cosine_warmup_with_min_lr", 3, min_lr=1e-3),
    "warmup-min-lr-rate": _schedule("cosine_warmup_with_min_lr", 3, min_lr_rate=0.1, warmup_lr_rate=0.2),
    "wsd": _schedule("warmup_stable_decay", 2, num_decay_steps=3, num_cycles=0.4),
    "wsd-cosine-1-sqrt": _schedule(
        "warmup_stable_decay", 3, num_decay_steps=3, warmup_type="cosine", decay_type="1-sqrt", min_lr_ratio=0.1
    ),
    "wsd-1-sqrt-linear": _schedule(
        "warmup_stable_decay", 3, num_decay_steps=3, num_stable_steps=1, warmup_type="1-sqrt", decay_type="linear"
    ),
    "plateau": _schedule("reduce_lr_on_plateau", patience=0, factor=0.5, threshold=0.5),
    "greedy": _schedule("greedy", patience=0, factor=0.5, max_lr=0.1),
}

SCHEDULES: dict[str, RunSpec] = {name: _EVALUATED.but(**given) for name, given in SCHEDULE_ARGUMENTS.items()}

#: Name -> the TrainingArguments of an optimizer.
OPTIMIZER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "adafactor": {"optim": "adafactor"},
    "sgd": {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
    "adagrad": {"optim": "adagrad", "optim_args": "lr_decay=0.1"},
    "rmsprop": {"optim": "rmsprop", "optim_args": "alpha=0.9,centered=1,momentum=0.5"},
    "adamw-8bit": {"optim": "adamw_8bit"},
    "paged-adamw-8bit": {"optim": "paged_adamw_8bit"},
    "lion-8bit": {"optim": "lion_8bit"},
    "ademamix-8bit": {"optim": "paged_ademamix_8bit", "optim_args": "alpha=3,beta3=0.99,t_alpha=5"},
    "adam-settings": {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6},
}

#: Name -> how a run is changed by other arguments.
SETTINGS: dict[str, dict[str, Any]] = {
    "neftune": {"neftune_noise_alpha": 5.0},
    "sequential": {"train_sampling_strategy": "sequential"},
    "by-length": {"train_sampling_strategy": "group_by_length"},
    "eval-delay": {"eval_delay": 3, "eval_on_start": True},
    "tokens": {"include_num_input_tokens_seen": True, "logging_first_step": True, "logging_steps": 2},
    "no-effect": {"torch_empty_cache_steps": 2, "batch_eval_metrics": True, "run_name": "x", "ddp_timeout": 60},
    "unclipped": {"max_grad_norm": 0.0, "weight_decay": 0.1},
}


def mixed() -> dict[str, RunSpec]:
    """Return runs in which each schedule, optimizer and setting occurs. They save after step 4.

    The rank is 128, so that each tensor has at least 4096 numbers: bitsandbytes does not pack the moments of smaller ones.
    """
    plain = _EVALUATED.but(lora={"r": 128}, max_steps=6, save_strategy="steps", save_steps=4)
    names = zip(SCHEDULE_ARGUMENTS, itertools.cycle(OPTIMIZER_ARGUMENTS), itertools.cycle(SETTINGS))
    return {
        f"{schedule}/{optimizer}/{setting}": plain.but(
            **SCHEDULE_ARGUMENTS[schedule], **OPTIMIZER_ARGUMENTS[optimizer], **SETTINGS[setting]
        )
        for schedule, optimizer, setting in names
    }


MIXED: dict[str, RunSpec] = mixed()
