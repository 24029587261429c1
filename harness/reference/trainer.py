"""The training loop of transformers.Trainer, written out. A window is the micro-batches of one optimizer step.

seed -> [epoch: shuffle -> [window: count tokens -> [micro-batch: forward, loss, backward] -> clip -> step ->
schedule -> log, evaluate, save]] -> TrainOutput
"""

import itertools
import math
import random
import time
from collections import namedtuple
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from harness import compat
from harness.reference import batches, best, checkpoint, sampling, tokens
from harness.reference.lora import AdapterModel
from harness.reference.loss import count_tokens, smoothed_loss
from harness.reference.noise import add_noise
from harness.reference.optimizer import make_optimizer
from harness.reference.schedules import BY_METRIC, make_schedule
from harness.reference.settings import Arguments

#: Where the run is: the content of trainer_state.json. transformers/trainer_callback.py:TrainerState.
STATE: dict[str, Any] = {
    "epoch": 0,  # epochs done, with a fraction
    "global_step": 0,  # optimizer steps done
    **{"max_steps": 0, "num_train_epochs": 0, "total_flos": 0},
    # The fields below stay as they are. train() adds logging_steps, eval_steps and save_steps.
    **{"is_local_process_zero": True, "is_world_process_zero": True, "is_hyper_param_search": False},
    **{"num_input_tokens_seen": 0, "trial_name": None, "trial_params": None},
    **{"best_metric": None, "best_global_step": None, "best_model_checkpoint": None},
}

#: What is due next. transformers/trainer_callback.py:TrainerControl.
CONTROL = dict.fromkeys(
    ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log"), False
)

#: global_step counts from the start of the run. training_loss is the mean over the steps of this call only.
TrainOutput = namedtuple("TrainOutput", "global_step training_loss metrics")


class ReferenceTrainer:
    """Trains an AdapterModel on one device. `train` comes first, then what it calls, in order.

    - rows, eval_rows: sequences of dicts of int64 tensors (length,): input_ids, attention_mask, labels
    - output: the directory of the checkpoints
    - callback: called at each event with its name (TrainerCallback's, without "on_") and this trainer
    """

    def __init__(
        self, model: AdapterModel, args: Arguments, rows: Any, eval_rows: Any, output: Path, device: str, callback: Any
    ):
        # Seed. The adapter was drawn before this. What draws from here to train() changes the run. trainer.py:__init__
        random.seed(args.seed)
        np.random.seed(args.seed)
        torch.manual_seed(args.seed)

        # What was given. The model is moved before the optimizer is made, which holds its parameters.
        self.args, self.rows, self.eval_rows, self.output = args, rows, eval_rows, output
        self.model, self.device, self.callback = model.to(device), device, callback
        model.autocast = torch.bfloat16 if args.bf16 else None
        model.base.config.use_cache = False  # past keys and values serve generation only

        # How long the run is; max_steps wins over num_train_epochs. trainer.py:set_initial_training_values
        by_steps = args.max_steps > 0
        indices = batches.batches(range(len(rows)), args.per_device_train_batch_size, args.dataloader_drop_last)
        self.batches_per_epoch = len(list(indices))  # micro-batches
        self.steps_per_epoch = max(1, math.ceil(self.batches_per_epoch / args.gradient_accumulation_steps))
        self.total_steps = args.max_steps if by_steps else math.ceil(args.num_train_epochs * self.steps_per_epoch)
        self.total_epochs = math.ceil(self.total_steps / self.steps_per_epoch if by_steps else args.num_train_epochs)

        # What changes. Trainer makes the first two in train(), which is no difference: neither draws.
        self.optimizer = make_optimizer(self.model, args)
        self.schedule = make_schedule(self.optimizer, args, self.total_steps)
        self.follows_metric = args.lr_scheduler_type in BY_METRIC  # it moves on after evaluations, not after steps
        self.parts = {"optimizer.pt": self.optimizer, "scheduler.pt": self.schedule}  # files of a checkpoint
        self.state = SimpleNamespace(**STATE, log_history=[], train_batch_size=args.per_device_train_batch_size)
        self.control = SimpleNamespace(**CONTROL)
        # Losses since the last log entry. They add up on the device, since reading each one would wait for the GPU. The
        # sum is float32 (float64 beside such a base), and its rounding can be seen in the log.
        precision = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        self.loss_sum = torch.zeros((), dtype=precision, device=device)
        self.loss_logged = 0.0  # the sum of the losses that went into log entries
        self.last_logged = 0  # global step of the last such entry
        self.grad_norm = torch.zeros(())  # at the last step, before clipping
        self.learning_rate = 0.0  # of the last step
        self.metrics: dict[str, Any] = {}  # of the last evaluation
        self.saved = output  # the last checkpoint
        self.size = model.base.num_parameters(exclude_embeddings=True)  # counts for total_flos
        self.callback("init_end", self)

    def train(self, resume: Path | None = None) -> TrainOutput:
        """Train to the end, from the start or from the checkpoint `resume`. CheckpointError if it is not complete."""
        args, state = self.args, self.state
        # Activation checkpointing: keep each layer's input only, and recompute the rest in backward. trainer.py:train
        if args.activation_checkpointing:
            options = dict(args.activation_checkpointing_kwargs or {"use_reentrant": False})
            compat.enable_activation_checkpointing(self.model.base, options)
        add_noise(self.model.base, args.neftune_noise_alpha)

        # Intervals. Below 1 they are a share of all steps. trainer_callback.py:TrainerState.compute_steps
        eval_steps = args.eval_steps or (args.logging_steps if args.eval_strategy == "steps" else 500)
        for name, steps in (("logging", args.logging_steps), ("eval", eval_steps), ("save", args.save_steps)):
            setattr(state, f"{name}_steps", math.ceil(self.total_steps * steps) if steps < 1 else steps)

        # Resume. The checkpoint's learning rate and intervals come back too, whatever the arguments say now.
        # trainer.py:_init_training_state, _load_optimizer_and_scheduler
        if resume is not None:
            vars(state).update(checkpoint.load(resume, self.model, self.parts))
        state.max_steps, state.num_train_epochs = self.total_steps, self.total_epochs
        first = self.last_logged = state.global_step
        started = time.time()

        # Epochs. If the run resumes in the middle of one, the steps of it that were done are skipped, so each row is still
        # seen once an epoch. trainer.py:_inner_training_loop
        self.callback("train_begin", self)
        if args.eval_on_start:
            self.evaluate()
        skipped = 0 if args.ignore_data_skip else first % self.steps_per_epoch
        for epoch in range(first // self.steps_per_epoch, self.total_epochs):
            self.callback("epoch_begin", self)
            self.run_epoch(epoch, skipped, resume)
            skipped, resume = 0, None
            if self.control.should_training_stop:
                break

        # The result. Its loss is the mean over all steps, logged or not. trainer.py:_finalize_training
        done = state.global_step - first
        loss = (self.loss_logged + self.loss_sum.item()) / max(done, 0.001)  # a finished run resumes with nothing to do
        window = args.per_device_train_batch_size * args.gradient_accumulation_steps
        samples = done * (window if args.max_steps > 0 else len(self.rows) / self.steps_per_epoch)
        metrics = speed("train", started, samples, done) | {"total_flos": state.total_flos, "train_loss": loss}
        self.log(metrics)
        best.finish(args, state, self.model, self.output)
        self.callback("train_end", self)
        return TrainOutput(state.global_step, loss, metrics)

    def run_epoch(self, epoch: int, skipped: int, resume: Path | None) -> None:
        """Pass over the rows once, without the first `skipped` steps. resume: the checkpoint, if the run resumes here."""
        args, control = self.args, self.control
        order = sampling.training(args, self.rows, epoch)
        indices = batches.batches(order, args.per_device_train_batch_size, args.dataloader_drop_last)
        done = skipped * args.gradient_accumulation_steps
        # Windows. Tokens are counted over a whole window before its first forward pass, since each of its losses is
        # divided by their number. trainer.py:_run_epoch, get_batch_samples
        for window in self.windows(itertools.islice(indices, done, None), skipped, resume):
            labels = count_tokens(window)
            control.should_log = control.should_evaluate = control.should_save = False
            self.callback("step_begin", self)
            for batch in window[:-1]:
                self.accumulate(batch, labels)
                self.callback("substep_end", self)
            self.accumulate(window[-1], labels)
            done += len(window)
            self.update(epoch + done / self.batches_per_epoch)
            if control.should_training_stop:
                break

        # What is due once an epoch. trainer_callback.py:DefaultFlowCallback.on_epoch_end
        control.should_log |= args.logging_strategy == "epoch"
        control.should_evaluate |= args.eval_strategy == "epoch" and args.eval_delay <= self.state.epoch
        control.should_save |= args.save_strategy == "epoch"
        self.callback("epoch_end", self)
        self.log_evaluate_save()

    def windows(self, indices: Iterable[list[int]], skipped: int, resume: Path | None) -> Iterator[list[batches.Batch]]:
        """Yield the micro-batches of each optimizer step. If the run resumes here, restore the random state as well.

        Creating the loader's iterator and reading rows consume random numbers. A checkpoint taken between epochs was
        saved before that, so its state is restored before it. One taken mid-epoch was saved and is restored after it.
        """
        loader = batches.load(self.rows, indices, self.device)
        if resume is not None and skipped == 0:
            checkpoint.restore_random_state(resume)
        window = list(itertools.islice(loader, self.args.gradient_accumulation_steps))
        if resume is not None and skipped > 0:
            checkpoint.restore_random_state(resume)
        while window:
            yield window
            window = list(itertools.islice(loader, self.args.gradient_accumulation_steps))

    def accumulate(self, batch: batches.Batch, labels: torch.Tensor) -> None:
        """Add the gradient and the loss of a micro-batch to those of its window. trainer.py:training_step."""
        self.model.train()  # an evaluation may have come before
        loss = self.loss(batch, labels)
        loss.backward()
        # A loss that is not finite would spoil the log: the mean since the last entry takes its place (in the log only).
        if self.args.logging_nan_inf_filter and not torch.isfinite(loss):
            loss = self.loss_sum / (1 + self.state.global_step - self.last_logged)
        self.loss_sum += loss.detach()
        # Per parameter and token: 2 operations forward, 4 backward. trainer.py:floating_point_ops
        self.state.total_flos += 6.0 * batch["input_ids"].numel() * self.size
        self.state.num_input_tokens_seen += tokens.seen(batch, self.args.include_num_input_tokens_seen)

    def loss(self, batch: batches.Batch, labels: torch.Tensor) -> torch.Tensor:
        """Return the 0-d loss of a batch, divided by `labels`. With label smoothing the model does not see the labels."""
        if not self.args.label_smoothing_factor:
            return self.model(**batch, num_items_in_batch=labels)["loss"]  # type: ignore[no-any-return]
        inputs = {name: column for name, column in batch.items() if name != "labels"}
        logits = self.model(**inputs, num_items_in_batch=labels)["logits"]
        return smoothed_loss(logits, batch["labels"], labels, self.args.label_smoothing_factor)

    def update(self, epoch: float) -> None:
        """Do one optimizer step, which brings the run to `epoch`, and what is due after it. trainer.py:_run_epoch."""
        args, state, control = self.args, self.state, self.control
        # Clip. Without a limit the norm is still computed, for the log. trainer.py:_clip_grad_norm, _get_grad_norm
        limit = args.max_grad_norm if args.max_grad_norm > 0 else math.inf
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.callback("pre_optimizer_step", self)

        # Step. The rate is read before the schedule moves on, so the log shows the one that this step used.
        self.optimizer.step()
        self.callback("optimizer_step", self)
        self.learning_rate = float(self.optimizer.param_groups[0]["lr"])
        if not self.follows_metric:
            self.schedule.step()
        self.model.zero_grad()
        state.global_step, state.epoch = state.global_step + 1, epoch

        # What is due. The last step is evaluated and saved out of turn. trainer_callback.py:DefaultFlowCallback.on_step_end
        step, last = state.global_step, state.global_step >= state.max_steps
        first = args.logging_first_step and step == 1
        control.should_training_stop = last
        control.should_log = first or (args.logging_strategy == "steps" and step % state.logging_steps == 0)
        due = args.eval_strategy == "steps" and args.eval_delay <= step
        control.should_evaluate = due and (last or step % state.eval_steps == 0)
        control.should_save = args.save_strategy == "steps" and (last or step % state.save_steps == 0)
        self.callback("step_end", self)
        self.log_evaluate_save()

    def log_evaluate_save(self) -> None:
        """Do what is due. Saving comes last, so a checkpoint has its step's log. trainer.py:_maybe_log_save_evaluate."""
        control, state = self.control, self.state
        steps = state.global_step - self.last_logged
        if control.should_log and steps > 0:
            loss = self.loss_sum.item()
            self.loss_sum.zero_()
            self.loss_logged += loss
            self.last_logged = state.global_step
            self.log({"loss": loss / steps, "grad_norm": self.grad_norm.item(), "learning_rate": self.learning_rate})
        if control.should_evaluate:
            self.evaluate()
            control.should_save |= best.note(self.args, state, self.metrics, self.schedule)
        if control.should_save:
            self.saved = self.output / f"checkpoint-{state.global_step}"
            best.remember_checkpoint(state, self.saved)
            state.stateful_callbacks = {"TrainerControl": {"args": dict(vars(control)), "attributes": {}}}
            parts = {} if self.args.save_only_model else self.parts
            checkpoint.save(self.saved, self.model, parts, vars(state))
            best.rotate(self.args, state, self.output)
            control.should_save = False
            self.callback("save", self)

    def log(self, values: dict[str, Any]) -> None:
        """Add an entry to the log. `values` gets the epoch as well. trainer.py:log."""
        values |= {"epoch": self.state.epoch, **tokens.entry(self.state, self.args.include_num_input_tokens_seen)}
        self.state.log_history.append({**values, "step": self.state.global_step})
        self.control.should_log = False
        self.callback("log", self)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Set `metrics`. eval_loss: the mean over each batch's tokens, weighted by its rows. trainer.py:evaluation_loop."""
        rows, size, started, losses = self.eval_rows, self.args.per_device_eval_batch_size, time.time(), []
        self.model.eval()
        indices = batches.batches(sampling.evaluation(self.args, rows), size, self.args.dataloader_drop_last)
        for batch in batches.load(rows, indices, self.device):
            losses.append(self.loss(batch, count_tokens([batch])).repeat(len(batch["labels"])).cpu().numpy())
            self.callback("prediction_step", self)
        self.metrics = {}
        if losses:  # dataloader_drop_last may have left out the only batch
            every = np.concatenate(losses)
            finite = every[np.isfinite(every)]
            filtered = self.args.logging_nan_inf_filter and finite.size
            self.metrics["eval_loss"] = (finite if filtered else every).mean().item()
        self.metrics |= speed("eval", started, len(rows), math.ceil(len(rows) / size))
        self.log(self.metrics)
        self.control.should_evaluate = False
        self.callback("evaluate", self)


def speed(split: str, started: float, samples: float, steps: int) -> dict[str, float]:
    """Return the seconds since `started`, and samples and steps a second. transformers/trainer_utils.py:speed_metrics."""
    seconds = time.time() - started
    return {
        f"{split}_runtime": round(seconds, 4),
        f"{split}_samples_per_second": round(samples / seconds, 3),
        f"{split}_steps_per_second": round(steps / seconds, 3),
    }
