"""The loop: epochs of windows of micro-batches, a window being one optimizer step. transformers/trainer.py:Trainer.

seed -> [epoch: shuffle -> [window: count tokens -> [micro-batch: forward, loss, backward] -> clip -> step ->
schedule -> log, evaluate, save]] -> TrainOutput
"""

import itertools
import math
import random
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from harness.reference import batches, checkpoint
from harness.reference.lora import AdapterModel, checkpoint_activations
from harness.reference.loss import count_tokens, smoothed_loss
from harness.reference.optimizer import make_optimizer, make_schedule
from harness.reference.settings import Arguments

#: transformers/trainer_callback.py:TrainerState, which is also trainer_state.json, and TrainerControl: what is due.
STATE: dict[str, Any] = {
    **dict.fromkeys(("epoch", "global_step", "max_steps", "num_train_epochs", "total_flos"), 0),
    **dict.fromkeys(("best_metric", "best_global_step", "best_model_checkpoint", "trial_name", "trial_params")),
    **{"is_local_process_zero": True, "is_world_process_zero": True, "is_hyper_param_search": False},
    "num_input_tokens_seen": 0,
}
CONTROL = {f"should_{verb}": False for verb in ("training_stop", "epoch_stop", "save", "evaluate", "log")}

#: global_step counts from the start of the run; training_loss is the mean over the steps of this call only.
TrainOutput = namedtuple("TrainOutput", "global_step training_loss metrics")


class ReferenceTrainer:
    """Trains an AdapterModel on one device.

    rows, eval_rows: sequences of dicts of int64 tensors (length,): input_ids, attention_mask, labels. output: directory
    of the checkpoints. callback: called at each event with its name, that of TrainerCallback without "on_", and self.
    """

    def __init__(
        self, model: AdapterModel, args: Arguments, rows: Any, eval_rows: Any, output: Path, device: str, callback: Any
    ):
        # The adapter is drawn by now. What draws between here and train() changes the run.
        random.seed(args.seed)
        np.random.seed(args.seed)
        torch.manual_seed(args.seed)
        self.args, self.rows, self.eval_rows, self.output = args, rows, eval_rows, output
        self.model, self.device, self.callback = model.to(device), device, callback
        model.autocast = torch.bfloat16 if args.bf16 else None
        model.base.config.use_cache = False
        self.state = SimpleNamespace(**STATE, log_history=[], train_batch_size=args.per_device_train_batch_size)
        self.control = SimpleNamespace(**CONTROL)
        self.callback("init_end", self)

    def train(self, resume: Path | None = None) -> TrainOutput:
        """Train to the end, from the start or from a checkpoint; CheckpointError if that one is not complete."""
        args, state, batch = self.args, self.state, self.args.per_device_train_batch_size
        self.batches = len(batches.batches(range(len(self.rows)), batch, args.dataloader_drop_last))
        steps = max(1, math.ceil(self.batches / args.gradient_accumulation_steps))
        total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps)
        epochs = math.ceil(total / steps if args.max_steps > 0 else args.num_train_epochs)
        eval_steps = args.eval_steps or (args.logging_steps if args.eval_strategy == "steps" else 500)
        for name, every in (("logging", args.logging_steps), ("eval", eval_steps), ("save", args.save_steps)):
            setattr(state, f"{name}_steps", math.ceil(total * every) if every < 1 else every)
        if args.activation_checkpointing:
            checkpoint_activations(
                self.model.base, dict(args.activation_checkpointing_kwargs or {"use_reentrant": False})
            )
        self.optimizer = make_optimizer(self.model, args)
        self.schedule = make_schedule(self.optimizer, args, total)
        self.parts = {"optimizer": self.optimizer, "scheduler": self.schedule}
        if resume:  # brings back the learning rate and the intervals too, whatever the arguments say now
            state = self.state = SimpleNamespace(**checkpoint.load(resume, self.model, self.parts))
        state.max_steps, state.num_train_epochs = total, epochs

        # Losses add up in float32 (float64 beside such a base) until they are logged: that rounding is the log's too.
        precision = torch.promote_types(next(self.model.parameters()).dtype, torch.float32)
        self.loss_sum = torch.zeros((), dtype=precision, device=self.device)
        self.size = self.model.base.num_parameters(exclude_embeddings=True)
        self.logged, started = 0.0, time.time()
        first = self.last_logged = state.global_step
        self.callback("train_begin", self)
        for epoch in range(first // steps, epochs):
            self.callback("epoch_begin", self)
            self.run_epoch(epoch, first % steps if resume else 0, resume)
            resume = None
            if self.control.should_training_stop:
                break
        done = state.global_step - first
        loss = (self.logged + self.loss_sum.item()) / max(done, 0.001)
        rows = batch * args.gradient_accumulation_steps if args.max_steps > 0 else len(self.rows) / steps
        metrics = speed("train", started, rows * done, done) | {"total_flos": state.total_flos, "train_loss": loss}
        self.log(metrics)
        self.callback("train_end", self)
        return TrainOutput(state.global_step, loss, metrics)

    def run_epoch(self, epoch: int, skip: int, resume: Path | None) -> None:
        """One pass over the rows without its first `skip` steps; resume: where to take the random state from."""
        args, done = self.args, skip * self.args.gradient_accumulation_steps
        order = batches.shuffled(len(self.rows), epoch + (args.seed if args.data_seed is None else args.data_seed))
        indices = batches.batches(order, args.per_device_train_batch_size, args.dataloader_drop_last)[done:]
        loader = batches.load(self.rows, indices, self.device)
        # Starting to load draws; a state that was saved in the middle of an epoch is younger than that.
        if resume and not skip:
            checkpoint.load_random(resume)
        while window := list(itertools.islice(loader, args.gradient_accumulation_steps)):
            if resume and skip:
                checkpoint.load_random(resume)
                resume = None
            tokens = count_tokens(window)
            self.control.should_log = self.control.should_evaluate = self.control.should_save = False
            self.callback("step_begin", self)
            for batch in window[:-1]:
                self.accumulate(batch, tokens)
                self.callback("substep_end", self)
            self.accumulate(window[-1], tokens)
            done += len(window)
            self.update(epoch + done / self.batches)
            if self.control.should_training_stop:
                break
        self.control.should_log |= args.logging_strategy == "epoch"
        self.control.should_evaluate |= args.eval_strategy == "epoch"
        self.control.should_save |= args.save_strategy == "epoch"
        self.callback("epoch_end", self)
        self.log_evaluate_save()

    def loss(self, batch: batches.Batch, tokens: torch.Tensor) -> torch.Tensor:
        """The 0-d loss of a batch, divided by `tokens`; with label smoothing the model does not see the labels."""
        if not self.args.label_smoothing_factor:
            return self.model(**batch, num_items_in_batch=tokens)["loss"]
        inputs = {name: column for name, column in batch.items() if name != "labels"}
        logits = self.model(**inputs, num_items_in_batch=tokens)["logits"]
        return smoothed_loss(logits, batch["labels"], tokens, self.args.label_smoothing_factor)

    def accumulate(self, batch: batches.Batch, tokens: torch.Tensor) -> None:
        """Add the gradient and the loss of a micro-batch to those of its window."""
        self.model.train()
        loss = self.loss(batch, tokens)
        loss.backward()
        if self.args.logging_nan_inf_filter and not torch.isfinite(loss):
            loss = self.loss_sum / (1 + self.state.global_step - self.last_logged)
        self.loss_sum += loss.detach()
        self.state.total_flos += 6.0 * batch["input_ids"].numel() * self.size

    def update(self, epoch: float) -> None:
        """One optimizer step, which brings the run to `epoch`, and what is due after it (DefaultFlowCallback)."""
        args, state, control = self.args, self.state, self.control
        limit = args.max_grad_norm if args.max_grad_norm > 0 else math.inf
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.callback("pre_optimizer_step", self)
        self.optimizer.step()
        self.callback("optimizer_step", self)
        self.learning_rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.model.zero_grad()
        state.global_step, state.epoch = state.global_step + 1, epoch
        step, last = state.global_step, state.global_step >= state.max_steps
        control.should_training_stop = last
        first = args.logging_first_step and step == 1
        control.should_log = first or (args.logging_strategy == "steps" and step % state.logging_steps == 0)
        control.should_evaluate = args.eval_strategy == "steps" and (last or step % state.eval_steps == 0)
        control.should_save = args.save_strategy == "steps" and (last or step % state.save_steps == 0)
        self.callback("step_end", self)
        self.log_evaluate_save()

    def log_evaluate_save(self) -> None:
        steps = self.state.global_step - self.last_logged
        if self.control.should_log and steps > 0:
            loss, self.last_logged = self.loss_sum.item(), self.state.global_step
            self.loss_sum.zero_()
            self.logged += loss
            self.log({"loss": loss / steps, "grad_norm": self.grad_norm.item(), "learning_rate": self.learning_rate})
        if self.control.should_evaluate:
            self.evaluate()
        if self.control.should_save:
            self.saved = self.output / f"checkpoint-{self.state.global_step}"
            self.state.stateful_callbacks = {"TrainerControl": {"args": dict(vars(self.control)), "attributes": {}}}
            checkpoint.save(self.saved, self.model, self.parts, vars(self.state), self.args.save_total_limit)
            self.control.should_save = False
            self.callback("save", self)

    def log(self, values: dict[str, Any]) -> None:
        values["epoch"] = self.state.epoch
        self.state.log_history.append({**values, "step": self.state.global_step})
        self.control.should_log = False
        self.callback("log", self)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Set metrics. eval_loss: the mean over tokens of each batch, weighted by its rows (not by its tokens)."""
        rows, size, started, losses = self.eval_rows, self.args.per_device_eval_batch_size, time.time(), []
        self.model.eval()
        indices = batches.batches(range(len(rows)), size, self.args.dataloader_drop_last)
        for batch in batches.load(rows, indices, self.device):
            losses.append(self.loss(batch, count_tokens([batch])).repeat(len(batch["labels"])).cpu().numpy())
            self.callback("prediction_step", self)
        every = np.concatenate(losses) if losses else np.empty(0)  # drop_last drops the only batch here, too
        finite = every[np.isfinite(every)] if self.args.logging_nan_inf_filter else every
        self.metrics = {"eval_loss": (finite if finite.size else every).mean().item()} if losses else {}
        self.metrics |= speed("eval", started, len(rows), math.ceil(len(rows) / size))
        self.log(self.metrics)
        self.control.should_evaluate = False
        self.callback("evaluate", self)


def speed(split: str, started: float, samples: float, steps: int) -> dict[str, float]:
    """Seconds since `started`, and what was done in one. transformers/trainer_utils.py:speed_metrics."""
    seconds = time.time() - started
    rates = {"samples": round(samples / seconds, 3), "steps": round(steps / seconds, 3)}
    return {f"{split}_runtime": round(seconds, 4)} | {
        f"{split}_{what}_per_second": rate for what, rate in rates.items()
    }
