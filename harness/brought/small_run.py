"""Make a run small by rule: steps, batches, intervals and rows. It keeps what it has to do with each other.

- Eight optimizer steps, in two epochs or more if the run has so many; at most four rows a batch, and four batches a step.
- A checkpoint in the middle, and not only at the end. Evaluations and logs come closer together, too.
- At most two workers of the data loader.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from harness.brought.notes import Notes
from harness.reading import shown

STEPS = 8
BATCH = 4
ACCUMULATION = 4
WORKERS = 2
EVAL_ROWS = 4

#: Upstream's defaults of what is cut, for arguments that do not name it.
_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "logging_steps": 500,
    "save_steps": 500,
}


@dataclass(frozen=True)
class Size:
    """The size of a run. steps: optimizer steps. rows, eval_rows: rows that it trains on and is evaluated on."""

    steps: int
    rows: int
    eval_rows: int


def small_run(arguments: dict[str, Any], ranks: int, notes: Notes) -> Size:
    """Cut the arguments in place, and return the size of the run.

    - arguments: TrainingArguments in newest names, whose values were checked (`harness.brought.argument_names`).
    - ranks: how many processes train.
    """
    planned = arguments.get("max_steps", -1)
    epochs = arguments.get("num_train_epochs", _DEFAULTS["num_train_epochs"])
    cut = _Cut(arguments, notes)
    cut.at_most("per_device_train_batch_size", BATCH)
    cut.at_most("gradient_accumulation_steps", ACCUMULATION)
    cut.at_most("dataloader_num_workers", WORKERS)
    window = arguments["per_device_train_batch_size"] * arguments.get("gradient_accumulation_steps", 1) * ranks
    if planned > 0:
        cut.at_most("max_steps", STEPS)
        steps = arguments["max_steps"]
        rows = math.ceil(steps / 2) * window
        arguments.pop("num_train_epochs", None)  # max_steps counts
    else:
        arguments.pop("max_steps", None)
        cut.at_most("num_train_epochs", 2)
        epochs = arguments["num_train_epochs"]
        rows = (STEPS // 2 if epochs > 1 else STEPS) * window
        steps = max(1, math.ceil(epochs * rows / window))
    if arguments["per_device_train_batch_size"] > 1 and not arguments.get("dataloader_drop_last"):
        rows -= 1  # the last batch of an epoch is not full, as with most data
    _cut_intervals(cut, steps, planned)
    cut.say()
    evaluates = arguments.get("eval_strategy", "no") != "no" or arguments.get("eval_on_start", False)
    if evaluates:
        cut.at_most("per_device_eval_batch_size", BATCH)
    return Size(steps, rows, EVAL_ROWS + 1 if evaluates else 0)


def _cut_intervals(cut: _Cut, steps: int, planned: int) -> None:
    """Bring what happens every so many steps into a run of fewer steps. planned: how many it had, or -1."""
    arguments = cut.arguments
    middle = max(1, steps // 2)
    _cut_warmup(cut, steps, planned)
    if arguments.get("logging_strategy", "steps") == "steps":
        cut.at_most("logging_steps", 1)
    saves = arguments.get("save_strategy", "steps") == "steps"
    evaluates = arguments.get("eval_strategy", "no") == "steps"
    before = (arguments.get("save_steps") or _DEFAULTS["save_steps"], arguments.get("eval_steps"))
    if saves:
        cut.at_most("save_steps", middle)
    if evaluates:
        each_save = saves and before[1] is not None and before[1] < before[0]
        if before[1] is None:
            arguments["eval_steps"] = middle  # upstream takes logging_steps, and each step would be evaluated
        else:
            cut.at_most("eval_steps", max(1, middle // 2) if each_save else middle)
        save, each = arguments.get("save_steps", 1), arguments["eval_steps"]
        if arguments.get("load_best_model_at_end") and saves and save >= 1 and each >= 1 and save % each:
            cut.set("eval_steps", save)  # upstream refuses checkpoints between evaluations
    for name in ("eval_delay", "torch_empty_cache_steps"):
        if arguments.get(name):
            cut.at_most(name, middle)
    if arguments.get("eval_accumulation_steps"):
        cut.at_most("eval_accumulation_steps", 1)


def _cut_warmup(cut: _Cut, steps: int, planned: int) -> None:
    warmup = cut.arguments.get("warmup_steps", 0)
    if warmup == 1 and isinstance(warmup, float):
        cut.set("warmup_steps", steps)  # a warmup_ratio of 1
    elif warmup >= 1:
        share = warmup / planned if planned > 0 else 0.0
        made = min(max(1, round(share * steps)), steps) if share else min(int(warmup), max(1, steps // 4))
        cut.set("warmup_steps", made)


class _Cut:
    """Arguments that are cut, and the sentence about it. One that the arguments do not have gets upstream's default first."""

    def __init__(self, arguments: dict[str, Any], notes: Notes) -> None:
        self.arguments = arguments
        self._notes = notes
        self._changes: list[str] = []

    def at_most(self, name: str, most: int) -> None:
        default = _DEFAULTS.get(name)
        value = self.arguments.get(name, default)
        if value is None:
            return
        if value > most:
            self.set(name, most)
        elif default is not None:
            self.arguments[name] = value

    def set(self, name: str, value: Any) -> None:
        old = self.arguments.get(name, _DEFAULTS.get(name))
        if old != value or isinstance(old, float):
            self._changes.append(f"{name} {shown(old)} -> {shown(value)}")
        self.arguments[name] = value

    def say(self) -> None:
        """Say in one sentence what was cut."""
        if self._changes:
            self._notes.say(f"the run is made small by rule: {', '.join(self._changes)}")
