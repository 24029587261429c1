"""The optimizer with its parameter groups: AdamW. `optimizers` has the others."""

import re

import torch

from harness.reference import optimizers
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
    if not args.optim.startswith("adamw_torch"):
        return optimizers.make(groups, args)
    # The fused kernel rounds in another order: weights differ by 1e-7 after 20 steps, so bits show which one ran.
    fused = True if args.optim == "adamw_torch_fused" else None
    betas = (args.adam_beta1, args.adam_beta2)
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, fused=fused)
