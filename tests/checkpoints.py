"""Made-up checkpoints: a whole one, and means to change it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from harness.laws import state_files
from harness.subjects.observer import inspect_checkpoint
from tests.traces import A, B, made_up, with_checkpoint

STEP = 4


def saved_run(directory):
    """Return a made-up run of four steps with a whole checkpoint, as AdamW, LambdaLR and the Trainer write it."""
    trace = with_checkpoint(made_up(), directory, STEP)
    trace.optimizer_state = {
        name: {"step": torch.tensor(float(STEP)), "exp_avg": 0.1 * value, "exp_avg_sq": value**2}
        for name, value in trace.adapter.items()
    }
    rewrite(trace, "optimizer.pt", optimizer_state(trace))
    rewrite(trace, "scheduler.pt", scheduler_state())
    rewrite(trace, "rng_state.pth", state_files.generators())
    fields = dict.fromkeys(state_files.STATE_FIELDS)
    logged = [entry for entry in trace.log_history if entry["step"] <= STEP]
    state = {"global_step": STEP, "max_steps": STEP, "train_batch_size": 2, "epoch": 4 / 20, "log_history": logged}
    rewrite(trace, "trainer_state.json", {**fields, **state})
    trace.log_history.append({"step": STEP, "train_runtime": 1.0})
    return trace


def optimizer_state(trace):
    """Return the content of optimizer.pt for a trace."""
    names = [A, B]
    return {
        "state": {index: dict(trace.optimizer_state[name]) for index, name in enumerate(names)},
        "param_groups": [{"lr": 0.0, "params": [0, 1]}, {"lr": 0.0, "params": []}],
    }


def scheduler_state():
    """Return the content of scheduler.pt after STEP steps."""
    return {
        "base_lrs": [0.01, 0.01],
        "last_epoch": STEP,
        "_step_count": STEP + 1,
        "_last_lr": [0.0, 0.0],
        "lr_lambdas": [{}, {}],
    }


def rewrite(trace, file, content):
    """Write other content into a file of the trace's first checkpoint, and inspect the checkpoint again.

    - file: path in the checkpoint.
    - content: None deletes the file.
    """
    path = Path(trace.checkpoints[0].path) / file
    if content is None:
        path.unlink()
    elif file.endswith(".json"):
        path.write_text(json.dumps(content))
    elif file.endswith(".safetensors"):
        path.parent.mkdir(exist_ok=True)
        save_file(content, path)
    else:
        torch.save(content, path)
    trace.checkpoints[0] = inspect_checkpoint(path.parent if "/" not in file else path.parents[1], "default")


def says(verdict, words):
    """Assert that a verdict does not hold, and that its findings contain these words."""
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)
