"""Which evaluation was the best so far (metric_for_best_model), and what that is for: load_best_model_at_end, rotation."""

import shutil
from pathlib import Path
from typing import Any

from harness.reference import checkpoint
from harness.reference.lora import AdapterModel
from harness.reference.schedules import BY_METRIC
from harness.reference.settings import Arguments


def metric_name(args: Arguments) -> str | None:
    """Return the metric that is looked at; None for none. What needs one takes eval_loss by default."""
    needed = args.load_best_model_at_end or args.lr_scheduler_type in BY_METRIC
    name = args.metric_for_best_model or ("loss" if needed else None)
    return name if name is None or name.startswith("eval_") else f"eval_{name}"


def note(args: Arguments, state: Any, metrics: dict[str, float], schedule: Any) -> bool:
    """Keep the metric of an evaluation in the state, if it is the best one so far. Move a schedule on that follows it.

    Return whether a checkpoint is due for that reason. trainer.py:_determine_best_metric, _maybe_log_save_evaluate
    """
    name = metric_name(args)
    if name is None:
        return False
    if args.lr_scheduler_type in BY_METRIC:
        schedule.step(metrics[name])
    greater = not name.endswith("loss") if args.greater_is_better is None else args.greater_is_better
    if state.best_metric is None:
        state.best_metric = float("-inf") if greater else float("inf")
    better = metrics[name] > state.best_metric if greater else metrics[name] < state.best_metric
    if better:
        state.best_metric = metrics[name]
        if args.save_strategy != "no":
            state.best_global_step = state.global_step
    return bool(better) and args.save_strategy == "best"


def remember_checkpoint(state: Any, saving: Path) -> None:
    """Keep the path of the best step's checkpoint in the state, if it is there. saving: what is about to be written."""
    path = saving.with_name(f"checkpoint-{state.best_global_step}")
    if state.best_global_step and (path == saving or path.exists()):
        state.best_model_checkpoint = str(path)


def rotate(args: Arguments, state: Any, output: Path) -> None:
    """Delete the oldest checkpoints. The newest and the best one stay. trainer_utils.py:rotate_checkpoints."""
    found = checkpoint.find(output)
    spared = {str(found[-1]), str(state.best_model_checkpoint or found[-1])}
    surplus = len(found) - max(args.save_total_limit or len(found), len(spared))
    for path in [path for path in found if str(path) not in spared][: max(0, surplus)]:
        shutil.rmtree(path)


def finish(args: Arguments, state: Any, model: AdapterModel, output: Path) -> None:
    """Load the best checkpoint's adapter. If one checkpoint may remain, it is the best. trainer.py:_finalize_training."""
    if state.best_model_checkpoint is not None:
        if args.load_best_model_at_end:
            checkpoint.load_adapter(Path(state.best_model_checkpoint), model)
        for path in checkpoint.find(output) if args.save_total_limit == 1 else ():
            if str(path) != state.best_model_checkpoint:
                shutil.rmtree(path)
