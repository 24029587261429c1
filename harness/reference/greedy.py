"""GreedyLR (arXiv 2512.14527): raise the rate while a metric improves, else lower it. optimization.py:GreedyLR."""

import math
from typing import Any

import torch


class Greedy:
    """A schedule that is moved on after each evaluation. The parameters are those of `lr_scheduler_kwargs`.

    A metric is better if it is below the best one by more than `threshold`. After more than `patience` better ones in a
    row the rate is divided by `factor`, after as many worse ones it is multiplied by it. The next `warmup` or `cooldown`
    metrics are not looked at. If the rate cannot fall any more, `reset_start` such reductions set everything back.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        mode: str = "min",
        factor: float = 0.95,
        patience: int = 10,
        threshold: float = 1e-6,
        threshold_mode: str = "abs",
        cooldown: int = 0,
        warmup: int = 0,
        min_lr: float | list[float] = 1e-3,
        max_lr: float | list[float] = 1.0,
        eps: float = 1e-8,
        verbose: bool = False,
        smooth: bool = False,
        window_size: int = 50,
        reset_start: int = 500,
    ):
        self.optimizer, groups = optimizer, len(optimizer.param_groups)
        self.settings: dict[str, Any] = {
            "factor": factor,
            "patience": patience,
            "verbose": verbose,
            "cooldown": cooldown,
        }
        self.settings |= {"warmup": warmup, "mode": mode, "threshold": threshold, "threshold_mode": threshold_mode}
        self.settings |= {"eps": eps, "smooth": smooth, "window_size": window_size, "reset_start_original": reset_start}
        self.settings["min_lrs"] = list(min_lr) if isinstance(min_lr, (list, tuple)) else [min_lr] * groups
        self.settings["max_lrs"] = list(max_lr) if isinstance(max_lr, (list, tuple)) else [max_lr] * groups
        self.settings["_init_lrs"] = self.rates()
        self.seen: list[float] = []  # the last `window_size` metrics, if they are smoothed
        self.seen_sum = 0.0
        self.last_epoch = 0
        self.start_again()

    def rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def start_again(self) -> None:
        """Forget all metrics. The first one after this is better than none."""
        self.best = math.inf if self.settings["mode"] == "min" else -math.inf
        self.good = self.bad = self.cooling = self.warming = 0
        self.left = self.settings["reset_start_original"]
        self.seen, self.seen_sum = [], 0.0

    def step(self, metric: float) -> None:
        """Move on by one metric."""
        options = self.settings
        metric, self.last_epoch = self.smoothed(float(metric)), self.last_epoch + 1
        if self.cooling or self.warming:
            self.cooling, self.warming = (self.cooling - 1, self.warming) if self.cooling else (0, self.warming - 1)
            self.good = self.bad = 0
            return
        if self.is_better(metric):
            self.best, self.good, self.bad = metric, self.good + 1, 0
        else:
            self.good, self.bad = 0, self.bad + 1
        if self.good > options["patience"]:
            self.multiply(1 / options["factor"])
            self.warming, self.good = options["warmup"], 0
            self.left = options["reset_start_original"]
        elif self.bad > options["patience"]:
            self.multiply(options["factor"])
            lowest = all(rate <= least for rate, least in zip(self.rates(), options["min_lrs"], strict=True))
            self.left -= lowest
            if self.left <= 0 and lowest:
                for group, rate in zip(self.optimizer.param_groups, options["_init_lrs"], strict=True):
                    group["lr"] = rate
                self.start_again()
            self.cooling, self.bad = options["cooldown"], 0

    def smoothed(self, metric: float) -> float:
        """Return the mean of the last metrics, if they are smoothed. Their sum is kept, so it has its rounding, too."""
        if not self.settings["smooth"]:
            return metric
        self.seen.append(metric)
        self.seen_sum += metric
        if len(self.seen) > self.settings["window_size"]:
            self.seen_sum -= self.seen.pop(0)
        return self.seen_sum / len(self.seen)

    def is_better(self, metric: float) -> bool:
        by, sign = self.settings["threshold"], -1.0 if self.settings["mode"] == "min" else 1.0
        limit = self.best * (1.0 + sign * by) if self.settings["threshold_mode"] == "rel" else self.best + sign * by
        return bool(metric < limit if sign < 0 else metric > limit)

    def multiply(self, by: float) -> None:
        """Multiply each group's rate, within its limits. A change of `eps` or less is not made."""
        lowest, highest, factor = (self.settings[name] for name in ("min_lrs", "max_lrs", "factor"))
        for group, least, most in zip(self.optimizer.param_groups, lowest, highest, strict=True):
            old = float(group["lr"])
            new = max(old * factor, least) if by < 1 else min(old / factor, most)
            if (old - new if by < 1 else new - old) > self.settings["eps"]:
                group["lr"] = new

    def state_dict(self) -> dict[str, Any]:
        counters = {"best": self.best, "num_bad_epochs": self.bad, "num_good_epochs": self.good}
        counters |= {"cooldown_counter": self.cooling, "warmup_counter": self.warming, "reset_start": self.left}
        state = self.settings | counters | {"last_epoch": self.last_epoch, "_last_lr": self.rates()}
        window = {"window_size": self.settings["window_size"], "values": list(self.seen), "sum": self.seen_sum}
        return state | {"_streaming_avg": window} if self.settings["smooth"] else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.settings = {name: state[name] for name in self.settings}
        self.best, self.bad, self.good = state["best"], state["num_bad_epochs"], state["num_good_epochs"]
        self.cooling, self.warming = state["cooldown_counter"], state["warmup_counter"]
        self.left, self.last_epoch = state["reset_start"], state["last_epoch"]
        if "_streaming_avg" in state:
            self.seen, self.seen_sum = list(state["_streaming_avg"]["values"]), state["_streaming_avg"]["sum"]
        for group, rate in zip(self.optimizer.param_groups, state["_last_lr"], strict=True):
            group["lr"] = rate
