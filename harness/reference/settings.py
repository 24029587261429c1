"""The settings of a run: upstream's own names and defaults. There is a field only for what is implemented."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Arguments:
    """transformers/training_args.py:TrainingArguments. Strategies are "no", "steps", "epoch", or "best" for saving.

    A number of steps below 1 is a share of all steps, rounded up. If eval_steps is None, logging_steps is used.
    """

    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 3.0
    max_steps: int = -1
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: Mapping[str, Any] | None = None
    warmup_steps: float = 0
    optim: str = "adamw_torch_fused"
    optim_args: str | None = None
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    label_smoothing_factor: float = 0.0
    neftune_noise_alpha: float | None = None
    seed: int = 42
    data_seed: int | None = None
    train_sampling_strategy: str = "random"
    ignore_data_skip: bool = False
    dataloader_drop_last: bool = False
    bf16: bool = False
    activation_checkpointing: bool = False
    activation_checkpointing_kwargs: Mapping[str, Any] | None = None
    logging_strategy: str = "steps"
    logging_steps: float = 500
    logging_first_step: bool = False
    logging_nan_inf_filter: bool = True
    include_num_input_tokens_seen: str | bool = "no"
    eval_strategy: str = "no"
    eval_steps: float | None = None
    eval_delay: float = 0  # steps or epochs, as eval_strategy says
    eval_on_start: bool = False
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    save_strategy: str = "steps"
    save_steps: float = 500
    save_total_limit: int | None = None
    save_only_model: bool = False
    load_best_model_at_end: bool = False


@dataclass(frozen=True)
class LoraConfig:
    """peft/tuners/lora/config.py:LoraConfig.

    target_modules: ends of module paths ("q_proj"), or "all-linear": every linear layer but the output embeddings.
    """

    target_modules: list[str] | str
    r: int = 8
    lora_alpha: int = 8
    lora_dropout: float = 0.0
    use_rslora: bool = False
    bias: str = "none"
    task_type: str | None = None
