"""All checks, in the order in which they are told of an event."""

from __future__ import annotations

from harness.watch.base_watch import FrozenBase
from harness.watch.check import Check
from harness.watch.log_watch import Logs
from harness.watch.loss_watch import Loss
from harness.watch.precision_watch import AdapterEffect, Precision, Scaler
from harness.watch.quiet_watch import Evaluations, Memory, RandomNumbers
from harness.watch.rank_watch import Ranks
from harness.watch.resume_watch import BestModel, Resumed
from harness.watch.save_watch import Checkpoints
from harness.watch.trained_watch import Gradients, Moves, TrainedTensors
from harness.watch.update_watch import Clipping, LearningRate, OptimizerHolds, OptimizerStep
from harness.watch.window_watch import Events, Rows, RowsOnce, Windows

ALL: tuple[type[Check], ...] = (
    *(TrainedTensors, OptimizerHolds, FrozenBase, Resumed, Windows, Events, Rows, RowsOnce, Loss, Gradients, Clipping),
    *(LearningRate, OptimizerStep, Moves, AdapterEffect, Precision, Scaler, RandomNumbers, Logs, Evaluations, Memory),
    *(Ranks, Checkpoints, BestModel),
)
