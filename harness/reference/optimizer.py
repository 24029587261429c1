"""The optimizer with its parameter groups, and the learning rate schedule."""

import math
import re
from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR

from harness.reference.settings import Arguments

#: Parameters whose lower-case name matches get no weight decay. trainer.py:get_decay_parameter_names.
NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def make_optimizer(model: torch.nn.Module, args: Arguments) -> torch.optim.Optimizer:
    """Make the optimizer over the parameters that require gradients. trainer.py:create_optimizer, trainer_optimizer.py.

    It has two groups, with and without weight decay. The second is there even if it is empty, as it is for LoRA.
    """
    trained = [(name.lower(), parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decay = [parameter for name, parameter in trained if not NO_DECAY.search(name)]
    exempt = [parameter for name, parameter in trained if NO_DECAY.search(name)]
    groups = [{"params": decay, "weight_decay": args.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    if args.optim == "sgd":
        return torch.optim.SGD(groups, lr=args.learning_rate)
    # The fused kernel rounds in another order: weights differ by 1e-7 after 20 steps, so bits show which one ran.
    fused = {"adamw_torch_fused": True, "adamw_torch": None}[args.optim]
    betas = (args.adam_beta1, args.adam_beta2)
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, fused=fused)


def factor(step: int, kind: str, warmup: int, total: int) -> float:
    """Return what the learning rate is multiplied by at optimizer step `step`, counted from 0. transformers/optimization.py.

    kind: lr_scheduler_type. warmup: steps in which the rate rises from 0. total: steps of the whole run.
    """
    if kind == "constant":
        return 1.0
    if step < warmup:
        return step / warmup
    if kind == "constant_with_warmup":
        return 1.0
    steps = max(1, total - warmup)
    if kind == "linear":
        return max(0.0, (total - step) / steps)
    assert kind == "cosine", kind
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warmup) / steps))))


def make_schedule(optimizer: torch.optim.Optimizer, args: Arguments, total: int) -> LambdaLR:
    """Make the schedule over `total` optimizer steps. trainer.py:create_scheduler."""
    warmup = int(args.warmup_steps) if args.warmup_steps >= 1 else math.ceil(total * args.warmup_steps)
    # A partial, as upstream: torch writes {} for it into scheduler.pt, and None for a plain function.
    return LambdaLR(optimizer, partial(factor, kind=args.lr_scheduler_type, warmup=warmup, total=total))
