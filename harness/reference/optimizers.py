"""Optimizers other than AdamW: with what the Trainer makes each of them. transformers/trainer_optimizer.py.

The update rules are those of torch, transformers (Adafactor) and bitsandbytes. What can go wrong in the Trainer is which
numbers it hands to them.
"""

from collections.abc import Callable
from typing import Any

import torch

from harness import compat
from harness.reference.settings import Arguments


def truth(text: str) -> bool:
    return text.lower() in ("true", "1", "yes")


#: optim -> the names in optim_args that it reads, and how each is read. The others are ignored.
OPTIONS: dict[str, dict[str, Callable[[str], Any]]] = {
    "sgd": {**dict.fromkeys(("momentum", "dampening", "weight_decay"), float), "nesterov": truth},
    "adagrad": dict.fromkeys(("lr_decay", "weight_decay", "eps"), float),
    "rmsprop": {**dict.fromkeys(("momentum", "alpha", "eps", "weight_decay"), float), "centered": truth},
}

PLAIN = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rmsprop": torch.optim.RMSprop}

#: Part of the names of bitsandbytes' optimizers -> its class. The first that fits counts.
PACKED = {"adamw": "AdamW", "lion": "Lion", "rmsprop": "RMSprop", "ademamix": "AdEMAMix"}


def read_options(text: str | None) -> dict[str, str]:
    """Read optim_args: "momentum=0.9, nesterov=true". ValueError if a part is not name=value."""
    return dict(pair.split("=") for pair in (text or "").replace(" ", "").split(",") if text)


def make(groups: list[dict[str, Any]], args: Arguments) -> torch.optim.Optimizer:
    """Make the optimizer that `args.optim` names. groups: as torch.optim takes them."""
    given, rate, name = read_options(args.optim_args), args.learning_rate, args.optim
    if name in PLAIN:
        options = {option: read(given[option]) for option, read in OPTIONS[name].items() if option in given}
        made: torch.optim.Optimizer = PLAIN[name](groups, lr=rate, **options)
        return made
    if name == "adafactor":
        # The schedule sets the rate. Adafactor's own schedule and its scaling by the weights' size are off.
        return compat.adafactor()(groups, lr=rate, scale_parameter=False, relative_step=False)  # type: ignore[no-any-return]
    betas, eps = (args.adam_beta1, args.adam_beta2), args.adam_epsilon
    family = next(part for part in PACKED if part in name)
    settings: dict[str, Any] = {"optim_bits": 8 if "8bit" in name else 32}
    if family != "rmsprop":
        settings |= {"betas": betas, "is_paged": "paged" in name}
    if family == "adamw":
        settings["eps"] = eps
    if family == "ademamix":
        read = {option: float(text) for option, text in given.items()}
        settings["betas"] = tuple(read.get(f"beta{n}", beta) for n, beta in enumerate((*betas, 0.9999), start=1))
        settings |= {"alpha": read.get("alpha", 5.0), "eps": read.get("eps", eps)}
        settings |= {option: int(given[option]) for option in ("t_alpha", "t_beta3") if option in given}
    return compat.packed_optimizer(PACKED[family])(groups, lr=rate, **settings)  # type: ignore[no-any-return]
