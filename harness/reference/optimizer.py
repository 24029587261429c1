"""The optimizer with its parameter groups, and the learning rate schedule."""

import math
import re
from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR

from harness.reference.settings import Arguments

#: Parameters whose lower-case name holds this get no weight decay. transformers/trainer.py:get_decay_parameter_names.
NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def make_optimizer(model: torch.nn.Module, args: Arguments) -> torch.optim.Optimizer:
    """Over the parameters that require gradients, in two groups, decay and no decay; the second may be empty.

    transformers/trainer.py:create_optimizer, trainer_optimizer.py.
    """
    decay: list[torch.nn.Parameter] = []
    exempt: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (exempt if NO_DECAY.search(name.lower()) else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": args.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    if args.optim == "sgd":
        return torch.optim.SGD(groups, lr=args.learning_rate)
    # Fused and plain differ by 1e-7 after 20 steps: enough to matter where bits are compared.
    fused = {"adamw_torch_fused": True, "adamw_torch": None}[args.optim]
    betas = (args.adam_beta1, args.adam_beta2)
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, fused=fused)


def factor(step: int, kind: str, warmup: int, total: int) -> float:
    """What the learning rate is multiplied by at update `step`, counted from 0. transformers/optimization.py."""
    if step < warmup and kind != "constant":
        return step / warmup
    progress, left = (step - warmup) / max(1, total - warmup), (total - step) / max(1, total - warmup)
    decay = {"linear": left, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    return max(0.0, {**decay, "constant": 1.0, "constant_with_warmup": 1.0}[kind])


def make_schedule(optimizer: torch.optim.Optimizer, args: Arguments, total: int) -> LambdaLR:
    """The schedule over `total` updates. A partial leaves {} in scheduler.pt, as upstream's do."""
    warmup = int(args.warmup_steps) if args.warmup_steps >= 1 else math.ceil(total * args.warmup_steps)
    return LambdaLR(optimizer, partial(factor, kind=args.lr_scheduler_type, warmup=warmup, total=total))
