"""GreedyLR (arXiv 2512.14527): raise the rate while a metric improves, else lower it. optimization.py:GreedyLR."""

import copy
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
        # The names are those of scheduler.pt.
        self.factor, self.patience, self.cooldown, self.warmup = factor, patience, cooldown, warmup
        self.mode, self.threshold, self.threshold_mode, self.eps = mode, threshold, threshold_mode, eps
        self.verbose, self.smooth, self.window_size = verbose, smooth, window_size
        self.reset_start_original = reset_start
        limits = (list(given) if isinstance(given, (list, tuple)) else [given] * groups for given in (min_lr, max_lr))
        self.min_lrs, self.max_lrs = limits
        self._init_lrs, self.last_epoch = self.rates(), 0
        self.start_again()

    def rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def start_again(self) -> None:
        """Forget all metrics. The first one after this is better than none."""
        self.best = math.inf if self.mode == "min" else -math.inf
        self.num_good_epochs = self.num_bad_epochs = self.cooldown_counter = self.warmup_counter = 0
        self.reset_start = self.reset_start_original
        # The last metrics, if they are smoothed. Their sum is kept, so it has its rounding, too.
        self._streaming_avg: dict[str, Any] = {"window_size": self.window_size, "values": [], "sum": 0.0}

    def step(self, metric: float) -> None:
        """Move on by one metric."""
        metric, self.last_epoch = self.smoothed(float(metric)), self.last_epoch + 1
        if self.cooldown_counter or self.warmup_counter:
            waiting = "cooldown_counter" if self.cooldown_counter else "warmup_counter"
            setattr(self, waiting, getattr(self, waiting) - 1)
            self.num_good_epochs = self.num_bad_epochs = 0
            return
        if self.is_better(metric):
            self.best, self.num_good_epochs, self.num_bad_epochs = metric, self.num_good_epochs + 1, 0
        else:
            self.num_good_epochs, self.num_bad_epochs = 0, self.num_bad_epochs + 1
        if self.num_good_epochs > self.patience:
            self.multiply(1 / self.factor)
            self.warmup_counter, self.num_good_epochs = self.warmup, 0
            self.reset_start = self.reset_start_original
        elif self.num_bad_epochs > self.patience:
            self.multiply(self.factor)
            lowest = all(rate <= least for rate, least in zip(self.rates(), self.min_lrs, strict=True))
            self.reset_start -= lowest
            if self.reset_start <= 0 and lowest:
                self.set_rates(self._init_lrs)
                self.start_again()
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def smoothed(self, metric: float) -> float:
        """Return the mean of the last metrics, if they are smoothed."""
        if not self.smooth:
            return metric
        seen = self._streaming_avg
        seen["values"].append(metric)
        seen["sum"] += metric
        if len(seen["values"]) > self.window_size:
            seen["sum"] -= seen["values"].pop(0)
        return float(seen["sum"] / len(seen["values"]))

    def is_better(self, metric: float) -> bool:
        by = -self.threshold if self.mode == "min" else self.threshold
        limit = self.best * (1.0 + by) if self.threshold_mode == "rel" else self.best + by
        return bool(metric < limit if self.mode == "min" else metric > limit)

    def multiply(self, by: float) -> None:
        """Multiply each group's rate, within its limits. A change of `eps` or less is not made."""
        for group, least, most in zip(self.optimizer.param_groups, self.min_lrs, self.max_lrs, strict=True):
            old = float(group["lr"])
            new = max(old * self.factor, least) if by < 1 else min(old / self.factor, most)
            if (old - new if by < 1 else new - old) > self.eps:
                group["lr"] = new

    def set_rates(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        left_out = {"optimizer"} if self.smooth else {"optimizer", "_streaming_avg"}
        kept = {name: value for name, value in vars(self).items() if name not in left_out}
        return copy.deepcopy(kept) | {"_last_lr": self.rates()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(copy.deepcopy({name: state[name] for name in self.state_dict()}))
        self.set_rates(state["_last_lr"])
