"""Which evaluation was the best so far: metric_for_best_model. trainer.py:_determine_best_metric, _save_checkpoint."""

from pathlib import Path
from typing import Any

from harness.reference.schedules import BY_METRIC
from harness.reference.settings import Arguments


def metric_name(args: Arguments) -> str | None:
    """Return the metric that is looked at; None for none. A schedule that follows a metric follows eval_loss by default."""
    name = args.metric_for_best_model or ("loss" if args.lr_scheduler_type in BY_METRIC else None)
    return name if name is None or name.startswith("eval_") else f"eval_{name}"


def note(args: Arguments, state: Any, metrics: dict[str, float], schedule: Any) -> None:
    """Keep the metric of an evaluation in the state, if it is the best one so far. Move a schedule on that follows it."""
    name = metric_name(args)
    if name is None:
        return
    if args.lr_scheduler_type in BY_METRIC:
        schedule.step(metrics[name])
    greater = not name.endswith("loss") if args.greater_is_better is None else args.greater_is_better
    if state.best_metric is None:
        state.best_metric = float("-inf") if greater else float("inf")
    if metrics[name] > state.best_metric if greater else metrics[name] < state.best_metric:
        state.best_metric = metrics[name]
        if args.save_strategy != "no":
            state.best_global_step = state.global_step


def remember_checkpoint(state: Any, saving: Path) -> None:
    """Keep the path of the best step's checkpoint in the state, if it is there. saving: what is about to be written."""
    path = saving.with_name(f"checkpoint-{state.best_global_step}")
    if state.best_global_step and (path == saving or path.exists()):
        state.best_model_checkpoint = str(path)
