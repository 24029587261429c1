"""What is logged, compared with what the steps were."""

from __future__ import annotations

import math
from typing import Any

from harness import compat
from harness.watch.check import Check
from harness.watch.seen import local_of

#: Relative error allowed for a mean of losses that upstream sums in float32.
MEAN = 1e-4


class Logs(Check):
    id = "logs"

    def why_not(self) -> str | None:
        seen = self.seen
        if seen.trainer is None:
            return "a loop logs in its own way"
        own = seen.overridden("log", "_maybe_log_save_evaluate", "_inner_training_loop", "_run_epoch")
        return f"{own} is the user's own" if own else None

    def begin(self) -> None:
        self._losses: list[float] = []
        self._all: list[float] = []
        self._rates: list[float] = []
        self._ended = False
        own = self.seen.overridden("compute_loss", "training_step")
        self._why = f"{own} is the user's own" if own else ""
        if self.seen.world > 1:
            self._why = "the logged loss is a mean over ranks"

    def before_update(self) -> None:
        seen = self.seen
        if hasattr(seen.optimizer, "param_groups") and seen.sampled:
            self._rates = [float(group["lr"]) for group in seen.optimizer.param_groups]
        else:
            self._rates = []
        window = [batch.loss for batch in seen.window]
        if not self._why and (not window or any(loss is None for loss in window)):
            self._why = "the model returned no loss"
        if not self._why and seen.every == 1:
            total = sum(float(loss) for loss in window)
            shared = seen.window[0].items is not None
            self._losses.append(total if shared else total / len(window))
            self._all.append(self._losses[-1])

    def logged(self, logs: dict[str, Any]) -> None:
        seen = self.seen
        if "train_runtime" in logs:
            self._ended = True
            if self._all and not self._why:
                self._mean("train_loss", float(logs.get("train_loss", math.nan)), self._all)
        if "loss" not in logs:
            return
        if self._why or seen.every != 1:
            self.skip(self._why or "the mean of the steps since the last entry needs every=1")
        elif self._losses:
            self._mean("loss", float(logs["loss"]), self._losses)
        self._losses = []
        # Releases before 5.0 log the rate of the next step.
        if (
            self._rates
            and "learning_rate" in logs
            and local_of("_maybe_log_save_evaluate", "learning_rate") is not None
        ):
            rate = float(logs["learning_rate"])
            wrong = not any(math.isclose(rate, used, rel_tol=1e-9, abs_tol=1e-20) for used in self._rates)
            self.judge([f"the logged learning_rate is {rate!r}, the step used {self._rates[0]!r}"] if wrong else [])

    def _mean(self, name: str, seen: float, losses: list[float]) -> None:
        expected = math.fsum(losses) / len(losses)
        if not (math.isfinite(expected) and math.isfinite(seen)):
            return
        bound = MEAN * max(1.0, abs(expected)) + compat.logged_rounding([seen])
        words = f"the logged {name} is {seen:.6g}, the mean of its {len(losses)} steps is {expected:.6g}"
        self.judge([words] if not abs(seen - expected) <= bound else [])

    def end(self) -> None:
        if not self.seen.foreign:
            self.judge([] if self._ended else ["the log does not end with the metrics of the training"])
