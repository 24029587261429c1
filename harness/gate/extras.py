"""Optional packages: both sides of a gate have the same ones.

Upstream looks for these packages and behaves differently if it finds one, and some cases need one. So an environment that is
made gets those that this environment has. What only one side has is left out on both: its processes do not find it
(`harness.environment.WITHOUT`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from harness.environment import WITHOUT
from harness.gate.environments import ALWAYS, Environment

#: The optional packages that transformers' Trainer, accelerate and peft look for -> the modules that they look for.
OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "bitsandbytes": ("bitsandbytes",),
    "optuna": ("optuna",),
    "tensorboard": ("tensorboard",),
    "tensorboardx": ("tensorboardX",),
    "deepspeed": ("deepspeed",),
    # methods of peft
    "scikit-learn": ("sklearn",),
    # kernels of attention, layers and losses
    "kernels": ("kernels",),
    "liger-kernel": ("liger_kernel",),
    "flash-attn": ("flash_attn",),
    "xformers": ("xformers",),
    "apex": ("apex",),
    # optimizers
    "apollo-torch": ("apollo_torch",),
    "galore-torch": ("galore_torch",),
    "grokadamw": ("grokadamw",),
    "lomo-optim": ("lomo_optim",),
    "schedulefree": ("schedulefree",),
    "torch-optimi": ("optimi",),
    # quantised layers
    "aqlm": ("aqlm",),
    "eetq": ("eetq",),
    "gptqmodel": ("gptqmodel",),
    "hqq": ("hqq",),
    "torchao": ("torchao",),
    "transformer-engine": ("transformer_engine",),
    # data loaders that save their state
    "torchdata": ("torchdata",),
}


def wanted(pins: Collection[str], beside_current: bool) -> tuple[str, ...]:
    """Return the optional packages that an environment is made with.

    - pins: the distributions of the running environment.
    - beside_current: whether it is compared with the running environment, so that it gets no others.
    """
    here = [name for name in OPTIONAL if name in pins]
    return tuple(here if beside_current else dict.fromkeys([*here, *ALWAYS]))


def on_one_side(baseline: Environment, candidate: Environment) -> tuple[tuple[str, str], ...]:
    """Return (package, reason) for each optional package that only one side has."""
    found = []
    for name in OPTIONAL:
        sides = [("baseline", baseline), ("candidate", candidate)]
        lacking = [(side, environment) for side, environment in sides if name not in environment.pins]
        if len(lacking) == 1:
            ((side, environment),) = lacking
            why = dict(environment.lacks).get(name)
            found.append((name, f"the {side} cannot have it: {why}" if why else f"the {side} does not have it"))
    return tuple(found)


def without(environment: Environment, packages: Iterable[str]) -> Environment:
    """Return an environment whose processes do not find these packages."""
    names = sorted({name for package in packages for name in (package, *OPTIONAL[package])})
    if not names:
        return environment
    return dataclasses.replace(environment, added=(*environment.added, (WITHOUT, ",".join(names))))
